"""`truefit rerun`: a recorded run, run again from its record, compared, and judged."""

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from truefit.core.config import PARAMS, Params, flatten
from truefit.core.errors import StoppedError, TrackingError
from truefit.core.launch import LaunchSettings
from truefit.core.redaction import redacted
from truefit.core.signals import Deferred
from truefit.core.terminal import say
from truefit.evaluation.figures import rerun_picture
from truefit.ingest.part_files import ALL
from truefit.rerun.comparison import Report, Verdict, compare, different_inputs, judge
from truefit.rerun.leftovers import clear_leftovers, known_folder
from truefit.rerun.publishing import PAUSES, insist
from truefit.rerun.records import read_result
from truefit.rerun.worktree import Worktree, recorded_workspace
from truefit.tracking.connection import repository_root
from truefit.tracking.logged_model import delete_run
from truefit.tracking.names import (
    CODE_TAG,
    COMMIT_TAG,
    CSV_TAG,
    FAILURE_TAG,
    PARENT_TAG,
    REMOTE_TAG,
    RERUN_EXPERIMENT,
    RERUN_KEY_TAG,
    RERUN_TAG,
)
from truefit.tracking.run import TrackSettings
from truefit.tracking.store import Store

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun

_MOST = 10  # runs that one execution of the pipeline may make: a training's, and those of evaluations that did not find it


@dataclass(frozen=True)
class Rerun:
    """The report, the run's name, a picture where there was something to compare, and the worktree that was kept."""

    report: Report
    run_name: str
    picture: bytes | None = None
    kept: Path | None = None


def run_again(store: Store, run: "MlflowRun", tolerance: float, keep: bool = False) -> Rerun:
    """Run a recorded run again and return the verdict, which is not published yet.

    Raises TrackingError where the store fails. No worktree stays then, nor a run, unless it has ended; after a signal, none.
    """
    clear_leftovers(repository_root(), store)
    attempt = _Attempt(store, run, keep)
    try:
        with known_folder(repository_root(), f"{attempt.key}-records", keep=False) as folder:
            report, picture = attempt.judge(folder, tolerance)
    except BaseException as error:
        with Deferred():
            attempt.leave(stopped=isinstance(error, StoppedError))
        raise
    return Rerun(report, run.info.run_name, picture, attempt.kept)


def _launch_here(recorded: Mapping[str, Any]) -> LaunchSettings:
    """Return what params.yaml here says of processes, or one of them where the recorded shards are not for as many."""
    settings = Params(repository_root() / PARAMS).section("launch", LaunchSettings)
    fits = int(recorded.get("train.shards", 1)) % settings.processes == 0
    return settings if fits else LaunchSettings()


class _Attempt:
    """One attempt to run `run` again."""

    def __init__(self, store: Store, run: "MlflowRun", keep: bool) -> None:
        self._store = store
        self._run = run
        self._keep = keep
        self.key = uuid4().hex  # by which the new run is found
        self._experiments = [run.info.experiment_id]  # where it may be
        self._ended = False  # whether it is whole
        self.kept: Path | None = None

    def judge(self, folder: Path, tolerance: float) -> tuple[Report, bytes | None]:
        """Return the report, and a picture where there is something to compare; records are downloaded to `folder`."""
        recorded = read_result(self._store, self._run, folder / "recorded")
        if isinstance(recorded, str):
            return self._inconclusive(recorded), None
        if reason := self._run_pipeline(folder / "recorded/record"):
            return self._inconclusive(reason), None
        self._ended = True
        new = insist(self._new_runs)[0]
        again = insist(lambda: read_result(self._store, new, folder / "again"))
        if isinstance(again, str):
            return self._inconclusive(f"the rerun: {again}"), None
        inputs, rows = different_inputs(recorded, again), compare(recorded, again)
        verdict, reason = judge(rows, inputs, tolerance)
        ids, checked = (self._run.info.run_id, new.info.run_id), recorded.record_checked
        report = Report(verdict, *ids, reason, tolerance, rows, inputs, checked)
        return report, rerun_picture(recorded.history, again.history)

    def leave(self, stopped: bool) -> None:
        """Remove the new run, where there is one; but where it has ended, and nobody stopped this, tell of it."""
        if self._ended and not stopped:
            say(
                f"warning: the rerun has ended, and its run stays: that with the tag {RERUN_KEY_TAG} {self.key}",
                error=True,
            )
            return
        try:
            for run in self._new_runs():
                with self._store.errors():
                    delete_run(self._store.connect(), run.info.run_id)
        except TrackingError as error:
            say(f"warning: {error}; a run with the tag {RERUN_KEY_TAG} {self.key} may be left there", error=True)

    def _inconclusive(self, reason: str) -> Report:
        again = next((run.info.run_id for run in insist(self._new_runs)), None)
        return Report(Verdict.INCONCLUSIVE, self._run.info.run_id, again, redacted(reason))

    def _run_pipeline(self, record: Path) -> str | None:
        """Return what kept the recorded pipeline from making a run that ended well, or None."""
        tags, params = self._run.data.tags, flatten(Params(record / "params.yaml").values)
        with recorded_workspace(repository_root(), self._keep, self.key) as worktree:
            reason = (
                worktree.check_out(tags[COMMIT_TAG], record, tags.get(REMOTE_TAG))
                or worktree.restore(record, tags.get(CODE_TAG))
                or worktree.bring_csv(str(params["prepare.csv"]), tags[CSV_TAG], record, str(params.get("prepare.parts", ALL)))
            )
            if self._keep and worktree.tree.exists():
                self.kept = worktree.tree
            if reason:
                return reason
            if "launch.processes" in params:  # older code knows one process alone
                worktree.launch(_launch_here(params))
            self._make_room(worktree, str(params.get("track.experiment", TrackSettings().experiment)))
            say(f"running {self._run.info.run_name!r} again in {worktree.project}", error=True)
            done = worktree.dvc(["repro", "--no-run-cache", "--force", "evaluate"], self._environment())
            if done.returncode == 0 and not self._is_sent(worktree):
                raise TrackingError(
                    f"MLflow store {self._store.redacted_uri}: did not take the whole run; try again when it answers"
                )
        runs = insist(self._new_runs)
        if runs and done.returncode == 0:
            return None
        status = f"its pipeline ended with status {done.returncode}; see above"
        fault = status if done.returncode else "it made no run in MLflow"
        failures = [run.data.tags[FAILURE_TAG] for run in runs if FAILURE_TAG in run.data.tags]
        return f"its rerun failed: {[*failures, fault][0]}"

    def _make_room(self, worktree: Worktree, name: str) -> None:
        """Find or make an experiment of that name for code that goes by it alone, where the run's own was renamed."""
        with self._store.errors():
            known = self._store.connect().get_experiment(self._run.info.experiment_id).name
        if known != name and RERUN_EXPERIMENT not in worktree.read("src/truefit/tracking/names.py"):
            # Made here: in the worktree its artifacts would be in a folder that goes.
            self._experiments.append(self._store.experiment(name))

    def _is_sent(self, worktree: Worktree) -> bool:
        """Say whether the store has the whole run, after asking the recorded code to send what is left of it."""
        for pause in (0, *PAUSES):
            time.sleep(pause)
            # That nothing lies there is one answer; of what does, the recorded code knows.
            if not any((worktree.project / ".truefit/runs").glob("*")):
                return True
            if worktree.truefit(["sync"], self._environment()).returncode == 0:
                return True
        return False

    def _environment(self) -> dict[str, str]:
        return {
            # A path that is relative to this folder would be another there.
            "MLFLOW_TRACKING_URI": re.sub(r"^sqlite:///(?!/)", lambda _: f"sqlite:///{Path.cwd()}/", self._store.uri),
            # MLflow gives these tags to each run that begins, also by code that knows no reruns; and from the start, so that
            # in a shared store nobody takes it for a training. Nothing else of its record is unique.
            "MLFLOW_RUN_CONTEXT": json.dumps(
                {RERUN_TAG: self._run.info.run_id, RERUN_KEY_TAG: self.key, PARENT_TAG: self._run.info.run_id}
            ),
            RERUN_EXPERIMENT: self._run.info.experiment_id,
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }

    def _new_runs(self) -> "list[MlflowRun]":
        where, latest = f"tags.`{RERUN_KEY_TAG}` = '{self.key}'", ["attributes.start_time DESC"]
        with self._store.errors():
            return list(self._store.connect().search_runs(self._experiments, where, max_results=_MOST, order_by=latest))
