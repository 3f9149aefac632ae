"""Verdicts, added to the runs that they are on: an artifact each, and tags."""

import json
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from truefit.core.errors import TrackingError
from truefit.core.signals import Deferred
from truefit.rerun.comparison import Report, Verdict
from truefit.rerun.trust import Owner
from truefit.tracking.names import RERUN, RERUN_BY_TAG, RERUN_VERDICT_TAG
from truefit.tracking.store import Store

PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds, before a request that the store did not take is made again
_Answer = TypeVar("_Answer")


def insist(request: Callable[[], _Answer]) -> _Answer:
    """Make a request of the store, and again after each pause where it fails; raises the error of the last time."""
    for pause in PAUSES:
        try:
            return request()
        except (TrackingError, OSError):  # MLflow lets the latter through where it sends artifacts
            time.sleep(pause)
    return request()


def publish(store: Store, report: Report, run_name: str, picture: bytes | None) -> str:
    """Add the report to both runs, or to the recorded one alone where nothing ran again; return the artifacts' name.

    The tags of the recorded run are the latest verdict, and this user's latest. An inconclusive one, which says nothing
    new, replaces none.
    """
    user = re.sub(r"[^\w.-]", "_", Owner.here(store).user or "nobody")[:100]  # what a tag's name may hold
    name = f"{RERUN}/{report.again or f'inconclusive-{user}'}"

    def once() -> str:
        # Within a try only: a signal may end the pauses.
        with Deferred(), store.errors():
            _add(store, report, name, run_name, picture)
            _tag(store, report, f"{RERUN_VERDICT_TAG}.{user}")
        return name

    return insist(once)


def _add(store: Store, report: Report, name: str, run_name: str, picture: bytes | None) -> None:
    client = store.connect()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.parent.mkdir()
        path.with_name(f"{path.name}.json").write_text(json.dumps(report.as_json(), indent=2, allow_nan=False) + "\n")
        if picture:
            path.with_name(f"{path.name}.png").write_bytes(picture)
        if report.again:
            client.update_run(report.again, name=f"rerun of {run_name}")
        for run_id in filter(None, (report.again, report.recorded)):
            client.log_artifacts(run_id, folder)


def _tag(store: Store, report: Report, own: str) -> None:
    """Tag both runs, the recorded one last; each in one step."""
    verdict = str(report.verdict)
    latest = {RERUN_VERDICT_TAG: verdict}
    if report.again:
        latest[RERUN_BY_TAG] = report.again
        store.tag(report.again, latest)
    there = store.connect().get_run(report.recorded).data.tags if report.verdict is Verdict.INCONCLUSIVE else {}
    tags = ({} if RERUN_VERDICT_TAG in there else latest) | ({} if own in there else {own: verdict})
    if tags:
        store.tag(report.recorded, tags)
