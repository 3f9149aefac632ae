"""A planted model does not run, and names from outside are names and nothing else: to shells, paths, SQL, HTML and TeX.

That `make ui` listens on 127.0.0.1 only is in ui/test_address.py.
"""

import csv
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_data import numbered_csv, prepare
from helpers_stages import Stages
from helpers_training import save_untrained
from workspace import Workspace

from truefit.core.errors import TruefitError
from truefit.data.table import Table
from truefit.model.files import load_model

# Breaks out of a shell, a folder, an SQL string, an HTML page or a formula, wherever one of these takes it as it stands.
HOSTILE = (
    "$(touch sprung) `touch sprung`; touch sprung & ../../sprung <script>alert(1)</script> "
    r"'; drop table runs; -- \" $\frac{$ ${HOME} %s {0}"
)


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
    assert "Running stage 'generate'" not in workspace.run("dvc", "repro", "evaluate").stdout

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


def assert_untouched(root: Path) -> None:
    """Assert that nothing was created outside the workspace, and nothing called `sprung` inside."""
    assert [path.name for path in root.iterdir()] == ["a"]
    assert [path.name for path in (root / "a").iterdir()] == ["b"]
    assert [path for path in root.rglob("*") if re.fullmatch(r"sprung\W*", path.name)] == []
