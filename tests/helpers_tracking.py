"""Runs as short as can be, in a store of their own, and what the store has of them."""

import hashlib
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun
from workspace import ROOT

from truefit.core.errors import TrackingError
from truefit.data.columns.number import Number
from truefit.data.table import CsvSource, Table
from truefit.tracking.journal import Journal, pending
from truefit.tracking.names import DIGEST_TAG
from truefit.tracking.provenance import Origin
from truefit.tracking.run import Run, TrackSettings
from truefit.tracking.sending import Sender
from truefit.tracking.store import Store

TABLE = Table(
    csv=CsvSource(path="data/own.csv", sha256="0123456789abcdef" * 4),
    columns=[Number(name="a"), Number(name="b")],
    target="c",
    dtype="float32",
    rows={"train": 8, "validation": 1, "test": 1},
    mean=[0, 0, 0],
    std=[1, 1, 1],
    sha256={"train": "", "validation": "", "test": ""},
)
# A training as short as can be, in a process of its own.
TRAINING = """
import sys
from truefit.data.columns.number import Number
from truefit.data.table import CsvSource, Table
from truefit.tracking.provenance import Origin
from truefit.tracking.run import TrackSettings
from truefit.tracking.store import Store
split = {"train": 8, "validation": 1, "test": 1}
table = Table(csv=CsvSource(path="a.csv", sha256="0" * 64), columns=[Number(name="a")], target="c", dtype="float32",
              rows=split, mean=[0, 0], std=[1, 1], sha256={name: "" for name in split})
with Store().training_run(TrackSettings(), "name", "f" * 64, lambda: Origin({"a": 1}, {}, table, {})) as run:
    run.log_metrics({"loss": 0.5}, 1)
run.end()
sys.exit(0)
"""


def origin(
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
    artifacts: Mapping[str, bytes] | None = None,
) -> Origin:
    return Origin(params or {}, tags or {}, TABLE, artifacts or {})


def digest_of(track: TrackSettings, word: str) -> str:
    """Return a fingerprint or digest, another for each test and word."""
    return hashlib.sha256(f"{track.experiment}: {word}".encode()).hexdigest()


def complete(track: TrackSettings, word: str, **given: Mapping[str, Any]) -> Run:
    """Run a training that logs nothing to its end, with the digest of `word` for its model."""
    with Store().training_run(track, word, digest_of(track, word), lambda: origin(**given)) as run:
        run.set_tags({DIGEST_TAG: digest_of(track, word)})
    run.end()
    return run


def evaluated(track: TrackSettings, word: str) -> str | None:
    """Run an evaluation that logs nothing, of the model of `word`, and return the id of the run that it completed."""
    with Store().evaluation_run(track, digest_of(track, word)) as run:
        pass
    return run.run_id


def execute(path: Path, *statements: str) -> None:
    """Change a database, as one may who plants it."""
    with closing(sqlite3.connect(path)) as database, database:
        for statement in statements:
            database.execute(statement)


def client(root: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{root / 'mlflow.db'}")


def fetch(root: Path, run: Run) -> MlflowRun:
    assert run.run_id is not None
    return client(root).get_run(run.run_id)


def stored(root: Path, experiment: str) -> list[MlflowRun]:
    """Return the experiment's runs, the latest first."""
    found = client(root).get_experiment_by_name(experiment)
    return [] if found is None else list(client(root).search_runs([found.experiment_id]))


def waiting(root: Path, track: TrackSettings) -> list[Journal]:
    """Return the experiment's journals, the oldest first."""
    return [journal for journal in pending(root / ".truefit/runs") if journal.header.experiment == track.experiment]


def refuse(self: Sender, journal: Journal) -> None:
    raise TrackingError("away")


def start(root: Path, uri: str = "") -> "subprocess.Popen[str]":
    """Start a training in a process of its own, on the store in `root`, or another."""
    environment = {"DVC_ROOT": str(root), "PYTHONPATH": str(ROOT / "src"), "PATH": "/usr/bin:/bin", "MLFLOW_TRACKING_URI": uri}
    return subprocess.Popen([sys.executable, "-c", TRAINING], env=environment, stderr=subprocess.PIPE, text=True)
