"""What is counted of each column of a CSV, a batch at a time, in bounded memory."""

import math
import re
from collections import Counter
from contextlib import suppress
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from truefit.data.table import EXACT
from truefit.ingest.csv_format import FormatSettings
from truefit.ingest.dates import DATES

MOST_DISTINCT = 1000  # values of a column that are told apart …
FEWEST_DISTINCT = 200  # … and of a table with many columns, where they are MOST_COUNTED together
MOST_COUNTED = 1 << 20
LONGEST_TEXT = 100  # characters by which texts are told apart
ROUNDING = 1e-12  # of a mean square, below which a variance is none

Numbers = NDArray[np.float64]


class Missing:
    """The texts that stand for a missing value; those that are numbers do so however they are spelled."""

    def __init__(self, texts: list[str], form: FormatSettings) -> None:
        self.texts = texts
        numbers = [form.plain(text) for text in texts if re.fullmatch(form.number, text)]
        self.values = pa.array(texts, pa.string())
        self.numbers = np.array(numbers, np.float64)


class Distinct:
    """How often each value occurs, up to a number of values; `rows` were seen until there were more, or all."""

    def __init__(self, most: int) -> None:
        self.counts = Counter[Any]()
        self.more = False
        self.rows = 0
        self._most = most

    def add(self, values: list[Any], counts: list[int]) -> None:
        """Count values, each given once; only known ones, where there were too many."""
        for value, count in zip(values, counts, strict=True):
            if value in self.counts or len(self.counts) < self._most:
                self.counts[value] += count
            else:
                self.more = True
            self.rows += 0 if self.more else count


class Moments:
    """Sums of powers of a column z, and of its products with the target t, both shifted and scaled by their first batch.

    Where they are beyond float64, what is computed of them is 0, as it is for a constant.
    """

    def __init__(self) -> None:
        self._shift, self._scale = 0.0, 0.0
        self._powers = np.zeros(4)  # sums of 1, z, z², z³ …
        self._pairs = np.zeros(6)  # … and of 1, z, t, z², t², zt in the rows with both

    @np.errstate(over="ignore", invalid="ignore")
    def scaled(self, numbers: Numbers) -> Numbers:
        """Return the numbers, shifted and scaled; NaN stays."""
        if not self._scale and len(known := numbers[~np.isnan(numbers)]):
            self._shift, self._scale = float(known.mean()), float(known.std()) or 1.0
        return (numbers - self._shift) / (self._scale or 1.0)

    @np.errstate(over="ignore", invalid="ignore")
    def add(self, z: Numbers, t: Numbers) -> None:
        """Take in a batch of scaled values and targets [B]; NaN stands for none."""
        z, t = _both(z, t, ~np.isnan(z))
        squares = z * z
        self._powers += np.array([len(z), z.sum(), squares.sum(), (squares * z).sum()])
        z, t = _both(z, t, ~np.isnan(t))
        # By sums, since a product of vectors would start the threads of BLAS for each.
        self._pairs += np.array([len(z), z.sum(), t.sum(), (z * z).sum(), (t * t).sum(), (z * t).sum()])

    @property
    def skewness(self) -> float:
        """The third standardised moment; 0 for a constant."""
        mean, square, cube = (float(value) for value in self._powers[1:] / max(1, self._powers[0]))
        variance = square - mean * mean
        known = ROUNDING * square < variance < math.inf and math.isfinite(cube)
        return (cube - 3 * mean * square + 2 * mean**3) / variance**1.5 if known else 0.0

    @property
    def correlation(self) -> float:
        """Pearson's correlation with the target; 0 where one of both is constant."""
        mean_z, mean_t, zz, tt, zt = (float(value) for value in self._pairs[1:] / max(1, self._pairs[0]))
        var_z, var_t = zz - mean_z * mean_z, tt - mean_t * mean_t
        known = ROUNDING * zz < var_z < math.inf and ROUNDING * tt < var_t < math.inf
        return (zt - mean_z * mean_t) / math.sqrt(var_z) / math.sqrt(var_t) if known else 0.0


def _both(z: Numbers, t: Numbers, kept: NDArray[np.bool_]) -> tuple[Numbers, Numbers]:
    return (z, t) if kept.all() else (z[kept], t[kept])


class ColumnStatistics:
    """What is known of a column: counts, values, their extremes, moments, and what its texts could be."""

    def __init__(self, form: FormatSettings, missing: Missing, most: int) -> None:
        self.rows = self.missing = self.numbers = self.texts = 0
        self.number_values, self.text_values = Distinct(most), Distinct(most)
        self.lowest, self.highest = dict[float, int](), dict[float, int]()  # two values each, from the end on, and how often
        self.moments = Moments()
        self.dates = list(DATES)  # the kinds of date that all texts are
        self.large_integers = 0  # beyond 2^53: they count as texts, since as numbers they would be rounded
        self.integers = True
        self.consecutive = True  # each number is 1 more than the one before it
        self.needs_float64 = False
        self._last: float | None = None
        self._form, self._missing = form, missing

    def add(self, cells: pa.Array) -> Numbers:
        """Count a batch's cells [B], and return them as scaled numbers [B], with NaN for what is none."""
        numbers = self._numbers(cells)
        known = numbers[~np.isnan(numbers)]
        self.rows += len(cells)
        self.numbers += len(known)
        self.consecutive = self.consecutive and len(known) == len(cells)
        if len(known):
            self._add_numbers(known)
        return self.moments.scaled(numbers)

    def _numbers(self, cells: pa.Array) -> Numbers:
        if self._form.decimal == "." and not self._form.thousands:
            with suppress(pa.ArrowInvalid):
                numbers: Numbers = np.from_dlpack(cells.cast(pa.float64()))  # type: ignore[assignment]
                if (np.abs(numbers) < EXACT).all():  # of a larger one, the text tells whether it was rounded
                    return self._without_missing(numbers)
        return self._parsed(cells)

    def _parsed(self, cells: pa.Array) -> Numbers:
        """Count the cells that are no numbers, and return the rest, by way of the distinct texts."""
        encoded = pyarrow.compute.ascii_trim(cells, characters=" \t").dictionary_encode()
        codes, texts = np.from_dlpack(encoded.indices), encoded.dictionary
        counts = np.bincount(codes, minlength=len(texts))
        missing = _flags(pyarrow.compute.is_in(texts, value_set=self._missing.values))
        self.missing += int(counts[missing].sum())
        numbers = numbers_of(texts, self._form)
        numbers[missing] = np.nan
        rounded = [
            place for place in np.flatnonzero(np.abs(numbers) > EXACT - 1).tolist() if self._rounds(texts[place].as_py())
        ]
        numbers[rounded] = np.nan
        self.large_integers += int(counts[rounded].sum())
        other = np.isnan(numbers) & ~missing
        if other.any():
            self._add_texts(texts.filter(pa.array(other)), counts[other])
        return self._without_missing(numbers[codes])

    def _rounds(self, text: str) -> bool:
        integer = re.fullmatch("[+-]?0*([0-9]+)", self._form.plain(text))
        return integer is not None and int(integer[1]) > EXACT

    def _without_missing(self, numbers: Numbers) -> Numbers:
        if len(self._missing.numbers):
            missing = np.isin(numbers, self._missing.numbers)
            self.missing += int(missing.sum())
            return np.where(missing, np.nan, numbers)
        return numbers

    def _add_texts(self, texts: pa.Array, counts: NDArray[np.int64]) -> None:
        self.texts += int(counts.sum())
        self.dates = [date for date in self.dates if date.all_are(texts)]
        short = pyarrow.compute.utf8_slice_codeunits(texts, 0, LONGEST_TEXT)
        self.text_values.add(short.to_pylist(), counts.tolist())

    def _add_numbers(self, numbers: Numbers) -> None:
        values, counts = np.unique(numbers, return_counts=True)
        if not self.number_values.more:
            self.number_values.add(values[: MOST_DISTINCT + 1].tolist(), counts[: MOST_DISTINCT + 1].tolist())
        self.lowest = _first_two(self.lowest, values[:2], counts[:2], 1)
        self.highest = _first_two(self.highest, values[-2:], counts[-2:], -1)
        whole = numbers == np.rint(numbers)
        self.integers = self.integers and bool(whole.all())
        if self.consecutive:
            before = numbers[0] - 1 if self._last is None else self._last
            self.consecutive = self.integers and bool((np.diff(numbers, prepend=before) == 1).all())
            self._last = float(numbers[-1])
        with np.errstate(over="ignore", under="ignore"):
            stored = numbers.astype(np.float32)
        lost = (
            ~np.isfinite(stored) | ((stored == 0) & (numbers != 0)) | (whole & (stored != numbers) & (np.abs(numbers) < 2**53))
        )
        self.needs_float64 = self.needs_float64 or bool(lost.any())


def _first_two(known: dict[float, int], values: Numbers, counts: NDArray[np.int64], sign: int) -> dict[float, int]:
    merged = Counter(known) + Counter(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    return {value: merged[value] for value in sorted(merged, key=lambda value: sign * value)[:2]}


def numbers_of(texts: pa.Array, form: FormatSettings) -> Numbers:
    """Return the numbers that the trimmed texts say, with NaN for those that say none, or one that is not finite."""
    is_number = pyarrow.compute.match_substring_regex(texts, f"^(?:{form.number})$")
    texts = pyarrow.compute.if_else(is_number, texts, pa.scalar(None, pa.string()))
    if form.thousands:
        texts = pyarrow.compute.replace_substring(texts, form.thousands, "")
    texts = pyarrow.compute.replace_substring(texts, form.decimal, ".")
    texts = pyarrow.compute.utf8_ltrim(texts, characters="+")
    numbers: Numbers = np.array(np.from_dlpack(pyarrow.compute.fill_null(texts.cast(pa.float64()), np.nan)))
    numbers[~np.isfinite(numbers)] = np.nan
    return numbers


def least_and_greatest(statistics: ColumnStatistics) -> tuple[float, float]:
    """Return the least and the greatest number, of which there must be one."""
    return next(iter(statistics.lowest)), next(iter(statistics.highest))


def most_distinct(columns: int) -> int:
    """Return how many values of a column are told apart in a table with so many columns."""
    return min(MOST_DISTINCT, max(FEWEST_DISTINCT, MOST_COUNTED // columns))


def frequent(distinct: Distinct, count: int) -> list[tuple[Any, int]]:
    """Return the most frequent values with their counts, as they come first in the file where they are as frequent."""
    return distinct.counts.most_common(count)


def _flags(array: pa.Array) -> NDArray[np.bool_]:
    flags: NDArray[np.bool_] = np.from_dlpack(array.cast(pa.uint8())).astype(bool)
    return flags
