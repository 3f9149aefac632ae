"""TableDataset: a split of the prepared table as a `torch.utils.data.Dataset`.

Reads table.json when it is made and rows of the memory-mapped array when they are asked for; loads nothing else. A dataset
that is pickled, for a worker process, carries its place on the disk and not its rows.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from truefit.table import Split, open_split, read_table


class TableDataset(Dataset[tuple[Tensor, Tensor]]):
    """The rows of one split, read on demand.

    `dataset[i]` with an integer gives `(features [F], target [1])`; with an index tensor [B], or a slice of B rows, a whole
    batch `(features [B, F], target [B, 1])` in one read. Raises TableError when the split cannot be opened, and IndexError
    for a row that is not there.
    """

    def __init__(self, folder: Path, split: Split) -> None:
        self.folder = folder
        self.split = split
        self.table = read_table(folder)
        self._rows: Tensor | None = None

    def __len__(self) -> int:
        return self.table.rows[self.split]

    def __getitem__(self, index: int | slice | Tensor) -> tuple[Tensor, Tensor]:
        if self._rows is None:
            self._rows = torch.from_numpy(open_split(self.folder, self.split, self.table))
        # index_select takes the rows of a large batch in about a third of the time that indexing does.
        rows = self._rows.index_select(0, index) if isinstance(index, Tensor) else self._rows[index]
        return rows[..., :-1], rows[..., -1:]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_rows": None}
