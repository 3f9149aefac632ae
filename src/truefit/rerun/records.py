"""Recorded runs: found in the MLflow store, read back and checked, and told the verdict on them."""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from truefit.core.config import Params, flatten
from truefit.core.errors import SettingsError, TrackingError, TruefitError
from truefit.model.files import ModelDescription, read_description, read_state_dict, rebuild_model, state_dict_digest
from truefit.model.models import Model
from truefit.rerun.comparison import Report, Result
from truefit.tracking import names
from truefit.tracking.provenance import ENVIRONMENT, param_text
from truefit.tracking.store import Store
from truefit.training.progress import CURVES

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun
    from torch import Tensor

_LONGEST_PARAM = 6000  # where MLflow cuts
_TRAININGS = f"tags.`{names.COMMIT_TAG}` IS NOT NULL and tags.`{names.RERUN_TAG}` IS NULL"


def find(store: Store, reference: str | None, experiment: str) -> "MlflowRun":
    """Return the run whose id, or its beginning, or whose name is `reference`; without one, the latest training.

    A whole id may be of any experiment. Raises TrackingError where there is none, and naming them where there are several.
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
    """Return the trainings of an experiment, no reruns, the oldest first; raises TrackingError where there is none."""
    found = list(search(store, experiment, _TRAININGS))
    if not found:
        raise TrackingError(f"experiment {experiment!r}: has no run of a training; `dvc repro` makes one")
    return found[::-1]


def search(store: Store, experiment: str, where: str) -> "Iterator[MlflowRun]":
    """Give the runs of which `where` holds, the latest first; raises TrackingError where there is no such experiment."""
    with store.errors():
        client = store.connect()
        known = client.get_experiment_by_name(experiment)
        if known is None:
            allowed = ", ".join(repr(other.name) for other in client.search_experiments())
            raise TrackingError(f"experiment {experiment!r}: not found, allowed: {allowed}")
    token = None
    while token != "":
        with store.errors():
            page = client.search_runs([known.experiment_id], where, order_by=["attributes.start_time DESC"], page_token=token)
        yield from page
        token = page.token or ""


def read_result(store: Store, run: "MlflowRun", folder: Path) -> Result | str:
    """Download a run to `folder`; return what it started from and ended with, or the first reason why nobody can tell."""
    needed = [names.RECORDED_PARAMS, names.RECORDED_PIPELINE, names.RECORDED_LOCK, *map(names.state_path, names.STATES)]
    needed += [names.RECORDED_PATCH] if run.data.tags.get(names.DIRTY_TAG) == "true" else []
    if reason := unfit(run):
        return reason
    if missing := _download(store, run, folder, needed):
        return f"its artifact {missing} is missing"
    if reason := _unlike_params(run, folder / names.RECORDED_PARAMS):
        return reason
    tags, states, curves = run.data.tags, {}, {}
    for kind in names.STATES:
        state = _read_state((folder / names.state_path(kind)).read_bytes(), kind, tags)
        if isinstance(state, str):
            return state
        states[kind] = state
    if tags[names.DIGEST_TAG] not in map(state_dict_digest, states.values()):
        return f"neither of its states has the digest in its tag {names.DIGEST_TAG}"
    for name in CURVES:
        curve = _read_curve(store, run.info.run_id, name)
        if isinstance(curve, str):
            return curve
        curves[name] = curve
    metrics = {name: value for name, value in run.data.metrics.items() if names.is_test_metric(name)}
    if not metrics:
        return "it has no test metrics: stage evaluate did not end"
    inputs: dict[str, dict[str, str]] = {
        "code": {tag: tags[tag] for tag in (names.COMMIT_TAG, names.CODE_TAG, names.EVALUATED_CODE_TAG) if tag in tags},
        "params": dict(run.data.params),
        "data": {tag: tags[tag] for tag in (names.CSV_TAG, names.TABLE_TAG)},
        "environment": {tag: tags[tag] for tag in ENVIRONMENT if tag in tags},
    }
    return Result(inputs, pd.DataFrame(curves), states, metrics)


def unfit(run: "MlflowRun") -> str | None:
    """Return why a run cannot be run again, as far as its status and its tags say, or None."""
    tags = run.data.tags
    if run.info.status != "FINISHED":
        return f"it did not finish: its status is {run.info.status}"
    for tag in (names.COMMIT_TAG, names.DIRTY_TAG, names.CSV_TAG, names.TABLE_TAG, names.DIGEST_TAG):
        if tag not in tags:
            return f"it has no tag {tag}, which every training sets"
    if names.CHANGED_TAG in tags:
        return f"these files changed while it ran: {tags[names.CHANGED_TAG]}"
    # A record without a digest is of the time when only files that were too large were left out.
    lacking = names.INCOMPLETE_TAG if names.RECORD_TAG in tags else names.OMITTED_TAG
    if lacking in tags:
        return f"uncommitted files are not in its record: {tags[lacking]}"
    return None


def _download(store: Store, run: "MlflowRun", folder: Path, needed: Sequence[str]) -> str | None:
    """Download the folders of the needed artifacts; return the first that is missing."""
    # Its bars would stand between the lines of the report.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    client, run_id = store.connect(), run.info.run_id
    places = {name.partition("/")[0] for name in needed}
    with store.errors():
        there = {item.path for place in places for item in client.list_artifacts(run_id, place)}
        missing = next((name for name in needed if name not in there), None)
        if missing is None:
            folder.mkdir(exist_ok=True)
            for place in places:
                client.download_artifacts(run_id, place, str(folder))
    return missing


def _unlike_params(run: "MlflowRun", path: Path) -> str | None:
    try:
        written = flatten(Params(path).values)
    except SettingsError as error:
        return f"its artifact {names.RECORDED_PARAMS} is damaged: {error}"
    for key, value in written.items():
        found = run.data.params.get(key)
        if found is None or not _is_param_text(value, found):
            return f"its artifact {names.RECORDED_PARAMS} has {key} {param_text(value)}, and its params have {found}"
    return None if "prepare.csv" in written else f"its artifact {names.RECORDED_PARAMS} has no prepare.csv"


def _is_param_text(value: object, text: str) -> bool:
    if param_text(value)[:_LONGEST_PARAM] == text:
        return True
    try:
        # 1 and 1.0 are the same setting, and a model of settings makes one of the other.
        return not isinstance(value, str) and bool(json.loads(text) == value)
    except ValueError:
        return False


def _read_state(content: bytes, kind: str, tags: Mapping[str, str]) -> "dict[str, Tensor] | str":
    digest = hashlib.sha256(content).hexdigest()
    if tags.get(names.state_tag(kind), digest) != digest:
        return f"its artifact {names.state_path(kind)} is damaged: its digest is not that of its tag"
    try:
        return read_state_dict(content)
    except ValueError as error:
        return f"its artifact {names.state_path(kind)} is {error}"


def _read_curve(store: Store, run_id: str, name: str) -> "pd.Series[float] | str":
    with store.errors():
        logged = {(metric.step, metric.value) for metric in store.connect().get_metric_history(run_id, name)}
    for expected, (step, _) in enumerate(sorted(logged), 1):
        if step != expected:
            fault = f"no value at epoch {expected}" if step > expected else f"two values at epoch {step}"
            return f"its metric {name} has {fault}"
    return pd.Series(dict(sorted(logged)), name=name, dtype="float64")


def read_model(store: Store, run: "MlflowRun") -> tuple[Model, ModelDescription]:
    """Return the model that a run's training kept, under eval(); raises TruefitError where there is no whole one."""
    where, digest = f"run {run.info.run_id}: ", run.data.tags.get(names.DIGEST_TAG)
    if digest is None:
        raise TruefitError(f"{where}it has no tag {names.DIGEST_TAG}: no training ended in it")
    needed = [names.MODEL_DESCRIPTION, *map(names.state_path, names.STATES)]
    with tempfile.TemporaryDirectory(prefix="truefit-model-") as folder:
        if missing := _download(store, run, Path(folder), needed):
            raise TruefitError(f"{where}its artifact {missing} is missing, without which its model cannot be rebuilt")
        contents = {name: Path(folder, name).read_bytes() for name in needed}
    name = names.MODEL_DESCRIPTION
    try:
        description = read_description(contents[name])
        for name in map(names.state_path, names.STATES):
            state = read_state_dict(contents[name])
            if state_dict_digest(state) == digest:
                return rebuild_model(description, state), description
    except ValueError as error:
        raise TruefitError(f"{where}its artifact {name}: {error}") from None
    raise TruefitError(f"{where}neither of its states has the digest in its tag {names.DIGEST_TAG}")


def publish(store: Store, report: Report, run_name: str, picture: bytes | None) -> str:
    """Add the report to both runs, as artifacts named by the new run's id and as tags; return the artifacts' name.

    Where nothing ran again, the recorded run alone gets it, and loses the tag of the run that judged it before.
    """
    client = store.connect()
    name = f"{names.RERUN}/{report.again or report.recorded}"
    tags = {names.RERUN_VERDICT_TAG: str(report.verdict)} | ({names.RERUN_BY_TAG: report.again} if report.again else {})
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
        if names.RERUN_BY_TAG not in tags and names.RERUN_BY_TAG in client.get_run(report.recorded).data.tags:
            client.delete_tag(report.recorded, names.RERUN_BY_TAG)
    return name
