"""Mean and standard deviation of rows that come chunk by chunk."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


class Moments:
    """Mean and standard deviation (population) of rows [C, width] that come chunk by chunk.

    Two samples' moments are joined without a sum of large squares: Chan, Golub and LeVeque (1979). With weights, a row counts
    as often as its weight says.
    """

    def __init__(self, width: int) -> None:
        self._count = 0.0  # the rows' weight
        # Counted from the first row: a constant column's deviation is exactly 0, and an offset costs no digits.
        self._origin, self._mean, self._squares = np.zeros(width), np.zeros(width), np.zeros(width)

    def add(self, chunk: NDArray[Any], weights: NDArray[Any] | None = None) -> None:
        """Take the rows [C, width], and their weights [C], where they have some."""
        if weights is not None:
            # A row that counts for nothing must not be the one that all others are counted from.
            chunk, weights = chunk[weights > 0], weights[weights > 0].astype(np.float64)[:, None]
        if not len(chunk):
            return
        rows, count = chunk.astype(np.float64), float(len(chunk) if weights is None else weights.sum())
        if not self._count:
            self._origin = rows[0].copy()
        rows -= self._origin
        self._count += count
        middle = rows.mean(axis=0) if weights is None else (rows * weights).sum(axis=0) / count
        delta = middle - self._mean
        rows -= middle
        joined = delta**2 * count * (self._count - count) / self._count
        squares = np.square(rows, out=rows)
        if weights is not None:
            squares *= weights
        self._squares += squares.sum(axis=0) + joined
        self._mean += delta * count / self._count

    @property
    def mean(self) -> NDArray[np.float64]:
        """The mean [width] of the rows so far, at least one of which counts."""
        return self._origin + self._mean

    @property
    def std(self) -> NDArray[np.float64]:
        """Their standard deviation [width]."""
        return np.sqrt(self._squares / self._count)
