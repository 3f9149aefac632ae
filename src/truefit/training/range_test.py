"""The learning-rate range test: the steps of a training, each with a larger rate than the one before.

L. N. Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017, section 3.3, with the exponential growth, the
smoothed loss and the early end of S. Gugger's "How Do You Find A Good Learning Rate" (2018).
"""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch

from truefit.data.batches import Chunk, EpochChunks
from truefit.data.dataset import TableDataset
from truefit.training.build import build_engine, epoch_chunks, untrained_model
from truefit.training.settings import TrainSettings

RATES = np.geomspace(1e-6, 10, 150).tolist()
SMOOTHING = 0.9  # what a smoothed loss keeps of itself at each step
WINDOW = 10  # the steps over which it is a mean, in effect; the first do not count, since single batches weigh much in them
DIVERGED = 100.0  # the test ends where the loss is so many times the untrained model's
FALLEN = 0.95  # the loss has fallen where it is below so much of the untrained model's
MARGIN = 10.0  # the rate returned is that of the lowest loss, divided by this, as Gugger advises


def falling_rate(
    datasets: Sequence[TableDataset], settings: TrainSettings, device: torch.device, rates: Sequence[float] = RATES
) -> float | None:
    """Return a learning rate at which the loss falls, or None where it falls at none of the growing `rates`.

    The loss is relative to the untrained model's on the same batches, so that easy ones do not make it low.
    """
    models = [untrained_model(datasets, settings) for _ in range(2)]
    engine, untrained = (build_engine(model, datasets[0], settings, device) for model in models)
    losses = []
    batches = _batches(epoch_chunks(models[0], datasets[0], settings, device))
    for number, (rate, (features, target)) in enumerate(zip(rates, batches, strict=False), 1):
        engine.begin_epoch(number, rate)  # each step counts as an epoch, so dropout's masks differ
        loss, start = float(engine.train_chunk(features, target, len(features))), untrained.validation_loss(features, target)
        if not loss <= DIVERGED * start:
            break
        losses.append((loss, start))
    smoothed = pd.DataFrame(losses, columns=["loss", "start"]).ewm(alpha=1 - SMOOTHING).mean()
    relative = (smoothed["loss"] / smoothed["start"]).to_numpy()[WINDOW - 1 :]
    # Batches whose rows have no weight have no loss, and no share of one.
    return rates[WINDOW - 1 + int(np.nanargmin(relative))] / MARGIN if (relative < FALLEN).any() else None


def _batches(chunks: EpochChunks) -> Iterator[Chunk]:
    for number in itertools.count(1):
        for _, features, target in chunks.epoch(number):
            yield from zip(features.split(chunks.batch_size), target.split(chunks.batch_size), strict=True)
