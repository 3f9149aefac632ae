"""The column of the rows' weights: what its cells may hold, and what the rows of a split have to weigh."""

from collections.abc import Sequence
from pathlib import Path

from truefit.core.errors import TableError
from truefit.data.columns.base import Array
from truefit.data.table import SPLITS, Weight
from truefit.ingest.cells import Cells

HEAVIEST = 1e15  # times the training rows' mean: what squared errors may be multiplied by


def weight_cells(name: str) -> Cells:
    """Return the cells of a column of weights, which are numbers of at least 0."""
    way_out = "a row of weight 0 counts for nothing"
    return Cells(name, allowed="a number of at least 0", way_out=way_out, has_kind=False, least=0.0)


class WeightSums:
    """The weights in a column of the CSV at `path`: their sums, by split, and the largest."""

    def __init__(self, path: Path, name: str) -> None:
        self._path, self._name = path, name
        self._rows, self._largest = 0, 0.0
        self._sums = [0.0] * len(SPLITS)

    def add(self, parts: Sequence[Array]) -> None:
        """Take the weights [C] of some more rows of each split."""
        self._rows += len(parts[0])
        self._largest = max(self._largest, *(float(part.max(initial=0)) for part in parts))
        self._sums = [total + float(part.sum(dtype=float)) for total, part in zip(self._sums, parts, strict=True)]

    def fitted(self) -> Weight:
        """Return what the table says of them; raises TableError where a split weighs nothing, or a row far too much."""
        place = f"{self._path}: column {self._name!r}"
        for split, total in zip(SPLITS, self._sums, strict=True):
            if not total:
                found = f"found the weight 0 in all rows of the split {split!r}"
                raise TableError(f"{place}: {found}, allowed: at least one above 0 in each split")
        mean = self._sums[0] / self._rows
        if not self._largest <= HEAVIEST * mean:
            found = f"found the weight {self._largest:.6g}, while the mean of the training rows' is {mean:.6g}"
            raise TableError(f"{place}: {found}, allowed: weights up to {HEAVIEST:g} times the mean")
        return Weight(name=self._name, mean=mean)
