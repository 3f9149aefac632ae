"""The rows of a split that lies in several files, as if they were one array's."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from truefit.data.table import Split, SplitFile, Table, unreadable


class SplitParts:
    """The files of a split, each opened when a row of it is first asked for, as it was when this object was made.

    An open one takes two descriptors. Raises TableError for a file that is missing, or as SplitFile does when it is opened.
    """

    def __init__(self, folder: Path, split: Split, table: Table) -> None:
        parts = table.parts(split)
        self._open = partial(SplitFile, folder, split, table)
        self._files: list[SplitFile | None] = [None] * len(parts)
        self.version = tuple(_version(folder / part.name) for part in parts)
        self.rows = PartRows(self, table.rows[split], parts[0].rows, table.stored, np.dtype(table.dtype))

    def part(self, number: int) -> SplitFile:
        """Return a file, opened."""
        file = self._files[number]
        if file is None:
            file = self._open(number)
            file.version = self.version[number]
            file.require_unchanged()
            self._files[number] = file  # of two threads' the last stays, which is the same file
        return file

    def require_unchanged(self) -> None:
        """Raise TableError unless each open file still has the size and the time of change in `version`."""
        for file in self._files:
            if file is not None:
                file.require_unchanged()


class PartRows:
    """The rows [N, stored] of all parts, each of `most` rows but the last; what is taken of them is the caller's own."""

    def __init__(self, parts: SplitParts, rows: int, most: int, width: int, dtype: np.dtype[Any]) -> None:
        self._parts, self._rows, self._most, self._width, self._dtype = parts, rows, most, width, dtype
        self.itemsize = dtype.itemsize

    def __getitem__(self, index: int | slice) -> NDArray[Any]:
        """Return a row [stored], or those of a slice [B, stored]."""
        if isinstance(index, slice):
            return self.take(np.arange(*index.indices(self._rows)))
        return self.take(np.array([index])).reshape(-1)

    def take(self, index: NDArray[np.int64], axis: int = 0) -> NDArray[Any]:
        """Return the rows [B, stored] at `index` [B], as NumPy's `take` of one array does; IndexError for one not there."""
        assert axis == 0
        if not len(index):
            return np.empty((0, self._width), self._dtype)
        index = np.where(index < 0, index + self._rows, index)
        first, last = int(index.min()), int(index.max())
        if first < 0 or last >= self._rows:
            raise IndexError(f"found a row beyond those of 0 to {self._rows - 1}")
        if first // self._most == last // self._most:
            return self._of_part(first // self._most, index)
        # In the smallest type, in which the sort is by counting.
        numbers = (index // self._most).astype(np.min_scalar_type(last // self._most))
        order = np.argsort(numbers, kind="stable")
        rows = np.empty((len(index), self._width), self._dtype)
        for number, places in enumerate(np.split(order, np.bincount(numbers).cumsum()[:-1])):
            if len(places):
                rows[places] = self._of_part(number, index[places])
        return rows

    def _of_part(self, number: int, index: NDArray[np.int64]) -> NDArray[Any]:
        return self._parts.part(number).rows.take(index - number * self._most, axis=0)


def open_split(folder: Path, split: Split, table: Table) -> SplitFile | SplitParts:
    """Return a split's file, or its parts; raises TableError where one is missing."""
    return (SplitFile if len(table.parts(split)) == 1 else SplitParts)(folder, split, table)


def _version(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise unreadable(path, error) from None
    return status.st_size, status.st_mtime_ns
