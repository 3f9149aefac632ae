"""Recorded workspaces built again: in repositories of all kinds, and of a commit that the record alone has (faults 17, 19)."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from truefit.core.code import code_digest, read_code
from truefit.ingest.part_files import ALL, data_digest
from truefit.rerun.leftovers import process_environment
from truefit.rerun.worktree import Worktree
from truefit.tracking.workspace import read_workspace

PIPELINE = "stages:\n  evaluate:\n    cmd: python src/stage.py\n    deps:\n    - data/own.csv\n    outs:\n    - scores.txt\n"
STAGE = "from pathlib import Path\n\nPath('scores.txt').write_text(Path('data/own.csv').read_text().upper())\n"
CSV = "größe,preis\n1,2\n"
FILES = {
    ".dvc/config": "",
    ".gitignore": "/scores.txt\n/*.ignored\n",
    "dvc.yaml": PIPELINE,
    "params.yaml": "seed: 1\n",
    "src/stage.py": STAGE,
}


def git(folder: Path, *arguments: str) -> str:
    settings = ["user.name=t", "user.email=t@example.org", "protocol.file.allow=always"]
    command = ["git", "-C", str(folder), *(part for setting in settings for part in ("-c", setting)), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, newline="")


def commit(folder: Path) -> str:
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "state")
    return git(folder, "rev-parse", "HEAD")


def repository(top: Path, project: str = ".", files: dict[str, str] = FILES) -> Path:
    """Return the folder of a project in a new repository, with all of it committed."""
    git(top.parent, "init", "--quiet", str(top))
    write(top / project, files)
    commit(top)
    return top / project


class Record:
    """What a run in a project would record, and what it has of the CSV."""

    def __init__(self, project: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        monkeypatch.chdir(project)
        workspace = read_workspace(10**6)
        self.commit, self.code = workspace.commit, code_digest(read_code(project / "src"))
        csv = project / "data/own.csv"
        self.csv = hashlib.sha256(csv.read_bytes()).hexdigest() if csv.exists() else ""
        folder.mkdir()
        for name in ("params.yaml", "dvc.yaml"):
            (folder / name).write_bytes((project / name).read_bytes())
        (folder / "dvc.lock").write_text("schema: '2.0'\n")
        (folder / "diff.patch").write_bytes(workspace.patch)
        (folder / "submodules.json").write_text(json.dumps(workspace.submodules))

    def rebuild(self, project: Path, folder: Path) -> Worktree:
        """Return the workspace of the record, built again from the repository of `project`."""
        folder.mkdir()
        worktree = Worktree(project, folder)
        reason = worktree.check_out(self.commit, self.folder) or worktree.restore(self.folder, self.code)
        assert (reason or worktree.bring_csv("data/own.csv", self.csv, self.folder)) is None
        return worktree


def in_a_folder_with_umlauts_and_spaces(tmp_path: Path) -> Path:
    project = repository(tmp_path / "größere Ablage", "Müllers Preise/π")
    write(project, {"data/own.csv": CSV, "src/ü b.py": "a = 1\n", "src/stage.py": STAGE + "# größer\n"})
    return project


def with_line_ends_of_windows(tmp_path: Path) -> Path:
    """Return a project whose CSV git knows; of the code, one file has the line ends of an editor that writes others."""
    project = repository(tmp_path / "windows", files={**FILES, "src/b.py": "b = 1\n", "data/own.csv": CSV})
    git(project, "config", "core.autocrlf", "true")
    for path in [*project.rglob("*.py"), *project.rglob("*.yaml"), project / "data/own.csv"]:
        path.unlink()
    git(project, "checkout", "--quiet", "--", ".")
    assert b"\r\n" in (project / "src/stage.py").read_bytes()
    assert b"\r\n" in (project / "data/own.csv").read_bytes()
    write(project, {"src/b.py": "b = 2\n", "src/new.py": "c = 1\nd = 2\n", "params.yaml": "seed: 2\r\n"})
    return project


def sparse(tmp_path: Path) -> Path:
    """Return a project in a sparse checkout that was made so after the run that is recorded."""
    project = repository(tmp_path / "sparse", "project", {**FILES, "src/deep/inside.py": "a = 1\n", "data/own.csv": CSV})
    write(project, {"src/deep/inside.py": "a = 2\n"})
    return project


def with_submodules(tmp_path: Path) -> Path:
    """Return a project that has code in a submodule, in which there is another; a third is not checked out."""
    inner = repository(tmp_path / "inner", files={"inner.py": "a = 1\n"})
    library = repository(tmp_path / "library", files={"library.py": "from inner import a\n"})
    git(library, "submodule", "--quiet", "add", str(inner), "inner ü")
    commit(library)
    project = repository(tmp_path / "project")
    git(project, "submodule", "--quiet", "add", str(library), "src/library")
    git(project, "submodule", "--quiet", "update", "--init", "--recursive")
    git(project, "submodule", "--quiet", "add", str(inner), "left out")
    commit(project)
    git(project, "submodule", "--quiet", "deinit", "left out")
    write(project / "src/library", {"library.py": "from inner import a  # moved\n"})
    commit(project / "src/library")  # which is not committed in the project
    write(project, {"data/own.csv": CSV})
    return project


KINDS = [in_a_folder_with_umlauts_and_spaces, with_line_ends_of_windows, sparse, with_submodules]


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
def test_workspace_is_built_again_and_the_repository_stays_as_it_is(
    make: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project = make(tmp_path)
    record = Record(project, tmp_path / "record", monkeypatch)
    git(project, "stash", "--include-untracked", "--", "src", "params.yaml")
    if make is sparse:
        git(project, "sparse-checkout", "set", "project/data")
        assert not (project / "src/deep/inside.py").exists()
    before = [git(project, *state) for state in (("status", "--porcelain"), ("show-ref",), ("config", "--list"))]
    worktree = record.rebuild(project, tmp_path / "temporary")
    assert code_digest(read_code(worktree.project / "src")) == record.code
    assert (worktree.project / "params.yaml").read_bytes() == (record.folder / "params.yaml").read_bytes()
    # The stages' own record is of the same state.
    monkeypatch.chdir(worktree.project)
    again = read_workspace(10**6)
    assert (again.commit, again.patch) == (record.commit, (record.folder / "diff.patch").read_bytes())
    assert [git(project, *state) for state in (("status", "--porcelain"), ("show-ref",), ("config", "--list"))] == before
    assert capsys.readouterr().err == ""


def test_pipeline_runs_again_in_a_folder_with_umlauts_and_spaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = in_a_folder_with_umlauts_and_spaces(tmp_path)
    record = Record(project, tmp_path / "record", monkeypatch)
    worktree = record.rebuild(project, tmp_path / "vorübergehend")
    assert worktree.dvc(["repro", "--no-run-cache", "--force", "evaluate"], {}).returncode == 0
    assert (worktree.project / "scores.txt").read_text() == CSV.upper()
    assert not (project / ".dvc/cache").exists()


def test_data_come_from_dvc_with_the_users_own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the cache, or, where that has them no more, from a remote that only .dvc/config.local knows; nothing is written."""
    project = in_a_folder_with_umlauts_and_spaces(tmp_path)
    write(project, {".dvc/config": "[cache]\n    dir = ../../shared\n", ".dvc/.gitignore": "/config.local\n/tmp\n"})
    write(project, {".dvc/config.local": "[core]\n    remote = größe\n['remote \"größe\"']\n    url = ../../remote\n"})
    for name in ("data/own.csv", "data/parts/a.csv", "data/parts/b.csv"):
        write(project, {name: CSV})
    run_dvc(project, "add", "data/own.csv", "data/parts")
    run_dvc(project, "push")
    commit(project)
    parts, local = data_digest(project / "data/parts", ALL), (project / ".dvc/config.local").read_text()
    record = Record(project, tmp_path / "record", monkeypatch)
    shutil.rmtree(project / "data/parts")
    (project / "data/own.csv").unlink()
    shared, remote = project.parent / "shared", project.parent / "remote"
    cached = snapshot(shared)
    worktree = record.rebuild(project, tmp_path / "of the cache")
    assert worktree.dvc(["repro", "--no-run-cache", "--force", "evaluate"], {}).returncode == 0
    assert snapshot(shared) == cached
    shutil.rmtree(shared)
    worktree = record.rebuild(project, tmp_path / "of the remote")
    assert worktree.bring_csv("data/parts", parts, record.folder) is None
    assert not shared.exists()
    shutil.rmtree(remote)
    (worktree.project / "data/own.csv").unlink()
    gone = "its data are gone: DVC does not have data/own.csv: [Errno 2] No storage files available: 'data/own.csv'"
    assert worktree.bring_csv("data/own.csv", record.csv, record.folder) == gone
    assert (project / ".dvc/config.local").read_text() == local


def run_dvc(folder: Path, *arguments: str) -> None:
    environment = {**process_environment(folder), "DVC_SITE_CACHE_DIR": str(folder.parent / "site")}
    subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=folder, env=environment, check=True, capture_output=True)


def snapshot(folder: Path) -> dict[Path, tuple[int, int]]:
    """Return what is in a folder: size and time of change of each file."""
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def test_submodule_whose_commit_is_not_here_is_empty_and_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project = with_submodules(tmp_path)
    record = Record(project, tmp_path / "record", monkeypatch)
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", str(project), str(clone))
    worktree = Worktree(clone, tmp_path / "temporary")
    worktree.folder.mkdir()
    (record.folder / "diff.patch").unlink()
    assert worktree.check_out(record.commit) is None
    assert str(worktree.restore(record.folder, record.code)).startswith("the code in src that ran is not in its record")
    library = git(project / "src/library", "rev-parse", "HEAD")
    assert capsys.readouterr().err == (
        f"warning: {worktree.tree / 'src/library'} is empty: the commit {library} is not in {clone / 'src/library'}; "
        "`git submodule update --init` there may bring it\n"
    )
    (record.folder / "submodules.json").write_text('["library"]')
    assert worktree.restore(record.folder, record.code) == "its artifact record/submodules.json is damaged"


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Record:
    """A record with a commit that a first clone did not push, and what was changed there; tmp_path/second is another clone."""
    origin, first, second = tmp_path / "origin.git", tmp_path / "first", tmp_path / "second"
    git(tmp_path, "init", "--quiet", "--bare", str(origin))
    repository(first)
    write(first, {"notes.txt": "a\n"})
    commit(first)
    git(first, "push", "--quiet", str(origin), "HEAD:refs/heads/main")
    git(tmp_path, "clone", "--quiet", "--branch", "main", str(origin), str(second))
    base = git(first, "rev-parse", "HEAD")
    write(first, {"src/stage.py": STAGE + "# not pushed\n"})
    commit(first)
    write(first, {"src/new.py": "a = 1\n"})
    record = Record(first, tmp_path / "record", monkeypatch)
    git(first, "bundle", "create", "--quiet", str(record.folder / "commits.bundle"), f"{base}..HEAD")
    return record


def test_commit_that_was_not_pushed_is_taken_from_the_bundle_in_the_record(shared: Record, tmp_path: Path) -> None:
    """Fault 19."""
    second = tmp_path / "second"
    objects = sorted((second / ".git/objects").rglob("*"))
    write(second, {"data/own.csv": CSV})
    shared.csv = hashlib.sha256(CSV.encode()).hexdigest()
    worktree = shared.rebuild(second, tmp_path / "temporary")
    assert (worktree.project / "src/stage.py").read_text() == STAGE + "# not pushed\n"
    assert (worktree.project / "src/new.py").read_text() == "a = 1\n"
    # For DVC and the stages it is a repository like any other.
    done = worktree.dvc(["repro", "--no-run-cache", "--force", "evaluate"], {})
    assert done.returncode == 0
    assert git(worktree.tree, "log", "--format=%s") == "state\nstate\nstate"
    assert (sorted((second / ".git/objects").rglob("*")), git(second, "worktree", "list").count("\n")) == (objects, 0)


def test_shallow_clone_takes_a_commit_from_the_bundle_too(shared: Record, tmp_path: Path) -> None:
    git(tmp_path, "clone", "--quiet", "--depth", "1", f"file://{tmp_path}/origin.git", "shallow", "--branch", "main")
    worktree = Worktree(tmp_path / "shallow", tmp_path / "temporary")
    worktree.folder.mkdir()
    assert (tmp_path / "shallow/.git/shallow").exists()
    assert worktree.check_out(shared.commit, shared.folder) is None
    assert git(worktree.tree, "status", "--porcelain") == ""


def test_what_is_missing_of_a_commit_is_told_with_the_remote_that_may_have_it(shared: Record, tmp_path: Path) -> None:
    """Fault 19."""
    other = repository(tmp_path / "other", files={**FILES, "other": ""})
    worktree = Worktree(other, tmp_path / "temporary")
    worktree.folder.mkdir()
    base, remote = git(tmp_path / "first", "rev-parse", "HEAD~1"), "https://example.org/team/prices one.git"
    assert worktree.check_out(shared.commit, shared.folder, remote) == (
        f"its commit {shared.commit} builds on {base}, which is not in this repository; "
        f"`git fetch 'https://example.org/team/prices one.git' {base}` may bring it"
    )
    bundle = shared.folder / "commits.bundle"
    content = bundle.read_bytes()
    worktree = Worktree(tmp_path / "second", tmp_path / "temporary 2")
    worktree.folder.mkdir()
    bundle.write_bytes(content[:-100])
    assert str(worktree.check_out(shared.commit, shared.folder)).startswith("its artifact record/commits.bundle is damaged: ")
    bundle.unlink()
    assert worktree.check_out(shared.commit, shared.folder, remote) == (
        f"its commit {shared.commit} is not in this repository; "
        f"`git fetch 'https://example.org/team/prices one.git' {shared.commit}` may bring it"
    )
