"""Stages on a full disk, a read-only one, and with files that are missing or of the wrong kind.

Each ends with status 2 and one line, leaves nothing half-written, and gives the same bits later as if nothing had happened.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers_stages import Done, Stages
from workspace import put_store

PARAMS = """
generate: {rows: 5000}
prepare: {}
train: {engine: numpy, epochs: 2, batch_size: 100}
launch: {}
evaluate: {}
checkpoint: {}
track: {}
"""

# What each stage is told to read and, below the folder `disk`, to write.
ARGUMENTS = {
    "generate": ["disk/data/synthetic.csv"],
    "prepare": ["disk/data/prepared"],
    "train": ["data/prepared", "disk/results"],
    "evaluate": ["data/prepared", "disk/results", "data/synthetic.csv"],
}
Run = Callable[..., Done]

PAGE = 4096
ABSENT = "cannot be read: No such file or directory"
PREPARE, TRAIN = "`dvc repro prepare` writes it", "`dvc repro train` writes it"


class Disk:
    """A file system of 1 MiB in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        mounting = ["mount", "-t", "tmpfs", "-o", "size=1m", "truefit-test", str(folder)]
        if subprocess.run(mounting, capture_output=True, check=False).returncode:
            pytest.skip("mounting a small file system is not permitted here")

    def fill(self, pages: int) -> None:
        """Leave free so many pages; a file takes its size in whole pages, and a folder none."""
        status = os.statvfs(self.folder)
        (self.folder / "ballast").write_bytes(bytes((status.f_bavail - pages) * status.f_frsize))

    def free(self) -> None:
        (self.folder / "ballast").unlink()

    def remount(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(self.folder)], check=True)

    def unmount(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True)


# One worker, so that the stages run undisturbed once.
pytestmark = pytest.mark.xdist_group("disk")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, stages: Stages) -> Path:
    """The folder in which all stages ran undisturbed, and in which the store is."""
    reference = tmp_path_factory.mktemp("reference")
    (reference / "params.yaml").write_text(PARAMS)
    put_store(reference / "mlflow.db")
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    for command in (["init", "--quiet"], ["add", "params.yaml"], [*identity, "commit", "--quiet", "--message", "state"]):
        subprocess.run(["git", *command], cwd=reference, check=True)
    for stage, arguments in ARGUMENTS.items():
        assert stages.run(reference, stage, *(name.removeprefix("disk/") for name in arguments)) == (0, "")
    return reference


@pytest.fixture
def folder(tmp_path: Path, reference: Path) -> Path:
    """A folder with what the stages read, and an empty folder `disk` to come."""
    for name in ("data", ".git"):
        shutil.copytree(reference / name, tmp_path / name)
    (tmp_path / "params.yaml").write_text(PARAMS)
    return tmp_path


@pytest.fixture
def run_stage(folder: Path, reference: Path, stages: Stages) -> Run:
    """The function that runs a stage in the folder, with the store of the reference."""
    return lambda stage, limit=0: stages.run(folder, stage, *ARGUMENTS[stage], limit=limit, DVC_ROOT=str(reference))


@pytest.fixture
def disk(folder: Path) -> Iterator[Disk]:
    disk = Disk(folder / "disk")
    yield disk
    disk.unmount()


def contents(folder: Path, below: str = "") -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted((folder / below).rglob("*"))
        if path.is_file() and path.name != "ballast"
    }


def give_model(reference: Path, disk: Path) -> None:
    (disk / "results").mkdir(parents=True)
    for name in ("model.json", "model.pt", "history.csv"):
        shutil.copy2(reference / "results" / name, disk / "results" / name)


def outputs(stage: str, reference: Path) -> dict[str, bytes]:
    """Return what the stage writes, by its path."""
    results, evaluation = contents(reference, "results"), ("metrics.json", "predictions.csv", "figures/")
    of_evaluate = {name: found for name, found in results.items() if name.removeprefix("results/").startswith(evaluation)}
    of_train = {name: found for name, found in results.items() if name not in of_evaluate}
    return {
        "generate": {"data/synthetic.csv": (reference / "data/synthetic.csv").read_bytes()},
        "prepare": contents(reference, "data/prepared"),
        "train": of_train,
        "evaluate": of_train | of_evaluate,
    }[stage]


@pytest.mark.parametrize(
    ("stage", "pages", "where"),
    [
        ("generate", 0, r"disk/data/synthetic\.csv: "),
        ("generate", 3, r"disk/data/synthetic\.csv: "),
        ("prepare", 0, r".*"),  # where the staging file, which has no name, is full
        ("prepare", 11, r"disk/data/prepared/\w+\.npy: "),
        ("train", 1, r"disk/results/model\.json: "),
        ("evaluate", 0, r"disk/results/metrics\.json: "),
        ("evaluate", 16, r"disk/results/figures/loss\.png: "),
    ],
)
def test_a_full_disk_ends_a_stage_which_later_gives_the_same_bits(
    stage: str, pages: int, where: str, folder: Path, disk: Disk, reference: Path, run_stage: Run
) -> None:
    if stage == "evaluate":
        give_model(reference, disk.folder)
    disk.fill(pages)
    done = run_stage(stage)

    expected = outputs(stage, reference)
    assert done.status == 2
    assert re.fullmatch(f"error: {where}No space left on device\n", done.line)
    left = contents(disk.folder)
    assert left.items() < expected.items()  # no part of a file, and no temporary one
    disk.free()
    assert run_stage(stage) == (0, "")
    assert contents(disk.folder) == expected


@pytest.mark.parametrize(("stage", "where"), [("generate", r"disk/data/synthetic\.csv: "), ("prepare", ".*")])
def test_a_file_that_grows_too_large_ends_a_stage(
    stage: str, where: str, folder: Path, reference: Path, run_stage: Run
) -> None:
    done = run_stage(stage, limit=3 * PAGE)

    assert done.status == 2
    assert re.fullmatch(f"error: {where}File too large\n", done.line)
    assert contents(folder / "disk") == {}
    assert run_stage(stage) == (0, "")
    assert contents(folder / "disk") == outputs(stage, reference)


@pytest.mark.parametrize("stage", ARGUMENTS)
def test_a_read_only_disk_ends_a_stage(stage: str, folder: Path, disk: Disk, reference: Path, run_stage: Run) -> None:
    give_model(reference, disk.folder)
    (disk.folder / "data/prepared").mkdir(parents=True)
    before = contents(disk.folder)
    disk.remount("ro")
    done = run_stage(stage)

    assert done.status == 2
    assert re.fullmatch(r"error: .*disk/\S+: Read-only file system\n", done.line)
    assert contents(disk.folder) == before


@pytest.mark.parametrize(
    ("stage", "place", "line"),
    [
        ("generate", "disk/data/synthetic.csv", "disk/data/synthetic.csv: Is a directory"),
        ("prepare", "disk/data/prepared/test.npy", "disk/data/prepared/test.npy: Is a directory"),
        ("prepare", "disk/data/prepared/table.json", "disk/data/prepared/table.json: Is a directory"),
        ("train", "data/prepared/train.npy", f"data/prepared/train.npy: cannot be read: Is a directory; {PREPARE}"),
        ("train", "disk/results/model.pt", "disk/results/model.pt: Is a directory"),
        ("evaluate", "disk/results/model.pt", f"disk/results/model.pt: cannot be read: Is a directory; {TRAIN}"),
        (
            "evaluate",
            "disk/results/history.csv",
            "disk/results/history.csv: cannot be read: Is a directory; `dvc repro train` writes it",
        ),
        ("evaluate", "disk/results/metrics.json", "disk/results/metrics.json: Is a directory"),
    ],
)  # fmt: skip
def test_a_folder_in_the_place_of_a_file_ends_a_stage(
    stage: str, place: str, line: str, folder: Path, reference: Path, run_stage: Run
) -> None:
    if stage == "evaluate":
        give_model(reference, folder / "disk")
    (folder / place).unlink(missing_ok=True)
    (folder / place / "inside").mkdir(parents=True)

    assert run_stage(stage) == (2, f"error: {line}\n")
    assert (folder / place / "inside").is_dir()
    assert [name for name in contents(folder / "disk") if name.endswith(".tmp")] == []


@pytest.mark.parametrize(
    ("stage", "place", "line"),
    [
        ("prepare", "data/synthetic.csv", f"data/synthetic.csv: {ABSENT}"),
        ("train", "data/prepared/validation.npy", f"data/prepared/validation.npy: {ABSENT}; {PREPARE}"),
        ("evaluate", "data/prepared/test.npy", f"data/prepared/test.npy: {ABSENT}; {PREPARE}"),
        ("evaluate", "disk/results/model.json", f"disk/results/model.json: {ABSENT}; {TRAIN}"),
        (
            "evaluate",
            "disk/results/history.csv",
            "disk/results/history.csv: cannot be read: No such file or directory; `dvc repro train` writes it",
        ),
    ],
)  # fmt: skip
def test_a_missing_file_ends_a_stage(stage: str, place: str, line: str, folder: Path, reference: Path, run_stage: Run) -> None:
    if stage == "evaluate":
        give_model(reference, folder / "disk")
    (folder / place).unlink()

    assert run_stage(stage) == (2, f"error: {line}\n")
