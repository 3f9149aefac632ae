"""`truefit rerun`: which run, whether it may be executed here, and what is printed of it."""

import math
import shlex
from collections.abc import Iterable
from typing import TYPE_CHECKING

from truefit.core.errors import StoppedError, TrackingError, TruefitError
from truefit.core.redaction import redacted
from truefit.core.terminal import say, say_json
from truefit.rerun.comparison import Report, Row, Verdict
from truefit.rerun.publishing import publish
from truefit.rerun.records import whole
from truefit.rerun.run_again import Rerun, run_again
from truefit.rerun.trust import Owner, origin
from truefit.tracking.store import Store

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun


def rerun(store: Store, run: "MlflowRun", trusted: bool, tolerance: float, keep: bool, as_json: bool) -> int:
    """Run a run again, print the report, publish it, and return the exit status.

    Raises TrackingError for a run that is not this user's and repository's, unless it is `trusted`, after telling of it.
    """
    _check_owner(store, run, trusted)
    done = run_again(store, run, tolerance, keep)
    if as_json:
        say_json(done.report.as_json())
    else:
        say(*describe(done))
    _publish(store, done, as_json)
    return done.report.verdict.status


def rerun_all(store: Store, run_ids: Iterable[str], tolerance: float, keep: bool, as_json: bool) -> int:
    """Run runs again, one by one; print and publish each report; return the exit status of the worst.

    One that fails is reported as an error, and the next is taken.
    """
    reports: list[Report] = []
    try:
        for run_id in run_ids:
            done = _attempt(store, run_id, tolerance, keep)
            reports.append(done.report)
            if not as_json:
                say(*describe(done))
            if done.report.verdict is not Verdict.ERROR:
                _publish(store, done, as_json)
            if not as_json:
                say("")
    finally:  # also where a signal ends it
        verdicts = [report.verdict for report in reports]
        if as_json:
            say_json([report.as_json() for report in reports])
        else:
            say(", ".join(f"{verdict}: {verdicts.count(verdict)}" for verdict in Verdict))
    return max(verdicts, key=list(Verdict).index).status


def _attempt(store: Store, run_id: str, tolerance: float, keep: bool) -> Rerun:
    name = run_id
    try:
        run = whole(store, run_id)
        name = run.info.run_name
        _check_owner(store, run, trusted=False)
        return run_again(store, run, tolerance, keep)
    except StoppedError:
        raise
    except (TruefitError, OSError) as error:
        return Rerun(Report(Verdict.ERROR, run_id, reason=_line(error)), name)


def _check_owner(store: Store, run: "MlflowRun", trusted: bool) -> None:
    reason = Owner.here(store).stranger(run)
    if reason is None:
        return
    say(*origin(store, run), error=True)
    if not trusted:
        run_id = run.info.run_id
        raise TrackingError(
            f"run {run_id}: {reason}; a rerun executes its code: `truefit rerun {run_id} --trust`, if you would run that"
        )


def _publish(store: Store, done: Rerun, as_json: bool) -> None:
    """Add the report to the runs, and tell where it is, or that it is nowhere: what was found out is printed already."""
    report = done.report
    try:
        name = publish(store, report, done.run_name, done.picture)
    except (TrackingError, OSError) as error:
        kept = f"; the rerun stays there as run {report.again}" if report.again else ""
        say(f"warning: {_line(error)}; the report is not in MLflow{kept}", error=True)
    else:
        if not as_json:
            runs = "both runs" if report.again else "that run"
            say(f"report: {name}.json{' and .png' if done.picture else ''}, of {runs}")


def _line(error: Exception) -> str:
    return redacted(" ".join(str(error).split()))


def describe(done: Rerun) -> list[str]:
    """Return the report as lines for a terminal."""
    report = done.report
    reason = f", since {report.reason}" if report.reason else ""
    lines = [f"{done.run_name}, {report.recorded}: {report.verdict}{reason}"]
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
    if not report.record_checked:
        lines += ["its record is not checked: the run is from before there was a digest over it"]
    if report.again:
        lines += [f"run again as MLflow run {report.again}"]
    if done.kept:
        lines += [f"kept: {done.kept}; `rm -rf {shlex.quote(str(done.kept.parent))}; git worktree prune` removes it"]
    return lines


def _difference(row: Row) -> str:
    if row.where is None:
        return ""
    size = f"{row.ulps:,} ulp, {row.relative:.1e} relative, " if math.isfinite(row.relative) else ""
    return f"{size}first in {row.where}"
