"""Mean and standard deviation of rows that come chunk by chunk."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


class Moments:
    """Mean and standard deviation (population) of rows [C, width] that come chunk by chunk.

    Two samples' moments are joined without a sum of large squares: Chan, Golub and LeVeque (1979).
    """

    def __init__(self, width: int) -> None:
        self._count = 0
        # Counted from the first row: a constant column's deviation is exactly 0, and an offset costs no digits.
        self._origin, self._mean, self._squares = np.zeros(width), np.zeros(width), np.zeros(width)

    def add(self, chunk: NDArray[Any]) -> None:
        """Take the rows [C, width]."""
        if not len(chunk):
            return
        rows = chunk.astype(np.float64)
        if not self._count:
            self._origin = rows[0].copy()
        rows -= self._origin
        self._count += len(rows)
        middle = rows.mean(axis=0)
        delta = middle - self._mean
        rows -= middle
        joined = delta**2 * len(rows) * (self._count - len(rows)) / self._count
        self._squares += np.square(rows, out=rows).sum(axis=0) + joined
        self._mean += delta * len(rows) / self._count

    @property
    def mean(self) -> NDArray[np.float64]:
        """The mean [width] of the rows so far, at least one."""
        return self._origin + self._mean

    @property
    def std(self) -> NDArray[np.float64]:
        """Their standard deviation [width]."""
        return np.sqrt(self._squares / self._count)
