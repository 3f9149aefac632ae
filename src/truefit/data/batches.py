"""The order of an epoch: which rows the loader asks for, in chunks of many batches, so that many steps share a read.

Epoch e's order depends on (seed, e) alone. Orders are tensors: with `full` 4 bytes a row (8 from 2^31 rows on) for an epoch's
and as many for the next one's; with `block` a bounded buffer, or a batch where that is larger.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from truefit.core.seeds import torch_seed
from truefit.data.ahead import read_ahead
from truefit.data.dataset import TableDataset
from truefit.data.shards import WHOLE, Cut

Shuffle = Literal["full", "block"]
T = TypeVar("T")
Chunk = tuple[Tensor, Tensor]  # features [C, F], target [C, 1], or [C, 2] with the rows' weights
Loader = DataLoader[Chunk]
Share = tuple[int, Tensor, Tensor]  # the rows C of a chunk, and (features, target) of those that are a process's own
Transform = Callable[[Tensor], Chunk]  # of rows [C, F + 1 or 2], which it may change

CPU = torch.device("cpu")

# A chunk is no longer than this, and no larger, but that it holds a row, or a batch.
CHUNK_ROWS = 65_536
CHUNK_BYTES = 1 << 24
# Between two chunks a training can save where it is or stop, so a chunk of small batches must not take long.
CHUNK_BATCHES = 4_096
# With `block`, runs of BLOCK_ROWS neighbours are read together, and mixed with those of BUFFER_BLOCKS others.
BLOCK_ROWS = 4_096
BUFFER_BLOCKS = 64


def chunk_rows(row_bytes: int) -> int:
    """Return how many rows of so many bytes are a chunk.

    >>> chunk_rows(8), chunk_rows(40_004)
    (65536, 419)
    """
    return max(1, min(CHUNK_ROWS, CHUNK_BYTES // row_bytes))


class SequentialChunks(Sampler[Tensor]):
    """Chunks of row numbers, in the table's order; `row_bytes` is the size of a row, which bounds a chunk's.

    >>> [len(chunk) for chunk in SequentialChunks(100_000)]
    [65536, 34464]
    """

    def __init__(self, rows: int, row_bytes: int = 1) -> None:
        self.rows = rows
        self.row_bytes = row_bytes

    def __iter__(self) -> Iterator[Tensor]:
        count = chunk_rows(self.row_bytes)
        for start in range(0, self.rows, count):
            yield torch.arange(start, min(start + count, self.rows))

    def __len__(self) -> int:
        return -(-self.rows // chunk_rows(self.row_bytes))


class ShuffledChunks(Sampler[Tensor]):
    """Chunks of row numbers, each a multiple of `batch_size` long but the last, in an order that `set_epoch` decides.

    `full` is a permutation of all rows, drawn by a thread during the epoch before. `block` shuffles blocks of neighbouring
    rows and then the rows inside a buffer of many blocks, so that the file is read nearly in order. `row_bytes`, the size of a
    row, bounds the chunks, and decides nothing about the order.

    >>> first, last = ShuffledChunks(10, batch_size=4, seed=42, shuffle="full")
    >>> len(first), len(last), sorted([*first.tolist(), *last.tolist()])
    (8, 2, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    """

    def __init__(
        self, rows: int, batch_size: int, seed: int, shuffle: Shuffle, epochs: int | None = None, row_bytes: int = 1
    ) -> None:
        self.rows = rows
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.epochs = epochs  # after the last, no other order is drawn
        self.row_bytes = row_bytes
        self.epoch = 1
        self.start = 0
        self._drawer = ThreadPoolExecutor(1, "permutation")
        self._next: tuple[int, Future[Tensor]] | None = None  # an epoch, and its permutation, which may still be drawn

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the order of `epoch`, counted from 1, without its first `start` rows, which are a number of whole chunks."""
        self.epoch = epoch
        self.start = start

    def __iter__(self) -> Iterator[Tensor]:
        orders = iter([self._permutation()]) if self.shuffle == "full" else _blocks(self.rows, self._generator(self.epoch))
        position = 0
        for chunk in self._chunks(orders):
            if position >= self.start:
                yield chunk.long()
            position += len(chunk)

    def _permutation(self) -> Tensor:
        """Return this epoch's permutation, and begin to draw the next one's."""
        drawn = self._next[1].result() if self._next and self._next[0] == self.epoch else self._draw(self.epoch)
        if self.rows > CHUNK_ROWS and self.epoch != self.epochs:
            self._next = self.epoch + 1, self._drawer.submit(self._draw, self.epoch + 1)
        return drawn

    def _draw(self, epoch: int) -> Tensor:
        # The same permutation in either type; the smaller is drawn in two thirds of the time.
        dtype = torch.int32 if self.rows < 2**31 else torch.int64
        return torch.randperm(self.rows, generator=self._generator(epoch), dtype=dtype)

    def _generator(self, epoch: int) -> torch.Generator:
        return torch.Generator().manual_seed(torch_seed(self.seed, "order", epoch))

    def _chunks(self, orders: Iterator[Tensor]) -> Iterator[Tensor]:
        """Cut the order, which comes in pieces, into chunks of whole batches."""
        count = min(max(1, chunk_rows(self.row_bytes) // self.batch_size), CHUNK_BATCHES) * self.batch_size
        rest = torch.empty(0, dtype=torch.int64)
        for order in orders:
            joined = torch.cat([rest, order]) if len(rest) else order
            whole = len(joined) // self.batch_size * self.batch_size
            yield from joined[:whole].split(count) if whole else ()
            rest = joined[whole:]
        if len(rest):
            yield rest


def _blocks(rows: int, generator: torch.Generator) -> Iterator[Tensor]:
    starts = torch.randperm(-(-rows // BLOCK_ROWS), generator=generator) * BLOCK_ROWS
    for chosen in starts.split(BUFFER_BLOCKS):
        buffer = (chosen[:, None] + torch.arange(BLOCK_ROWS)).flatten()
        buffer = buffer[buffer < rows]  # the table's last block may be short
        yield buffer[torch.randperm(len(buffer), generator=generator)]


class _Transformed(Dataset[Chunk]):
    """The chunks of a table, by the transform or as they are, perhaps views of its rows; with `whole`, in one piece each."""

    def __init__(self, table: TableDataset, transform: Transform | None, whole: bool = False) -> None:
        self.table = table
        self.transform = transform
        self.whole = whole

    def __getitem__(self, index: Tensor) -> Chunk:
        features, target = self.table[index] if self.transform is None else self.transform(self.table.read(index))
        return (features.contiguous(), target.contiguous()) if self.whole else (features, target)


def make_loader(chunks: Dataset[T], sampler: Iterable[Any], device: torch.device = CPU) -> DataLoader[T]:
    """Return a loader that gives what the dataset has for each item of the sampler, a chunk of row numbers.

    `batch_size=None` makes the loader ask the dataset once for a whole chunk. The loader's own generator, which only worker
    processes use, keeps it from drawing on the global stream. For CUDA the chunks come in pinned memory.
    """
    generator = torch.Generator().manual_seed(0)
    pinned = device.type == "cuda"
    return DataLoader(chunks, sampler=sampler, batch_size=None, generator=generator, pin_memory=pinned)


def transformed(dataset: TableDataset, device: torch.device = CPU, transform: Transform | None = None) -> Dataset[Chunk]:
    """Return the chunks of a table by their row numbers, as `transform` makes them: features [C, F], target [C, 1 or 2]."""
    # Of views, torch would make another copy first, in memory that is not pinned.
    return _Transformed(dataset, transform, whole=device.type == "cuda")


def sequential_loader(dataset: TableDataset, device: torch.device = CPU, transform: Transform | None = None) -> Loader:
    """Return a loader of all rows, in the table's order, as `transform` makes their chunks: features [C, F], target [C, 1].

    With weights the target is [C, 2].
    """
    return make_loader(transformed(dataset, device, transform), SequentialChunks(len(dataset), dataset.row_bytes), device)


class _Own(Sampler[tuple[int, Tensor]]):
    """The chunks of a sampler: of each the number of its rows, and those in own shards; without a size a chunk is a batch."""

    def __init__(self, chunks: Sampler[Tensor], cut: Cut, batch_size: int | None) -> None:
        self.chunks, self.cut, self.batch_size = chunks, cut, batch_size

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        for chunk in self.chunks:
            yield len(chunk), self.cut.rows(chunk, self.batch_size or len(chunk))


class _Numbered(Dataset[Share]):
    """The chunks of a table, each with the number that is asked for with it."""

    def __init__(self, chunks: Dataset[Chunk]) -> None:
        self.chunks = chunks

    def __getitem__(self, asked: tuple[int, Tensor]) -> Share:
        number, index = asked
        features, target = self.chunks[index]
        return number, features, target


def validation_shares(dataset: TableDataset, cut: Cut, device: torch.device, transform: Transform) -> Iterable[Share]:
    """Return all rows but those in the shards of other processes, in the table's order; a chunk is cut as a batch is."""
    return _shares(dataset, SequentialChunks(len(dataset), dataset.row_bytes), cut, None, device, transform)


def _shares(
    dataset: TableDataset,
    chunks: Sampler[Tensor],
    cut: Cut,
    batch_size: int | None,
    device: torch.device,
    transform: Transform | None,
) -> DataLoader[Share]:
    return make_loader(_Numbered(transformed(dataset, device, transform)), _Own(chunks, cut, batch_size), device)


class EpochChunks:
    """The training rows, chunk by chunk, in each epoch's own order; an engine cuts batches of `batch_size` out of a chunk.

    Of each batch they are those that are the process's own, by `cut`.
    """

    def __init__(
        self,
        dataset: TableDataset,
        batch_size: int,
        seed: int,
        shuffle: Shuffle,
        epochs: int | None = None,
        device: torch.device = CPU,
        transform: Transform | None = None,
        cut: Cut = WHOLE,
    ) -> None:
        self.batch_size = batch_size
        self._sampler = ShuffledChunks(len(dataset), batch_size, seed, shuffle, epochs, dataset.row_bytes)
        self._shares = _shares(dataset, self._sampler, cut, batch_size, device, transform)

    def epoch(self, number: int, start: int = 0) -> Iterator[Share]:
        """Give the chunks of an epoch, counted from 1, without its first `start` rows, each read while the last is in use."""
        self._sampler.set_epoch(number, start)
        return read_ahead(self._shares)
