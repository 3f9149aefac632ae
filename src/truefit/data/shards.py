"""Shards: the fixed parts of a batch, and which of them are whose, where several processes share a training.

Shard s of V has the batch's rows from R·s/V up to R·(s + 1)/V, rounded down. So a batch is cut by V and its own rows R alone.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor


class Cut(NamedTuple):
    """How each batch is cut into `shards`, of which `own`, from number `first` on, are those of a process; by default all."""

    shards: int = 1
    first: int = 0
    own: int = 1

    def bounds(self, rows: int) -> list[int]:
        """Return the places [own + 1] at which the own shards of a batch of so many rows begin, and that where they end.

        >>> Cut(4, first=2, own=2).bounds(10)
        [5, 7, 10]
        """
        return [rows * shard // self.shards for shard in range(self.first, self.first + self.own + 1)]

    def sizes(self, rows: int) -> list[int]:
        """Return the rows of each own shard of a batch of so many rows."""
        return [end - start for start, end in pairwise(self.bounds(rows))]

    def rows(self, chunk: Tensor, batch_size: int) -> Tensor:
        """Return those of a chunk's rows [C] that are in own shards; the chunk's last batch may be short.

        >>> Cut(2, first=1).rows(torch.arange(10), 4).tolist()
        [2, 3, 6, 7, 9]
        """
        if self.own == self.shards:
            return chunk
        whole = len(chunk) // batch_size * batch_size
        return torch.cat([self._of(chunk[:whole].view(-1, batch_size)).flatten(), self._of(chunk[whole:])])

    def _of(self, batches: Tensor) -> Tensor:
        bounds = self.bounds(batches.shape[-1])
        return batches[..., bounds[0] : bounds[-1]]

    def parts(self, rows: int, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
        """Return the own shards of a batch of so many rows, of which the tensors [own rows, …] have those of the process.

        >>> Cut(4, first=2, own=2).parts(10, torch.arange(5))
        [(tensor([0, 1]),), (tensor([2, 3, 4]),)]
        """
        return list(zip(*(tensor.split(self.sizes(rows)) for tensor in tensors), strict=True))


WHOLE = Cut()


def ordered_sum(parts: Sequence[Tensor]) -> Tensor:
    """Return the sum of a power of two of tensors, by a balanced binary tree: neighbours first, then their sums.

    So the sum of each half, or quarter, can be made elsewhere, and the bits stay the same.
    """
    while len(parts) > 1:
        parts = [left + right for left, right in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]
