"""What is recorded of the workspace and the environment, and that recording leaves no trace."""

import os
import subprocess
from pathlib import Path

import pytest
import torch

from truefit.core.code import code_digest, read_code
from truefit.core.errors import TruefitError
from truefit.tracking.provenance import ENVIRONMENT, read_environment, read_workspace

LARGEST = 1000


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
    workspace = read_workspace(LARGEST)
    assert workspace.commit == git("rev-parse", "HEAD").strip()
    assert (workspace.dirty, workspace.patch) == (False, b"")


def test_patch_brings_a_clean_checkout_to_the_same_files(repository: Path, tmp_path: Path) -> None:
    Path("code.py").write_text("a = 2\n")
    Path("staged.py").write_text("b = 1\n")
    git("add", "staged.py")
    Path("new").mkdir()
    Path("new/data.bin").write_bytes(bytes(range(256)))
    Path("ignored").write_text("not recorded\n")
    workspace = read_workspace(LARGEST)
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
    patch = read_workspace(LARGEST).patch
    assert b"+a = 2" in patch
    assert b"own.csv" not in patch


def test_data_of_a_project_in_a_subfolder_is_not_copied_either(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("project/data").mkdir(parents=True)
    Path("project/data/own.csv").write_text("x,y\n1,2\n")
    Path("project/new.py").write_text("b = 1\n")
    monkeypatch.chdir("project")
    patch = read_workspace(LARGEST).patch
    assert b"project/new.py" in patch
    assert b"own.csv" not in patch


def test_files_too_large_are_named_and_not_stored(repository: Path) -> None:
    large = bytes(LARGEST + 1)
    Path("shrunk.bin").write_bytes(large)
    Path("deleted.bin").write_bytes(large)
    git("add", "--all")
    git("commit", "--quiet", "--message", "two")
    Path("shrunk.bin").write_bytes(b"")
    Path("deleted.bin").unlink()
    Path("new with a space.bin").write_bytes(large)
    Path("just.bin").write_bytes(large[1:])
    workspace = read_workspace(LARGEST)
    assert workspace.dirty
    assert sorted(workspace.omitted) == ["deleted.bin", "new with a space.bin", "shrunk.bin"]
    assert b"just.bin" in workspace.patch
    assert not any(name.encode() in workspace.patch for name in workspace.omitted)
    Path("just.bin").unlink()
    assert read_workspace(LARGEST).dirty


def test_change_in_the_second_of_the_commit_is_recorded(repository: Path) -> None:
    git("config", "core.trustctime", "false")  # or the second's end would tell
    second = Path(".git/index").stat().st_mtime_ns // 10**9 * 10**9 - 60 * 10**9
    os.utime("code.py", ns=(second, second))
    git("add", "--renormalize", "code.py")
    git("update-index", "--refresh")
    os.utime(".git/index", ns=(second, second))
    Path("code.py").write_text("a = 2\n")
    os.utime("code.py", ns=(second, second))
    assert b"+a = 2" in read_workspace(LARGEST).patch


def test_files_where_secrets_are_kept_are_not_recorded(repository: Path) -> None:
    Path(".dvc").mkdir()
    Path(".dvc/config").write_text("['remote \"r\"']\n    url = https://user:secret@example.org\n")
    Path("sub").mkdir()
    Path("sub/.env").write_text("TOKEN=secret\n")
    workspace = read_workspace(LARGEST)
    assert (workspace.dirty, workspace.patch, workspace.omitted) == (False, b"", ())


def test_patch_is_the_same_whatever_the_users_settings_of_git_say(repository: Path, tmp_path: Path) -> None:
    Path("code.py").write_text("a = 2\n")
    Path(".gitattributes").write_text("*.py diff=shout\n")
    plain = read_workspace(LARGEST)
    for name, value in [
        *(("diff.noprefix", "true"), ("diff.mnemonicPrefix", "true"), ("diff.relative", "true"), ("color.ui", "always")),
        *(("diff.shout.textconv", "tr a-z A-Z <"), ("diff.external", "false")),
    ]:
        git("config", name, value)
    assert read_workspace(LARGEST) == plain


def test_code_is_told_apart_by_content_and_by_name(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.py").write_text("a = 1\n")
    (tmp_path / "sub/b.py").write_text("b = 1\n")
    (tmp_path / "notes.txt").write_text("no code\n")
    code = read_code(tmp_path)
    assert list(code) == ["a.py", "sub/b.py"]
    (tmp_path / "a.py").rename(tmp_path / "c.py")
    assert code_digest(read_code(tmp_path)) != code_digest(code)


def test_a_repository_inside_the_repository_is_named_and_not_stored(repository: Path) -> None:
    git("init", "--quiet", "sub")
    Path("sub/file").write_text("content\n")
    assert read_workspace(1_000_000).omitted == ("sub/",)


def test_changes_below_and_beside_a_subfolder_are_recorded(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("code.py").write_text("a = 2\n")
    Path("sub").mkdir()
    Path("beside.py").write_text("b = 1\n")
    monkeypatch.chdir("sub")
    patch = read_workspace(LARGEST).patch
    assert b"+a = 2" in patch
    assert b"beside.py" in patch


def test_reading_leaves_index_and_working_tree_as_they_were(repository: Path) -> None:
    Path("new.py").write_text("b = 1\n")
    before = (git("status", "--porcelain"), Path(".git/index").read_bytes())
    read_workspace(LARGEST)
    assert (git("status", "--porcelain"), Path(".git/index").read_bytes()) == before


def test_folder_without_a_repository_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(TruefitError) as caught:
        read_workspace(LARGEST)
    assert str(caught.value) == (
        "git rev-parse: fatal: not a git repository (or any of the parent directories): .git; "
        "every run records its commit: `git init` and commit"
    )


def test_repository_without_a_commit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    git("init", "--quiet")
    with pytest.raises(TruefitError, match=r"^git rev-parse: fatal: Needed a single revision; every run records"):
        read_workspace(LARGEST)


def test_missing_git_is_refused(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(repository))
    with pytest.raises(TruefitError, match=r"^git: not found; every run records the commit that it ran on$"):
        read_workspace(LARGEST)


def test_environment_names_all_that_may_change_the_bits() -> None:
    environment = read_environment(torch.device("cpu"))
    assert environment["torch"] == torch.__version__
    assert environment["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    assert environment["threads"] == str(torch.get_num_threads())
    assert environment["device"] == "cpu"
    assert set(environment) == set(ENVIRONMENT) >= {"python", "numpy", "mlflow", "dvc", "pandas", "platform", "device_name"}
