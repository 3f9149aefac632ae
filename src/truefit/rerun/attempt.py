"""`truefit rerun`: a recorded run, run again from its record, compared, and judged.

Reads the run's record from MLflow, and the repository; writes a new run, a report on both, and a temporary worktree that is
gone in the end. Guarantees that a run is told its verdict as a whole or not at all: what a signal interrupts leaves no run
behind.
"""

import json
import math
import re
import shlex
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from truefit.core.config import Params
from truefit.core.errors import InconclusiveError, TrackingError
from truefit.evaluation.figures import rerun_picture
from truefit.rerun.comparison import Report, Result, Row, Verdict, compare, different_inputs, judge
from truefit.rerun.records import download, publish, read_result, require_finished, require_record, search
from truefit.rerun.worktree import Signals, Worktree, recorded_workspace
from truefit.tracking.connection import repository_root
from truefit.tracking.names import RERUN_KEY_TAG, RERUN_TAG
from truefit.tracking.run import TrackSettings
from truefit.tracking.store import Store

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun


@dataclass(frozen=True)
class Rerun:
    """What `rerun` gives: the report, the name of its artifacts, and the folder that was kept."""

    report: Report
    artifacts: str
    kept: Path | None


def rerun(store: Store, run: "MlflowRun", tolerance: float, keep: bool = False, signals: Signals | None = None) -> Rerun:
    """Run a recorded run again and return the verdict, after adding it to both runs in the store.

    Raises TrackingError where the store fails, and StoppedError for a signal; no run, no worktree and no verdict stay then.
    """
    signals = signals or Signals()
    attempt = _Attempt(store, run, keep, signals)
    artifacts = None
    try:
        # An interrupted download may still write to the folder.
        with tempfile.TemporaryDirectory(prefix="truefit-record-", ignore_cleanup_errors=True) as folder:
            report, picture = attempt.judge(Path(folder), tolerance)
        with signals.held():
            artifacts = publish(store, report, run.info.run_name, picture)
        return Rerun(report, artifacts, attempt.kept)
    finally:
        if artifacts is None:
            with signals.held():
                attempt.discard()


class _Attempt:
    """One attempt to run `run` again; `kept` is the worktree, where that is to stay."""

    def __init__(self, store: Store, run: "MlflowRun", keep: bool, signals: Signals) -> None:
        self._store = store
        self._run = run
        self._keep = keep
        self._signals = signals
        self._key = uuid4().hex  # by which the new run is found
        self._experiment: str | None = None
        self.kept: Path | None = None

    def judge(self, folder: Path, tolerance: float) -> tuple[Report, bytes | None]:
        """Return the report, and a picture where there is something to compare; records are downloaded to `folder`."""
        recorded_id = self._run.info.run_id
        try:
            recorded = self._read(self._run, folder / "recorded")
            commit = self._run.data.tags["git.commit"]
            with recorded_workspace(repository_root(), commit, self._signals, self._keep) as worktree:
                self.kept = worktree.tree if self._keep else None
                fault = self._run_pipeline(worktree, folder / "recorded/record")
            new = self._new_run(fault)
            again = self._read(new, folder / "again", "the rerun: ")
        except InconclusiveError as error:
            again_id = next((run.info.run_id for run in self._new_runs()), None)
            return Report(Verdict.INCONCLUSIVE, recorded_id, again_id, str(error)), None
        inputs, rows = different_inputs(recorded, again), compare(recorded, again)
        verdict, reason = judge(rows, inputs, tolerance)
        report = Report(verdict, recorded_id, new.info.run_id, reason, tolerance, rows, inputs)
        return report, rerun_picture(recorded.history, again.history)

    def discard(self) -> None:
        """Remove the new run, where there is one."""
        try:
            for run in self._new_runs():
                with self._store.errors():
                    self._store.connect().delete_run(run.info.run_id)
        except TrackingError as error:
            print(f"warning: {error}; a run with the tag {RERUN_KEY_TAG} {self._key} may be left there", file=sys.stderr)

    def _read(self, run: "MlflowRun", folder: Path, who: str = "") -> Result:
        """Download a run, check its record, and return what it started from and ended with."""
        try:
            require_finished(run)
            download(self._store, run, folder)
            require_record(run, folder)
            return read_result(self._store, run, folder)
        except InconclusiveError as error:
            raise InconclusiveError(f"{who}{error}") from None

    def _run_pipeline(self, worktree: Worktree, record: Path) -> str | None:
        """Run the recorded pipeline; return what kept it from ending well, or None."""
        run, store = self._run, self._store
        worktree.restore(record, run.data.tags.get("code.sha256"))
        params = Params(record / "params.yaml").values
        tags = {RERUN_TAG: run.info.run_id, RERUN_KEY_TAG: self._key}
        environment = {
            # A path that is relative to this folder would be another there.
            "MLFLOW_TRACKING_URI": re.sub(r"^sqlite:///(?!/)", lambda _: f"sqlite:///{Path.cwd()}/", store.uri),
            # MLflow gives these tags to every run that begins, whatever the recorded code knows of reruns.
            "MLFLOW_RUN_CONTEXT": json.dumps(tags),
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        # Made here, where it is not there: in the worktree its artifacts would be in a folder that goes.
        self._experiment = str((params.get("track") or {}).get("experiment", TrackSettings().experiment))
        store.experiment(self._experiment)
        worktree.bring_csv(params["prepare"]["csv"], run.data.tags["csv.sha256"], record)
        print(f"running {run.info.run_name!r} again in {worktree.project}", file=sys.stderr)
        done = worktree.dvc(["repro", "--no-run-cache", "--force", "evaluate"], environment)
        if done.returncode == 0 and any((worktree.project / ".truefit/runs").glob("*/journal.jsonl")):
            raise TrackingError(f"MLflow store {store.redacted_uri}: did not take the whole run; try again when it answers")
        return f"its pipeline ended with status {done.returncode}; see above" if done.returncode else None

    def _new_run(self, fault: str | None) -> "MlflowRun":
        """Return the run that the pipeline made; raises InconclusiveError where there is none, or where there was a fault."""
        runs = self._new_runs()
        if fault or not runs:
            failures = [run.data.tags["failure"] for run in runs if "failure" in run.data.tags]
            raise InconclusiveError(f"its rerun failed: {(failures or [fault or 'it made no run in MLflow'])[0]}")
        return runs[0]

    def _new_runs(self) -> "list[MlflowRun]":
        """Return the run that the pipeline made in the store, if it came so far."""
        if self._experiment is None:
            return []
        return list(search(self._store, self._experiment, f"tags.`{RERUN_KEY_TAG}` = '{self._key}'"))


def describe(rerun: Rerun, name: str) -> str:
    """Return the report as lines for a terminal: the verdict, what was compared, what differs, and where it is kept."""
    report = rerun.report
    lines = [f"{name}, {report.recorded}: {report.verdict}{f', since {report.reason}' if report.reason else ''}"]
    if report.rows:
        lines += ["", f"{'':18}{'compared':>9}{'equal':>9}  largest difference"]
        lines += [f"{row.name:18}{row.compared:9}{row.equal:9}  {_difference(row)}".rstrip() for row in report.rows]
        lines += [""]
    if report.first_epoch:
        lines += [f"first epoch that differs: {report.first_epoch}"]
    for group, values in report.inputs.items():
        changes = ", ".join(f"{key} {before} -> {after}" for key, (before, after) in values.items())
        lines += [f"{group}: {changes}"]
    if report.rows and not report.inputs:
        lines += ["code, params, data and environment: the same"]
    if report.again:
        lines += [f"run again as MLflow run {report.again}"]
    lines += [
        f"report: {rerun.artifacts}.json{' and .png' if report.rows else ''}, of {'both runs' if report.again else 'that run'}"
    ]
    if rerun.kept:
        tree, folder = (shlex.quote(str(path)) for path in (rerun.kept, rerun.kept.parent))
        lines += [f"kept: {rerun.kept}; `git worktree remove --force {tree}; rm -r {folder}` removes it"]
    return "\n".join(lines)


def _difference(row: Row) -> str:
    if row.where is None:
        return ""
    size = f"{row.ulps:,} ulp, {row.relative:.1e} relative, " if math.isfinite(row.relative) else ""
    return f"{size}first in {row.where}"
