"""How long `truefit rerun` and `truefit predict` take to find a run in a store with very many.

Fills a SQLite store with runs as trainings leave them, of two users, and times each way to find one, beside the memory of the
whole process at the end. Prints a line for each.

Usage: python benchmarks/many_runs.py [--runs N]
"""

import argparse
import os
import resource
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from mlflow import MlflowClient

from truefit.rerun.records import find, trainings
from truefit.tracking.store import Store

TAGS, PARAMS, METRICS = 25, 60, 15  # about those of a training


def run_id(number: int) -> str:
    """Return an id whose beginning is no other's."""
    return f"{number:032x}"[::-1]


def fill(folder: Path, uri: str, runs: int, root: str) -> None:
    """Make the store, with runs of alice's and, after each, one of bob's."""
    experiment = MlflowClient(uri).create_experiment("truefit", folder.as_uri())
    ids = [run_id(number) for number in range(runs)]
    users = ["alice", "bob"]
    tags = [("mlflow.user", users), ("git.root", [root]), ("git.commit", [root])]
    tags += [(f"tag {number}", ["value"]) for number in range(TAGS)]
    with sqlite3.connect(folder / "store.db") as database:
        database.executemany(
            "INSERT INTO runs (run_uuid, name, source_type, user_id, status, start_time, end_time, lifecycle_stage,"
            " artifact_uri, experiment_id) VALUES (?, ?, 'LOCAL', 'u', 'FINISHED', ?, ?, 'active', ?, ?)",
            ((run, f"run {n}", n, n + 1, f"{folder.as_uri()}/{run}/artifacts", experiment) for n, run in enumerate(ids)),
        )
        database.executemany(
            "INSERT INTO tags (key, value, run_uuid) VALUES (?, ?, ?)",
            ((key, values[n % len(values)], run) for n, run in enumerate(ids) for key, values in tags),
        )
        database.executemany(
            "INSERT INTO tags (key, value, run_uuid) VALUES ('mlflow.runName', ?, ?)",
            ((f"run {n}", run) for n, run in enumerate(ids)),
        )
        database.executemany(
            "INSERT INTO params (key, value, run_uuid) VALUES (?, '1', ?)",
            ((f"param {number}", run) for run in ids for number in range(PARAMS)),
        )
        database.executemany(
            "INSERT INTO latest_metrics (key, value, timestamp, step, is_nan, run_uuid) VALUES (?, 0.5, 0, 1, 0, ?)",
            ((f"metric {number}", run) for run in ids for number in range(METRICS)),
        )


def main() -> None:
    """Fill the store, and find runs in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / ".dvc").mkdir()
        os.chdir(folder)
        person = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        for command in (["init", "--quiet"], [*person, "commit", "--quiet", "--allow-empty", "--message", "first"]):
            subprocess.run(["git", *command], check=True)
        root = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
        uri = f"sqlite:///{folder / 'store.db'}"
        fill(folder, uri, given.runs, root)
        os.environ.update(MLFLOW_TRACKING_URI=uri, LOGNAME="alice")
        store = Store()
        store.connect()  # which imports, and opens the store
        print(f"before: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000:.0f} MB")
        middle = run_id(given.runs // 2)
        ways: dict[str, Callable[[], object]] = {
            "the latest own": lambda: find(store, None, "truefit"),
            "by id": lambda: find(store, middle, "truefit"),
            "by the beginning of an id": lambda: find(store, middle[:8], "truefit"),
            "by name": lambda: find(store, f"run {given.runs // 2}", "truefit"),
            "the first of all own": lambda: next(trainings(store, "truefit")),
        }
        for name, way in ways.items():
            times = []
            for _ in range(2):
                started = time.perf_counter()
                way()
                times.append(time.perf_counter() - started)
            print(f"{name}: {times[0]:.2f} s, then {times[1]:.2f} s;", end="")
            print(f" at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000:.0f} MB")


if __name__ == "__main__":
    main()
