"""A grid of queued DVC experiments over two workers: each is one run, whole and named, that leads back and can be compared."""

import json
import time
from urllib.parse import quote

import pytest
from helpers_torture import TORTURE
from helpers_ui import compare_all, loss_curves, recorded_curves, served
from mlflow.entities import Run
from playwright.sync_api import Page, expect
from workspace import Workspace

pytestmark = [
    pytest.mark.xdist_group("grid"),
    pytest.mark.skipif(not TORTURE, reason="minutes long: `make torture`"),
]

# With the last one the loss is soon not finite. Not the rate of the commit, with which DVC has nothing to execute.
RATES = ("0.01", "0.02", "0.05", "0.3", "1e4")
ENGINES = ("numpy", "autograd", "torch")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A clone after a grid of fifteen experiments, of which three fail."""
    workspace = Workspace(tmp_path_factory.mktemp("clone"))
    workspace.run("dvc", "repro")
    workspace.commit()
    grid = [f"--set-param=train.optimizer.lr={','.join(RATES)}", f"--set-param=train.engine={','.join(ENGINES)}"]
    workspace.run("dvc", "exp", "run", "--queue", "--name", "rates", *grid)
    workspace.run("dvc", "queue", "start", "--jobs", "2")
    latest = time.monotonic() + 900
    while {"Queued", "Running"} & set(states(workspace).values()):
        assert time.monotonic() < latest
        time.sleep(2)
    return workspace


def states(workspace: Workspace) -> dict[str, str]:
    """Return what DVC says of each queued experiment, by its name."""
    lines = workspace.run("dvc", "queue", "status").stdout.splitlines()
    return {fields[1]: fields[-1] for fields in map(str.split, lines) if len(fields) > 2 and fields[1].startswith("rates-")}


def grid(workspace: Workspace) -> list[Run]:
    return [run for run in workspace.runs() if run.data.tags.get("dvc.grid") == "rates"]


def test_every_experiment_is_one_run_that_ended_and_a_diverging_one_says_why(workspace: Workspace) -> None:
    found = {(run.data.params["train.optimizer.lr"], run.data.params["train.engine"]): run for run in grid(workspace)}
    assert len(found) == len(grid(workspace)) == 15
    for (rate, engine), run in found.items():
        if float(rate) > 1:
            assert run.info.status == "FAILED"
            assert "the training loss is not finite; try train.optimizer.lr: 0." in run.data.tags["failure"]
        else:
            assert run.info.status == "FINISHED"
            assert run.data.metrics["test_mse"] > 0
            assert run.info.run_name == f"linear sgd lr={float(rate):g} batch=16 {engine} ({run.data.tags['dvc.exp']})"
    assert list((workspace.path / ".truefit/runs").iterdir()) == []
    (parent,) = {run.data.tags["mlflow.parentRunId"] for run in found.values()}
    (grid_run,) = (run for run in workspace.runs() if run.info.run_id == parent)
    assert (grid_run.info.run_name, grid_run.info.status) == ("rates", "FINISHED")


def test_the_tags_of_a_run_lead_back_to_its_experiment(workspace: Workspace) -> None:
    run = next(run for run in grid(workspace) if run.data.params["train.engine"] == "numpy" and run.info.status == "FINISHED")
    assert run.data.tags["dvc.baseline"] == workspace.run("git", "rev-parse", "HEAD").stdout.strip()
    workspace.run("dvc", "exp", "apply", run.data.tags["dvc.exp"])
    digest = json.loads((workspace.path / "results/model.json").read_text())["state_dict_sha256"]
    assert digest == run.data.tags["state_dict.sha256"]
    assert workspace.json("results/metrics.json")["test"]["mse"] == run.data.metrics["test_mse"]


def test_the_twelve_runs_that_finished_are_compared_in_one_page(workspace: Workspace, page: Page) -> None:
    finished = [run for run in grid(workspace) if run.info.status == "FINISHED"]
    assert len(finished) == 12
    with served(workspace) as address:
        # Sorted by their time, which is MLflow's own order, runs are below their parent, which it then adds to those found.
        page.goto(f"{address}/#/experiments/{finished[0].info.experiment_id}/runs?orderByKey={quote('metrics.`test_mse`')}")
        box = page.get_by_test_id("search-box")
        box.fill('tags.`dvc.grid` = "rates" and attributes.status = "FINISHED"')
        box.press("Enter")
        expect(page.get_by_text("12 matching runs")).to_be_visible()
        assert compare_all(page, 12) == ["train.engine", "train.optimizer.lr"]
        assert loss_curves(page) == recorded_curves(workspace, finished)
