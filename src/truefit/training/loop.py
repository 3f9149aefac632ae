"""The training: epochs, validation, the learning rate's schedule, early stopping, checkpoints. Knows no MLflow and no DVC."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch

from truefit.core.errors import StoppedError, TruefitError
from truefit.data.batches import EpochChunks, Loader, sequential_loader
from truefit.data.dataset import TableDataset
from truefit.model.models import build_model
from truefit.training.checkpoint import Checkpoints
from truefit.training.engines import choose_engine, make_engine
from truefit.training.engines.base import Engine
from truefit.training.progress import Epoch, Outcome, Progress
from truefit.training.settings import TrainSettings


def with_engine(settings: TrainSettings, rows: int, device: torch.device) -> TrainSettings:
    """Return the settings with an engine: where they say auto, the one for so many rows, which is then told on stdout."""
    if settings.engine != "auto":
        return settings
    engine, reason = choose_engine(settings.steps(rows), device)
    print(f"engine: {engine}, since {reason}")
    return settings.model_copy(update={"engine": engine})


def build_engine(train_rows: TableDataset, settings: TrainSettings, device: torch.device) -> Engine:
    """Return the engine of the settings; raises TruefitError where it cannot compile, or the device lacks float64."""
    assert settings.engine != "auto"
    if device.type == "mps" and train_rows.table.dtype == "float64":
        raise TruefitError("train.device: found mps with prepare.dtype float64, allowed: float32, which is all that it has")
    model = build_model(settings.model, train_rows.table, settings.standardize, settings.seed)
    graph = settings.compile.graph(len(train_rows), settings.batch_rows(len(train_rows)), train_rows.row_bytes)
    return make_engine(settings.engine, model, settings.step, device, graph)


def epoch_chunks(train_rows: TableDataset, settings: TrainSettings, device: torch.device) -> EpochChunks:
    """Return the training rows in the order of the settings."""
    batch_size = settings.batch_rows(len(train_rows))
    return EpochChunks(train_rows, batch_size, settings.seed, settings.shuffle, settings.epochs, device)


def train(
    datasets: Sequence[TableDataset],
    settings: TrainSettings,
    device: torch.device,
    on_epoch: Callable[[Epoch], None] = lambda _: None,
    checkpoints: Checkpoints | None = None,
) -> Outcome:
    """Build what the settings name, and `fit` it to two datasets, the training and the validation rows."""
    train_rows, validation_rows = datasets
    engine, chunks = build_engine(train_rows, settings, device), epoch_chunks(train_rows, settings, device)
    return fit(engine, chunks, sequential_loader(validation_rows, device), settings, on_epoch, checkpoints)


def fit(
    engine: Engine,
    chunks: EpochChunks,
    validation: Loader,
    settings: TrainSettings,
    on_epoch: Callable[[Epoch], None],
    checkpoints: Checkpoints | None = None,
) -> Outcome:
    """Train for `settings.epochs`, or until early stopping, calling `on_epoch` after each epoch.

    With `checkpoints` the training goes on from the latest, calling `on_epoch` for the epochs before it too, and ends with the
    bits of one that was never interrupted. The state kept is the best where early stopping has a patience, or else the final
    one. Raises TruefitError for a loss that is not finite, and StoppedError after the checkpoint that a signal asked for.
    """
    progress = Progress(settings, engine.state_dict())
    if checkpoints is not None and (saved := checkpoints.load()) is not None:
        progress.load_state(saved["progress"])
        engine.load_training_state(saved["engine"])
        for epoch in progress.epochs:
            on_epoch(epoch)

    def checkpoint_if_due(ended_epoch: int | None = None) -> None:
        if checkpoints is not None and checkpoints.due(ended_epoch):
            checkpoints.save({"progress": progress.state(), "engine": engine.training_state()})
            if checkpoints.signal is not None:
                where = f"after {len(progress.epochs)} of {settings.epochs} epochs; the next run goes on from there"
                raise StoppedError(checkpoints.signal, where)

    with checkpoints.deferred_signals if checkpoints is not None else nullcontext():
        while len(progress.epochs) < settings.epochs and not progress.stopped_early:
            number = len(progress.epochs) + 1
            if not progress.position.rows:
                engine.begin_epoch(number, progress.schedule.learning_rate)
            train_epoch(engine, chunks, number, settings, progress, checkpoint_if_due)
            epoch = _validated(engine, validation, number, settings, progress)
            if progress.end_epoch(epoch):
                progress.best_state = engine.state_dict()
            on_epoch(epoch)
            checkpoint_if_due(number)
    final_state = engine.state_dict()
    kept_state = final_state if settings.early_stopping.patience is None else progress.best_state
    return Outcome(progress.epochs, final_state, progress.best_state, progress.best_epoch, kept_state)


def train_epoch(
    engine: Engine,
    chunks: EpochChunks,
    number: int,
    settings: TrainSettings,
    progress: Progress,
    after_chunk: Callable[[], None],
) -> None:
    """Take the steps of an epoch from its position on, which moves with each chunk."""
    position = progress.position
    started = time.perf_counter() - position.seconds
    for features, target in chunks.epoch(number, start=position.rows):
        losses = engine.train_chunk(features, target, chunks.batch_size)  # [K]
        finite = torch.isfinite(losses)
        if not finite.all():
            batch = position.batches + int(finite.logical_not().nonzero()[0]) + 1
            raise _not_finite(f"epoch {number}, batch {batch}: the training loss", settings)
        position.loss += float(losses.sum())
        position.rows += len(features)
        position.batches += len(losses)
        position.seconds = time.perf_counter() - started
        after_chunk()


def _validated(engine: Engine, validation: Loader, number: int, settings: TrainSettings, progress: Progress) -> Epoch:
    started = time.perf_counter()
    total, rows = 0.0, 0
    for features, target in validation:
        total, rows = total + engine.validation_loss(features, target), rows + len(features)
    if not math.isfinite(total):
        raise _not_finite(f"epoch {number}, after its last batch: the validation loss", settings)
    position = progress.position
    return Epoch(
        number,
        train_loss=position.loss / position.rows,
        validation_loss=total / rows,
        learning_rate=progress.schedule.learning_rate,
        epoch_seconds=position.seconds + time.perf_counter() - started,
        train_rows_per_second=position.rows / position.seconds,
    )


def _not_finite(what: str, settings: TrainSettings) -> TruefitError:
    advice = [f"a train.optimizer.lr below {settings.optimizer.lr:g}"]
    advice += [] if settings.standardize else ["train.standardize: true"]
    advice += ["a train.clip_norm"] if settings.engine in ("torch", "compiled") and settings.clip_norm is None else []
    return TruefitError(f"{what} is not finite; try {' or '.join(advice)}")
