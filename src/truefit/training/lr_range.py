"""The learning-rate range test: the steps of a training, each with a larger rate than the one before.

L. N. Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017, section 3.3, with the exponential growth, the
smoothed loss and the early end of S. Gugger's "How Do You Find A Good Learning Rate" (2018).
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd
import torch

from truefit.data.batches import Chunk, EpochChunks
from truefit.data.dataset import TableDataset
from truefit.training.build import build_engine, epoch_chunks, untrained_model
from truefit.training.losses import degree
from truefit.training.settings import TrainSettings

SMOOTHING = 0.9  # what the smoothed loss keeps of itself at each step
WINDOW = 10  # the steps over which it is a mean, in effect
DIVERGED = 4.0  # the test ends where the smoothed loss is so many times its lowest
FALLEN = 0.95  # the loss has fallen where it is below so much of the untrained model's
MARGIN = 10.0  # the suggestion is the rate of the lowest loss, divided by this


@dataclass(frozen=True)
class Step:
    """Losses are means over the rows of the step's batch, before it; `untrained_loss` is that of the untrained model."""

    step: int
    learning_rate: float
    loss: float
    smoothed_loss: float
    untrained_loss: float


@dataclass(frozen=True)
class Finding:
    """Learning rates, or None where there is none; `advice` says why there is no suggestion."""

    suggested: float | None
    lowest: float
    diverged: float | None
    advice: str = ""

    def __str__(self) -> str:
        end = f"diverges at {self.diverged:.2g}" if self.diverged else "does not diverge"
        suggestion = f"suggested train.optimizer.lr: {self.suggested:g}" if self.suggested else f"no suggestion: {self.advice}"
        return f"loss: lowest at {self.lowest:.2g}, {end}\n{suggestion}"


def range_test(
    datasets: Sequence[TableDataset], settings: TrainSettings, device: torch.device, rates: Sequence[float]
) -> Iterator[Step]:
    """Give a step of a training for each learning rate, until the loss diverges: is not finite, or DIVERGED times its lowest.

    The smoothed loss is a mean in which a step weighs SMOOTHING times what the next one does, corrected as Adam's means are
    (Kingma and Ba, 2015). The first WINDOW steps, in which single batches weigh much, do not count.
    """
    models = [untrained_model(datasets, settings) for _ in range(2)]
    engine, untrained = (build_engine(model, datasets[0], settings, device) for model in models)
    mean, lowest = 0.0, math.inf
    unit = models[0].scale.unit ** degree(settings.loss)
    batches = _batches(epoch_chunks(models[0], datasets[0], settings, device))
    for number, (rate, (features, target)) in enumerate(zip(rates, batches, strict=False), 1):
        engine.begin_epoch(number, rate)  # each step counts as an epoch, so dropout's masks differ
        loss = float(engine.train_chunk(features, target, len(features))) / len(features) * unit
        if not math.isfinite(loss):
            return
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        smoothed = mean / (1 - SMOOTHING**number)
        yield Step(number, rate, loss, smoothed, untrained.validation_loss(features, target) / len(features) * unit)
        if number >= WINDOW:
            lowest = min(lowest, smoothed)
            if smoothed > DIVERGED * lowest:
                return


def _batches(chunks: EpochChunks) -> Iterator[Chunk]:
    for number in itertools.count(1):
        for features, target in chunks.epoch(number):
            yield from zip(features.split(chunks.batch_size), target.split(chunks.batch_size), strict=True)


def find(curve: pd.DataFrame, rates: Sequence[float]) -> Finding:
    """Return what a curve, with the columns of Step, says; `rates` are all that were to be tried.

    Suggested is a tenth of the rate at which the loss is lowest, as S. Gugger advises (2018); the lab notebook has why not the
    steepest descent. The loss is relative to the untrained model's on the same batches, so that easy ones do not make it low.
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
