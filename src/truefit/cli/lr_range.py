"""`truefit lr-range`: the learning-rate range test, on the model and the data of the settings.

Reads params.yaml and the training rows of the prepared table; writes results/lr_range.csv and .png, and a run of its own.
Guarantees the seeds, the orders and the steps of a training, but for the learning rate, and that no model and no checkpoint
is written. The test: L. N. Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017, section 3.3, with the
exponential growth, the smoothed loss and the early end of S. Gugger's "How Do You Find A Good Learning Rate" (2018).
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import chdir
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch

from truefit.core.config import PARAMS, Params
from truefit.core.errors import TableError, TruefitError
from truefit.core.files import write_bytes
from truefit.data.batches import Chunk, Loader, ShuffledChunks, make_loader
from truefit.data.dataset import TableDataset, open_verified
from truefit.data.table import Table
from truefit.evaluation.figures import lr_range_picture
from truefit.ingest.prepare import PrepareSettings
from truefit.tracking.connection import repository_root
from truefit.tracking.names import NOTE_TAG
from truefit.tracking.provenance import read_origin
from truefit.tracking.run import Run, TrackSettings
from truefit.tracking.store import Store
from truefit.training.device import choose_device, configure
from truefit.training.loop import TrainSettings, begin

TABLE, RESULTS = Path("data/prepared"), Path("results")  # as in dvc.yaml
# What the smoothed loss keeps of itself at each step, and the steps over which it is a mean, in effect.
SMOOTHING, WINDOW = 0.9, 10
# The test ends where the smoothed loss is so many times its lowest.
DIVERGED = 4.0
# The loss has fallen where it is below so much of the untrained model's, on the same batches.
FALLEN = 0.95
# The suggestion is the rate of the lowest loss, divided by this.
MARGIN = 10.0


@dataclass(frozen=True)
class Step:
    """One step; losses are means over the rows of its batch, before the step.

    `untrained_loss` is that of the model before the first step; `smoothed_loss` is over the steps before as well.
    """

    step: int
    learning_rate: float
    loss: float
    smoothed_loss: float
    untrained_loss: float


@dataclass(frozen=True)
class Finding:
    """What the test found: learning rates, or None where there is none; `advice` says why there is no suggestion."""

    suggested: float | None
    lowest: float
    diverged: float | None
    advice: str = ""

    def __str__(self) -> str:
        end = f"diverges at {self.diverged:.2g}" if self.diverged else "does not diverge"
        suggestion = f"suggested train.optimizer.lr: {self.suggested:g}" if self.suggested else f"no suggestion: {self.advice}"
        return f"loss: lowest at {self.lowest:.2g}, {end}\n{suggestion}"


def lr_range(folder: Path | None, rates: Sequence[float]) -> tuple[Finding, Run, list[Path]]:
    """Take a step with each of the growing rates, by the settings; return what was found, the run and the files written.

    `folder` is that of the prepared table, by default data/prepared in the repository. Raises TableError where no table is
    there, or one that was not prepared by the settings, TruefitError where the first loss is not finite, and the other
    errors of a training.
    """
    folder = folder and folder.resolve()
    with chdir(repository_root()):  # where the paths of the settings begin, and what is recorded of the repository
        return _lr_range(folder, rates)


def _lr_range(folder: Path | None, rates: Sequence[float]) -> tuple[Finding, Run, list[Path]]:
    params, store = Params(), Store()
    settings, track = params.section("train", TrainSettings), params.section("track", TrackSettings)
    device = choose_device("cpu" if settings.engine == "numpy" else settings.device)
    configure(settings.threads)
    (train_rows,) = open_verified(folder or TABLE, "train")
    if folder is None:
        require_prepared_by(params.section("prepare", PrepareSettings), train_rows.table)
    as_written = settings
    if settings.engine in ("auto", "compiled"):
        print("engine: torch, since single steps gain nothing from compiling")
        settings = settings.model_copy(update={"engine": "torch"})
    origin = read_origin(params, as_written.model_dump(), settings.engine, train_rows.table, device, track.largest_file)
    asked = {"lr_range.from": rates[0], "lr_range.to": rates[-1], "lr_range.steps": len(rates)}
    # How a table that was named was prepared, the settings do not say.
    known = {key: value for key, value in origin.params.items() if folder is None or not key.startswith("prepare.")}
    origin = replace(origin, params={**known, **asked})
    csv, png = (RESULTS.resolve() / f"lr_range.{suffix}" for suffix in ("csv", "png"))
    with store.range_test_run(track, run_name(settings, track), origin) as run:
        curve = _record(range_test(train_rows, settings, device, rates), run)
        finding = find(curve, rates)
        write_bytes(csv, curve.to_csv(index=False).encode())
        write_bytes(png, lr_range_picture(curve, finding.suggested))
        run.log_artifacts({"lr_range/lr_range.csv": csv.read_bytes(), "figures/lr_range.png": png.read_bytes()})
        if finding.suggested:
            run.log_metrics({"suggested_lr": finding.suggested}, len(curve))
        run.set_tags({NOTE_TAG: note(settings, rates, finding)})
    return finding, run, [png, csv]


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
    """Return the steps as a table, each recorded as it is taken."""
    taken = []
    for step in steps:
        taken.append(step)
        losses = {"lr_range_loss": step.loss, "lr_range_smoothed_loss": step.smoothed_loss}
        run.log_metrics({"learning_rate": step.learning_rate, **losses}, step.step)
    if not taken:
        raise TruefitError("step 1: the training loss is not finite before any step; are the table's numbers too large?")
    return pd.DataFrame(taken)


def run_name(settings: TrainSettings, track: TrackSettings) -> str:
    """Return a name as a training's, but without a learning rate, and never the same."""
    made = f"{settings.model.name} {settings.optimizer.name} batch={settings.batch_size} {settings.engine}"
    return f"lr-range {track.run_name or made}"


def note(settings: TrainSettings, rates: Sequence[float], finding: Finding) -> str:
    """Return the run's description: what was tested, and what came out."""
    tested = (
        f"{settings.model.name} model with {settings.optimizer.name}, {len(rates)} steps from {rates[0]:g} to {rates[-1]:g}"
    )
    return f"Learning-rate range test of a {tested}. Outcome: {'; '.join(str(finding).splitlines())}."


def range_test(
    train_rows: TableDataset, settings: TrainSettings, device: torch.device, rates: Sequence[float]
) -> Iterator[Step]:
    """Give a step of a training for each learning rate, until the loss diverges.

    The smoothed loss is a mean in which a step weighs SMOOTHING times what the next one does, divided by the sum of the
    weights, as Adam corrects its means (Kingma and Ba, 2015). The test ends before a loss that is not finite, and after a
    smoothed one of DIVERGED times its lowest. The first WINDOW steps, in which single batches weigh much, do not count.
    """
    engine, sampler = begin(train_rows, settings, device)
    untrained, _ = begin(train_rows, settings, device)
    mean, lowest = 0.0, math.inf
    batches = _batches(make_loader(train_rows, sampler, device), sampler)
    for number, (rate, (features, target)) in enumerate(zip(rates, batches, strict=False), 1):
        engine.begin_epoch(number, rate)  # each step counts as an epoch, so dropout's masks differ
        loss = float(engine.train_chunk(features, target, sampler.batch_size)) / len(features)
        if not math.isfinite(loss):
            return
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        smoothed = mean / (1 - SMOOTHING**number)
        yield Step(number, rate, loss, smoothed, untrained.validation_loss(features, target) / len(features))
        if number >= WINDOW:
            lowest = min(lowest, smoothed)
            if smoothed > DIVERGED * lowest:
                return


def _batches(loader: Loader, sampler: ShuffledChunks) -> Iterator[Chunk]:
    """Give batches (features [B, F], target [B, 1]) without end, in the order of a training's epochs."""
    for epoch in itertools.count(1):
        sampler.set_epoch(epoch)
        for features, target in loader:
            yield from zip(features.split(sampler.batch_size), target.split(sampler.batch_size), strict=True)


def find(curve: pd.DataFrame, rates: Sequence[float]) -> Finding:
    """Return what a curve, with the columns of Step, says; `rates` are all that were to be tried.

    Suggested is a tenth of the rate at which the loss is lowest, as S. Gugger advises (2018), rounded to two digits. The lab
    notebook has why, and not the steepest descent. The loss is taken relative to that of the untrained model on the same
    batches, so that easy batches do not make it low.
    """
    start = curve["untrained_loss"].ewm(alpha=1 - SMOOTHING).mean()  # pandas divides by the sum of the weights too
    smoothed = curve["smoothed_loss"].iloc[WINDOW - 1 :]
    relative = (curve["smoothed_loss"] / start).to_numpy()[WINDOW - 1 :]
    row = WINDOW - 1 + int(relative.argmin()) if len(relative) else 0
    suggested = float(f"{rates[row] / MARGIN:.2g}")
    ended = len(curve) < len(rates) or smoothed.iloc[-1] > DIVERGED * smoothed.min()
    diverged = rates[len(curve) - 1] if ended else None
    if not (relative < FALLEN).any():
        advice = "the loss does not fall; try " + ("a lower --from" if ended else "a higher --to")
    elif row == len(rates) - 1:
        advice = "the loss falls to the end; try a higher --to"
    elif suggested < rates[0]:
        advice = "the loss is lowest too near the first rate; try a lower --from"
    else:
        return Finding(suggested, rates[row], diverged)
    return Finding(None, rates[row], diverged, advice)
