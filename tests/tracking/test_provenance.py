"""What a run records of the code, the environment and the repository, and what is said at the start of what it lacks."""

import os
import subprocess
from pathlib import Path

import pytest
import torch

from truefit.core.code import code_digest, read_code
from truefit.core.config import Params
from truefit.data.columns.number import Number
from truefit.data.table import CsvSource, Split, Table
from truefit.tracking.provenance import ENVIRONMENT, read_environment, read_origin
from truefit.tracking.record import record_digest

ROWS: dict[Split, int] = {"train": 8, "validation": 1, "test": 1}
TABLE = Table(
    csv=CsvSource(path="a.csv", sha256="0" * 64),
    columns=[Number(name="a")],
    target="c",
    dtype="float32",
    rows=ROWS,
    mean=[0, 0],
    std=[1, 1],
    sha256=dict.fromkeys(ROWS, ""),
)


def git(*arguments: str) -> str:
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_code_is_told_apart_by_content_and_by_name(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.py").write_text("a = 1\n")
    (tmp_path / "sub/b.py").write_text("b = 1\n")
    (tmp_path / "notes.txt").write_text("no code\n")
    code = read_code(tmp_path)
    assert list(code) == ["a.py", "sub/b.py"]
    (tmp_path / "a.py").write_bytes(b"a = 1\r\n")
    assert code_digest(read_code(tmp_path)) == code_digest(code)  # as git may check it out elsewhere: fault 17
    (tmp_path / "a.py").rename(tmp_path / os.fsdecode(b"\xff.py"))
    assert code_digest(read_code(tmp_path)) != code_digest(code)


def test_environment_names_all_that_may_change_the_bits() -> None:
    environment = read_environment(torch.device("cpu"))
    assert environment["torch"] == torch.__version__
    assert environment["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    assert environment["threads"] == str(torch.get_num_threads())
    assert environment["device"] == "cpu"
    assert set(environment) == set(ENVIRONMENT) >= {"python", "numpy", "mlflow", "dvc", "pandas", "platform", "device_name"}


def test_origin_has_one_digest_over_its_record_and_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Faults 14 and 19: what is left out is said before the training begins, and no secret is in what is recorded."""
    token = "ghp_" + "a1B2" * 9
    monkeypatch.chdir(tmp_path)
    git("init", "--quiet")
    git("remote", "add", "origin", "https://me:" + "hunter2@example.org/a.git")
    for name in ("params.yaml", "dvc.yaml", "code.py"):
        Path(name).write_text("generate: {rows: 9}\n")
    git("add", "--all")
    git("commit", "--quiet", "--message", "one")
    Path("code.py").write_text("a: 2\n")
    Path("dvc.yaml").write_text(f"cmd: curl -H {token}\n")
    Path("rows.csv").write_text("1,2\n")
    origin = read_origin(Params(), {}, "numpy", TABLE, torch.device("cpu"), 1_000_000)
    record = {f"record/{name}" for name in ("environment.json", "params.yaml", "diff.patch", "commits.bundle")}
    assert set(origin.artifacts) == record
    assert not any(token.encode() in content for content in origin.artifacts.values())
    head = git("rev-parse", "HEAD")
    expected = {
        "git.commit": head,
        "git.root": head,
        "git.dirty": "true",
        "git.remote": "https://example.org/a.git",
        "git.incomplete": "dvc.yaml (a GitHub token may be in it)",
        "git.omitted": "dvc.yaml (a GitHub token may be in it); rows.csv (neither code nor configuration)",
        "record.sha256": record_digest(origin.artifacts),
    }
    assert {name: value for name, value in origin.tags.items() if name.startswith(("git.", "record."))} == expected
    missing = "dvc.yaml (a GitHub token may be in it)"
    assert capfd.readouterr().err == (
        f"warning: not in the run's record: {missing}; without that `truefit rerun` cannot judge it\n"
    )
    Path("code.py").write_text(f"key = '{token}'\n")
    git("commit", "--quiet", "--all", "--message", "two")
    origin = read_origin(Params(), {}, "numpy", TABLE, torch.device("cpu"), 1_000_000)
    assert origin.tags["git.unbundled"] == "a GitHub token may be in their code.py"
    assert "record/commits.bundle" not in origin.artifacts
    assert "warning: commits that https://example.org/a.git lacks are not in the run's record: a GitHub token" in (
        capfd.readouterr().err
    )


def test_a_shallow_clone_records_no_first_commit_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("whole", "shallow"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    git("init", "--quiet")
    Path("params.yaml").write_text("generate: {rows: 9}\n")
    git("add", "params.yaml")
    for message in ("one", "two"):
        git("commit", "--quiet", "--allow-empty", "--message", message)
    first, _ = git("rev-list", "--reverse", "HEAD").split()
    monkeypatch.chdir(tmp_path / "shallow")
    git("clone", "--quiet", "--depth", "1", f"file://{tmp_path}/whole", ".")
    origin = read_origin(Params(), {}, "numpy", TABLE, torch.device("cpu"), 1_000_000)
    assert "git.root" not in origin.tags
    assert capfd.readouterr().err == (
        "warning: this is a shallow clone: in a shared store, `truefit rerun` takes its runs for nobody's, and needs --trust; "
        "`git fetch --unshallow` before a training makes that run yours\n"
    )
    git("fetch", "--quiet", "--unshallow")
    origin = read_origin(Params(), {}, "numpy", TABLE, torch.device("cpu"), 1_000_000)
    assert origin.tags["git.root"] == first
    assert capfd.readouterr().err == ""
