"""`truefit lr-range`: the range test on the model and the data of the settings, drawn, and recorded as a run of its own."""

from collections.abc import Iterable, Sequence
from contextlib import chdir
from dataclasses import replace
from pathlib import Path

import pandas as pd

from truefit.core.config import PARAMS, Params
from truefit.core.errors import TableError, TruefitError
from truefit.core.files import write_bytes
from truefit.data.dataset import open_verified
from truefit.data.table import Table
from truefit.evaluation.figures import lr_range_picture
from truefit.ingest.prepare import PrepareSettings
from truefit.tracking import names
from truefit.tracking.connection import repository_root
from truefit.tracking.provenance import read_origin
from truefit.tracking.run import Run, TrackSettings
from truefit.tracking.store import Store
from truefit.training.device import choose_device, configure
from truefit.training.lr_range import Finding, Step, find, range_test
from truefit.training.settings import TrainSettings

TABLE, RESULTS = Path("data/prepared"), Path("results")  # as in dvc.yaml


def lr_range(folder: Path | None, rates: Sequence[float]) -> tuple[Finding, Run, list[Path]]:
    """Take a step with each of the growing rates; return what was found, the run and the files written.

    `folder` is that of the prepared table, by default data/prepared. Raises TableError where no table is there, or one that
    other settings prepared; TruefitError where the first loss is not finite; and the other errors of a training.
    """
    folder = folder and folder.resolve()
    with chdir(repository_root()):  # where the paths of the settings begin, and what is recorded of the repository
        return _lr_range(folder, rates)


def _lr_range(folder: Path | None, rates: Sequence[float]) -> tuple[Finding, Run, list[Path]]:
    params, store = Params(), Store()
    settings, track = params.section("train", TrainSettings), params.section("track", TrackSettings)
    device = choose_device(settings.device_name)
    configure(settings.threads)
    datasets = open_verified(folder or TABLE, "train", "validation")
    train_rows, _ = datasets
    if folder is None:
        require_prepared_by(params.section("prepare", PrepareSettings), train_rows.table)
    as_written = settings
    if settings.engine in ("auto", "compiled"):
        print("engine: torch, since single steps gain nothing from compiling")
        settings = settings.model_copy(update={"engine": "torch"})
    origin = read_origin(params, as_written.model_dump(), settings.engine, train_rows.table, device, track.largest_file)
    asked = {names.RANGE_FROM: rates[0], names.RANGE_TO: rates[-1], names.RANGE_STEPS: len(rates)}
    # How a table that was named was prepared, the settings do not say.
    known = {key: value for key, value in origin.params.items() if folder is None or not key.startswith("prepare.")}
    origin = replace(origin, params={**known, **asked})
    made = f"{settings.model.name} {settings.optimizer.name} batch={settings.batch_size} {settings.engine}"
    with store.range_test_run(track, f"lr-range {track.run_name or made}", origin) as run:
        curve = _record(range_test(datasets, settings, device, rates), run)
        finding = find(curve, rates)
        artifacts = {
            f"{names.FIGURES}/lr_range.png": lr_range_picture(curve, finding.suggested),
            f"{names.RANGE}/lr_range.csv": curve.to_csv(index=False).encode(),
        }
        files = [RESULTS / Path(name).name for name in artifacts]
        for file, content in zip(files, artifacts.values(), strict=True):
            write_bytes(file, content)
        run.log_artifacts(artifacts)
        if finding.suggested:
            run.log_metrics({names.SUGGESTED_LR: finding.suggested}, len(curve))
        run.set_tags({names.NOTE_TAG: note(settings, rates, finding)})
    return finding, run, [file.resolve() for file in files]


def require_prepared_by(settings: PrepareSettings, table: Table) -> None:
    """Raise TableError where the table was prepared by other settings, as far as it tells."""
    for key, wanted, found in [
        ("csv", settings.csv, table.csv.path),
        ("dtype", settings.dtype, table.dtype),
        ("target", settings.target, table.target),
        ("features", settings.features, table.features),
    ]:
        if wanted not in (None, found):
            text = f"{PARAMS}: prepare.{key}: found {wanted!r}, allowed: {found!r}, by which {TABLE} was prepared"
            raise TableError(f"{text}; `dvc repro prepare` prepares it anew")


def _record(steps: Iterable[Step], run: Run) -> pd.DataFrame:
    taken = []
    for step in steps:
        taken.append(step)
        losses = {names.RANGE_LOSS: step.loss, names.RANGE_SMOOTHED_LOSS: step.smoothed_loss}
        run.log_metrics({names.LEARNING_RATE: step.learning_rate, **losses}, step.step)
    if not taken:
        raise TruefitError("step 1: the training loss is not finite before any step; are the table's numbers too large?")
    return pd.DataFrame(taken)


def note(settings: TrainSettings, rates: Sequence[float], finding: Finding) -> str:
    """Return the run's description."""
    model = f"{settings.model.name} model with {settings.optimizer.name}"
    tested = f"{model}, {len(rates)} steps from {rates[0]:g} to {rates[-1]:g}"
    return f"Learning-rate range test of a {tested}. Outcome: {'; '.join(str(finding).splitlines())}."
