"""`make ui` of a workspace, on a free port, and the page in which it compares runs; the selectors are those of MLflow 3.17."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from mlflow.entities import Run
from playwright.sync_api import Page, expect
from workspace import Workspace

PRINTED = "printed.txt"  # in a workspace with runs, what the last evaluation printed
AT_HEAD = "results at HEAD"  # a copy of them, beside that workspace
Curves = dict[str, tuple[list[int], list[float]]]  # steps and values, by the run's name


@contextmanager
def served(workspace: Workspace) -> Iterator[str]:
    """Give the address of a `make ui`, which is stopped at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # The environment that runs this test is set up already, so make is told to leave it.
    command = ["make", "--assume-old=.venv/.ready", "ui", f"PORT={port}"]
    server = subprocess.Popen(
        command,
        cwd=workspace.path,
        env=workspace.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        for _ in range(600):
            if server.poll() is not None or _answers(port):
                break
            time.sleep(0.1)
        assert server.poll() is None
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def _answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def compare_all(page: Page, number: int) -> list[str]:
    """Compare the runs of the table, that many, and return the params of the training that differ."""
    page.locator(".ag-header input[type=checkbox]:visible").first.click()
    page.get_by_test_id("runs-compare-button").click()
    expect(page.get_by_role("heading", name=f"Comparing {number} Runs from 1 Experiment")).to_be_visible()
    page.get_by_role("switch", name="Parameters - Show diff only").click()
    expect(page.get_by_role("rowheader", name="train.batch_size")).to_have_count(0)
    return [text for text in page.get_by_role("rowheader").all_inner_texts() if text.startswith("train.")]


def loss_curves(page: Page) -> Curves:
    """Return what the compared runs' picture of the training loss draws."""
    # By the keyboard: the tables above may still be moving, and a click would miss.
    page.get_by_role("link", name="train_loss", exact=True).press("Enter")
    page.locator(".js-plotly-plot .scatterlayer .trace").first.wait_for()
    drawn = page.evaluate("document.querySelector('.js-plotly-plot').data.map(({name, x, y}) => [name, [...x], [...y]])")
    curves: Curves = {}
    for name, steps, losses in drawn:  # each is drawn twice, smoothed and as it is; here without smoothing
        assert curves.setdefault(name, (steps, losses)) == (steps, losses), name
    return curves


def recorded_curves(workspace: Workspace, runs: list[Run]) -> Curves:
    """Return the training losses of runs as the store has them."""
    histories = {run.info.run_name: workspace.client.get_metric_history(run.info.run_id, "train_loss") for run in runs}
    return {name: ([one.step for one in metrics], [one.value for one in metrics]) for name, metrics in histories.items()}
