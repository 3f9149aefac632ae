"""`truefit rerun`: a recorded run, run again from its record, compared, and judged."""

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
from truefit.core.errors import TrackingError
from truefit.core.signals import Deferred
from truefit.evaluation.figures import rerun_picture
from truefit.ingest.part_files import ALL
from truefit.rerun.comparison import Report, Row, Verdict, compare, different_inputs, judge
from truefit.rerun.records import publish, read_result, search
from truefit.rerun.worktree import recorded_workspace
from truefit.tracking.connection import repository_root
from truefit.tracking.logged_model import delete_run
from truefit.tracking.names import CODE_TAG, COMMIT_TAG, CSV_TAG, FAILURE_TAG, RERUN_KEY_TAG, RERUN_TAG
from truefit.tracking.run import TrackSettings
from truefit.tracking.store import Store

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun


@dataclass(frozen=True)
class Rerun:
    """The report, the name of its artifacts, and the worktree that was kept."""

    report: Report
    artifacts: str
    kept: Path | None


def run_again(store: Store, run: "MlflowRun", tolerance: float, keep: bool = False) -> Rerun:
    """Run a recorded run again and return the verdict, after adding it to both runs in the store.

    Raises TrackingError where the store fails; no run, no worktree and no verdict stay then, nor after a signal.
    """
    attempt = _Attempt(store, run, keep)
    artifacts = None
    try:
        # An interrupted download may still write to the folder.
        with tempfile.TemporaryDirectory(prefix="truefit-record-", ignore_cleanup_errors=True) as folder:
            report, picture = attempt.judge(Path(folder), tolerance)
        with Deferred():
            artifacts = publish(store, report, run.info.run_name, picture)
        return Rerun(report, artifacts, attempt.kept)
    finally:
        if artifacts is None:
            with Deferred():
                attempt.discard()


class _Attempt:
    """One attempt to run `run` again."""

    def __init__(self, store: Store, run: "MlflowRun", keep: bool) -> None:
        self._store = store
        self._run = run
        self._keep = keep
        self._key = uuid4().hex  # by which the new run is found
        self._experiment: str | None = None
        self.kept: Path | None = None

    def judge(self, folder: Path, tolerance: float) -> tuple[Report, bytes | None]:
        """Return the report, and a picture where there is something to compare; records are downloaded to `folder`."""
        recorded = read_result(self._store, self._run, folder / "recorded")
        if isinstance(recorded, str):
            return self._inconclusive(recorded), None
        if reason := self._run_pipeline(folder / "recorded/record"):
            return self._inconclusive(reason), None
        new = self._new_runs()[0]
        again = read_result(self._store, new, folder / "again")
        if isinstance(again, str):
            return self._inconclusive(f"the rerun: {again}"), None
        inputs, rows = different_inputs(recorded, again), compare(recorded, again)
        verdict, reason = judge(rows, inputs, tolerance)
        report = Report(verdict, self._run.info.run_id, new.info.run_id, reason, tolerance, rows, inputs)
        return report, rerun_picture(recorded.history, again.history)

    def discard(self) -> None:
        """Remove the new run, where there is one."""
        try:
            for run in self._new_runs():
                with self._store.errors():
                    delete_run(self._store.connect(), run.info.run_id)
        except TrackingError as error:
            print(f"warning: {error}; a run with the tag {RERUN_KEY_TAG} {self._key} may be left there", file=sys.stderr)

    def _inconclusive(self, reason: str) -> Report:
        again = next((run.info.run_id for run in self._new_runs()), None)
        return Report(Verdict.INCONCLUSIVE, self._run.info.run_id, again, reason)

    def _run_pipeline(self, record: Path) -> str | None:
        """Return what kept the recorded pipeline from making a run that ended well, or None."""
        store, tags, params = self._store, self._run.data.tags, Params(record / "params.yaml").values
        prepare = params["prepare"]
        with recorded_workspace(repository_root(), self._keep) as worktree:
            reason = (
                worktree.check_out(tags[COMMIT_TAG])
                or worktree.restore(record, tags.get(CODE_TAG))
                or worktree.bring_csv(prepare["csv"], tags[CSV_TAG], record, str(prepare.get("parts", ALL)))
            )
            if self._keep and worktree.tree.exists():
                self.kept = worktree.tree
            if reason:
                return reason
            # Made here, where it is not there: in the worktree its artifacts would be in a folder that goes.
            self._experiment = str((params.get("track") or {}).get("experiment", TrackSettings().experiment))
            store.experiment(self._experiment)
            print(f"running {self._run.info.run_name!r} again in {worktree.project}", file=sys.stderr)
            done = worktree.dvc(["repro", "--no-run-cache", "--force", "evaluate"], self._environment())
            waiting = [*(worktree.project / ".truefit/runs").glob("*.sqlite")]
            waiting += (worktree.project / ".truefit/runs").glob("*/journal.jsonl")  # of code that is older
            if done.returncode == 0 and waiting:
                raise TrackingError(
                    f"MLflow store {store.redacted_uri}: did not take the whole run; try again when it answers"
                )
        runs = self._new_runs()
        if runs and done.returncode == 0:
            return None
        status = f"its pipeline ended with status {done.returncode}; see above"
        fault = status if done.returncode else "it made no run in MLflow"
        failures = [run.data.tags[FAILURE_TAG] for run in runs if FAILURE_TAG in run.data.tags]
        return f"its rerun failed: {[*failures, fault][0]}"

    def _environment(self) -> dict[str, str]:
        return {
            # A path that is relative to this folder would be another there.
            "MLFLOW_TRACKING_URI": re.sub(r"^sqlite:///(?!/)", lambda _: f"sqlite:///{Path.cwd()}/", self._store.uri),
            # MLflow gives these tags to each run that begins, also by code that knows no reruns; and from the start, so that
            # in a shared store nobody takes it for a training. Nothing else of its record is unique.
            "MLFLOW_RUN_CONTEXT": json.dumps({RERUN_TAG: self._run.info.run_id, RERUN_KEY_TAG: self._key}),
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }

    def _new_runs(self) -> "list[MlflowRun]":
        if self._experiment is None:
            return []
        return list(search(self._store, self._experiment, f"tags.`{RERUN_KEY_TAG}` = '{self._key}'"))


def describe(rerun: Rerun, name: str) -> str:
    """Return the report as lines for a terminal."""
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
    runs = "both runs" if report.again else "that run"
    lines += [f"report: {rerun.artifacts}.json{' and .png' if report.rows else ''}, of {runs}"]
    if rerun.kept:
        tree, folder = (shlex.quote(str(path)) for path in (rerun.kept, rerun.kept.parent))
        lines += [f"kept: {rerun.kept}; `git worktree remove --force {tree}; rm -r {folder}` removes it"]
    return "\n".join(lines)


def _difference(row: Row) -> str:
    if row.where is None:
        return ""
    size = f"{row.ulps:,} ulp, {row.relative:.1e} relative, " if math.isfinite(row.relative) else ""
    return f"{size}first in {row.where}"
