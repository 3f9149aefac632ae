"""A split in several files: its rows, and what is trained on them, are those of one file; each file is held to its digest."""

import json
import os
import pickle
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_data import numbered_csv, prepare
from helpers_stages import Stages
from torch import Tensor

from truefit.core.errors import TableError
from truefit.core.files import sha256
from truefit.data import table
from truefit.data.batches import ShuffledChunks, make_loader, sequential_loader
from truefit.data.dataset import TableDataset, open_verified
from truefit.data.parts import PartRows
from truefit.data.table import Split, Table, divided, read_table

PARTS = [f"train-0000{number}.npy" for number in range(4)]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
ANEW = "`dvc repro --force prepare` writes it anew"
KINDS = "c,w,x,y\n" + "".join(f"{'abc'[row % 3]},{row % 2 + 1},{row},{row * row}\n" for row in range(20))


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a file have at most 60 bytes of rows: the 16 training rows of three float32 lie in four files."""
    monkeypatch.setattr(table, "PART_BYTES", 60)


@pytest.fixture
def folder(tmp_path: Path, small_parts: None) -> Path:
    """A prepared table with 16 training rows in four files: features x1 and x2, target y."""
    prepare(tmp_path, numbered_csv(20, features=2))
    return tmp_path / "prepared"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def refusal(act: Callable[[], Any]) -> str:
    with pytest.raises(TableError) as caught:
        act()
    return str(caught.value)


def damage(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")


# --- the files


def test_the_rows_are_divided_evenly_and_the_description_has_each_files_digest(folder: Path) -> None:
    assert names(folder) == {"table.json", "validation.npy", "test.npy", *PARTS}
    assert [np.load(folder / name)[:, 0].size for name in PARTS] == [4, 4, 4, 4]
    digests = json.loads((folder / "table.json").read_text())["sha256"]
    assert digests == {
        "train": [sha256(folder / name) for name in PARTS],
        "validation": sha256(folder / "validation.npy"),
        "test": sha256(folder / "test.npy"),
    }


@pytest.mark.parametrize("most", range(1, 18))
def test_any_bound_gives_files_that_the_description_tells(tmp_path: Path, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "PART_BYTES", 8 * most)
    prepare(tmp_path, numbered_csv(20))
    described = read_table(tmp_path / "prepared")

    assert names(tmp_path / "prepared") == {"table.json", *(part.name for split in SPLITS for part in described.parts(split))}
    rows = [part.rows for part in described.parts("train")]
    assert sum(rows) == 16
    assert len(rows) == -(-16 // most)
    assert max(rows) <= most
    (chunk,) = sequential_loader(TableDataset(tmp_path / "prepared", "train"))
    monkeypatch.undo()
    prepare(tmp_path, numbered_csv(20))
    (expected,) = sequential_loader(TableDataset(tmp_path / "prepared", "train"))
    assert all(map(torch.equal, chunk, expected))


@pytest.mark.parametrize("before", [60, 40, 1 << 35])
@pytest.mark.parametrize("after", [60, 1 << 35])
def test_files_of_an_earlier_preparation_do_not_stay(
    tmp_path: Path, before: int, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for most in (before, after):
        monkeypatch.setattr(table, "PART_BYTES", most)
        described = prepare(tmp_path, numbered_csv(20, features=2))

    expected = {part.name for split in SPLITS for part in described.parts(split)}
    assert names(tmp_path / "prepared") == {"table.json", *expected}
    open_verified(tmp_path / "prepared", *SPLITS)


def test_a_preparation_that_fails_leaves_no_part(tmp_path: Path, small_parts: None) -> None:
    content = "x,w,y,s\n" + "".join(
        f"{row},{int(row < 30)},{row % 4},{'train' if row < 30 else 'test'}\n" for row in range(40)
    )
    refusal(lambda: prepare(tmp_path, content + "1,1,1,validation\n", weight="w", target="y", split={"column": "s"}))

    assert names(tmp_path / "prepared") == set()


def test_digests_that_do_not_go_with_the_rows_are_refused(folder: Path) -> None:
    content = json.loads((folder / "table.json").read_text())
    reason = "sha256 must have a split's digest, or those of its parts, each with a row"
    for digests in (["a"] * 7, ["a"] * 17, ["a"], []):
        content["sha256"]["train"] = digests
        (folder / "table.json").write_text(json.dumps(content))
        assert refusal(lambda: read_table(folder)) == f"{folder}/table.json: {reason}; {ANEW}"


# --- the rows


@pytest.fixture(
    params=[(numbered_csv(20, features=2), {}), (KINDS, {"weight": "w", "columns": {"c": "category"}})],
    ids=["numbers", "kinds"],
)
def both(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[TableDataset, TableDataset]:
    """The training rows of a table in one file, and of the same table in several."""
    content, settings = request.param
    datasets = []
    for name, most in (("whole", 1 << 35), ("parted", 60)):
        monkeypatch.setattr(table, "PART_BYTES", most)
        (tmp_path / name).mkdir()
        prepare(tmp_path / name, content, **settings)
        datasets.append(TableDataset(tmp_path / name / "prepared", "train"))
    assert datasets[1].files > 3
    return datasets[0], datasets[1]


@pytest.mark.parametrize(
    "index",
    [
        *(0, 3, 4, 15, -1, -16),
        *(slice(0, 4), slice(3, 9), slice(10, 30), slice(None), slice(2, 12, 3), slice(5, 5), slice(5, 0), slice(-3, None)),
        *(torch.tensor(each) for each in ([3], [4, 5, 7], [0, 15, 7, 7, 3, -1], [12, 1, 13, 0])),
        torch.tensor([], dtype=torch.int64),
    ],
)
def test_rows_are_those_of_one_file(index: int | slice | Tensor, both: tuple[TableDataset, TableDataset]) -> None:
    whole, parted = (dataset[index] for dataset in both)

    for one, other in zip(whole, parted, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=0)


@pytest.mark.parametrize("index", [16, -17, torch.tensor([0, 16]), torch.tensor([-17, 3])])
def test_a_row_that_is_not_there_is_an_index_error(index: int | Tensor, both: tuple[TableDataset, TableDataset]) -> None:
    for dataset in both:
        with pytest.raises(IndexError):
            dataset[index]


def test_rows_of_many_files_are_those_of_one_array() -> None:
    rows = np.random.default_rng(0).normal(size=(100_003, 3)).astype(np.float32)

    class Files:
        def part(self, number: int) -> Any:
            return type("File", (), {"rows": rows[number * 77 : number * 77 + 77]})

    index = np.random.default_rng(1).integers(len(rows), size=20_000)
    parted = PartRows(Files(), len(rows), 77, 3, rows.dtype)  # type: ignore[arg-type]

    assert np.array_equal(parted.take(index), rows[index])


def test_an_epoch_is_that_of_one_file(both: tuple[TableDataset, TableDataset]) -> None:
    chunks = ShuffledChunks(len(both[0]), 3, 7, "full")
    whole, parted = (list(make_loader(dataset, chunks)) for dataset in both)

    assert all(torch.equal(a, b) for one, other in zip(whole, parted, strict=True) for a, b in zip(one, other, strict=True))


def test_a_file_is_opened_when_a_row_of_it_is_asked_for(folder: Path) -> None:
    def opened() -> set[str]:
        links = [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
        return {link.name for link in links if link.parent == folder}

    dataset = TableDataset(folder, "train")
    assert opened() == set()
    dataset.read(torch.tensor([5, 6]))
    assert opened() == {PARTS[1]}
    dataset.read(torch.tensor([4, 15]))
    assert opened() == {PARTS[1], PARTS[3]}


# --- files that are not what was prepared


@pytest.mark.parametrize("name", PARTS)
def test_a_missing_part_is_an_error_at_once(name: str, folder: Path) -> None:
    (folder / name).unlink()

    told = refusal(lambda: TableDataset(folder, "train"))
    assert told == f"{folder}/{name}: cannot be read: No such file or directory; `dvc repro prepare` writes it"


def test_a_part_that_is_not_the_array_of_the_description_is_an_error(folder: Path) -> None:
    shutil.copy(folder / "test.npy", folder / PARTS[2])
    dataset = TableDataset(folder, "train")

    assert dataset[0][0].tolist() == np.load(folder / PARTS[0])[0, :2].tolist()
    told = refusal(lambda: dataset[8])
    assert told == f"{folder}/{PARTS[2]}: found float32 (2, 3), allowed: float32 (4, 3), as table.json says; {ANEW}"


@pytest.mark.parametrize("is_open", [True, False], ids=["open", "not opened yet"])
@pytest.mark.parametrize("pickled", [False, True], ids=["here", "in a worker"])
def test_a_part_that_changes_is_refused(is_open: bool, pickled: bool, folder: Path) -> None:
    dataset = TableDataset(folder, "train")
    if is_open:
        _ = dataset[10]
    content = pickle.dumps(dataset)
    damage(folder / PARTS[2])
    os.utime(folder / PARTS[2], ns=(0, 0))
    dataset = pickle.loads(content) if pickled else dataset

    told = refusal(lambda: dataset[[0, 10][not is_open or pickled]])
    assert told == f"{folder}/{PARTS[2]}: changed while it was read; {ANEW}"


@pytest.mark.parametrize("number", range(4))
def test_each_part_is_verified(number: int, folder: Path) -> None:
    damage(folder / PARTS[number])

    assert refusal(lambda: open_verified(folder, "train")).startswith(f"{folder}/{PARTS[number]}: found the SHA-256 ")


@pytest.mark.parametrize("of", [1, 2, 3, 7])
@pytest.mark.parametrize("name", [*PARTS, "validation.npy", "test.npy"])
def test_processes_that_share_the_verification_verify_each_file_once(name: str, of: int, folder: Path) -> None:
    damage(folder / name)

    refused = []
    for share in range(of):
        try:
            open_verified(folder, "train", "validation", "test", share=share, of=of)
        except TableError:
            refused.append(share)
    assert refused == [[*PARTS, "validation.npy", "test.npy"].index(name) % of]


# --- the pipeline


def test_a_training_on_parts_has_the_bits_of_one_on_whole_files(
    tmp_path: Path, stages: Stages, monkeypatch: pytest.MonkeyPatch
) -> None:
    for command in (["init", "--quiet"], ["-c", "user.name=t", "-c", "user.email=t@e", "commit", "-qm", "s", "--allow-empty"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    content, tables = numbered_csv(3000, features=2), list[Table]()
    sections = ["train: {engine: torch, epochs: 2, batch_size: 64}"]
    sections += [f"{name}: {{}}" for name in ("generate", "prepare", "evaluate", "checkpoint", "track", "launch")]
    (tmp_path / "params.yaml").write_text("\n".join(sections))
    for name, most in (("whole", 1 << 35), ("parted", 5000)):
        monkeypatch.setattr(table, "PART_BYTES", most)
        tables.append(prepare(tmp_path, content))
        for stage in ("train", "evaluate"):
            others = ["data.csv"] if stage == "evaluate" else []
            store = "http://127.0.0.1:9"  # nobody is there, which takes less time than a store
            assert stages.run(tmp_path, stage, "prepared", name, *others, MLFLOW_TRACKING_URI=store).status == 0

    assert [len(each.parts("train")) for each in tables] == [1, len(divided("train", 2400, 6))]
    for file in ("model.pt", "history.csv", "metrics.json", "predictions.csv"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "parted" / file).read_bytes()
