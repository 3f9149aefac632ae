"""Recorded runs: found in the MLflow store, read back, and told the verdict on them.

Reads runs and their artifacts; writes reports and tags. Guarantees that what is read is what was recorded, as far as digests
and the record's own parts can tell, and otherwise an InconclusiveError that names what is missing or damaged.
"""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from truefit.core.config import Params, flatten
from truefit.core.errors import InconclusiveError, ModelError, SettingsError, TrackingError
from truefit.model.files import (
    MODEL_JSON,
    ModelDescription,
    read_description,
    read_state_dict,
    rebuild_model,
    state_dict_digest,
)
from truefit.model.models import Model
from truefit.rerun.comparison import Report, Result
from truefit.tracking.names import CHANGED_TAG, DIGEST_TAG, OMITTED_TAG, RANGE_TAG, RERUN_TAG
from truefit.tracking.provenance import ENVIRONMENT, param_text
from truefit.tracking.store import Store

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun

CURVES = ("train_loss", "validation_loss", "learning_rate")
STATES = ("best", "final")
VERDICT_TAG, BY_TAG = "rerun.verdict", "rerun.by"
_LONGEST_PARAM = 6000
_TRAININGS = f"tags.`git.commit` IS NOT NULL and tags.`{RERUN_TAG}` IS NULL and tags.`{RANGE_TAG}` IS NULL"


def find(store: Store, reference: str | None, experiment: str) -> "MlflowRun":
    """Return the run whose id, or whose beginning of it, or whose name is `reference`; without one, the latest training.

    A whole id may be that of any experiment. Raises TrackingError where there is none or several of them, naming them.
    """
    if reference is None:
        return trainings(store, experiment)[-1]
    if re.fullmatch("[0-9a-f]{32}", reference):
        with store.errors():
            run = store.connect().get_run(reference)
        if run.info.lifecycle_stage != "active":
            raise TrackingError(f"run {reference}: is deleted; `mlflow runs restore --run-id {reference}`")
        return run
    wheres = [f"attributes.run_id LIKE '{reference}%'"] if re.fullmatch("[0-9a-f]{1,31}", reference) else []
    if quote := next((mark for mark in "'\"" if mark not in reference), None):
        wheres.append(f"attributes.run_name = {quote}{reference}{quote}")
    found = {run.info.run_id: run for where in wheres for run in search(store, experiment, where)}
    if not found:
        raise TrackingError(f"experiment {experiment!r}: has no run with the id or name {reference!r}")
    if len(found) > 1:
        ids = ", ".join(list(found)[:5]) + (", …" if len(found) > 5 else "")
        raise TrackingError(f"experiment {experiment!r}: {reference!r} is any of {len(found)} runs, allowed: one of {ids}")
    return found.popitem()[1]


def trainings(store: Store, experiment: str) -> "list[MlflowRun]":
    """Return all trainings of an experiment but those that were reruns, the oldest first.

    Raises TrackingError where there is none.
    """
    found = list(search(store, experiment, _TRAININGS))
    if not found:
        raise TrackingError(f"experiment {experiment!r}: has no run of a training; `dvc repro` makes one")
    return found[::-1]


def search(store: Store, experiment: str, where: str) -> "Iterator[MlflowRun]":
    """Give the runs of an experiment of which `where` holds, the latest first; raises TrackingError where it is not there."""
    with store.errors():
        client = store.connect()
        known = client.get_experiment_by_name(experiment)
        if known is None:
            names = ", ".join(repr(other.name) for other in client.search_experiments())
            raise TrackingError(f"experiment {experiment!r}: not found, allowed: {names}")
    token = None
    while token != "":
        with store.errors():
            page = client.search_runs([known.experiment_id], where, order_by=["attributes.start_time DESC"], page_token=token)
        yield from page
        token = page.token or ""


def download(store: Store, run: "MlflowRun", folder: Path) -> None:
    """Download the run's record and states to `folder`; raises InconclusiveError where one is missing."""
    # Its bars would stand between the lines of the report.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    client, run_id = store.connect(), run.info.run_id
    needed = ["record/params.yaml", "record/dvc.yaml", "record/dvc.lock", *(f"state_dict/{kind}.pt" for kind in STATES)]
    needed += ["record/diff.patch"] if run.data.tags.get("git.dirty") == "true" else []
    with store.errors():
        there = {item.path for place in ("record", "state_dict") for item in client.list_artifacts(run_id, place)}
        for name in needed:
            if name not in there:
                raise InconclusiveError(f"its artifact {name} is missing")
        folder.mkdir()
        for place in ("record", "state_dict"):
            client.download_artifacts(run_id, place, str(folder))


def require_finished(run: "MlflowRun") -> None:
    """Raise InconclusiveError where the run did not end, or is not a training's."""
    tags = run.data.tags
    if RANGE_TAG in tags:
        raise InconclusiveError("it is a learning-rate range test, which trains no model")
    if run.info.status != "FINISHED":
        raise InconclusiveError(f"it did not finish: its status is {run.info.status}")
    for tag in ("git.commit", "git.dirty", "csv.sha256", "table.sha256", DIGEST_TAG):
        if tag not in tags:
            raise InconclusiveError(f"it has no tag {tag}, which every training sets")
    if CHANGED_TAG in tags:
        raise InconclusiveError(f"these files changed while it ran: {tags[CHANGED_TAG]}")
    if OMITTED_TAG in tags:
        raise InconclusiveError(f"uncommitted files were too large for its record: {tags[OMITTED_TAG]}")


def require_record(run: "MlflowRun", folder: Path) -> None:
    """Raise InconclusiveError where the record of the run, downloaded to `folder`, is not whole."""
    try:
        written = flatten(Params(folder / "record/params.yaml").values)
    except SettingsError as error:
        raise InconclusiveError(f"its artifact record/params.yaml is damaged: {error}") from None
    for key, value in written.items():
        found = run.data.params.get(key)
        if found is None or not _is_param_text(value, found):
            raise InconclusiveError(
                f"its artifact record/params.yaml has {key} {param_text(value)}, and its params have {found}"
            )
    if "prepare.csv" not in written:
        raise InconclusiveError("its artifact record/params.yaml has no prepare.csv")


def _is_param_text(value: object, text: str) -> bool:
    """Say whether a param of MLflow is the value; MLflow cuts long ones off."""
    if param_text(value)[:_LONGEST_PARAM] == text:
        return True
    try:
        # 1 and 1.0 are the same setting, and a model of settings makes one of the other.
        return not isinstance(value, str) and bool(json.loads(text) == value)
    except ValueError:
        return False


def read_result(store: Store, run: "MlflowRun", folder: Path) -> Result:
    """Return what the run, downloaded to `folder`, started from and ended with; raises InconclusiveError for a damaged one."""
    states = {}
    for kind in STATES:
        content = (folder / f"state_dict/{kind}.pt").read_bytes()
        if run.data.tags.get(f"{kind}.pt.sha256", digest := hashlib.sha256(content).hexdigest()) != digest:
            raise InconclusiveError(f"its artifact state_dict/{kind}.pt is damaged: its digest is not that of its tag")
        try:
            states[kind] = read_state_dict(content)
        except ValueError as error:
            raise InconclusiveError(f"its artifact state_dict/{kind}.pt is {error}") from None
    if run.data.tags[DIGEST_TAG] not in map(state_dict_digest, states.values()):
        raise InconclusiveError("neither of its states has the digest in its tag state_dict.sha256")
    with store.errors():
        curves = {name: _curve(store, run.info.run_id, name) for name in CURVES}
    metrics = {name: value for name, value in run.data.metrics.items() if name.startswith("test_") or name == "excess_mse"}
    if not metrics:
        raise InconclusiveError("it has no test metrics: stage evaluate did not end")
    tags = run.data.tags
    inputs: dict[str, dict[str, str]] = {
        "code": {tag: tags[tag] for tag in ("git.commit", "code.sha256", "evaluated.code.sha256") if tag in tags},
        "params": dict(run.data.params),
        "data": {tag: tags[tag] for tag in ("csv.sha256", "table.sha256")},
        "environment": {tag: tags[tag] for tag in ENVIRONMENT if tag in tags},
    }
    return Result(inputs, pd.DataFrame(curves), states, metrics)


def read_model(store: Store, run: "MlflowRun") -> tuple[Model, ModelDescription]:
    """Return the model that a run's training kept, under eval(), and its description.

    Raises ModelError where the run has none, or where one of its artifacts is missing or damaged.
    """
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    client, run_id, tags = store.connect(), run.info.run_id, run.data.tags
    where = f"run {run_id}: "
    if DIGEST_TAG not in tags:
        raise ModelError(f"{where}it has no tag {DIGEST_TAG}: no training ended in it")
    with tempfile.TemporaryDirectory(prefix="truefit-model-") as folder, store.errors():
        there = {item.path for item in client.list_artifacts(run_id, "state_dict")}

        def read(name: str) -> bytes:
            if f"state_dict/{name}" not in there:
                raise ModelError(
                    f"{where}its artifact state_dict/{name} is missing, without which its model cannot be rebuilt"
                )
            return Path(client.download_artifacts(run_id, f"state_dict/{name}", folder)).read_bytes()

        name = MODEL_JSON
        try:
            description = read_description(read(name))
            for name in (f"{kind}.pt" for kind in STATES):
                state = read_state_dict(read(name))
                if state_dict_digest(state) == tags[DIGEST_TAG]:
                    return rebuild_model(description, state), description
        except ValueError as error:
            raise ModelError(f"{where}its artifact state_dict/{name}: {error}") from None
    raise ModelError(f"{where}neither of its states has the digest in its tag {DIGEST_TAG}")


def _curve(store: Store, run_id: str, name: str) -> "pd.Series[float]":
    """Return a metric by epoch; raises InconclusiveError where an epoch is missing or has two values."""
    logged = {(metric.step, metric.value) for metric in store.connect().get_metric_history(run_id, name)}
    for expected, (step, _) in enumerate(sorted(logged), 1):
        if step != expected:
            fault = f"no value at epoch {expected}" if step > expected else f"two values at epoch {step}"
            raise InconclusiveError(f"its metric {name} has {fault}")
    return pd.Series(dict(sorted(logged)), name=name, dtype="float64")


def publish(store: Store, report: Report, run_name: str, picture: bytes | None) -> str:
    """Add the report to both runs, as artifacts named by the new run's id and as tags; return the artifacts' name.

    The new run is called a rerun of `run_name`. Where nothing ran again, the recorded run alone gets the report, and loses the
    tag of the run that judged it before.
    """
    client = store.connect()
    name = f"rerun/{report.again or report.recorded}"
    tags = {VERDICT_TAG: str(report.verdict)} | ({BY_TAG: report.again} if report.again else {})
    with tempfile.TemporaryDirectory() as folder, store.errors():
        path = Path(folder, name)
        path.parent.mkdir()
        path.with_suffix(".json").write_text(json.dumps(report.as_json(), indent=2, allow_nan=False) + "\n")
        if picture:
            path.with_suffix(".png").write_bytes(picture)
        if report.again:
            client.update_run(report.again, name=f"rerun of {run_name}")
        runs = [run_id for run_id in (report.again, report.recorded) if run_id]
        for run_id in runs:
            client.log_artifacts(run_id, folder)
        for run_id in runs:  # the recorded run's tags last: they are the verdict
            store.tag(run_id, tags)
        if BY_TAG not in tags and BY_TAG in client.get_run(report.recorded).data.tags:
            client.delete_tag(report.recorded, BY_TAG)
    return name
