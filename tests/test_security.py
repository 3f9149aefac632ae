"""A planted model does not run, and names from outside are names and nothing else: to shells, paths, SQL, HTML and TeX.

That `make ui` listens on 127.0.0.1 only is in ui/test_address.py.
"""

import csv
import json
import os
import pickle
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_data import numbered_csv, prepare
from helpers_stages import Stages
from helpers_training import save_untrained
from workspace import ROOT, Workspace

from truefit.core.errors import TruefitError
from truefit.data.table import Table
from truefit.model.files import load_model

# Breaks out of a shell, a folder, an SQL string, an HTML page or a formula, wherever one of these takes it as it stands.
HOSTILE = (
    "$(touch sprung) `touch sprung`; touch sprung & ../../sprung <script>alert(1)</script> "
    r"'; drop table runs; -- \" $\frac{$ ${HOME} %s {0}"
)

# What a terminal would obey: it clears the screen, rings, goes to the line's start, turns the order of letters round.
OBEYED = "\x1b[2J\x07\r\u202e\x9b2J"


class Trap:
    """Unpickled, creates the file `sprung`, and then is the tensors that it was made of."""

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        self.state = state

    def __reduce__(self) -> tuple[Any, ...]:
        return (eval, ("[__import__('pathlib').Path('sprung').touch(), state][1]", {"state": self.state}))


def plant(path: Path, archived: bool) -> None:
    """Put the trap in the place of a saved state_dict, whose tensors it gives when it has sprung."""
    trap = Trap(torch.load(path))
    if archived:
        torch.save(trap, path)
    else:
        path.write_bytes(pickle.dumps(trap))


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Table:
    """A table in the current folder, and a saved model for it in results/."""
    monkeypatch.chdir(tmp_path)
    table = prepare(tmp_path, numbered_csv(20))
    save_untrained(Path("results"), table)
    return table


@pytest.mark.parametrize("archived", [True, False], ids=["in torch's archive", "bare"])
def test_a_planted_pickle_is_refused_and_not_run(archived: bool, table: Table) -> None:
    plant(Path("results/model.pt"), archived)

    with pytest.raises(TruefitError, match=r"^results/model\.pt: damaged, or not a state_dict; "):
        load_model(Path("results"), table)
    assert not Path("sprung").exists()


def test_the_trap_would_spring_and_give_the_right_tensors(table: Table) -> None:
    before = torch.load("results/model.pt")
    plant(Path("results/model.pt"), archived=True)
    after = torch.load("results/model.pt", weights_only=False)

    assert Path("sprung").exists()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.xdist_group("own clone")
def test_names_from_outside_break_out_of_nothing(tmp_path: Path, stages: Stages) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    workspace = Workspace(tmp_path / "a" / "b")
    file = f"{HOSTILE.replace('/', '')}.csv"
    columns = [HOSTILE, "<img src=x onerror=alert(1)>", "$y_{$"]
    rows = np.random.default_rng(0).normal(size=(50, 3)) @ [[1, 0, 2], [0, 1, -1], [0, 0, 0.1]]
    with (workspace.path / file).open("w", newline="") as opened:
        csv.writer(opened).writerows([columns, *rows.tolist()])
    workspace.set_params(
        prepare__csv=file,
        train__epochs=20,
        train__engine="numpy",
        track__experiment=f"experiment {HOSTILE}\n2",
        track__run_name=f"run {HOSTILE}\n2",
    )
    assert "Running stage 'generate'" not in workspace.run("dvc", "repro", "prepare").stdout  # the one that DVC tells the name
    for stage, *arguments in (
        ["train", "data/prepared", "results"],
        ["evaluate", "data/prepared", "results", "data/synthetic.csv"],
    ):
        assert stages.run(workspace.path, stage, *arguments).status == 0

    client = workspace.client
    experiment = client.get_experiment_by_name(f"experiment {HOSTILE}\n2")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.info.run_name) == ("FINISHED", f"run {HOSTILE}\n2")
    assert run.data.params["prepare.csv"] == file
    assert [column["name"] for column in workspace.json("data/prepared/table.json")["columns"]] == columns[:2]
    assert list(workspace.json("results/metrics.json")["parameters"]["coefficients"]) == columns[:2]
    pictures = ["loss.png", "predicted.png", "residuals.png"]
    assert sorted(path.name for path in (workspace.path / "results/figures").iterdir()) == pictures
    assert_untouched(tmp_path)

    plant(workspace.path / "results/model.pt", archived=True)
    failed = stages.run(workspace.path, "evaluate", "data/prepared", "results", "data/synthetic.csv")
    line = "error: results/model.pt: damaged, or not a state_dict; `dvc repro --force train` writes it anew\n"
    assert failed == (2, line)
    assert_untouched(tmp_path)
    assert len(client.search_runs([experiment.experiment_id])) == 1


def test_control_characters_from_outside_reach_no_terminal(tmp_path: Path, stages: Stages) -> None:
    """Faults 15 and 16: they would move the cursor, set the title, or turn round what is read; nor does a password."""
    run("git", "init", "--quiet", str(tmp_path))
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    run("git", "-C", str(tmp_path), *who, "commit", "--quiet", "--allow-empty", "--message", "one")
    columns = [f"{name}{OBEYED}" for name in ("price", "kind", "sold")]
    table = tmp_path / f"own{OBEYED}.csv"
    rows = [[row, "abc"[row % 3], 2 * row] for row in range(60)]
    settings = {
        "prepare": {"csv": table.name, "columns": {columns[1]: "category"}, "missing": {"target": "drop"}},
        "train": {"epochs": 2, "engine": "numpy"},
        "launch": {},
        "checkpoint": {"epochs": 1},
        "evaluate": {"sample": 10},
        "track": {"run_name": f"name{OBEYED}", "log_model": False},
    }
    (tmp_path / "params.yaml").write_text(json.dumps(settings))
    results = ("data/prepared", "results")

    def check(stage: str, *arguments: str, status: int = 0) -> str:
        done = stages.run(tmp_path, stage, *arguments, MLFLOW_TRACKING_URI="http://me:s3cret@127.0.0.1:9/")  # nobody is there
        printed = stages.printed + done.line
        assert done.status == status, printed
        assert [line for line in printed.split("\n") if not line.isprintable() or "s3cret" in line] == []
        return printed

    write_csv(table, columns, [*rows, ["none", "a", 1]])
    assert "x1b[2J" in check("prepare", results[0], status=2)
    write_csv(table, columns, [*rows, [1, "b", ""]])
    assert "x1b[2J" in check("truefit", "inspect", table.name)
    assert json.loads(check("truefit", "inspect", table.name, "--json"))["target"] == columns[2]
    assert "x1b[2J" in check("prepare", *results[:1])
    assert "name\\x1b[2J" in check("train", *results)
    assert "x1b[2J" in check("evaluate", *results, "data/synthetic.csv")
    assert "name\\x1b[2J" in check("truefit", "sync", status=2)
    write_csv(table, columns, [["", "new", 1], *rows])
    assert "x1b[2J" in check("truefit", "predict", "--errors", "blank", "--model", "results", table.name, f"to{OBEYED}.csv")
    assert "x1b[2J" in check("truefit", "predict", "--model", "results", f"no{OBEYED}", "to.csv", status=2)
    assert "x1b[2J" in check("truefit", "predict", f"--no{OBEYED}", status=2)
    assert [path for path in tmp_path.rglob("*") if path.is_file() and b"s3cret" in path.read_bytes()] == []


@pytest.mark.parametrize(("uri", "status"), [("postgresql://me:s3$cret@h/runs", 0), ("https://me:s3$cret@h", 2), ("", 0)])
def test_make_ui_shows_no_password(uri: str, status: int, tmp_path: Path) -> None:
    """Fault 15: make prints the lines that it runs, and `ps` the arguments of what they start."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    mlflow = tmp_path / ".venv/bin/mlflow"
    mlflow.parent.mkdir(parents=True)
    mlflow.write_text('#!/bin/sh\necho started with: "$@"\necho "$MLFLOW_BACKEND_STORE_URI" > given\n')
    mlflow.chmod(0o755)
    for arguments, expected in ((["--dry-run"], 0), ([], status)):
        command = ["make", "--assume-old=.venv/.ready", *arguments, "ui"]
        environment = os.environ | {"MLFLOW_TRACKING_URI": uri}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == expected
        assert "cret" not in done.stdout + done.stderr
    if status == 0:
        assert "started with: ui --host 127.0.0.1 " in done.stdout
        assert (tmp_path / "given").read_text() == (uri or f"sqlite:///{tmp_path}/mlflow.db") + "\n"
    else:
        assert "MLFLOW_TRACKING_URI names a server; its UI is at that address.\n" in done.stdout


def run(*command: str) -> None:
    subprocess.run(command, check=True)


def write_csv(path: Path, columns: list[str], rows: list[list[Any]]) -> None:
    with path.open("w", newline="") as opened:
        csv.writer(opened).writerows([columns, *rows])


def assert_untouched(root: Path) -> None:
    """Assert that nothing was created outside the workspace, and nothing called `sprung` inside."""
    assert [path.name for path in root.iterdir()] == ["a"]
    assert [path.name for path in (root / "a").iterdir()] == ["b"]
    assert [path for path in root.rglob("*") if re.fullmatch(r"sprung\W*", path.name)] == []
