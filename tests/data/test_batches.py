import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers_data import numbered_csv, prepare
from torch import Tensor

from truefit.core.errors import TableError
from truefit.data import batches
from truefit.data.ahead import read_ahead
from truefit.data.batches import (
    Chunk,
    EpochChunks,
    SequentialChunks,
    Shuffle,
    ShuffledChunks,
    make_loader,
    sequential_loader,
)
from truefit.data.dataset import TableDataset

SHUFFLES: list[Shuffle] = ["full", "block"]


@pytest.fixture
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 40 rows, blocks of 5 rows and buffers of 4 blocks, so that few rows go through many of each."""
    monkeypatch.setattr(batches, "CHUNK_ROWS", 40)
    monkeypatch.setattr(batches, "BLOCK_ROWS", 5)
    monkeypatch.setattr(batches, "BUFFER_BLOCKS", 4)


def epoch(rows: int, batch_size: int, shuffle: Shuffle, seed: int = 42, number: int = 1) -> list[Tensor]:
    """Return an epoch's chunks."""
    sampler = ShuffledChunks(rows, batch_size, seed, shuffle)
    sampler.set_epoch(number)
    return list(sampler)


def order(rows: int, shuffle: Shuffle, seed: int = 42, number: int = 1, batch_size: int = 16) -> list[int]:
    """Return an epoch's row numbers."""
    return torch.cat(epoch(rows, batch_size, shuffle, seed, number)).tolist()


# --- every row once, in whole batches


@pytest.mark.usefixtures("_small_chunks")
@pytest.mark.parametrize("shuffle", SHUFFLES)
@pytest.mark.parametrize("rows", [1, 4, 5, 39, 40, 41, 97, 200])
@pytest.mark.parametrize("batch_size", [1, 7, 16, 40, 64, 500])
def test_every_row_comes_once_in_chunks_of_whole_batches(batch_size: int, rows: int, shuffle: Shuffle) -> None:
    chunks = epoch(rows, batch_size, shuffle)

    assert sorted(torch.cat(chunks).tolist()) == list(range(rows))
    assert all(chunk.dtype == torch.int64 and chunk.dim() == 1 for chunk in chunks)
    assert all(len(chunk) % batch_size == 0 for chunk in chunks[:-1])
    assert all(0 < len(chunk) <= max(40, batch_size) for chunk in chunks)


@pytest.mark.parametrize("shuffle", SHUFFLES)
@pytest.mark.parametrize("batch_size", [1, 256, 100_000, 600_000])
def test_every_row_of_a_large_table_comes_once_in_chunks_of_whole_batches(batch_size: int, shuffle: Shuffle) -> None:
    rows = 2 * batches.BUFFER_BLOCKS * batches.BLOCK_ROWS + 1234
    chunks = epoch(rows, batch_size, shuffle)

    assert torch.equal(torch.cat(chunks).sort().values, torch.arange(rows))
    assert all(len(chunk) % batch_size == 0 for chunk in chunks[:-1])
    assert max(len(chunk) for chunk in chunks) <= max(batches.CHUNK_ROWS, batch_size)


@pytest.mark.usefixtures("_small_chunks")
def test_full_chunks_hold_as_many_batches_as_go_in() -> None:
    assert [len(chunk) for chunk in epoch(100, 7, "full")] == [35, 35, 28, 2]
    assert [len(chunk) for chunk in epoch(100, 64, "full")] == [64, 36]
    assert [len(chunk) for chunk in epoch(80, 1, "full")] == [40, 40]


@pytest.mark.usefixtures("_small_chunks")
@pytest.mark.parametrize(("rows", "sizes"), [(1, [1]), (40, [40]), (41, [40, 1]), (100, [40, 40, 20])])
def test_sequential_chunks_are_all_rows_in_order(rows: int, sizes: list[int]) -> None:
    sampler = SequentialChunks(rows)

    assert [len(chunk) for chunk in sampler] == sizes
    assert torch.equal(torch.cat(list(sampler)), torch.arange(rows))
    assert len(sampler) == len(sizes)


@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_a_chunk_of_wide_rows_has_fewer_and_their_order_is_the_same(shuffle: Shuffle) -> None:
    row_bytes = batches.CHUNK_BYTES // 30
    sampler = ShuffledChunks(1000, 7, 42, shuffle, row_bytes=row_bytes)

    assert torch.cat(list(sampler)).tolist() == order(1000, shuffle, batch_size=7)
    assert max(len(chunk) for chunk in sampler) == 28
    assert max(len(chunk) for chunk in SequentialChunks(1000, row_bytes)) == 30
    assert len(SequentialChunks(1000, row_bytes)) == len(list(SequentialChunks(1000, row_bytes))) == 34


def test_a_row_larger_than_a_chunk_is_one() -> None:
    assert [len(chunk) for chunk in SequentialChunks(3, 2 * batches.CHUNK_BYTES)] == [1, 1, 1]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_loaders_chunks_are_bounded_in_bytes(dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(tmp_path, numbered_csv(100, features=4), dtype=dtype)
    monkeypatch.setattr(batches, "CHUNK_BYTES", 400)
    dataset = TableDataset(tmp_path / "prepared", "train")

    for chunks in (sequential_loader(dataset), ((x, y) for _, x, y in EpochChunks(dataset, 1, 42, "full").epoch(1))):
        assert {x.nbytes + y.nbytes for x, y in chunks} == {400}


def test_sequential_chunks_hold_no_row_numbers_but_one_chunks() -> None:
    sampler = SequentialChunks(10**15)  # of which all would be 8 PB

    assert next(iter(sampler)).tolist() == list(range(batches.CHUNK_ROWS))


# --- an order for each seed and epoch


@pytest.mark.usefixtures("_small_chunks")
@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_an_epochs_order_does_not_depend_on_the_epochs_before(shuffle: Shuffle) -> None:
    sampler = ShuffledChunks(100, 7, 42, shuffle)
    seen = {}
    for number in (1, 2, 3):
        sampler.set_epoch(number)
        seen[number] = torch.cat(list(sampler)).tolist()

    assert {number: order(100, shuffle, number=number, batch_size=7) for number in (3, 2, 1)} == seen


@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_the_same_epoch_can_be_iterated_again(shuffle: Shuffle) -> None:
    sampler = ShuffledChunks(100, 7, 42, shuffle)
    next(iter(sampler))

    assert torch.cat(list(sampler)).tolist() == torch.cat(list(sampler)).tolist()


@pytest.mark.usefixtures("_small_chunks")
@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_each_epoch_and_each_seed_has_an_order_of_its_own(shuffle: Shuffle) -> None:
    orders = {(seed, number): tuple(order(100, shuffle, seed, number)) for seed in (1, 2, 3) for number in (1, 2, 3)}

    assert len(set(orders.values())) == 9
    assert tuple(range(100)) not in orders.values()


@pytest.mark.usefixtures("_small_chunks")
@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_the_order_does_not_depend_on_the_batch_size(shuffle: Shuffle) -> None:
    assert len({tuple(order(100, shuffle, batch_size=batch_size)) for batch_size in (1, 7, 64, 1000)}) == 1


@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_the_order_does_not_depend_on_torchs_global_stream(shuffle: Shuffle) -> None:
    torch.manual_seed(1)
    first = order(100, shuffle)
    torch.manual_seed(2)

    assert order(100, shuffle) == first


# --- how well an order is shuffled


def test_full_takes_every_row_anywhere() -> None:
    epochs, rows = 400, 10
    places = torch.zeros(rows, rows)
    for number in range(1, epochs + 1):
        places[torch.arange(rows), torch.tensor(order(rows, "full", number=number))] += 1

    # Each count is binomial with probability 1 / rows.
    assert (places - epochs / rows).abs().max() < 5 * (epochs / rows * (1 - 1 / rows)) ** 0.5


@pytest.mark.usefixtures("_small_chunks")
def test_block_mixes_the_rows_of_a_buffer_and_no_others() -> None:
    numbers = torch.tensor(order(200, "block"))  # ten buffers of four blocks of five rows

    for buffer in numbers.split(20):
        blocks = (buffer // 5).unique()
        assert len(blocks) == 4
        assert sorted(buffer.tolist()) == [row for block in blocks.tolist() for row in range(block * 5, block * 5 + 5)]
        assert buffer.tolist() != sorted(buffer.tolist())
    assert (numbers.split(20)[0] // 5).unique().tolist() != [0, 1, 2, 3]


@pytest.mark.usefixtures("_small_chunks")
def test_block_moves_blocks_and_rows_in_every_epoch() -> None:
    first, second = (torch.tensor(order(200, "block", number=number)) for number in (1, 2))

    assert set((first[:20] // 5).tolist()) != set((second[:20] // 5).tolist())
    assert (first.diff() == 1).float().mean() < 0.2


@pytest.mark.usefixtures("_small_chunks")
def test_block_reads_any_block_first() -> None:
    firsts = {order(200, "block", number=number)[0] // 5 for number in range(1, 400)}

    assert firsts == set(range(40))


def test_block_reads_whole_blocks_of_neighbours() -> None:
    rows = 3 * batches.BUFFER_BLOCKS * batches.BLOCK_ROWS
    numbers = torch.cat(epoch(rows, 256, "block"))

    for buffer in numbers.split(batches.BUFFER_BLOCKS * batches.BLOCK_ROWS):
        assert len((buffer // batches.BLOCK_ROWS).unique()) == batches.BUFFER_BLOCKS


# --- loaders


@pytest.fixture
def dataset(tmp_path: Path) -> TableDataset:
    """A dataset of 160 training rows, with the features x1 and x2 and the target y."""
    prepare(tmp_path, numbered_csv(200, features=2))
    return TableDataset(tmp_path / "prepared", "train")


@pytest.mark.usefixtures("_small_chunks")
def test_a_loader_gives_the_rows_of_each_chunk(dataset: TableDataset) -> None:
    sampler = ShuffledChunks(len(dataset), 16, 42, "full")
    loaded = list(make_loader(dataset, sampler))

    chunks = list(sampler)
    assert [features.shape for features, _ in loaded] == [(32, 2)] * 5
    assert [target.shape for _, target in loaded] == [(32, 1)] * 5
    for (features, target), chunk in zip(loaded, chunks, strict=True):
        assert torch.equal(features, dataset[chunk][0])
        assert torch.equal(target, dataset[chunk][1])


@pytest.mark.usefixtures("_small_chunks")
def test_a_loader_follows_the_epoch_that_is_set(dataset: TableDataset) -> None:
    sampler = ShuffledChunks(len(dataset), 16, 42, "full")
    loader = make_loader(dataset, sampler)
    for number in (2, 1):
        sampler.set_epoch(number)
        loaded = torch.cat([target for _, target in loader])
        assert torch.equal(loaded, dataset[torch.tensor(order(len(dataset), "full", number=number))][1])


@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_samplers_and_loaders_leave_torchs_global_stream_alone(shuffle: Shuffle, dataset: TableDataset) -> None:
    before = torch.get_rng_state()

    sampler = ShuffledChunks(len(dataset), 16, 42, shuffle)
    for loader in (make_loader(dataset, sampler), make_loader(dataset, SequentialChunks(len(dataset)))):
        for _ in range(2):
            assert sum(len(features) for features, _ in loader) == 160

    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_chunks_for_cuda_are_pinned_and_in_one_piece(dataset: TableDataset) -> None:
    # A view of rows would be copied once more, into memory that is not pinned.
    (features, target), (same_features, same_target) = (
        next(iter(sequential_loader(dataset, torch.device(name)))) for name in ("cuda", "cpu")
    )
    assert features.is_pinned() and features.is_contiguous() and torch.equal(features, same_features)
    assert target.is_pinned() and target.is_contiguous() and torch.equal(target, same_target)


# --- drawing and reading ahead


@pytest.mark.usefixtures("_small_chunks")
@pytest.mark.parametrize("shuffle", SHUFFLES)
@pytest.mark.parametrize("numbers", [(1, 2, 3), (1, 3, 2), (2, 2, 3)])
def test_an_order_is_the_same_whichever_epoch_came_before(numbers: tuple[int, ...], shuffle: Shuffle) -> None:
    sampler = ShuffledChunks(97, 16, 42, shuffle)
    for number in numbers:
        sampler.set_epoch(number)
        assert torch.cat(list(sampler)).tolist() == order(97, shuffle, number=number)


@pytest.mark.usefixtures("_small_chunks")
@pytest.mark.parametrize(("rows", "drawn"), [(97, [1, 2, 3]), (40, [1, 2])])
def test_the_next_permutation_is_drawn_ahead_and_once_where_an_epoch_has_many_chunks(
    rows: int, drawn: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, str]] = []
    draw = ShuffledChunks._draw

    def noted(self: ShuffledChunks, epoch: int) -> Tensor:
        seen.append((epoch, threading.current_thread().name))
        return draw(self, epoch)

    monkeypatch.setattr(ShuffledChunks, "_draw", noted)
    sampler = ShuffledChunks(rows, 16, 42, "full")
    for number in (1, 2):
        sampler.set_epoch(number)
        list(sampler)
    sampler._drawer.shutdown()

    assert [epoch for epoch, _ in seen] == drawn
    assert {name.startswith("permutation") for epoch, name in seen if epoch > 1} == {rows == 97}


def chunks(count: int = 3) -> Iterator[Chunk]:
    """Give `count` chunks of one row."""
    for number in range(count):
        yield torch.full((1, 2), number), torch.full((1, 1), number)


def test_reading_ahead_gives_the_same_chunks_in_the_same_order() -> None:
    given = [(features.tolist(), target.tolist()) for features, target in read_ahead(chunks())]
    assert given == [([[number, number]], [[number]]) for number in range(3)]
    assert list(read_ahead(chunks(0))) == []


def test_the_next_chunk_is_read_while_one_is_in_use_and_no_more() -> None:
    begun, third = threading.Event(), threading.Event()

    def source() -> Iterator[Chunk]:
        for number, chunk in enumerate(chunks()):
            if number:
                (begun if number == 1 else third).set()
            yield chunk

    ahead = read_ahead(source())
    next(ahead)
    assert begun.wait(timeout=60)
    assert not third.wait(timeout=0.2)
    next(ahead)
    assert third.wait(timeout=60)
    ahead.close()


def test_an_error_of_the_reader_comes_where_its_chunk_would_have() -> None:
    def source() -> Iterator[Chunk]:
        yield from chunks(1)
        raise TableError("changed while it was read")

    ahead = read_ahead(source())
    next(ahead)
    with pytest.raises(TableError, match="changed while it was read"):
        next(ahead)


def test_reading_ahead_ends_with_its_user() -> None:
    before = threading.active_count()
    ahead = read_ahead(chunks())
    next(ahead)
    ahead.close()
    assert threading.active_count() == before
