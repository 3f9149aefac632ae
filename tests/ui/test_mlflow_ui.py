"""The MLflow UI as a user meets it: a real browser, over `make ui`, on runs of the default pipeline and of other settings.

The selectors are those of MLflow 3.17. The pictures that the tests take are those of docs/: TRUEFIT_SCREENSHOTS names a folder
for them.
"""

import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from helpers_data import numbered_csv, prepare
from helpers_training import renamed
from helpers_ui import PRINTED, compare_all, loss_curves, recorded_curves
from mlflow.entities import Run
from playwright.sync_api import Page, expect
from workspace import Workspace

from truefit.evaluation.note import describe
from truefit.model.files import state_dict_digest
from truefit.tracking.connection import VIEW_NAME
from truefit.tracking.names import DIGEST_TAG, NOTE_TAG
from truefit.training.settings import TrainSettings

# One server and one set of runs for all.
pytestmark = pytest.mark.xdist_group("browser")

HOSTILE = "<img src=x onerror=alert(1)> [a](javascript:alert(1)) `b` **c** _d_ | e"
DEFAULT = "linear sgd lr=0.05 batch=16 torch"
NAMES = [
    DEFAULT,
    "linear sgd lr=0.02 batch=16 torch",
    "linear sgd lr=0.1 batch=16 numpy",
    "mlp adam lr=0.01 batch=16 torch",
]
LARGEST_PICTURE = 200_000  # bytes


def take_picture(page: Page, name: str, folder: Path) -> None:
    """Take the documents' picture, and put it where TRUEFIT_SCREENSHOTS says."""
    picture = folder / f"{name}.png"
    page.screenshot(path=picture, animations="disabled")
    assert picture.stat().st_size < LARGEST_PICTURE
    if chosen := os.environ.get("TRUEFIT_SCREENSHOTS"):
        shutil.copy(picture, chosen)


def open_view(page: Page, address: str, run: Run) -> None:
    """Open the table of runs, and choose the saved view."""
    page.goto(f"{address}/#/experiments/{run.info.experiment_id}/runs")
    page.get_by_test_id("saved-views-trigger").click()
    page.get_by_text(VIEW_NAME).click()
    page.get_by_test_id("sort-header-test_mse").wait_for()


def column(page: Page, key: str) -> list[str]:
    """Return the cells of a column of the table, from the top; the grid keeps them in another order."""
    cells = page.locator(f".ag-row:has([col-id='{key}'])").evaluate_all(
        "(rows, key) => rows.map(row => [+row.getAttribute('row-index'), row.querySelector(`[col-id='${key}']`).innerText])",
        key,
    )
    # Above a run's name is that of its colour.
    return [text.strip().splitlines()[-1] for _, text in sorted(cells)]


def test_table_of_runs_shows_names_settings_and_scores_and_sorts_by_them(
    page: Page, address: str, run: Run, workspace: Workspace, tmp_path: Path
) -> None:
    open_view(page, address, run)
    expect(page.locator(".ag-cell[col-id='attributes.`Run Name`']")).to_have_count(len(NAMES))
    assert column(page, "attributes.`Run Name`") == NAMES[::-1]  # the latest first
    assert column(page, "params.`train.engine`") == ["torch", "numpy", "torch", "torch"]
    assert column(page, "params.`train.optimizer.lr`") == ["0.01", "0.1", "0.02", "0.05"]
    take_picture(page, "mlflow-runs", tmp_path)

    scores = sorted((found.data.metrics["test_mse"] for found in workspace.runs()), reverse=True)
    for expected in (scores, scores[::-1]):
        page.get_by_test_id("sort-header-test_mse").click()
        last = page.locator(".ag-row[row-index='3'] .ag-cell[col-id='metrics.`test_mse`']")
        expect(last).to_have_text(str(expected[-1]))
        assert [float(text) for text in column(page, "metrics.`test_mse`")] == expected


def test_comparison_shows_the_params_that_differ_and_the_losses_over_the_epochs(
    page: Page, address: str, run: Run, workspace: Workspace, tmp_path: Path
) -> None:
    open_view(page, address, run)
    changed = ["train.engine", "train.model.hidden", "train.model.name", "train.optimizer.lr", "train.optimizer.name"]
    assert compare_all(page, 4) == changed
    assert loss_curves(page) == recorded_curves(workspace, workspace.runs())
    expect(page.locator(".js-plotly-plot .xtitle")).to_have_text("Step")
    page.get_by_text("Y-axis Log Scale:").locator("xpath=..").get_by_role("switch").click()
    page.wait_for_timeout(1000)  # for the curves to have moved
    take_picture(page, "mlflow-compare", tmp_path)


def test_page_of_a_run_says_what_was_trained_on_what_how_well_and_how_to_repeat_it(page: Page, address: str, run: Run) -> None:
    page.goto(f"{address}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}")
    expect(page.get_by_role("heading", name=DEFAULT)).to_be_visible()
    note = page.get_by_test_id("note-view-outer-container").first
    expect(note).to_contain_text("A linear model of y from x1. Engine torch, loss mse, sgd with learning rate 0.05")
    expect(note).to_contain_text("data/synthetic.csv, 1000 rows: 800 to train, 100 to validate, 100 to test.")
    expect(note.get_by_role("row", name="this model")).to_contain_text(f"{run.data.metrics['test_mse']:.6g}")
    expect(note).to_contain_text(f"Its mse is {run.data.metrics['excess_mse']:.3%} above that of least squares")
    expect(note).to_contain_text(re.compile(r"Learned: y = 0\.99\d+ \+2\.00\d+·x1"))
    expect(note.locator("code").last).to_have_text("truefit rerun RUN_ID")
    expect(page.get_by_test_id("key-value-Run ID")).to_contain_text(run.info.run_id)

    page.get_by_text(f"synthetic.csv ({run.data.tags['csv.sha256'][:36]})").click()
    drawer = page.get_by_role("dialog")
    for text in ("num rows: 1000", "train: 800", "Path: data/synthetic.csv", "x1", "y"):
        expect(drawer.get_by_text(text, exact=True).first).to_be_visible()


def test_the_address_at_the_end_of_a_repro_shows_a_picture_to_a_new_browser(
    first_page: Page, address: str, workspace: Workspace
) -> None:
    page = first_page
    printed = (workspace.path / PRINTED).read_text()  # by the last evaluation
    (place,) = re.findall(r"^ +http://127\.0\.0\.1:5000(/.+)$", printed, re.MULTILINE)
    page.goto(f"{address}{place}")
    expect(page.get_by_alt_text("figures/fit.png")).to_be_visible()
    expect(page.get_by_role("heading", name=NAMES[-1])).to_be_visible()
    expect(page.get_by_role("link", name="Models", exact=True)).to_be_visible()  # of the pages for trainings


def test_page_of_models_lists_those_of_the_runs_with_their_scores(
    page: Page, address: str, run: Run, workspace: Workspace
) -> None:
    """Fault 20."""
    page.goto(f"{address}/#/experiments/{run.info.experiment_id}/models")
    for name in NAMES:
        expect(page.get_by_role("link", name=name, exact=True)).to_be_visible()
    for found in workspace.runs():
        expect(page.get_by_text(str(found.data.metrics["test_mse"])).first).to_be_visible()


def test_artifacts_of_a_run_can_be_seen_downloaded_and_loaded(page: Page, address: str, run: Run, tmp_path: Path) -> None:
    page.goto(f"{address}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}/artifacts")
    nodes = page.get_by_test_id("artifact-tree-node")
    nodes.get_by_text("figures", exact=True).click()
    for name in ("loss.png", "fit.png", "residuals.png"):
        nodes.get_by_text(name, exact=True).click()
        picture = page.get_by_alt_text(f"figures/{name}")
        expect(picture).to_be_visible()
        assert picture.evaluate("image => image.naturalWidth") == 768

    nodes.get_by_text("state_dict", exact=True).click()
    for name in ("best.pt", "final.pt"):
        nodes.get_by_text(name, exact=True).click()
        page.get_by_title(f"state_dict/{name}", exact=True).wait_for()
        with page.expect_download() as download:
            page.locator("[data-component-id*='artifactview'][type=button]").click()
        download.value.save_as(tmp_path / name)
        state = torch.load(tmp_path / name, weights_only=True)
        if name == "final.pt":  # the one kept
            assert state_dict_digest(state) == run.data.tags[DIGEST_TAG]


def test_names_from_outside_are_text_in_the_description(
    page: Page, address: str, workspace: Workspace, tmp_path: Path
) -> None:
    table = prepare(tmp_path, numbered_csv(20))
    table = renamed(table, [HOSTILE[29:69], *table.features[1:]], target=HOSTILE[:39])
    scores = dict.fromkeys(("mse", "rmse", "mae", "r2"), 1.0)
    content = {"test": scores, "least_squares": scores, "excess_mse": 0.0}
    client = workspace.client
    experiment = client.create_experiment("hostile", (workspace.path / "mlartifacts").as_uri())
    run_id = client.create_run(experiment, tags={NOTE_TAG: describe(table, TrainSettings(), content)}).info.run_id
    alerts: list[str] = []
    # Each also stops the page, since nobody answers it.
    page.on("dialog", lambda dialog: alerts.append(dialog.message))
    page.goto(f"{address}/#/experiments/{experiment}/runs/{run_id}")
    note = page.get_by_test_id("note-view-outer-container").first
    expect(note).to_contain_text(f"of {HOSTILE[:39]} from {HOSTILE[29:69]}")
    assert note.locator("img, a, em").count() == 0
    assert alerts == []
