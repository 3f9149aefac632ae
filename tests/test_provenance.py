"""What is recorded of the workspace and the environment, and that recording leaves no trace."""

import subprocess
from pathlib import Path

import pytest
import torch

from truefit.errors import ProvenanceError
from truefit.provenance import read_environment, read_workspace


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit, in which the test runs."""
    monkeypatch.chdir(tmp_path)
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "t")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "t@example.org")
    git("init", "--quiet")
    Path("code.py").write_text("a = 1\n")
    Path(".gitignore").write_text("ignored\n")
    git("add", "--all")
    git("commit", "--quiet", "--message", "one")
    return tmp_path


def test_clean_workspace_has_its_commit_and_no_patch(repository: Path) -> None:
    workspace = read_workspace()
    assert workspace.commit == git("rev-parse", "HEAD").strip()
    assert (workspace.dirty, workspace.patch) == (False, b"")


def test_patch_brings_a_clean_checkout_to_the_same_files(repository: Path, tmp_path: Path) -> None:
    Path("code.py").write_text("a = 2\n")
    Path("staged.py").write_text("b = 1\n")
    git("add", "staged.py")
    Path("new").mkdir()
    Path("new/data.bin").write_bytes(bytes(range(256)))
    Path("ignored").write_text("not recorded\n")
    workspace = read_workspace()
    assert workspace.dirty
    git("clone", "--quiet", ".", "other")
    patch = Path("other/p.patch")
    patch.write_bytes(workspace.patch)
    git("-C", "other", "apply", "p.patch")
    for name in ("code.py", "staged.py", "new/data.bin"):
        assert Path("other", name).read_bytes() == Path(name).read_bytes()
    assert not Path("other/ignored").exists()


def test_data_that_git_does_not_know_is_not_copied_into_the_patch(repository: Path) -> None:
    Path("data").mkdir()
    Path("data/own.csv").write_text("x,y\n1,2\n")
    Path("code.py").write_text("a = 2\n")
    patch = read_workspace().patch
    assert b"+a = 2" in patch
    assert b"own.csv" not in patch


def test_a_repository_inside_the_repository_is_named(repository: Path) -> None:
    git("init", "--quiet", "sub")
    with pytest.raises(ProvenanceError) as caught:
        read_workspace()
    assert str(caught.value) == ("git add: error: 'sub/' does not have a commit checked out; every run records its commit")


def test_changes_below_and_beside_a_subfolder_are_recorded(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("code.py").write_text("a = 2\n")
    Path("sub").mkdir()
    Path("beside.py").write_text("b = 1\n")
    monkeypatch.chdir("sub")
    patch = read_workspace().patch
    assert b"+a = 2" in patch
    assert b"beside.py" in patch


def test_reading_leaves_index_and_working_tree_as_they_were(repository: Path) -> None:
    Path("new.py").write_text("b = 1\n")
    before = (git("status", "--porcelain"), Path(".git/index").read_bytes())
    read_workspace()
    assert (git("status", "--porcelain"), Path(".git/index").read_bytes()) == before


def test_folder_without_a_repository_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(ProvenanceError) as caught:
        read_workspace()
    assert str(caught.value) == (
        "git rev-parse: fatal: not a git repository (or any of the parent directories): .git; "
        "every run records its commit: `git init` and commit"
    )


def test_repository_without_a_commit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    git("init", "--quiet")
    with pytest.raises(ProvenanceError, match=r"^git rev-parse: fatal: Needed a single revision; every run records"):
        read_workspace()


def test_missing_git_is_refused(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(repository))
    with pytest.raises(ProvenanceError, match=r"^git: not found; every run records the commit that it ran on$"):
        read_workspace()


def test_environment_names_all_that_may_change_the_bits() -> None:
    environment = read_environment(torch.device("cpu"))
    assert environment["torch"] == torch.__version__
    assert environment["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    assert environment["threads"] == str(torch.get_num_threads())
    assert environment["device"] == "cpu"
    assert set(environment) >= {"python", "numpy", "mlflow", "dvc", "pandas", "pyarrow", "platform", "device_name"}
