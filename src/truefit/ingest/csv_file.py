"""A CSV file: its bytes, and its rows as Python's reader finds them. All passes over it see the same bytes."""

import csv
import hashlib
import io
import operator
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Self

from truefit.core.errors import TableError
from truefit.ingest.containers import DAMAGED, START_BYTES, container_of, opened
from truefit.ingest.csv_format import FormatSettings
from truefit.ingest.csv_lines import RowBlocks, RowLines, single_blanks

_QUOTED = re.compile(r'"[^"]*(?:""[^"]*)*"')
# Of a file's status, what tells another content.
_version = operator.attrgetter("st_dev", "st_ino", "st_size", "st_mtime_ns")

LONGEST_CELL = 1 << 24  # characters: the bound of what a quote that is left open takes in

OnBytes = Callable[[bytes], object]


def ignore(content: bytes) -> None:
    """Do nothing with what is read."""


class Advice(NamedTuple):
    """Where a user sets what an error advises."""

    separator: str = "prepare.format.separator"
    header: str = "prepare.format.header: false"
    encoding: str = "another prepare.format.encoding"
    wider: str = "prepare.dtype: float64"
    kind: str = "prepare.columns"
    exclude: str = "prepare.exclude"
    format: str = "prepare.format"


FORMAT, ADVICE = FormatSettings(), Advice()


class CsvFile:
    """A CSV, plain or in a container; as a context, it raises TableError at the end when the file has changed.

    With `hashed`, `sha256` is the digest of the file as the last whole pass read it.
    """

    def __init__(self, path: Path, form: FormatSettings = FORMAT, advice: Advice = ADVICE, *, hashed: bool = False) -> None:
        self.path = path
        self.format = form
        self.advice = advice
        self.hashed = hashed
        self.sha256 = ""
        self.header: list[str] = []
        self.header_line = 1
        self.header_lines = 0  # to its end, those above it among them
        try:
            status = path.stat()
        except OSError as error:
            raise _unreadable(path, error) from None
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            raise TableError(f"{path}: found a pipe or a device, allowed: a file, which can be read twice")
        self._version = _version(status)
        self.size = status.st_size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # What was found wrong in a file that changes may never have been in it.
        if kind is None or issubclass(kind, TableError):
            self._require_unchanged(self.path.stat)

    @contextmanager
    def content(self, on_bytes: OnBytes = ignore) -> Iterator["_Stream"]:
        """Give the CSV's bytes, uncompressed; `on_bytes` is called with what is read of the file itself."""
        digest = hashlib.sha256()
        update = digest.update if self.hashed else ignore
        try:
            file = self.path.open("rb")
        except OSError as error:
            raise _unreadable(self.path, error) from None
        with file:
            self._require_unchanged(lambda: os.fstat(file.fileno()))
            container = container_of(self.path, _Stream(self.path, file).read(START_BYTES))
            file.seek(0)
            if container == "zip":  # which is read from its end
                for block in iter(partial(_Stream(self.path, file).read, 1 << 20), b""):
                    update(block)
                stream = self._unpacked(_Seekable(self.path, file, on_bytes), container)
            else:
                stream = _Stream(self.path, file, lambda content: (on_bytes(content), update(content)))
                stream = self._unpacked(stream, container) if container else stream
            yield stream
        self.sha256 = digest.hexdigest()

    def _unpacked(self, stream: "_Stream", container: str) -> "_Stream":
        try:
            return _Stream(self.path, opened(self.path, stream, container), container=container)
        except DAMAGED as error:
            raise _damaged(self.path, container, error) from None

    def blocks(self, stream: "_Stream") -> RowBlocks:
        """Return the content in `stream` as pyarrow takes it: the rows below the header."""
        return RowBlocks(stream, self.format, self.header_lines)

    def rows(self, on_bytes: OnBytes = ignore, on_line: Callable[[str], str] | None = None) -> Iterator[tuple[int, list[str]]]:
        """Give the rows, the header first and blank lines left out, each with the line that it begins on.

        `on_line` returns each line that it is called with: as it is taken, and none beyond the row that is given.
        """
        csv.field_size_limit(LONGEST_CELL)  # which counts for the process
        with self._text(on_bytes) as text:
            lines = RowLines(map(on_line, text) if on_line else text, self.format)
            try:
                for row in csv.reader(lines, delimiter=self.format.separator, strict=True):
                    lines.within = False
                    if row:
                        yield lines.begin, row
            except csv.Error:
                raise self._broken_row(lines.begin, lines.last) from None
            except UnicodeError:
                found = f"line {lines.last + 1}: found bytes that are no {self.format.encoding}"
                raise TableError(f"{self.path}: {found}, allowed: text in it, or {self.advice.encoding}") from None

    def data_rows(self, on_bytes: OnBytes = ignore) -> Iterator[tuple[int, list[str]]]:
        """Give the rows below the header."""
        return islice(self.rows(on_bytes), int(self.format.header), None)

    def other_separator(self, row: list[str]) -> str:
        """Return a remark when the row is one cell and looks separated by something else, or an empty string."""
        others = [other for other in (";", "\t", "|", ",", " ") if other in row[0].strip() and other != self.format.separator]
        return f" (is {self.advice.separator} {others[0]!r}?)" if others and len(row) == 1 else ""

    @contextmanager
    def _text(self, on_bytes: OnBytes = ignore) -> Iterator[io.TextIOWrapper]:
        encoding = "utf-8-sig" if self.format.is_utf8 else self.format.encoding
        with (
            self.content(on_bytes) as stream,
            io.TextIOWrapper(io.BufferedReader(stream), encoding=encoding, errors="surrogateescape", newline="") as lines,
        ):
            yield lines

    def _broken_row(self, first: int, last: int) -> TableError:
        """Return the error for the row that begins on line `first` and that cannot be read beyond line `last`."""
        with self._text() as lines:
            text = "".join(islice(lines, first - 1, last))
            ended = not next(lines, "")
        if self.format.separator == " ":
            text, _ = single_blanks(text)
        separator, limit = re.escape(self.format.separator), LONGEST_CELL
        whole_cell = re.compile(rf'({_QUOTED.pattern}|(?!")[^{separator}]*){separator}')
        column, begin = 1, 0
        while (cell := whole_cell.match(text, begin)) and len(cell[1].replace('""', '"')) <= limit + 2:
            column, begin = column + 1, cell.end()
        closed = _QUOTED.match(text, begin)
        if closed and text[closed.end() : closed.end() + 1] not in ("", self.format.separator, "\r", "\n"):
            fault = f"found text after a closing quote, allowed: {self.format.separator!r} or the end of the row there"
        elif text.startswith('"', begin) and not closed and ended:
            fault = "found a quote that is not closed, allowed: a closing quote"
        else:
            fault = f"found a cell of more than {limit} characters, allowed: shorter cells (is a quote left open?)"
        name = repr(self.header[column - 1]) if column <= len(self.header) and self.header[column - 1] else column
        return TableError(f"{self.path}: line {first}, column {name}: {fault}")

    def _require_unchanged(self, status: Callable[[], os.stat_result]) -> None:
        with suppress(OSError):
            if _version(status()) == self._version:
                return
        raise TableError(f"{self.path}: changed while it was read; run again")


class _Stream(io.RawIOBase):
    """Bytes read front to back; a failure to read them is a TableError that names the file."""

    def __init__(self, path: Path, source: Any, on_bytes: OnBytes = ignore, container: str | None = None) -> None:
        super().__init__()
        self._path = path
        self._source = source
        self._on_bytes = on_bytes
        self._container = container

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        """Return up to `size` bytes. Without this, RawIOBase reads into a buffer that it clears before and copies after."""
        try:
            content: bytes = self._source.read(size)
        except DAMAGED as error:
            if self._container is None:
                raise _unreadable(self._path, error) from None
            raise _damaged(self._path, self._container, error) from None
        self._on_bytes(content)
        return content

    def readinto(self, buffer: Any) -> int:
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)


class _Seekable(_Stream):
    """The same, of a file that is read here and there."""

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        position: int = self._source.seek(offset, whence)
        return position

    def tell(self) -> int:
        position: int = self._source.tell()
        return position


def _unreadable(path: Path, error: Exception) -> TableError:
    return TableError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}")


def _damaged(path: Path, container: str, error: Exception) -> TableError:
    return TableError(f"{path}: found damaged {container} data ({error}), allowed: a whole {container} file")
