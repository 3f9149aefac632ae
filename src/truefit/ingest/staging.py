"""The rows of a table between the file that they come from and the arrays that they go to.

They wait on the disk until their number, and so the size of each split, is known; then until the training rows have been seen.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from itertools import accumulate
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from truefit.core.config import Settings
from truefit.core.errors import TableError
from truefit.data.ahead import read_ahead
from truefit.data.columns import AnyColumn
from truefit.data.columns.base import Array, Column
from truefit.data.columns.encoding import Encoding
from truefit.data.moments import Moments
from truefit.data.table import SPLITS, Dtype, Split, Weight
from truefit.data.writing import split_writer
from truefit.ingest.cells import Batch, Cells, cells_of
from truefit.ingest.csv_check import require_kept, varying_column
from truefit.ingest.csv_format import FormatSettings
from truefit.ingest.split import SplitSettings, Splitter
from truefit.ingest.table_source import TableSource
from truefit.ingest.weights import WeightSums, weight_cells

READ_BYTES = 1 << 24  # of the rows that are in memory at a time
MOMENT_BYTES = 1 << 22  # of features at a time: with more, the passes over them miss the cache
# A median is exact for so many training rows; of more, evenly spaced ones are looked at. Less for very many columns.
MEDIAN_ROWS, MEDIAN_NUMBERS = 1 << 20, 1 << 24

# Of a column's range: float32 must not round its fractions by steps as long as this.
COARSE = 0.02
FLOAT32_BITS = 24


class MissingSettings(Settings):
    """What becomes of a missing value: it is refused; filled in, by the training rows; or its row is dropped."""

    features: Literal["refuse", "fill", "drop"] = "refuse"
    target: Literal["refuse", "drop"] = "refuse"


class Reading(Settings):
    """Which columns are read of a table, and how: as the settings say, with the kinds that features are by the files."""

    format: FormatSettings
    features: list[AnyColumn]
    target: str
    missing: MissingSettings
    weight: str | None
    split: SplitSettings
    dtype: Dtype


class Staged:
    """The rows that are kept of a CSV, on the disk until it is known which are the training rows: [N, stored], as parsed."""

    def __init__(self, file: IO[bytes], reading: Reading) -> None:
        policy, target, weight = reading.missing, reading.target, reading.weight
        self.learners = [column.learner(policy.features == "fill") for column in reading.features]
        features = [
            cells_of(
                learner.column, learner, policy.features != "refuse", "prepare.missing: {features: fill} or {features: drop}"
            )
            for learner in self.learners
        ]
        own = Cells(target, takes_missing=policy.target != "refuse", way_out="prepare.missing: {target: drop}", has_kind=False)
        self._valued = [*features, own]  # of which float32 has to hold more than of a weight
        self.cells = [*self._valued, *([] if weight is None else [weight_cells(weight)])]
        self.dropped, self.missing = 0, dict[str, int]()
        self.places = list(accumulate((cell.stored for cell in self.cells), initial=0))
        self._drops = [(cell.name, at) for cell, at in zip(self._valued, self.places, strict=False)]
        if policy.features != "drop":
            self._drops = self._drops[-1:] if policy.target == "drop" else []
        elif policy.target != "drop":
            self._drops = self._drops[:-1]
        self._file, self.dtype = file, reading.dtype
        self._rows = 0
        self._lowest, self._highest = np.full(self.places[-1], np.inf), np.full(self.places[-1], -np.inf)

    def add(self, batch: Batch) -> tuple[int, NDArray[Any]]:
        """Keep the rows that are not dropped; return their number, and their keys."""
        np.minimum(self._lowest, batch.lowest, out=self._lowest)
        np.maximum(self._highest, batch.highest, out=self._highest)
        values, keys = batch.values, batch.keys
        if self._drops:
            missing = np.isnan(values[:, [at for _, at in self._drops]])
            for (name, _), count in zip(self._drops, missing.sum(axis=0).tolist(), strict=True):
                if count:
                    self.missing[name] = self.missing.get(name, 0) + count
            kept = ~missing.any(axis=1)
            self.dropped += len(values) - int(kept.sum())
            values, keys = values[kept], keys[kept] if len(keys) else keys
        self._file.write(np.ascontiguousarray(values).data)
        self._rows += len(values)
        return len(values), keys

    @property
    def met(self) -> list[list[str]]:
        """The texts that were met of each feature whose numbers depend on them."""
        return [[] if learner.numbering is None else learner.numbering.texts for learner in self.learners]

    def join(self, met: list[list[str]]) -> list[tuple[int, NDArray[np.int64]]]:
        """Take what another reader `met` in the rows behind these; return the places whose numbers become others, and these.

        Raises ValueError where the rows have to be read after these, to tell what is wrong.
        """
        numbered = zip(self.learners, self.places, met, strict=False)
        return [(at, learner.numbering.join(texts)) for learner, at, texts in numbered if learner.numbering is not None]

    def require_kept(self, source: TableSource) -> None:
        """Raise TableError for a column of numbers that the dtype does not tell apart, or rounds coarsely."""
        if not self._rows:
            raise TableError(f"{source.path}: found a missing value in each row, allowed: rows that can be kept")
        numbers = [(cell.name, at) for cell, at in zip(self._valued, self.places, strict=False) if cell.parse is None]
        for name, at in numbers:
            low, high = self._lowest[at], self._highest[at]
            if low < high and low.astype(self.dtype) == high.astype(self.dtype):
                raise varying_column(source.numbers(name), name, source.first.advice.wider)
            step = float(np.ldexp(1.0, np.frexp(max(-low, high))[1] - FLOAT32_BITS))
            if self.dtype == "float32" and low < high and step > COARSE * (high - low):
                require_kept(source.numbers(name), name, source.first.advice.wider, step, float(high - low))

    def chunks(self, splitter: Splitter) -> Iterator[tuple[Array, NDArray[np.uint8]]]:
        """Yield the rows [C, stored] in order, and their splits [C]; a chunk that is large comes in parts."""
        width, dtype = self.places[-1], np.dtype(self.dtype)
        self._file.seek(0)
        most = max(1, READ_BYTES // (width * dtype.itemsize))
        for codes in splitter.codes():
            for start in range(0, len(codes), most):
                part = codes[start : start + most]
                yield np.frombuffer(self._file.read(len(part) * width * dtype.itemsize), dtype).reshape(-1, width), part

    def learned(self, path: Path, splitter: Splitter, train_rows: int) -> list[Column]:
        """Return the columns with what the training rows teach; raises TableError where they teach nothing of one."""
        learning = [(learner, at) for learner, at in zip(self.learners, self.places, strict=False) if learner.learns]
        if learning:
            every = -(-train_rows // max(1, min(MEDIAN_ROWS, MEDIAN_NUMBERS // len(learning))))
            with closing(read_ahead(self.chunks(splitter))) as chunks:
                for values, codes in chunks:
                    train = values[codes == 0]
                    for learner, at in learning:
                        learner.add(train[:, at : at + learner.column.stored], every)
        columns = []
        for learner in self.learners:
            try:
                columns.append(learner.fitted())
            except ValueError as error:
                allowed = "at least one, or the column left out by prepare.exclude"
                raise TableError(f"{path}: column {learner.column.name!r}: found {error}, allowed: {allowed}") from None
        _require_different(path, columns, self._valued[-1].name)
        return columns

    def by_split(self, values: Array, codes: NDArray[np.uint8]) -> list[Array]:
        """Return the rows [C, stored] of each split, as they are stored, when all was learned."""
        # Sorted by their splits, whose rows stay in order: one gather takes less time than a mask for each.
        rows = values.take(np.argsort(codes, kind="stable"), axis=0)
        for learner, at in zip(self.learners, self.places, strict=False):
            if learner.learns:
                place = slice(at, at + learner.column.stored)
                rows[:, place] = learner.stored(rows[:, place])
        return np.split(rows, np.bincount(codes, minlength=len(SPLITS)).cumsum()[:-1])


def _require_different(path: Path, columns: Sequence[Column], target: str) -> None:
    met = {target}
    for column in columns:
        for feature in column.features:
            if feature in met:
                raise TableError(
                    f"{path}: column {column.name!r}: found a second feature called {feature!r}, allowed: different names; "
                    "give a column another name, or leave it out by prepare.exclude"
                )
            met.add(feature)


def write_splits(
    folder: Path,
    staged: Staged,
    splitter: Splitter,
    columns: list[Column],
    sizes: dict[Split, int],
    weights: WeightSums | None,
) -> tuple[Moments, dict[Split, str | list[str]], Weight | None]:
    """Write each split's array; return the moments of the training rows' features and target, the digests, and the weight."""
    encoding = Encoding(columns)
    names = len(encoding.names)
    moments, width = Moments(names + 1), staged.places[-1]
    most = max(1, MOMENT_BYTES // ((names + 1) * np.dtype(staged.dtype).itemsize))

    def count(parts: list[Array]) -> None:
        if weights is not None:
            weights.add([part[:, -1] for part in parts])
        for start in range(0, len(parts[0]), most):
            rows = encoding.rows(parts[0][start : start + most])
            moments.add(rows[:, : names + 1], None if weights is None else rows[:, -1])

    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(split_writer(folder, name, rows, width, staged.dtype)) for name, rows in sizes.items()
        }
        counting = stack.enter_context(ThreadPoolExecutor(1, "count"))
        chunks = stack.enter_context(closing(read_ahead(staged.chunks(splitter))))
        for parts in stack.enter_context(closing(read_ahead(staged.by_split(*chunk) for chunk in chunks))):
            counted = counting.submit(count, parts)
            for part, writer in zip(parts, writers.values(), strict=True):
                writer.write(part)
            counted.result()
        digests = {name: writer.sha256 for name, writer in writers.items()}
        return moments, digests, None if weights is None else weights.fitted()
