"""What the tests in a browser share: one set of runs, one server of each kind, and one browser, for all of them.

Without Debian's chromium the tests are skipped, and fail where TRUEFIT_BROWSER is `required`, as in .ci/run.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from helpers_required import unavailable
from helpers_stages import Stages
from helpers_ui import AT_HEAD, PRINTED, served
from mlflow.entities import Run
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from workspace import Workspace

PATIENCE = 30_000  # milliseconds, for a machine that is busy

expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory, stages: Stages) -> Workspace:
    """A clone in which the default pipeline ran, then three trainings with other settings, each evaluated.

    The first is that of HEAD, for DVC too; the results of the last are in the working tree.
    """
    workspace = Workspace(tmp_path_factory.mktemp("clone"))
    table, synthetic = "data/prepared", "data/synthetic.csv"
    mlp = {"train__model__name": "mlp", "train__model__hidden": [16, 16], "train__optimizer__name": "adam"}

    def run(stage: str, *arguments: str) -> None:
        done = stages.run(workspace.path, stage, *arguments)
        assert done.status == 0, done.line

    run("generate", synthetic)
    run("prepare", table)
    for changed in (
        {},
        {"train__optimizer__lr": 0.02},
        {"train__optimizer__lr": 0.1, "train__engine": "numpy"},
        {"train__optimizer__lr": 0.01, "train__engine": "torch", **mlp},
    ):
        workspace.set_params(**changed)
        run("train", table, "results")
        run("evaluate", table, "results", synthetic)
        if not changed:
            workspace.run("dvc", "commit", "--force")  # so that the later ones can be compared with HEAD
            workspace.commit()
            shutil.copytree(workspace.path / "results", workspace.path.with_name(AT_HEAD))
    (workspace.path / PRINTED).write_text(stages.printed)
    return workspace


@pytest.fixture(scope="session")
def run(workspace: Workspace) -> Run:
    """The run of the default pipeline."""
    return workspace.runs()[-1]


@pytest.fixture(scope="session")
def address(workspace: Workspace, run: Run) -> Iterator[str]:
    """The address of a `make ui` on a free port, stopped at the end."""
    with served(workspace) as address:
        yield address


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    found = shutil.which("chromium")
    if found is None:
        unavailable("BROWSER", "chromium is not installed: apt-get install chromium")
    with sync_playwright() as playwright:
        # Chromium refuses its sandbox to root.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=found, args=arguments)
        yield browser
        browser.close()


@contextmanager
def visit(browser: Browser) -> Iterator[BrowserContext]:
    """A browser that has never been here, but for the assistant's panel, which would cover half of a page."""
    context = browser.new_context(viewport={"width": 1440, "height": 720})
    context.set_default_timeout(PATIENCE)
    closed = {"mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true", "mlflow.assistant.panelOpen_v1": "false"}
    context.add_init_script("".join(f"localStorage.setItem({key!r}, {value!r});" for key, value in closed.items()))
    yield context
    context.close()


@pytest.fixture(scope="session")
def _context(browser: Browser) -> Iterator[BrowserContext]:
    with visit(browser) as context:
        yield context


@pytest.fixture
def page(_context: BrowserContext) -> Iterator[Page]:
    """A page of a browser that has the UI's scripts already, which take seconds to load, and remembers nothing else."""
    page = _context.new_page()
    yield page
    page.evaluate("localStorage.clear()")
    page.close()
    _context.clear_cookies()


@pytest.fixture
def first_page(browser: Browser) -> Iterator[Page]:
    """A page of a browser that has never been here."""
    with visit(browser) as context:
        yield context.new_page()
