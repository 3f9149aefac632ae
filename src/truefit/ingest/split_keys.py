"""The cells of the column by which a table is split, as numbers: names of splits, groups, or a place in an order.

A reader hands over cells as texts, a batch at a time. What cannot be taken raises pa.ArrowInvalid; `fault` then says, cell by
cell, what it should have been. Reading the same rows again gives the same numbers.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from truefit.data.numbering import Numbering
from truefit.data.table import SPLITS
from truefit.ingest.csv_format import FormatSettings

_BLANKS = " \t"
_WHOLE = "^[+-]?(?:[0-9]{1,18}|[0-8][0-9]{18})$"  # a number that int64 has room for
_MONTH = "^([0-9]{4}-[0-9]{2})$"


class KeyColumn(ABC):
    """The column called `name`."""

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def read(self, texts: pa.Array) -> NDArray[Any]:
        """Return the numbers [B] of the rows' texts [B]; raises pa.ArrowInvalid where one of them cannot be taken."""

    @abstractmethod
    def fault(self, cell: str) -> str | None:
        """Return what a cell that cannot be taken should have been, or None."""

    @property
    def met(self) -> list[str]:
        """What the rows so far decide of the numbers of others."""
        return []

    def join(self, met: list[str]) -> NDArray[np.int64] | None:
        """Take what another reader `met` in the rows behind these; return this one's numbers for its own, if they differ.

        Raises ValueError where those rows have to be read after these.
        """
        return None


class NameColumn(KeyColumn):
    """A column that says each row's split: positions in SPLITS, as uint8."""

    def read(self, texts: pa.Array) -> NDArray[np.uint8]:
        """Return the positions [B]."""
        codes = pyarrow.compute.index_in(texts, value_set=pa.array(SPLITS))
        if codes.null_count:
            raise pa.ArrowInvalid("found a split that is not known")
        return np.from_dlpack(codes).astype(np.uint8)

    def fault(self, cell: str) -> str | None:
        """Return the splits' names, where the cell is none of them."""
        return None if cell in SPLITS else ", ".join(SPLITS)


class GroupColumn(KeyColumn):
    """A column whose equal texts, without outer blanks, are a group: numbers from 0, as uint32, as they first appear.

    It keeps a table of the groups, which takes about 200 bytes for each.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._numbering = Numbering()

    @property
    def count(self) -> int:
        """The number of groups that were met."""
        return len(self._numbering)

    def read(self, texts: pa.Array) -> NDArray[np.uint32]:
        """Return the groups' numbers [B]."""
        encoded = _trimmed(texts).dictionary_encode()
        names = encoded.dictionary.to_pylist()
        if "" in names:
            raise pa.ArrowInvalid("found an empty cell")
        return self._numbering.of(names).astype(np.uint32).take(np.from_dlpack(encoded.indices).astype(np.int64))

    def fault(self, cell: str) -> str | None:
        """Return what a cell that is empty, or not decoded, should have been."""
        return None if _reads(self, cell) else "text that names the row's group"

    @property
    def met(self) -> list[str]:
        """The groups."""
        return self._numbering.texts

    def join(self, met: list[str]) -> NDArray[np.int64]:
        """Take other rows' groups."""
        return self._numbering.join(met)


class OrderColumn(KeyColumn):
    """A column of numbers, or of dates and times: int64, whole numbers or microseconds, or else float64.

    The first row decides which; with dates, also whether all have a time zone.
    """

    _any = "a number, or a date or time such as 2024-01-31 or 2024-01-31T12:30:00"

    def __init__(self, name: str, form: FormatSettings) -> None:
        super().__init__(name)
        self._kinds: dict[str, Callable[[pa.Array], NDArray[Any]]] = {
            "a number": lambda texts: _numbers(texts, form),
            "a date or time without a time zone": lambda texts: _instants(texts, pa.timestamp("us")),
            "a date and time with a time zone": lambda texts: _instants(texts, pa.timestamp("us", "UTC")),
        }
        self._kind: str | None = None

    def read(self, texts: pa.Array) -> NDArray[Any]:
        """Return numbers [B] by which the rows can be sorted."""
        self._kind = self._kind or self._kind_of(texts[:1])
        if self._kind is None:
            raise pa.ArrowInvalid("found neither a number nor a date")
        return self._kinds[self._kind](texts)

    def fault(self, cell: str) -> str | None:
        """Return what a cell that is no place in this order should have been."""
        if _reads(self, cell):
            return None
        return f"{self._kind}, as in the rows before" if self._kind else self._any

    @property
    def met(self) -> list[str]:
        """What the first row was, where there was one."""
        return [self._kind] if self._kind else []

    def join(self, met: list[str]) -> None:
        """Take what other rows are."""
        for kind in met:
            if kind != (self._kind or kind):
                raise ValueError(f"found {kind}")
            self._kind = kind

    def _kind_of(self, texts: pa.Array) -> str | None:
        for kind, read in self._kinds.items():
            try:
                read(texts)
            except pa.ArrowInvalid:
                continue
            return kind
        return None


def _reads(column: KeyColumn, cell: str) -> bool:
    try:
        column.read(pa.array([cell]))
    except (pa.ArrowInvalid, UnicodeEncodeError):  # the latter for bytes that could not be decoded
        return False
    return True


def _trimmed(texts: pa.Array) -> pa.Array:
    return pyarrow.compute.ascii_trim(pyarrow.compute.fill_null(texts, ""), characters=_BLANKS)


def _all_match(texts: pa.Array, pattern: str) -> bool:
    return pyarrow.compute.all(pyarrow.compute.match_substring_regex(texts, pattern)).as_py() is not False


def _numbers(texts: pa.Array, form: FormatSettings) -> NDArray[Any]:
    """Return numbers that are written in the format: int64, which keeps each apart, where all are whole, or float64."""
    texts = _trimmed(texts)
    if not _all_match(texts, f"^(?:{form.number})$"):
        raise pa.ArrowInvalid("found what is no number")
    if form.thousands:
        texts = pyarrow.compute.replace_substring(texts, form.thousands, "")
    texts = pyarrow.compute.replace_substring(texts, form.decimal, ".")
    if _all_match(texts, _WHOLE):
        return np.from_dlpack(pyarrow.compute.ascii_ltrim(texts, "+").cast(pa.int64()))
    numbers = np.from_dlpack(texts.cast(pa.float64()))
    if not np.isfinite(numbers).all():
        raise pa.ArrowInvalid("found a number that float64 has no room for")
    return numbers


def _instants(texts: pa.Array, kind: pa.DataType) -> NDArray[np.int64]:
    """Return microseconds since 1970 of dates and times in ISO 8601, the day and the time of which may be missing."""
    texts = _trimmed(texts)
    try:
        instants = texts.cast(kind)
    except pa.ArrowInvalid:
        instants = pyarrow.compute.replace_substring_regex(texts, _MONTH, r"\1-01").cast(kind)
    return np.from_dlpack(instants.cast(pa.int64())).astype(np.int64, copy=False)
