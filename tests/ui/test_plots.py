"""The page of `dvc plots` in a browser without a network: what is drawn of one revision, and of two."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from helpers_ui import AT_HEAD
from playwright.sync_api import Browser, Page, expect
from workspace import Workspace

# One set of runs and one browser for all of tests/ui, see conftest.py.
pytestmark = pytest.mark.xdist_group("browser")

# In an SVG that Vega drew, an element knows the row of data that it stands for.
LINES = """[...document.querySelectorAll(".mark-line path")].map(({__data__: {mark}}) =>
    [mark.items[0].datum.rev, mark.items[0].datum.field, mark.items.map(({datum}) => +datum.dvc_inferred_y_value)])"""
POINTS = """[...document.querySelectorAll(".role-mark.mark-symbol path")].map(({__data__: {datum}}) =>
    [datum.rev, +datum.actual, +datum.predicted])"""


@pytest.fixture(scope="module")
def folder(workspace: Workspace) -> Path:
    """The folder of the page, with what `make setup` puts there."""
    # The environment that runs this test is set up already, so make is told to leave it.
    workspace.run("make", "--assume-old=.venv/.ready", "dvc_plots/vega.js")
    return workspace.path / "dvc_plots"


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(offline=True)
    yield context.new_page()
    context.close()


def show(page: Page, workspace: Workspace, *command: str) -> list[str]:
    """Open the page that `dvc plots` prints the address of, and return what it asks of the network."""
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(workspace.run("dvc", "plots", *command).stdout.strip())
    return [address for address in asked if not address.startswith("file:")]


def results(workspace: Workspace, revision: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the history and the predictions of a revision."""
    folder = workspace.path / "results" if revision == "workspace" else workspace.path.with_name(AT_HEAD)
    return pd.read_csv(folder / "history.csv"), pd.read_csv(folder / "predictions.csv")


@pytest.mark.parametrize(("command", "revisions"), [("show", ["workspace"]), ("diff", ["workspace", "HEAD"])])
def test_page_draws_losses_and_predictions_of_each_revision_without_a_network(
    page: Page, workspace: Workspace, folder: Path, command: str, revisions: list[str]
) -> None:
    assert show(page, workspace, command) == []
    for title in ("Loss by epoch", "Predicted against actual, test rows"):
        expect(page.get_by_text(title, exact=True)).to_be_visible()
    losses, points = [], []
    for revision in revisions:
        history, predictions = results(workspace, revision)
        losses += [[revision, name, history[name].to_list()] for name in ("train_loss", "validation_loss")]
        points += [[revision, *pair] for pair in zip(predictions["actual"], predictions["predicted"], strict=True)]
    assert sorted(page.evaluate(LINES)) == sorted(losses)
    assert page.evaluate(POINTS) == points
    assert page.locator(".role-legend-label text").all_text_contents() == [
        *revisions,
        "train_loss",
        "validation_loss",
        *revisions,
    ]
    titles = ["epoch", "mean loss of a row, target's unit² (l1: unit)", "actual", "predicted"]
    assert page.locator(".role-axis-title text").all_text_contents() == titles
    assert all(page.locator("img").evaluate_all("images => images.map(image => image.naturalWidth === 768)"))


def test_page_without_its_library_asks_the_network_and_says_what_to_do_where_there_is_none(
    page: Page, workspace: Workspace, folder: Path, tmp_path: Path
) -> None:
    asked = show(page, workspace, "show", "--out", str(tmp_path / "elsewhere"))
    assert [address.split("@")[0].rpartition("/")[2] for address in asked] == ["vega", "vega-lite", "vega-embed"]
    expect(
        page.get_by_text("To draw the plots without a network, run make setup, and put dvc_plots/vega.js beside this page.")
    ).to_be_visible()
    shutil.copy(folder / "vega.js", tmp_path / "elsewhere")
    page.reload()
    expect(page.get_by_text("Loss by epoch", exact=True)).to_be_visible()
    expect(page.get_by_text("make setup")).to_have_count(0)
