"""A file that a table is read from: how, where an error finds its rows, and that it stays what it was meanwhile."""

import operator
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, NamedTuple, Self

from truefit.core.errors import TableError
from truefit.ingest.csv_format import FormatSettings

# Of a file's status, what tells another content.
_version = operator.attrgetter("st_dev", "st_ino", "st_size", "st_mtime_ns")


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


class SourceFile(ABC):
    """A file with the columns `header`; as a context, it raises TableError at the end when the file has changed.

    With `hashed`, `sha256` is the digest of the file as the last whole pass read it.
    """

    unit: ClassVar[str] = "line"  # that tells a row's place

    def __init__(self, path: Path, form: FormatSettings, advice: Advice, *, hashed: bool) -> None:
        self.path = path
        self.format = form
        self.advice = advice
        self.hashed = hashed
        self.sha256 = ""
        self.may_be_empty = False  # without a row, as one of several
        self.header_line = 1
        self.header: list[str] = []  # without outer blanks, and empty for a column without a name
        try:
            status = path.stat()
        except OSError as error:
            raise unreadable(path, error) from None
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            raise TableError(f"{path}: found a pipe or a device, allowed: a file, which can be read twice")
        self._version: tuple[int, ...] = _version(status)
        self.size = status.st_size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # What was found wrong in a file that changes may never have been in it.
        if kind is None or issubclass(kind, TableError):
            self.require_unchanged(self.path.stat)

    @property
    def version(self) -> list[int]:
        """What tells another content, and is the same on each host: the size, and the time of the last change."""
        return list(self._version[-2:])

    @property
    def header_place(self) -> str:
        """The place of the columns' names, as an error names it."""
        return str(self.path)

    def kind(self, name: str) -> str:
        """Return the kind that a column is by the file, which prepare.columns may change."""
        return "number"

    @abstractmethod
    def require_types(self, used: Collection[str]) -> None:
        """Raise TableError for the first column among those `used` whose type none of the kinds can be."""

    def other_separator(self, row: list[str]) -> str:
        """Return a remark when the row is one cell and looks separated by something else, or an empty string."""
        return ""

    def places(self, rows: Collection[int]) -> dict[int, int]:
        """Return the places, in `unit`, of rows that are counted from 0."""
        return {row: row + 1 for row in rows}

    @abstractmethod
    def cells(self, name: str) -> Iterator[tuple[int, str]]:
        """Give a column's cells as texts, each with its place; those that are null may be left out."""

    def numbers(self, name: str) -> Iterator[tuple[str, str, float]]:
        """Give the places, with the file, the texts and the numbers of a column of numbers, but for missing values."""
        for place, text in self.cells(name):
            if (number := self.format.number_of(text)) is not None:
                yield f"{self.path}: {self.unit} {place}", text, number

    def require_unchanged(self, status: Callable[[], os.stat_result]) -> None:
        """Raise TableError unless the status is that of the file at the beginning."""
        with suppress(OSError):
            if _version(status()) == self._version:
                return
        raise TableError(f"{self.path}: changed while it was read; run again")


def unreadable(path: Path, error: Exception) -> TableError:
    """Return the error for a file that the system does not let be read."""
    return TableError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}")
