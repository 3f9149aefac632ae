"""Recorded runs: found in the MLflow store, read back and checked."""

import hashlib
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from truefit.core.config import Params, flatten
from truefit.core.errors import SettingsError, TrackingError, TruefitError
from truefit.core.text import one_line
from truefit.model.files import ModelDescription, read_description, read_state_dict, rebuild_model, state_dict_digest
from truefit.model.models import Model
from truefit.rerun.comparison import Result
from truefit.rerun.trust import Owner, is_commit, quoted
from truefit.tracking import names
from truefit.tracking.provenance import ENVIRONMENT
from truefit.tracking.record import record_digest
from truefit.tracking.store import Store
from truefit.training.progress import CURVES

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun
    from torch import Tensor

_NAMED = 5  # of several, the runs or experiments that an error names
_PAGE = 100  # runs asked for at once where all are meant: the store reads each with all its params, tags and metrics


def find(store: Store, reference: str | None, experiment: str) -> "MlflowRun":
    """Return the run whose id, or its beginning, or whose name is `reference`; without one, the latest own training.

    A whole id may be of any experiment. Raises TrackingError where there is none, and naming them where there are several.
    """
    if reference is None:
        owner = Owner.here(store)
        if latest := _search(store, _experiment(store, experiment), _own(owner), 1):
            return latest[0]
        raise _none(experiment, owner)
    if re.fullmatch("[0-9a-f]{32}", reference):
        return whole(store, reference)
    wheres = [f"attributes.run_id LIKE '{reference}%'"] if re.fullmatch("[0-9a-f]{1,31}", reference) else []
    if (name := quoted(reference)) is not None:
        wheres.append(f"attributes.run_name = {name}")
    known = _experiment(store, experiment)
    found = {run.info.run_id: run for where in wheres for run in _search(store, known, where, _NAMED + 1)}
    if not found:
        raise TrackingError(f"experiment {experiment!r}: has no run with the id or name {reference!r}")
    if len(found) > 1:
        raise TrackingError(
            f"experiment {experiment!r}: {reference!r} is any of several runs, allowed: one of {_some(list(found))}"
        )
    return found.popitem()[1]


def whole(store: Store, run_id: str) -> "MlflowRun":
    """Return the run with a whole id, of any experiment; raises TrackingError where it is not there, or deleted."""
    with store.errors():
        run = store.connect().get_run(run_id)
    if run.info.lifecycle_stage != "active":
        raise TrackingError(f"run {run_id}: is deleted; `mlflow runs restore --run-id {run_id}`")
    return run


def trainings(store: Store, experiment: str) -> Iterator[str]:
    """Give the ids of the own trainings of an experiment that have finished, no reruns, the oldest first.

    They are asked for as they are taken. Raises TrackingError where there is none.
    """
    owner = Owner.here(store)
    pages = _pages(store, _experiment(store, experiment), _own(owner))
    first = next(pages)
    if not first:
        raise _none(experiment, owner)
    return chain(first, chain.from_iterable(pages))


def _pages(store: Store, experiment: str, where: str) -> Iterator[list[str]]:
    """Yield the ids of all runs of which `where` holds, the oldest first, in pages."""
    seen: set[str] = set()
    since, more = 0, True
    while more:
        # By their time, not by the place in a list that changes while runs are run again.
        later = f"{where} and attributes.start_time >= {since}"
        page = _search(store, experiment, later, _PAGE, "ASC")
        new = [run.info.run_id for run in page if run.info.run_id not in seen]
        yield new
        seen.update(new)
        since, more = page[-1].info.start_time if page else 0, len(page) == _PAGE and bool(new)


def _own(owner: Owner) -> str:
    trained = f"tags.`{names.COMMIT_TAG}` IS NOT NULL and tags.`{names.RERUN_TAG}` IS NULL"
    return f"attributes.status = 'FINISHED' and {trained} and {owner.where}"


def _none(experiment: str, owner: Owner) -> TrackingError:
    return TrackingError(
        f"experiment {experiment!r}: has no finished training of {owner}; `dvc repro` makes one, "
        "and `truefit rerun RUN --trust` runs another's again"
    )


def _search(store: Store, experiment: str, where: str, most: int, order: str = "DESC") -> "Sequence[MlflowRun]":
    """Return at most so many runs of an experiment, by its id, of which `where` holds, by default the latest first."""
    with store.errors():
        found: Sequence[MlflowRun] = store.connect().search_runs(
            [experiment], where, max_results=most, order_by=[f"attributes.start_time {order}"]
        )
    return found


def _experiment(store: Store, name: str) -> str:
    with store.errors():
        client = store.connect()
        known = client.get_experiment_by_name(name)
        if known is None:
            others = [repr(other.name) for other in client.search_experiments(max_results=_NAMED + 1)]
            raise TrackingError(f"experiment {name!r}: not found, allowed: {_some(others)}")
    return str(known.experiment_id)


def _some(found: Sequence[str]) -> str:
    return ", ".join(found[:_NAMED]) + (", …" if len(found) > _NAMED else "")


def read_result(store: Store, run: "MlflowRun", folder: Path) -> Result | str:
    """Download a run to `folder`; return what it started from and ended with, or the first reason why nobody can tell."""
    needed = [names.RECORDED_PARAMS, names.RECORDED_PIPELINE, names.RECORDED_LOCK, *map(names.state_path, names.STATES)]
    needed += [names.RECORDED_PATCH] if run.data.tags.get(names.DIRTY_TAG) == "true" else []
    if reason := unfit(run):
        return reason
    if missing := _download(store, run, folder, needed):
        return f"its artifact {missing} is missing"
    tags, states, curves = run.data.tags, {}, {}
    if reason := _damage(folder, tags.get(names.RECORD_TAG)):
        return reason
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
    return Result(inputs, pd.DataFrame(curves), states, metrics, names.RECORD_TAG in tags)


def unfit(run: "MlflowRun") -> str | None:
    """Return why a run cannot be run again, as far as its status and its tags say, or None."""
    tags = run.data.tags
    if run.info.status != "FINISHED":
        return f"it did not finish: its status is {run.info.status}"
    for tag in (names.COMMIT_TAG, names.DIRTY_TAG, names.CSV_TAG, names.TABLE_TAG, names.DIGEST_TAG):
        if tag not in tags:
            return f"it has no tag {tag}, which every training sets"
    if not is_commit(tags[names.COMMIT_TAG]):  # which would be an option, or a name, to git
        return f"its tag {names.COMMIT_TAG} is no commit: {one_line(tags[names.COMMIT_TAG])}"
    if names.CHANGED_TAG in tags:
        return f"these files changed while it ran: {tags[names.CHANGED_TAG]}"
    # A record without a digest is of the time when only files that were too large were left out.
    lacking = names.INCOMPLETE_TAG if names.RECORD_TAG in tags else names.OMITTED_TAG
    if lacking in tags:
        return f"uncommitted files are not in its record: {tags[lacking]}"
    return None


def _download(store: Store, run: "MlflowRun", folder: Path, needed: Sequence[str]) -> str | None:
    """Download the folders of the needed artifacts; return the first that is missing."""
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


def _damage(folder: Path, digest: str | None) -> str | None:
    """Return what is wrong with the record in `folder`, of that digest where its run has one, or None."""
    files = {path.relative_to(folder).as_posix(): path for path in (folder / names.RECORD).rglob("*") if path.is_file()}
    if digest is not None and digest != record_digest({name: path.read_bytes() for name, path in files.items()}):
        return f"its record is damaged: the digest of {names.RECORD}/ is not that of its tag {names.RECORD_TAG}"
    try:
        params = flatten(Params(folder / names.RECORDED_PARAMS).values)
    except SettingsError as error:
        return f"its artifact {names.RECORDED_PARAMS} is damaged: {error}"
    return None if "prepare.csv" in params else f"its artifact {names.RECORDED_PARAMS} has no prepare.csv"


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
