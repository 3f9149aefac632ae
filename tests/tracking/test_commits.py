"""Commits that the remote lacks: what a run records of them, and that another clone can fetch from that. Fault 19."""

import subprocess
from pathlib import Path

import pytest

from truefit.tracking.commits import Commits, read_commits
from truefit.tracking.git import root_commit

LIMIT = 100_000


def git(*arguments: str, cwd: Path | None = None) -> str:
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments]
    return subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True).stdout.strip()


def commit(content: str, name: str = "code.py") -> str:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    git("add", "--all", "--force")
    git("commit", "--quiet", "--message", content.strip()[:9])
    return git("rev-parse", "HEAD")


@pytest.fixture
def remote(tmp_path: Path) -> Path:
    remote = tmp_path / "remote.git"
    git("init", "--quiet", "--bare", "--initial-branch=main", str(remote))
    return remote


@pytest.fixture
def base(remote: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The one commit that the remote has, and the clone in which the test runs."""
    git("clone", "--quiet", str(remote), str(tmp_path / "clone"))
    monkeypatch.chdir(tmp_path / "clone")
    (tmp_path / "clone/.dvc").mkdir()
    git("checkout", "--quiet", "-b", "main")
    base = commit("a = 1\n")
    git("push", "--quiet", "origin", "main")
    return base


def test_commits_that_are_pushed_need_no_bundle(base: str, remote: Path) -> None:
    assert read_commits(base, LIMIT) == Commits(str(remote), base)


def test_another_clone_fetches_the_commits_that_are_not_pushed(base: str, remote: Path, tmp_path: Path) -> None:
    git("checkout", "--quiet", "-b", "side")
    commit("b = 1\n", "side.py")
    git("checkout", "--quiet", "main")
    commit("a = 2\n")
    git("merge", "--quiet", "--no-edit", "side")
    head = git("rev-parse", "HEAD")
    commits = read_commits(head, LIMIT)
    assert (commits.remote, commits.base, commits.unbundled) == (str(remote), base, None)
    assert commits.bundle is not None
    other, bundle = tmp_path / "other", tmp_path / "commits.bundle"
    bundle.write_bytes(commits.bundle)
    git("clone", "--quiet", str(remote), str(other))
    git("fetch", "--quiet", str(bundle), "HEAD", cwd=other)
    git("checkout", "--quiet", "--detach", head, cwd=other)
    assert ((other / "code.py").read_text(), (other / "side.py").exists()) == ("a = 2\n", True)
    assert root_commit() == root_commit(other) == base


def test_base_is_the_newest_commit_that_the_remote_has(base: str) -> None:
    second = commit("a = 2\n")
    git("push", "--quiet", "origin", "main")
    git("checkout", "--quiet", "-b", "old", base)
    commit("b = 1\n", "old.py")
    git("merge", "--quiet", "--no-edit", "main")
    commits = read_commits(git("rev-parse", "HEAD"), LIMIT)
    assert (commits.base, commits.unbundled) == (second, None)


def test_remote_that_has_nothing_yet_gets_the_whole_history(base: str, remote: Path, tmp_path: Path) -> None:
    git("update-ref", "-d", "refs/remotes/origin/main")
    commits = read_commits(base, LIMIT)
    assert (commits.base, commits.unbundled) == (None, None)
    (tmp_path / "commits.bundle").write_bytes(commits.bundle or b"")
    git("init", "--quiet", str(tmp_path / "other"))
    git("fetch", "--quiet", str(tmp_path / "commits.bundle"), "HEAD", cwd=tmp_path / "other")
    assert git("rev-parse", "FETCH_HEAD", cwd=tmp_path / "other") == base


def test_without_a_remote_there_is_no_bundle(base: str) -> None:
    git("remote", "remove", "origin")
    assert read_commits(base, LIMIT) == Commits()


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("conf/.env", "neutral\n", "secrets may be in their conf/.env"),
        ("code.py", "password = '" + "hunter2'\n", "a password or key may be in their code.py"),
        ("large.py", "a = 1  \n" * 20_000, "their files have 0.2 MB, allowed: 0.1 (track.largest_file_mb)"),
    ],
)
def test_commits_that_must_not_be_recorded_are_not(base: str, remote: Path, name: str, content: str, reason: str) -> None:
    commit(content, name)
    head = commit("b = 1\n", name)  # what came after does not help
    assert read_commits(head, LIMIT) == Commits(str(remote), base, unbundled=reason)


def test_address_of_the_remote_has_no_credentials(base: str) -> None:
    git("remote", "set-url", "origin", "https://me:" + "hunter2@example.org/team/a.git")
    assert read_commits(base, LIMIT).remote == "https://example.org/team/a.git"


def test_commit_that_the_main_repository_lacks_stops_no_training(base: str, remote: Path) -> None:
    found = read_commits("0" * 40, LIMIT)
    assert (found.remote, found.bundle) == (str(remote), None)
    assert found.unbundled == f"git rev-list: fatal: bad object {'0' * 40}"


def test_temporary_workspace_of_dvc_has_the_commits_that_the_main_repositorys_remote_lacks(
    base: str, remote: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = commit("a = 2\n")
    monkeypatch.setenv("DVC_ROOT", str(Path.cwd()))
    git("clone", "--quiet", ".", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path / "temporary")
    git("remote", "remove", "origin")
    commits = read_commits(head, LIMIT)
    assert (commits.remote, commits.base, commits.unbundled) == (str(remote), base, None)
    assert head.encode() in (commits.bundle or b"")
