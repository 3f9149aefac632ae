"""A recorded workspace built again: its CSV, from wherever it is, and what happens where it is nowhere."""

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from truefit.ingest.part_files import data_digest
from truefit.rerun.worktree import Worktree, recorded_workspace

CSV = b"x,y\n1,2\n3,4\n"
DIGEST = hashlib.sha256(CSV).hexdigest()
LOCK = (
    "schema: '2.0'\nstages:\n  generate:\n    cmd: c\n    outs:\n    - path: data/synthetic.csv\n      md5: m\n      size: 1\n"
)


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with one commit."""
    root = tmp_path / "root"
    (root / "src").mkdir(parents=True)
    (root / "src/stage.py").write_text("a = 1\n")
    (root / ".dvc").mkdir()
    (root / ".dvc/config").write_text("")
    git(root, "init", "--quiet")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "one")
    return root


@pytest.fixture
def record(tmp_path: Path) -> Path:
    record = tmp_path / "record"
    record.mkdir()
    (record / "dvc.lock").write_text(LOCK)
    return record


@pytest.fixture
def worktree(root: Path, tmp_path: Path) -> Worktree:
    worktree = Worktree(root, tmp_path / "temporary")
    worktree.folder.mkdir()
    assert worktree.check_out(git(root, "rev-parse", "HEAD").strip()) is None
    return worktree


def refusal(worktree: Worktree, csv: str, record: Path) -> str:
    reason = worktree.bring_csv(csv, DIGEST, record)
    assert reason is not None
    return reason


def test_csv_of_the_working_tree_is_copied_where_it_has_the_digest(root: Path, worktree: Worktree, record: Path) -> None:
    (root / "data").mkdir()
    (root / "data/own.csv").write_bytes(CSV)
    assert worktree.bring_csv("data/own.csv", DIGEST, record) is None
    assert (worktree.project / "data/own.csv").read_bytes() == CSV


def test_one_changed_cell_is_inconclusive(root: Path, worktree: Worktree, record: Path) -> None:
    (root / "own.csv").write_bytes(CSV.replace(b"4", b"5"))
    expected = "its data are gone: own.csv has another digest in the working tree"
    assert refusal(worktree, "own.csv", record) == expected


def test_csv_that_is_nowhere_is_inconclusive(worktree: Worktree, record: Path) -> None:
    expected = "its data are gone: data/own.csv is neither in DVC nor in the working tree"
    assert refusal(worktree, "data/own.csv", record) == expected


def test_csv_that_a_stage_makes_is_not_brought(root: Path, worktree: Worktree, record: Path) -> None:
    (root / "data").mkdir()
    (root / "data/synthetic.csv").write_bytes(b"of other settings")
    assert worktree.bring_csv("./data/synthetic.csv", DIGEST, record) is None
    assert not (worktree.project / "data").exists()


def test_parts_of_a_folder_are_copied_where_they_have_the_digest(root: Path, worktree: Worktree, record: Path) -> None:
    parts, copied = root / "data/parts", worktree.project / "data/parts"
    parts.mkdir(parents=True)
    for name in ("a.csv", "b.csv", "README.txt", "_SUCCESS"):
        (parts / name).write_bytes(CSV)
    digest = data_digest(parts, "*.csv")
    assert worktree.bring_csv("data/parts", digest, record, "*.csv") is None
    assert {path.name: path.read_bytes() for path in copied.iterdir()} == {"a.csv": CSV, "b.csv": CSV}
    shutil.rmtree(copied)
    (parts / "c.csv").write_bytes(CSV)
    known = "its data are gone: data/parts has another digest in the working tree"
    assert worktree.bring_csv("data/parts", digest, record, "*.csv") == known
    shutil.rmtree(parts)
    gone = "its data are gone: data/parts is neither in DVC nor in the working tree"
    assert worktree.bring_csv("data/parts", digest, record, "*.csv") == gone


def test_csv_at_an_absolute_path_is_read_where_it_is(tmp_path: Path, worktree: Worktree, record: Path) -> None:
    path = tmp_path / "elsewhere.csv"
    path.write_bytes(CSV)
    assert worktree.bring_csv(str(path), DIGEST, record) is None
    path.write_bytes(CSV + b"5,6\n")
    assert refusal(worktree, str(path), record).endswith("has another digest than the one that was read")
    path.unlink()
    assert refusal(worktree, str(path), record).startswith("its data are gone")


def test_csv_is_not_written_through_a_recorded_link(root: Path, tmp_path: Path, record: Path) -> None:
    """Fault 17: where git keeps other line ends, the CSV in the worktree is replaced by the user's own."""
    shared = tmp_path / "shared"
    shared.mkdir()
    for name in ("own.csv", "other.csv"):
        (shared / name).write_bytes(b"not to be touched")
    (root / "data").symlink_to(shared)
    (root / "own.csv").symlink_to(shared / "own.csv")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "two")
    for name in ("data", "own.csv"):
        (root / name).unlink()
    (root / "data").mkdir()
    for name in ("own.csv", "data/other.csv"):
        (root / name).write_bytes(CSV)
    with recorded_workspace(root, False, "key") as worktree:
        assert worktree.check_out(git(root, "rev-parse", "HEAD").strip()) is None
        assert worktree.bring_csv("own.csv", DIGEST, record) is None
        assert (worktree.project / "own.csv").read_bytes() == CSV
        assert refusal(worktree, "data/other.csv", record).endswith("has another digest than the one that was read")
    assert {path.read_bytes() for path in shared.iterdir()} == {b"not to be touched"}


def test_csv_beside_the_repository_is_placed_beside_the_worktree(root: Path, worktree: Worktree, record: Path) -> None:
    (root.parent / "own.csv").write_bytes(CSV)
    assert worktree.bring_csv("../own.csv", DIGEST, record) is None
    assert refusal(worktree, "../../own.csv", record) == "its data cannot be placed: ../../own.csv leads out of the repository"
    assert (worktree.folder / "own.csv").read_bytes() == CSV


def test_workspace_of_the_commit_is_gone_after_the_block_also_when_it_fails(root: Path) -> None:
    commit = git(root, "rev-parse", "HEAD").strip()
    (root / "src/stage.py").write_text("a = 2\n")
    before = (git(root, "worktree", "list"), git(root, "status", "--porcelain"))
    with pytest.raises(ZeroDivisionError), recorded_workspace(root, True, "key") as worktree:
        folder = worktree.folder
        assert worktree.check_out(commit) is None
        assert (worktree.project / "src/stage.py").read_text() == "a = 1\n"
        assert git(root, "worktree", "list") != before[0]
        raise ZeroDivisionError
    assert not folder.exists()
    assert (git(root, "worktree", "list"), git(root, "status", "--porcelain")) == before


def test_no_hook_runs(root: Path) -> None:
    hook = root / ".git/hooks/post-checkout"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\ntouch sprung\n")
    hook.chmod(0o755)
    with recorded_workspace(root, False, "key") as worktree:
        assert worktree.check_out(git(root, "rev-parse", "HEAD").strip()) is None
        assert worktree.tree.is_dir()
        assert not (worktree.tree / "sprung").exists()


def test_commit_without_a_pipeline_is_inconclusive_and_leaves_nothing(root: Path) -> None:
    git(root, "rm", "--quiet", "-r", ".dvc")
    git(root, "commit", "--quiet", "--message", "two")
    before = git(root, "worktree", "list")
    with recorded_workspace(root, False, "key") as worktree:
        assert worktree.check_out(git(root, "rev-parse", "HEAD").strip()) == "its commit has no pipeline in ."
    assert git(root, "worktree", "list") == before


@pytest.mark.parametrize(
    "lock", [b"\xff", b"a: [", b"- list", b"stages: {generate: [1]}", b"stages: {generate: {outs: [{md5: m}]}}", b"text"]
)
def test_damaged_dvc_lock_is_inconclusive(worktree: Worktree, record: Path, lock: bytes) -> None:
    (record / "dvc.lock").write_bytes(lock)
    assert refusal(worktree, "own.csv", record) == "its artifact record/dvc.lock is damaged"


def test_another_dvc_yaml_than_that_of_the_commit_is_not_run(root: Path, worktree: Worktree, record: Path) -> None:
    for name in ("params.yaml", "dvc.yaml"):
        (record / name).write_text("stages: {generate: {cmd: touch sprung}}\n")
    reason = worktree.restore(record, None)
    assert reason == "its artifact record/dvc.yaml is not the dvc.yaml of its commit and record/diff.patch"


def test_params_that_are_a_link_are_replaced_and_not_written_through(root: Path, tmp_path: Path, record: Path) -> None:
    shared = tmp_path / "shared.yaml"
    shared.write_text("shared\n")
    (root / "params.yaml").symlink_to(shared)
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "two")
    for name in ("params.yaml", "dvc.yaml"):
        (record / name).write_text("recorded\n")
    with recorded_workspace(root, False, "key") as worktree:
        assert worktree.check_out(git(root, "rev-parse", "HEAD").strip()) is None
        assert "record/dvc.yaml" in str(worktree.restore(record, None))
        assert (worktree.project / "params.yaml").read_text() == "recorded\n"
    assert shared.read_text() == "shared\n"
