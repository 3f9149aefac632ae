"""Stored rows -> features, by all columns of a table: the one place where that happens, a chunk at a time."""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from truefit.data.columns.base import Array, Column
from truefit.data.columns.number import Number


class Encoding:
    """The features of a table's columns: stored rows [B, S] in, [B, K] out, in the same dtype.

    A run of numbers that are taken as they are is copied as a whole; where there is nothing else, nothing is.
    """

    def __init__(self, columns: Sequence[Column]) -> None:
        self.names = [name for column in columns for name in column.features]
        self.width = sum(column.stored for column in columns)
        self.is_identity = all(_is_plain(column) for column in columns)
        stored = accumulate((column.stored for column in columns), initial=0)
        features = accumulate((len(column.features) for column in columns), initial=0)
        places = list(zip(columns, stored, features, strict=False))
        self._plain = np.array([(at, to) for column, at, to in places if _is_plain(column)], np.intp).reshape(-1, 2)
        self._others = [(*place, place[2] + len(place[0].features)) for place in places if not _is_plain(place[0])]

    def features(self, stored: Array, out: Array | None = None) -> Array:
        """Return the features [B, K] of stored rows [B, S], written into `out` where that is given, which holds zeros."""
        if out is None:
            if self.is_identity:
                return stored
            out = np.zeros((len(stored), len(self.names)), stored.dtype)
        out[:, self._plain[:, 1]] = stored[:, self._plain[:, 0]]
        for column, at, to, end in self._others:
            column.encode(stored[:, at : at + column.stored], out[:, to:end])
        return out

    def rows(self, stored: Array) -> Array:
        """Return the features of stored rows and, behind them, all that is behind the S stored numbers: target and weight."""
        if self.is_identity:
            return stored
        features = len(self.names)
        out = np.zeros((len(stored), features + stored.shape[1] - self.width), stored.dtype)
        self.features(stored[:, : self.width], out[:, :features])
        out[:, features:] = stored[:, self.width :]
        return out


def _is_plain(column: Column) -> bool:
    return isinstance(column, Number) and column.fill is None
