"""The training: epochs, validation, the learning rate's schedule, early stopping, checkpoints. Knows no MLflow and no DVC."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext

import numpy as np
import torch

from truefit.core.errors import StoppedError
from truefit.data.batches import EpochChunks, Share, validation_shares
from truefit.data.dataset import TableDataset, total_weight
from truefit.data.shards import Cut
from truefit.model.files import read_tensors
from truefit.model.models import Model
from truefit.training.build import build_engine, epoch_chunks, untrained_model
from truefit.training.checkpoint import Checkpoints
from truefit.training.divergence import NotFiniteError, failed, require_even, require_learned
from truefit.training.engines.base import Engine
from truefit.training.engines.sharded_engine import ShardedEngine
from truefit.training.group import ALONE, Group
from truefit.training.losses import degree
from truefit.training.progress import Epoch, Outcome, Progress
from truefit.training.settings import TrainSettings


def train(
    datasets: Sequence[TableDataset],
    settings: TrainSettings,
    device: torch.device,
    on_epoch: Callable[[Epoch], None] = lambda _: None,
    checkpoints: Checkpoints | None = None,
) -> Outcome:
    """Build what the settings name, and `fit` it to two datasets, the training and the validation rows."""
    model = untrained_model(datasets, settings)
    engine = build_engine(model, datasets[0], settings, device)
    return fit(engine, model, datasets, settings, device, on_epoch, checkpoints)


def fit(
    engine: Engine,
    model: Model,
    datasets: Sequence[TableDataset],
    settings: TrainSettings,
    device: torch.device,
    on_epoch: Callable[[Epoch], None] = lambda _: None,
    checkpoints: Checkpoints | None = None,
    group: Group = ALONE,
) -> Outcome:
    """Train for `settings.epochs`, or until early stopping, calling `on_epoch` after each epoch.

    `engine` has the body of `model`; `datasets` are the training and the validation rows. With `checkpoints` the training goes
    on from the latest, calling `on_epoch` for the epochs before it too, and ends with the bits of one that was never
    interrupted. The state kept is the best where early stopping has a patience, or else the final one. Raises TruefitError for
    a training that failed, or must (see divergence.py), and StoppedError after the checkpoint that a signal asked for.

    In a group of several processes each calls it, with the engine that was made for the group; only the first has checkpoints,
    and only there it returns. The others end when it has trained.
    """
    group.meet("engine")  # which may have been compiled
    train_rows, validation_rows = datasets
    cut = group.cut(settings.shards)
    chunks = epoch_chunks(model, train_rows, settings, device, cut)
    validation = Validation(validation_shares(validation_rows, cut, device, model.scale), cut, group)
    unit = model.scale.unit ** degree(settings.loss)
    require_even(datasets, settings)
    progress = Progress(settings, engine.state_dict())
    if content := group.first(checkpoints.load() if checkpoints is not None else b""):
        saved = read_tensors(content)
        progress.load_state(saved["progress"])
        engine.load_training_state(saved["engine"])
        for epoch in progress.epochs:
            on_epoch(epoch)

    def checkpoint_if_due(ended_epoch: int | None = None) -> None:
        own = (checkpoints.due(ended_epoch), checkpoints.signal or 0) if checkpoints is not None else (False, 0)
        due, number = group.first(bytes(own))  # a signal's number is below 65
        if due:
            state = {"progress": progress.state(), "engine": engine.training_state()}
            if checkpoints is not None:
                checkpoints.save(state)
            if number:
                where = f"after {len(progress.epochs)} of {settings.epochs} epochs; the next run goes on from there"
                raise StoppedError(number, where)

    with checkpoints.deferred_signals if checkpoints is not None else nullcontext():
        try:
            while len(progress.epochs) < settings.epochs and not progress.stopped_early:
                number = len(progress.epochs) + 1
                if not progress.position.rows:
                    engine.begin_epoch(number, progress.schedule.learning_rate)
                train_epoch(engine, chunks, number, progress, checkpoint_if_due)
                epoch = _validated(engine, validation, number, progress, unit)
                if group.size > 1:
                    group.require_same_state(engine.state_dict(), f"epoch {number}")
                if progress.end_epoch(epoch):
                    progress.best_state = engine.state_dict()
                on_epoch(epoch)
                checkpoint_if_due(number)
        except NotFiniteError as error:
            group.end_with_first(well=False)
            raise failed(str(error), datasets, settings, device) from None
    group.end_with_first()
    final, best = model.state_around(engine.state_dict()), model.state_around(progress.best_state)
    kept, epoch_kept = (
        (final, len(progress.epochs)) if settings.early_stopping.patience is None else (best, progress.best_epoch)
    )
    outcome = Outcome(progress.epochs, final, best, progress.best_epoch, kept)
    require_learned(outcome, epoch_kept, datasets, settings, device)
    return outcome


def train_epoch(engine: Engine, chunks: EpochChunks, number: int, progress: Progress, after_chunk: Callable[[], None]) -> None:
    """Take the steps of an epoch from its position on, which moves with each chunk."""
    position = progress.position
    started = time.perf_counter() - position.seconds
    for rows, features, target in chunks.epoch(number, start=position.rows):
        if isinstance(engine, ShardedEngine):
            losses = engine.train_chunk(features, target, chunks.batch_size, rows)  # [K]
        else:
            losses = engine.train_chunk(features, target, chunks.batch_size)
        finite = torch.isfinite(losses)
        if not finite.all():
            batch = position.batches + int(finite.logical_not().nonzero()[0]) + 1
            raise NotFiniteError(f"epoch {number}, batch {batch}: the training loss is not finite")
        position.loss += float(losses.sum())
        position.rows += rows
        position.batches += len(losses)
        position.seconds = time.perf_counter() - started
        after_chunk()


class Validation:
    """The validation rows: each chunk is cut into shards as a batch is, and their losses are added in the table's order."""

    def __init__(self, shares: Iterable[Share], cut: Cut, group: Group) -> None:
        self._shares, self._cut, self._group = shares, cut, group

    def sums(self, engine: Engine) -> tuple[float, float]:
        """Return the loss summed over all rows, and their weight."""
        own = [
            (engine.validation_loss(*shard), total_weight(shard[1]))
            for rows, features, target in self._shares
            for shard in self._cut.parts(rows, features, target)
        ]
        every = self._group.gather(torch.tensor(own, dtype=torch.float64).view(-1, self._cut.own, 2))  # [W, chunks, own, 2]
        # NumPy's accumulate adds one after the other, where its sum adds by pairs.
        total, weight = np.add.accumulate(every.transpose(0, 1).reshape(-1, 2).numpy())[-1].tolist()
        return total, weight


def _validated(engine: Engine, validation: Validation, number: int, progress: Progress, unit: float) -> Epoch:
    """Return the epoch's figures; `unit` is a loss of 1 between scaled values, in the data's units."""
    started = time.perf_counter()
    total, weight = validation.sums(engine)
    position = progress.position
    # Training rows weigh as much as there are of them.
    losses = position.loss / position.rows * unit, total / weight * unit
    for name, loss in zip(("training", "validation"), losses, strict=True):
        if not math.isfinite(loss):
            raise NotFiniteError(f"epoch {number}, after its last batch: the {name} loss is not finite")
    return Epoch(
        number,
        *losses,
        learning_rate=progress.schedule.learning_rate,
        epoch_seconds=position.seconds + time.perf_counter() - started,
        train_rows_per_second=position.rows / position.seconds,
    )
