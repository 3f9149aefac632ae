"""The CSV file, read cell by cell: slowly, but knowing what stands where.

A fault is named by its line of the file, line breaks inside quotes counted. All passes over the file see the same bytes.
"""

import csv
import hashlib
import io
import operator
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa

from truefit.core.errors import TableError
from truefit.data.table import SPLITS, Dtype

Separator = Literal[",", ";", "\t", "|", " "]
# Up to here float64 holds every integer. Beyond, it does not tell 2^53 from 2^53 + 1.
EXACT = 2**53

_SHOWN_FAULTS = 10
_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_NUMBER = re.compile(r"[ \t]*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?[ \t]*")
_INTEGER = re.compile(r"[ \t]*[+-]?0*([0-9]+)[ \t]*")
_NOT_FINITE = re.compile(r"[ \t]*[+-]?(nan|inf|infinity)[ \t]*", re.IGNORECASE)
_QUOTED = re.compile(r'"[^"]*(?:""[^"]*)*"')
# Of a file's status, what tells another content.
_version = operator.attrgetter("st_dev", "st_ino", "st_size", "st_mtime_ns")

OnBytes = Callable[[bytes], object]


def _ignore(content: bytes) -> None:
    pass


class CsvFile:
    """A CSV, plain or compressed by gzip or zstd, for as many passes as it takes.

    `setting` is where the separator is set. With `hashed`, `sha256` is the digest of the file as the last whole pass read it.
    Used as a context, it raises TableError at the end when the file has changed since the beginning.
    """

    def __init__(self, path: Path, separator: Separator, setting: str = "prepare.separator", *, hashed: bool = False) -> None:
        self.path = path
        self.separator = separator
        self.setting = setting
        self.hashed = hashed
        self.sha256 = ""
        self.header: list[str] = []
        self.header_line = 1
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

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # What was found wrong in a file that changes may never have been in it.
        if kind is None or issubclass(kind, TableError):
            self._require_version(self.path.stat() if self.path.exists() else None)

    @contextmanager
    def content(self, on_bytes: OnBytes = _ignore) -> Iterator["_Stream"]:
        """Give the CSV's bytes, uncompressed; `on_bytes` is called with what is read of the file itself."""
        digest = hashlib.sha256()
        update = digest.update if self.hashed else _ignore
        try:
            file = self.path.open("rb")
        except OSError as error:
            raise _unreadable(self.path, error) from None
        with file:
            self._require_version(os.fstat(file.fileno()))
            start = _Stream(self.path, file).read(4)
            file.seek(0)
            stream = _Stream(self.path, file, lambda content: (on_bytes(content), update(content)))
            compression = next((name for magic, name in _COMPRESSIONS.items() if start.startswith(magic)), None)
            if compression:
                inner = pa.CompressedInputStream(pa.PythonFile(stream, "r"), compression)
                stream = _Stream(self.path, inner, compression=compression)
            yield stream
        self.sha256 = digest.hexdigest()

    def rows(
        self, on_bytes: OnBytes = _ignore, on_line: Callable[[str], str] | None = None
    ) -> Iterator[tuple[int, list[str]]]:
        """Give the rows, the header first and blank lines left out, each with the line that it begins on.

        `on_line` is called with each line as it is taken, and none beyond the row that is given, and returns it.
        """
        with self._text(on_bytes) as lines:
            reader = csv.reader(map(on_line, lines) if on_line else lines, delimiter=self.separator, strict=True)
            line = 1
            try:
                for row in reader:
                    if row:
                        yield line, row
                    line = reader.line_num + 1
            except csv.Error:
                raise self._broken_row(line, reader.line_num) from None

    def other_separator(self, row: list[str]) -> str:
        """Return a remark when the row is one cell and looks separated by something else, or an empty string."""
        others = [other for other in (";", "\t", "|", ",", " ") if other in row[0].strip() and other != self.separator]
        return f" (is {self.setting} {others[0]!r}?)" if others and len(row) == 1 else ""

    @contextmanager
    def _text(self, on_bytes: OnBytes = _ignore) -> Iterator[io.TextIOWrapper]:
        with (
            self.content(on_bytes) as stream,
            io.TextIOWrapper(io.BufferedReader(stream), encoding="utf-8-sig", errors="surrogateescape", newline="") as lines,
        ):
            yield lines

    def _broken_row(self, first: int, last: int) -> TableError:
        """Return the error for the row that begins on line `first` and that cannot be read beyond line `last`."""
        with self._text() as lines:
            text = "".join(islice(lines, first - 1, last))
            ended = not next(lines, "")
        separator, limit = re.escape(self.separator), csv.field_size_limit()
        whole_cell = re.compile(rf'({_QUOTED.pattern}|(?!")[^{separator}]*){separator}')
        column, begin = 1, 0
        while (cell := whole_cell.match(text, begin)) and len(cell[1].replace('""', '"')) <= limit + 2:
            column, begin = column + 1, cell.end()
        closed = _QUOTED.match(text, begin)
        if closed and text[closed.end() : closed.end() + 1] not in ("", self.separator, "\r", "\n"):
            fault = f"found text after a closing quote, allowed: {self.separator!r} or the end of the row there"
        elif text.startswith('"', begin) and not closed and ended:
            fault = "found a quote that is not closed, allowed: a closing quote"
        else:
            fault = f"found a cell of more than {limit} characters, allowed: shorter cells (is a quote left open?)"
        name = repr(self.header[column - 1]) if column <= len(self.header) else column
        return TableError(f"{self.path}: line {first}, column {name}: {fault}")

    def _require_version(self, status: os.stat_result | None) -> None:
        if status is None or _version(status) != self._version:
            raise TableError(f"{self.path}: changed while it was read; run again")


class _Stream(io.RawIOBase):
    """Bytes read front to back; a failure to read them is a TableError that names the file."""

    def __init__(self, path: Path, source: Any, on_bytes: OnBytes = _ignore, compression: str | None = None) -> None:
        super().__init__()
        self.has_quotes = False  # in what has been read
        self._path = path
        self._source = source
        self._on_bytes = on_bytes
        self._compression = compression

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        """Return up to `size` bytes. Without this, RawIOBase reads into a buffer that it clears before and copies after."""
        try:
            content: bytes = self._source.read(size)
        except OSError as error:
            if self._compression is None:
                raise _unreadable(self._path, error) from None
            found = f"damaged {self._compression} data ({error})"
            raise TableError(f"{self._path}: found {found}, allowed: a whole {self._compression} file") from None
        self.has_quotes = self.has_quotes or b'"' in content
        self._on_bytes(content)
        return content

    def readinto(self, buffer: Any) -> int:
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)


def read_header(source: CsvFile) -> list[str]:
    """Return the column names in the first line of the CSV, and keep them with their line in `source`.

    Raises TableError when the file cannot be read, is empty, or names a column twice or not at all.
    """
    line, header = next(source.rows(), (1, []))
    where = f"{source.path}: line {line}"
    if not header:
        raise TableError(f"{where}: found an empty file, allowed: a header with column names, then rows")
    for number, name in enumerate(header, 1):
        if not _is_utf8(name) or "\0" in name:
            raise TableError(f"{where}, column {number}: found {_cell_text(name)}, allowed: text in UTF-8")
        if not name.strip():
            raise TableError(f"{where}, column {number}: found no name, allowed: a name for each column")
        if header.index(name) != number - 1:
            raise TableError(f"{where}, column {number}: found {name!r} again, allowed: each name once")
    source.header, source.header_line = header, line
    return header


def missing_column(source: CsvFile, name: str, reason: str) -> TableError:
    """Return the error for a column that the header of `source` lacks; `reason` says who wants it."""
    allowed = shown_names(source.header) + source.other_separator(source.header)
    return TableError(f"{source.path}: line {source.header_line}: found no column {name!r} ({reason}), allowed: {allowed}")


def shown_names(header: list[str]) -> str:
    """Return the names of columns as text of one line."""
    return ", ".join(name if name.isprintable() else repr(name) for name in header)


def checked_rows(
    source: CsvFile, columns: list[str], dtype: Dtype, split_column: str | None, on_bytes: OnBytes = _ignore
) -> Iterator[tuple[list[float], str]]:
    """Give each row's numbers, in the order of `columns`, and its split, empty without a split column.

    `columns` must hold finite numbers of `dtype`, `split_column` the name of a split; other columns may hold anything.
    Raises TableError, at the end of the file, for what was found otherwise: the first ten faults, and how many there are.
    """
    header = source.header
    numeric = [header.index(name) for name in columns]
    split = None if split_column is None else header.index(split_column)
    checks = sorted([*numeric, *([] if split is None else [split])])
    faults: list[str] = []
    count, empty = 0, True
    rows = source.rows(on_bytes)
    next(rows)
    for line, row in rows:
        empty = False
        if len(row) != len(header):
            found = [f": found {len(row)} cells, allowed: {len(header)}, as in the header{source.other_separator(row)}"]
        else:
            found = [
                f", column {header[index]!r}: found {_cell_text(row[index])}, allowed: {allowed}"
                for index in checks
                if (allowed := _split_fault(row[index]) if index == split else _number_fault(row[index], dtype))
            ]
        if found:
            faults += [f"line {line}{fault}" for fault in found[: _SHOWN_FAULTS - len(faults)]]
            count += len(found)
        else:
            yield [float(row[index]) for index in numeric], "" if split is None else row[split]
    if empty:
        raise TableError(f"{source.path}: line {source.header_line}: found no rows below the header, allowed: at least one")
    if faults:
        total = f" ({count} bad cells in all)" if count > 1 else ""
        raise TableError(f"{source.path}: {'; '.join(faults)}{total}")


def _split_fault(cell: str) -> str | None:
    return None if cell in SPLITS else ", ".join(SPLITS)


def _number_fault(cell: str, dtype: Dtype) -> str | None:
    """Return what a cell that cannot be taken should have held, or None for a finite number of `dtype`."""
    if not _NUMBER.fullmatch(cell):
        if _NOT_FINITE.fullmatch(cell):
            return "a finite number"
        return "a number with a point, without a comma" if _NUMBER.fullmatch(cell.replace(",", "")) else "a number"
    if abs(value := float(cell)) < EXACT:
        return None
    with np.errstate(over="ignore"):
        if not np.isfinite(np.dtype(dtype).type(value)):
            return f"a number within {dtype}'s range"
    if (integer := _INTEGER.fullmatch(cell)) and int(integer[1]) > EXACT:
        return f"an integer up to 2^53 ({EXACT}), beyond which float64 does not hold each, or a number such as 1e20"
    return None


def _cell_text(cell: str) -> str:
    if not cell.strip():
        return "an empty cell"
    return repr(cell[:40] if _is_utf8(cell) else cell.encode(errors="surrogateescape")[:40])


def _is_utf8(text: str) -> bool:
    """Return whether the file's bytes were UTF-8; those that were not stand in the text as surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _unreadable(path: Path, error: OSError) -> TableError:
    return TableError(f"{path}: cannot be read: {error.strerror or error}")
