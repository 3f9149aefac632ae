import gc
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_data import numbered_csv, prepare, read_splits
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from truefit.core.errors import TableError
from truefit.data.batches import SequentialChunks, make_loader
from truefit.data.dataset import TableDataset, open_verified

Batch = tuple[Tensor, Tensor]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A prepared table with 16 training rows: features x1 and x2, target y."""
    prepare(tmp_path, numbered_csv(20, features=2))
    return tmp_path / "prepared"


@pytest.fixture
def rows(folder: Path) -> Tensor:
    """The training rows [16, 3] as they lie in the file."""
    return torch.from_numpy(read_splits(folder.parent)["train"])


def assert_rows(batch: Batch, expected: Tensor) -> None:
    """Assert that `(features, target)` are the columns of `expected` [..., 3], shapes and dtypes included."""
    features, target = batch
    torch.testing.assert_close(features, expected[..., :2], rtol=0, atol=0)
    torch.testing.assert_close(target, expected[..., 2:], rtol=0, atol=0)


def test_it_is_a_torch_dataset(folder: Path) -> None:
    assert isinstance(TableDataset(folder, "train"), Dataset)


def test_its_length_is_the_number_of_rows(folder: Path) -> None:
    assert len(TableDataset(folder, "train")) == 16
    assert len(TableDataset(folder, "validation")) == 2
    assert len(TableDataset(folder, "test")) == 2


@pytest.mark.parametrize("index", [0, 7, 15, -1, -16])
def test_an_integer_gives_one_row(index: int, folder: Path, rows: Tensor) -> None:
    features, target = TableDataset(folder, "train")[index]

    assert (features.shape, target.shape) == ((2,), (1,))
    assert_rows((features, target), rows[index])


@pytest.mark.parametrize("index", [[3], [0, 15, 7, 7], list(range(16)), []])
def test_an_index_tensor_gives_a_batch_in_its_order(index: list[int], folder: Path, rows: Tensor) -> None:
    where = torch.tensor(index, dtype=torch.int64)
    features, target = TableDataset(folder, "train")[where]

    assert (features.shape, target.shape) == ((len(index), 2), (len(index), 1))
    assert_rows((features, target), rows[where])


@pytest.mark.parametrize("index", [slice(0, 4), slice(10, 30), slice(None), slice(2, 12, 3), slice(5, 5)])
def test_a_slice_gives_a_batch(index: slice, folder: Path, rows: Tensor) -> None:
    features, target = TableDataset(folder, "train")[index]

    assert (features.shape, target.shape) == ((len(rows[index]), 2), (len(rows[index]), 1))
    assert_rows((features, target), rows[index])


@pytest.mark.parametrize("index", [16, -17, torch.tensor([0, 16]), torch.tensor([1000])])
def test_a_row_that_is_not_there_is_an_index_error(index: int | Tensor, folder: Path) -> None:
    with pytest.raises(IndexError):
        TableDataset(folder, "train")[index]


def test_iteration_gives_each_row_once_and_ends(folder: Path, rows: Tensor) -> None:
    # A Dataset has no __iter__: Python asks for rows until there is an IndexError.
    features, target = zip(*list(TableDataset(folder, "train")), strict=True)  # type: ignore[call-overload]

    assert_rows((torch.stack(features), torch.stack(target)), rows)


@pytest.mark.parametrize(("dtype", "expected"), [("float32", torch.float32), ("float64", torch.float64)])
def test_values_have_the_tables_dtype(dtype: str, expected: torch.dtype, tmp_path: Path) -> None:
    prepare(tmp_path, numbered_csv(20), dtype=dtype)
    dataset = TableDataset(tmp_path / "prepared", "test")

    for index in (0, slice(0, 2), torch.tensor([1])):
        features, target = dataset[index]
        assert features.dtype == target.dtype == expected


def test_each_split_gives_its_own_rows(folder: Path) -> None:
    for split, expected in read_splits(folder.parent).items():
        assert_rows(TableDataset(folder, split)[:], torch.from_numpy(expected))


def test_a_missing_array_is_an_error_at_once(folder: Path) -> None:
    (folder / "train.npy").unlink()

    with pytest.raises(TableError) as caught:
        TableDataset(folder, "train")
    assert str(caught.value) == (
        f"{folder}/train.npy: cannot be read: No such file or directory; `dvc repro prepare` writes it"
    )


def test_a_missing_table_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(TableError) as caught:
        TableDataset(tmp_path, "train")

    assert str(caught.value) == (
        f"{tmp_path}/table.json: cannot be read: No such file or directory; `dvc repro prepare` writes it"
    )


def test_a_pickle_carries_the_place_and_not_the_rows(tmp_path: Path) -> None:
    prepare(tmp_path, numbered_csv(20_000, features=4), dtype="float64")
    dataset = TableDataset(tmp_path / "prepared", "train")
    expected = dataset[:]

    content = pickle.dumps(dataset)
    again = pickle.loads(content)

    assert len(content) < 5_000
    assert len(again) == 16_000
    assert all(torch.equal(a, b) for a, b in zip(again[:], expected, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(dataset[:], expected, strict=True))


def test_writing_to_a_batch_does_not_reach_the_file(folder: Path) -> None:
    before = (folder / "train.npy").read_bytes()
    features, target = TableDataset(folder, "train")[:]
    features.zero_()
    target.zero_()

    assert (folder / "train.npy").read_bytes() == before


def test_torchs_own_batching_and_shuffling_work(folder: Path, rows: Tensor) -> None:
    dataset = TableDataset(folder, "train")
    generator = torch.Generator().manual_seed(1)
    batches = list(DataLoader(dataset, batch_size=5, shuffle=True, generator=generator))

    assert [len(features) for features, _ in batches] == [5, 5, 5, 1]
    features, target = (torch.cat(parts) for parts in zip(*batches, strict=True))
    order = features[:, 0].argsort()
    assert_rows((features[order], target[order]), rows)


def test_a_worker_process_reads_the_same_batches(folder: Path, rows: Tensor) -> None:
    dataset = TableDataset(folder, "train")
    # A spawned worker gets the dataset as a pickle, as on any system.
    loader = DataLoader(dataset, batch_size=6, num_workers=1, multiprocessing_context="spawn")

    features, target = (torch.cat(parts) for parts in zip(*loader, strict=True))
    assert_rows((features, target), rows)


def test_a_loader_of_chunks_gives_the_rows_in_the_files_order(folder: Path, rows: Tensor) -> None:
    dataset = TableDataset(folder, "train")
    (chunk,) = make_loader(dataset, SequentialChunks(len(dataset)))

    assert_rows(chunk, rows)


# --- a table that changes


def changed(path: Path) -> str:
    return f"{path}: changed while it was read; `dvc repro --force prepare` writes it anew"


def change(path: Path) -> None:
    """Change the last byte in place, at a time that the file system can tell from that of the writing."""
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    os.utime(path, ns=(0, 0))


@pytest.mark.parametrize("index", [3, slice(0, 4), torch.tensor([0, 15])])
@pytest.mark.parametrize("act", [change, lambda path: os.truncate(path, 0)], ids=["changed", "truncated"])
def test_a_file_changed_in_place_is_noticed_at_the_next_read(
    act: Callable[[Path], None], index: int | slice | Tensor, folder: Path
) -> None:
    dataset = TableDataset(folder, "train")
    _ = dataset[index]
    act(folder / "train.npy")

    with pytest.raises(TableError) as caught:
        dataset[index]
    assert str(caught.value) == changed(folder / "train.npy")


class _Meddling(Tensor):
    """An index under whose use the file is changed."""

    path: Path

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.numpy:
            change(cls.path)
        return super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]


def test_a_change_during_the_read_is_noticed_by_that_read(folder: Path) -> None:
    _Meddling.path = folder / "train.npy"

    with pytest.raises(TableError, match="changed while it was read"):
        TableDataset(folder, "train")[torch.tensor([0, 1]).as_subclass(_Meddling)]


def test_a_file_replaced_by_another_leaves_the_rows_as_they_were(folder: Path, rows: Tensor) -> None:
    dataset = TableDataset(folder, "train")
    prepare(folder.parent, numbered_csv(40, features=2))

    assert_rows(dataset[:], rows)
    dataset.verify()


def test_a_worker_refuses_a_file_that_replaced_the_one_opened_first(folder: Path) -> None:
    content = pickle.dumps(TableDataset(folder, "train"))
    copied = (folder / "train.npy").read_bytes()
    (folder / "train.npy").unlink()
    (folder / "train.npy").write_bytes(copied)
    os.utime(folder / "train.npy", ns=(0, 0))

    with pytest.raises(TableError) as caught:
        pickle.loads(content)
    assert str(caught.value) == changed(folder / "train.npy")


def test_verified_splits_are_of_one_description(folder: Path) -> None:
    train, test = open_verified(folder, "train", "test")

    assert train.table is test.table
    assert (len(train), len(test)) == (16, 2)


def test_splits_of_two_versions_are_refused(folder: Path) -> None:
    before = (folder / "test.npy").read_bytes()
    prepare(folder.parent, numbered_csv(20, features=2), split={"seed": 1})
    (folder / "test.npy").write_bytes(before)

    with pytest.raises(TableError, match=r"test\.npy: found the SHA-256 \w{12}…, allowed: \w{12}…, as table\.json says"):
        open_verified(folder, "train", "test")
    open_verified(folder, "train", "validation")


def test_datasets_that_are_dropped_leave_no_descriptor_open(folder: Path) -> None:
    def count() -> int:
        gc.collect()
        return len(list(Path("/proc/self/fd").iterdir()))

    before = count()
    for _ in range(2000):
        rows = TableDataset(folder, "train")[0]
        del rows

    assert count() == before
