"""What `truefit predict` makes of rows, whatever file they come from: features, and counts of what is odd about them."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple, Self

import numpy as np

from truefit.core.text import one_line
from truefit.data.columns.base import Column
from truefit.ingest.cells import Batch, Cells, cells_of
from truefit.ingest.csv_check import missing_column
from truefit.ingest.csv_faults import MOST_COLUMNS
from truefit.ingest.source import SourceFile
from truefit.model.files import ModelDescription
from truefit.model.serving import Array


class Predicted(NamedTuple):
    """What was written: the number of `rows`, and of those that have no prediction, which are `blank`.

    `not_finite` of these had no bad cell. By the names of columns, `bad` has the number of bad cells, and `unseen` that of
    values that the model does not know, and `lacking` that of the rows that do not have the column.
    """

    rows: int
    blank: int
    not_finite: int
    bad: dict[str, int]
    unseen: dict[str, int]
    lacking: dict[str, int]

    @classmethod
    def of_parts(cls, parts: Sequence[Self]) -> Self:
        """Return what was written in all parts."""
        return cls(
            rows=sum(part.rows for part in parts),
            blank=sum(part.blank for part in parts),
            not_finite=sum(part.not_finite for part in parts),
            bad=_added(part.bad for part in parts),
            unseen=_added(part.unseen for part in parts),
            lacking=_added(part.lacking for part in parts),
        )

    def warnings(self) -> list[str]:
        """Return what a user should know of it, a line each."""
        warnings = []
        for count in sorted({*self.lacking.values()}, reverse=True):
            names = _few([f"'{one_line(name)}'" for name, rows in self.lacking.items() if rows == count])
            rows = f"all {self.rows} rows" if count == self.rows else f"{count} of {self.rows} rows"
            warnings.append(f"found no column {names}, which the model fills as missing values in {rows}")
        if self.unseen:
            warnings.append(f"found values that the model does not know, and takes for '(other)', in {_listed(self.unseen)}")
        if self.blank:
            causes = [f"bad cells in {_listed(self.bad)}"] if self.bad else []
            causes += [f"{self.not_finite} whose prediction is not finite"] if self.not_finite else []
            warnings.append(f"left {self.blank} of {self.rows} rows without a prediction: {'; '.join(causes)}")
        return warnings


def model_cells(column: Column, reader: Column) -> Cells:
    """Return the cells of a model's column, of which missing ones are taken if the model fills them."""
    return cells_of(column, reader, column.fill is not None, "a model trained with prepare.missing: {features: fill}")


def given_columns(description: ModelDescription, source: SourceFile) -> list[Column]:
    """Return the model's columns that the source has, as a model may fill others; raises TableError where one has to be."""
    header = {*source.header} - {""}
    found = [column for column in description.columns if column.name in header]
    for column in description.columns:
        if column.name not in header and (column.fill is None or not found):
            raise missing_column(source, column.name, "a feature of the model")
    return found


class Features:
    """Makes a model's features of batches, nan in the rows that are bad, and counts cells of these and unseen values.

    The batches have the columns that are `given`; of the others, each value is missing.
    """

    def __init__(self, description: ModelDescription, given: Collection[Column]) -> None:
        self.blank = 0  # rows so far
        self._encoding = description.encoding
        self._names = [column.name for column in given]
        known = {*self._names}
        self._lacking = [column.name for column in description.columns if column.name not in known]
        places = accumulate((column.stored for column in given), initial=0)
        self._open = [
            (number, column, at) for number, (column, at) in enumerate(zip(given, places, strict=False)) if column.takes_any
        ]
        self._given = np.concatenate([np.full(column.stored, column.name in known) for column in description.columns])
        self._bad, self._unseen = np.zeros((2, len(self._names)), np.int64)

    def of(self, batches: Iterable[Batch]) -> Iterator[Array]:
        """Yield the features [B, F] of each batch."""
        for batch in batches:
            for number, column, at in self._open:
                self._unseen[number] += column.unseen(batch.values[:, at : at + column.stored])
            features = self._encoding.features(self._whole(batch.values))
            if len(batch.bad):
                bad_rows = batch.bad.any(axis=1)
                features[bad_rows] = np.nan
                self._bad += batch.bad.sum(axis=0)
                self.blank += int(bad_rows.sum())
            yield features

    def _whole(self, values: Array) -> Array:
        """Return the stored numbers [B, S] of all columns, by those of the columns that are given."""
        if not self._lacking:
            return values
        whole = np.full((len(values), len(self._given)), np.nan, values.dtype)
        whole[:, self._given] = values
        return whole

    def bad(self) -> dict[str, int]:
        """Return the number of bad cells by the names of their columns."""
        return self._by_name(self._bad)

    def unseen(self) -> dict[str, int]:
        """Return the number of values that the model does not know, likewise."""
        return self._by_name(self._unseen)

    def lacking(self, rows: int) -> dict[str, int]:
        """Return that number of rows for each of the model's columns that they do not have."""
        return dict.fromkeys(self._lacking, rows)

    def _by_name(self, counts: Array) -> dict[str, int]:
        return {name: count for name, count in zip(self._names, counts.tolist(), strict=True) if count}


def _added(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total = Counter[str]()
    for each in counts:
        total.update(each)
    return {name: count for name, count in total.items() if count}


def _listed(counts: dict[str, int]) -> str:
    return _few([f"'{one_line(name)}' {count}" for name, count in counts.items()])


def _few(columns: list[str]) -> str:
    more = f" and {len(columns) - MOST_COLUMNS} more columns" if len(columns) > MOST_COLUMNS else ""
    return ", ".join(columns[:MOST_COLUMNS]) + more
