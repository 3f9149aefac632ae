"""The cells of the column by which a table is split, as numbers: names of splits, groups, or a place in an order.

A reader hands over cells as texts, a batch at a time. What cannot be taken raises pa.ArrowInvalid; `fault` then says, cell by
cell, what it should have been. Reading the same rows again gives the same numbers.
"""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from truefit.data.table import SPLITS
from truefit.ingest.csv_format import FormatSettings

_BLANKS = " \t"
_WHOLE = "^[+-]?(?:[0-9]{1,18}|[0-8][0-9]{18})$"  # a number that int64 has room for
_MONTH = "^([0-9]{4}-[0-9]{2})$"


class KeyColumn(Protocol):
    """The column called `name`."""

    name: str

    def read(self, texts: pa.Array) -> NDArray[Any]:
        """Return the numbers [B] of the rows' texts [B]; raises pa.ArrowInvalid where one of them cannot be taken."""

    def fault(self, cell: str) -> str | None:
        """Return what a cell that cannot be taken should have been, or None."""


class NameColumn:
    """A column that says each row's split: positions in SPLITS, as uint8."""

    def __init__(self, name: str) -> None:
        self.name = name

    def read(self, texts: pa.Array) -> NDArray[np.uint8]:
        """Return the positions [B]."""
        codes = pyarrow.compute.index_in(texts, value_set=pa.array(SPLITS))
        if codes.null_count:
            raise pa.ArrowInvalid("found a split that is not known")
        return np.from_dlpack(codes).astype(np.uint8)

    def fault(self, cell: str) -> str | None:
        """Return the splits' names, where the cell is none of them."""
        return None if cell in SPLITS else ", ".join(SPLITS)


class GroupColumn:
    """A column whose equal texts, without outer blanks, are a group: numbers from 0, as uint32, as they first appear.

    It keeps a table of the groups, which takes about 200 bytes for each.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._numbers: dict[str, int] = {}

    @property
    def count(self) -> int:
        """The number of groups that were met."""
        return len(self._numbers)

    def read(self, texts: pa.Array) -> NDArray[np.uint32]:
        """Return the groups' numbers [B]."""
        encoded = _trimmed(texts).dictionary_encode()
        names = encoded.dictionary.to_pylist()
        if "" in names:
            raise pa.ArrowInvalid("found an empty cell")
        numbers = np.array([self._numbers.setdefault(name, len(self._numbers)) for name in names], np.uint32)
        return numbers.take(np.from_dlpack(encoded.indices).astype(np.int64))

    def fault(self, cell: str) -> str | None:
        """Return what a cell that is empty, or not decoded, should have been."""
        return None if _reads(self, cell) else "text that names the row's group"


class OrderColumn:
    """A column of numbers, or of dates and times: int64, whole numbers or microseconds, or else float64.

    The first row decides which; with dates, also whether all have a time zone.
    """

    _any = "a number, or a date or time such as 2024-01-31 or 2024-01-31T12:30:00"

    def __init__(self, name: str, form: FormatSettings) -> None:
        self.name = name
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
