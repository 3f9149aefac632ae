"""A split of the prepared table as a `torch.utils.data.Dataset`.

All rows come from one version of each file. A pickled dataset, for a worker process, holds its place on the disk and no rows.

Where the rows have weights, a target has two columns: the target itself, and the weight over the training rows' mean weight.
So training rows weigh as much as there are of them.
"""

from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from truefit.data.parts import open_split
from truefit.data.table import Split, Table, read_table

Values = TypeVar("Values", Tensor, NDArray[Any])


class TableDataset(Dataset[tuple[Tensor, Tensor]]):
    """The rows of one split, read on demand: `(features [F], target [1])` for an integer.

    An index tensor [B], or a slice of B rows, gives `(features [B, F], target [B, 1])` in one read; with weights the target is
    [2] or [B, 2]. Raises TableError when the split cannot be opened or has changed since, and IndexError for a row that is not
    there.
    """

    def __init__(self, folder: Path, split: Split, table: Table | None = None) -> None:
        self.folder = folder
        self.split = split
        self.table = read_table(folder) if table is None else table
        self._open()

    def _open(self) -> None:
        self._file = open_split(self.folder, self.split, self.table)
        self._features = len(self.table.features)
        # Of a table of numbers without weights a row is a view of a whole file, which nothing has read yet.
        is_plain = self.table.encoding.is_identity and self.table.weight is None
        rows = self._file.rows
        self._views = features_and_target(torch.from_numpy(rows)) if is_plain and isinstance(rows, np.ndarray) else None

    @property
    def files(self) -> int:
        """The number of files in which the rows lie."""
        return len(self.table.parts(self.split))

    def verify(self, share: int = 0, of: int = 1) -> None:
        """Read whole files; raises TableError when one is not, bit by bit, what was prepared.

        Of several processes, each reads those whose numbers are its `share` modulo their number `of`.
        """
        for number in range(share, self.files, of):
            self._file.part(number).verify()

    def __len__(self) -> int:
        return self.table.rows[self.split]

    @property
    def row_bytes(self) -> int:
        """The size of a row of features and the target, and of its weight, in bytes."""
        return self._file.rows.itemsize * (len(self.table.names) + (self.table.weight is not None))

    def __getitem__(self, index: int | slice | Tensor) -> tuple[Tensor, Tensor]:
        if isinstance(index, Tensor):
            return features_and_target(self.read(index), self._features)
        self._file.require_unchanged()
        if self._views is not None:
            features, target = self._views
            return features[index], target[index]
        rows = self._rows(np.atleast_2d(self._file.rows[index]).copy())
        return features_and_target(rows if isinstance(index, slice) else rows[0], self._features)

    def read(self, index: Tensor) -> Tensor:
        """Return the rows [B, F + 1] that `index` [B] asks for, the target last, or [B, F + 2], as the caller's own."""
        self._file.require_unchanged()
        # NumPy takes scattered rows in about two thirds of the time of torch's index_select, a quarter of indexing's.
        rows = self._file.rows.take(index.numpy(), axis=0)
        self._file.require_unchanged()
        return self._rows(rows)

    def _rows(self, stored: NDArray[Any]) -> Tensor:
        """Return the rows of features, target and weight, of stored rows whose weights may be changed."""
        rows = self.table.encoding.rows(stored)
        if self.table.weight is not None:
            # In float64, since float32 may not hold the mean of small weights.
            rows[:, -1] = rows[:, -1].astype(np.float64) / self.table.weight.mean
        return torch.from_numpy(rows)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "split": self.split, "table": self.table, "version": self._file.version}

    def __setstate__(self, state: dict[str, Any]) -> None:
        version = state.pop("version")
        self.__dict__ |= state
        self._open()
        self._file.version = version
        self._file.require_unchanged()


def features_and_target(rows: Tensor, features: int = -1) -> tuple[Tensor, Tensor]:
    """Return views of the features [..., F] and the target [..., 1 or 2] of rows; by default all but the last are features."""
    return rows[..., :features], rows[..., features:]


def target_and_weight(target: Values) -> tuple[Values, ...]:
    """Return views of a target's columns: the target itself [B, 1], and the rows' weights [B, 1], where it has them.

    >>> [part.tolist() for part in target_and_weight(np.array([[3.0, 0.5], [4.0, 1.5]]))]
    [[[3.0], [4.0]], [[0.5], [1.5]]]
    """
    return (target,) if target.shape[1] == 1 else (target[:, :1], target[:, 1:])


def total_weight(target: Tensor) -> float:
    """Return the weight of all rows of a target [B, 1 or 2]; each has 1 where it has none of its own."""
    return len(target) if target.shape[1] == 1 else float(target[:, 1].double().sum())


def open_verified(folder: Path, *splits: Split, share: int = 0, of: int = 1) -> list[TableDataset]:
    """Return splits of one and the same table; raises TableError when one is not, bit by bit, what was prepared.

    Of several processes, each verifies those of all files whose numbers are its `share` modulo their number `of`.
    """
    table = read_table(folder)
    datasets = [TableDataset(folder, split, table) for split in splits]
    before = 0
    for dataset in datasets:
        dataset.verify((share - before) % of, of)
        before += dataset.files
    return datasets
