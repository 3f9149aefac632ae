"""A CSV file: its bytes, and its rows as Python's reader finds them. All passes over it see the same bytes."""

import csv
import hashlib
import io
import os
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from truefit.core.errors import TableError
from truefit.ingest.containers import DAMAGED, START_BYTES, container_of, opened
from truefit.ingest.csv_format import FormatSettings
from truefit.ingest.csv_lines import RowBlocks, RowLines, single_blanks
from truefit.ingest.source import ADVICE, FORMAT, Advice, SourceFile, unreadable

_QUOTED = re.compile(r'"[^"]*(?:""[^"]*)*"')

COMMENTS = "#%"  # what comments begin with, often
LONGEST_CELL = 1 << 24  # characters: the bound of what a quote that is left open takes in

OnBytes = Callable[[bytes], object]


def ignore(content: bytes) -> None:
    """Do nothing with what is read."""


class CsvFile(SourceFile):
    """A CSV, plain or in a container."""

    def __init__(self, path: Path, form: FormatSettings = FORMAT, advice: Advice = ADVICE, *, hashed: bool = False) -> None:
        super().__init__(path, form, advice, hashed=hashed)
        self.header_lines = 0  # to the header's end, those above it among them

    @property
    def header_place(self) -> str:
        """The file and the header's line, as an error names it."""
        return f"{self.path}: line {self.header_line}"

    @contextmanager
    def content(self, on_bytes: OnBytes = ignore) -> Iterator["_Stream"]:
        """Give the CSV's bytes, uncompressed; `on_bytes` is called with what is read of the file itself."""
        digest = hashlib.sha256()
        update = digest.update if self.hashed else ignore
        try:
            file = self.path.open("rb")
        except OSError as error:
            raise unreadable(self.path, error) from None
        with file:
            self.require_unchanged(lambda: os.fstat(file.fileno()))
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

    def places(self, rows: Collection[int]) -> dict[int, int]:
        """Return the lines of rows that are counted from 0."""
        data = islice(enumerate(self.data_rows()), max(rows, default=-1) + 1)
        return {row: line for row, (line, _) in data if row in rows}

    def cells(self, name: str) -> Iterator[tuple[int, str]]:
        """Give a column's cells, each with the line of its row."""
        index = self.header.index(name)
        return ((line, row[index]) for line, row in self.data_rows())

    def require_types(self, used: Collection[str]) -> None:
        """Do nothing: a CSV's columns have no types."""

    def other_separator(self, row: list[str]) -> str:
        """Return a remark when the first line looks like a comment, or the row like cells that something else separates."""
        first = (self.header or row)[0][:1]
        if first in COMMENTS and first and not self.format.comment:
            return f" (is {self.advice.format}.comment {first!r}?)"
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
                raise unreadable(self._path, error) from None
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


def _damaged(path: Path, container: str, error: Exception) -> TableError:
    return TableError(f"{path}: found damaged {container} data ({error}), allowed: a whole {container} file")
