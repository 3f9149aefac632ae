"""Numbers in a CSV's texts: which of them are taken, and what is wrong with another."""

import math
import re

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from truefit.data.columns.base import Array, Parsed, to_numpy
from truefit.data.table import EXACT, Dtype
from truefit.ingest.csv_format import FormatSettings

EXACT_FLOAT32 = 2**24  # up to which float32 holds every integer
LARGEST = 1e150  # in size, of which float64 still holds the square

_INTEGER = re.compile(r"[+-]?0*([0-9]+)")
_NOT_FINITE = re.compile(r"[+-]?(nan|inf|infinity)", re.IGNORECASE)
_LONG_INTEGER = r"^[+-]?[0-9]{16,}$"
_NOT_ZERO = r"^[^eE]*[1-9]"


class Numbers:
    """The numbers that a CSV's format and a table's dtype allow; `wider` is where a user sets another dtype."""

    def __init__(self, form: FormatSettings, dtype: Dtype, wider: str) -> None:
        self._format = form
        self._pattern = re.compile(form.number)
        self._float32 = dtype == "float32"
        self._wider = wider

    def parse(self, texts: pa.Array) -> Parsed:
        """Return the numbers [B, 1] of texts without blanks around them, nan for null, and which are not taken [B]."""
        cells, form = texts.fill_null(""), self._format
        shaped = to_numpy(pyarrow.compute.match_substring_regex(cells, f"^(?:{form.number})$"))
        plain = pyarrow.compute.if_else(pa.array(shaped), cells, "nan")
        if form.thousands:
            plain = pyarrow.compute.replace_substring(plain, form.thousands, "")
        plain = pyarrow.compute.replace_substring(plain, form.decimal, ".")
        numbers = to_numpy(plain.cast(pa.float64())).copy()
        # A long integer may have been rounded, and a 0 may have been another number: that takes a look at the text.
        long = to_numpy(pyarrow.compute.match_substring_regex(plain, _LONG_INTEGER))
        small = (numbers == 0) & to_numpy(pyarrow.compute.match_substring_regex(plain, _NOT_ZERO))
        looked_at = ~shaped | long | small | ~kept(numbers, self._float32)
        bad = np.zeros(len(cells), bool)
        for index in np.flatnonzero(looked_at & ~to_numpy(texts.is_null())).tolist():
            bad[index] = self.fault(cells[index].as_py()) is not None
        return without(numbers, form.missing_numbers)[:, None], bad

    def fault(self, cell: str) -> str | None:
        """Return what a cell that is not taken should have held, or None for a finite number that the dtype keeps."""
        cell = cell.strip(" \t")
        if not (number := self._pattern.fullmatch(cell)):
            return self._no_number(cell)
        plain = self._format.plain(cell)
        size = abs(float(plain))
        if not size:
            return "0, or a number that float64 tells from it" if re.search("[1-9]", number[1]) else None
        if EXACT <= size <= LARGEST and (integer := _INTEGER.fullmatch(plain)) and int(integer[1]) > EXACT:
            return f"an integer up to 2^53 ({EXACT}), beyond which float64 does not hold each, or a number such as 1e20"
        if self._float32 and (fault := _float32_fault(size)):
            return f"{fault}, or {self._wider}" if size <= LARGEST else fault
        return None if size <= LARGEST else f"a number between -{LARGEST:g} and {LARGEST:g}"

    def _no_number(self, cell: str) -> str:
        if _NOT_FINITE.fullmatch(cell):
            return "a finite number"
        if self._format.decimal == "," and "." in cell and self._pattern.fullmatch(cell.replace(".", "")):
            return "a number with a comma, without a point"
        if self._format.decimal == "." and "," in cell and self._pattern.fullmatch(cell.replace(",", "")):
            return "a number with a point, without a comma"
        return "a number"


def without(numbers: Array, missing: list[float]) -> Array:
    """Return the numbers with nan for those that stand for a missing value."""
    return np.where(np.isin(numbers, missing), np.nan, numbers) if missing else numbers


def kept(numbers: Array, float32: bool) -> NDArray[np.bool_]:
    """Return which numbers, nan apart, the dtype keeps: as finite ones, integers as such, and nothing else than 0 as 0."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        stored = numbers.astype(np.float32 if float32 else np.float64)
        integers = (np.abs(numbers) > EXACT_FLOAT32) & (np.abs(numbers) < EXACT) & (numbers == np.rint(numbers))
        fine: NDArray[np.bool_] = np.isnan(numbers) | (
            (np.abs(numbers) <= LARGEST)
            & np.isfinite(stored)
            & ~(integers & (stored != numbers))
            & ((stored != 0) | (numbers == 0))
        )
    return fine


def _float32_fault(size: float) -> str | None:
    """Return what a number of this size should have been, or None where float32 keeps it."""
    if 1e-30 < size <= EXACT_FLOAT32:  # nearly all are
        return None
    with np.errstate(over="ignore", under="ignore"):
        stored = float(np.float32(size))
    if math.isinf(stored):
        return "a number within float32's range"
    if not stored:
        return "0, or a number that float32 tells from it"
    if size < EXACT and size.is_integer() and stored != size:
        return f"an integer that float32 holds, such as each up to 2^24 ({EXACT_FLOAT32})"
    return None
