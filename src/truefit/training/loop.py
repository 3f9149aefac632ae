"""train() and fit(): epochs, validation, the learning rate's schedule, early stopping, checkpoints.

Reads the prepared table through TableDataset and DataLoader; writes checkpoints, and knows no MLflow and no DVC. Guarantees
that an epoch's losses are means over rows, not over batches, that a loss which is not finite ends the training, and that a
training which goes on from a checkpoint, also from one inside an epoch, ends with the same bits.
"""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import pandas as pd
import torch
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor

from truefit.core.config import Settings, invalid_value, require_defaults
from truefit.core.errors import StoppedError, TruefitError
from truefit.data.batches import Loader, SequentialChunks, Shuffle, ShuffledChunks, make_loader, read_ahead
from truefit.data.dataset import TableDataset
from truefit.model.models import ModelSettings, build_model
from truefit.training.checkpoint import Checkpoints
from truefit.training.device import DeviceName
from truefit.training.engines import CompiledEngine, CompileSettings, Engine, EngineName, make_engine
from truefit.training.optimization import LossSettings, OptimizerSettings, Schedule, ScheduleSettings

State = dict[str, Tensor]


def _check_batch_size(value: object) -> object:
    if value == "all" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise ValueError("all, or a whole number of at least 1")


class EarlyStoppingSettings(Settings):
    """`train.early_stopping`: stop after `patience` epochs in which the validation loss fell by no more than `min_delta`."""

    patience: int | None = Field(None, ge=1)
    min_delta: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _min_delta_needs_patience(self) -> Self:
        if self.patience is None:
            require_defaults(self, ("min_delta",), "without a patience")
        return self


class TrainSettings(Settings):
    """Section `train`: all that decides a training, beside the table."""

    engine: Literal[EngineName, "auto"] = "torch"
    device: DeviceName = "auto"
    seed: int = Field(42, ge=0)
    threads: int = Field(1, ge=1)
    standardize: bool = False
    model: ModelSettings = ModelSettings()
    loss: LossSettings = LossSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    batch_size: Annotated[int | Literal["all"], BeforeValidator(_check_batch_size)] = 16
    shuffle: Shuffle = "full"
    epochs: int = Field(50, ge=1)
    clip_norm: float | None = Field(None, gt=0)
    early_stopping: EarlyStoppingSettings = EarlyStoppingSettings()
    compile: CompileSettings = CompileSettings()

    @model_validator(mode="after")
    def _learning_rate_falls(self) -> Self:
        if self.schedule.min_lr > self.optimizer.lr:
            raise invalid_value("schedule.min_lr", self.schedule.min_lr, f"at most train.optimizer.lr, {self.optimizer.lr}")
        return self

    @model_validator(mode="after")
    def _engine_can_do_it(self) -> Self:
        if self.engine in ("compiled", "auto"):
            if self.engine == "compiled" and self.device == "mps":
                raise invalid_value("engine", self.engine, "torch or auto with device mps")
            return self
        if self.compile != (default := CompileSettings()):
            raise invalid_value("compile", self.compile.model_dump(), f"{default.model_dump()} with engine {self.engine}")
        if self.engine == "torch":
            return self
        optimizer = self.optimizer
        plain = optimizer.name == "sgd" and not (optimizer.momentum or optimizer.weight_decay)
        for needed, found in [
            ("the model linear", self.model.name == "linear"),
            ("the loss mse", self.loss.name == "mse"),
            ("plain sgd", plain),
            ("no clip_norm", self.clip_norm is None),
        ]:
            if not found:
                raise invalid_value("engine", self.engine, f"torch, since {self.engine} takes {needed}")
        if self.engine == "numpy" and self.device not in ("auto", "cpu"):
            raise invalid_value("engine", self.engine, f"autograd or torch with device {self.device}")
        return self

    def batch_rows(self, rows: int) -> int:
        """Return the rows of a batch, of `rows` in all."""
        return rows if self.batch_size == "all" else min(rows, self.batch_size)

    def steps(self, rows: int) -> int:
        """Return the number of training steps on so many rows, if it does not stop early."""
        return self.epochs * -(-rows // self.batch_rows(rows))


@dataclass(frozen=True)
class Epoch:
    """One epoch's figures; losses are means over rows, `learning_rate` the one its steps took."""

    epoch: int
    train_loss: float
    validation_loss: float
    learning_rate: float
    seconds: float
    train_rows_per_second: float


@dataclass(frozen=True)
class Outcome:
    """What a training ends with: its epochs, the state after the last, and the state with the lowest validation loss."""

    epochs: list[Epoch]
    final_state: State
    best_state: State
    best_epoch: int
    kept_state: State

    def history(self) -> pd.DataFrame:
        """Return the losses and learning rates, a row an epoch, as history.csv holds them."""
        columns = ["epoch", "train_loss", "validation_loss", "learning_rate"]
        return pd.DataFrame(self.epochs)[columns]


class Progress:
    """How far a training is: what a checkpoint holds beside the engine's state.

    `epochs` have ended; of the one after them, `rows` in `batches` have been trained on, with the summed `loss`, in
    `seconds`. The schedule and early stopping follow from the epochs.
    """

    def __init__(self, settings: TrainSettings, state: State) -> None:
        self.schedule = Schedule(settings.schedule, settings.optimizer.lr, settings.epochs)
        self._stopping = settings.early_stopping
        self.epochs: list[Epoch] = []
        self.best_loss, self.best_epoch, self.best_state = math.inf, 0, state
        self._mark, self._marked = math.inf, 0  # the last loss that counted as lower, and its epoch
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Begin the next epoch."""
        self.loss, self.rows, self.batches, self.seconds = 0.0, 0, 0, 0.0

    def end_epoch(self, epoch: Epoch) -> bool:
        """Add an epoch; return whether its validation loss is the lowest so far."""
        self.epochs.append(epoch)
        self.schedule.advance(epoch.validation_loss)
        if epoch.validation_loss < self._mark - self._stopping.min_delta:
            self._mark, self._marked = epoch.validation_loss, epoch.epoch
        best = epoch.validation_loss < self.best_loss
        if best:
            self.best_loss, self.best_epoch = epoch.validation_loss, epoch.epoch
        self.begin_epoch()
        return best

    @property
    def stopped_early(self) -> bool:
        """Whether the validation loss has not fallen for as long as early stopping waits."""
        patience = self._stopping.patience
        return patience is not None and len(self.epochs) - self._marked >= patience

    def state(self) -> dict[str, Any]:
        """Return all of it as tensors and numbers."""
        epochs = torch.tensor([list(vars(epoch).values()) for epoch in self.epochs], dtype=torch.float64)  # [E, 6]
        position = {name: getattr(self, name) for name in ("loss", "rows", "batches", "seconds")}
        return {"epochs": epochs, "best_state": self.best_state, "position": position}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take what `state` returned, on a new Progress of the same settings."""
        for number, *figures in state["epochs"].tolist():
            self.end_epoch(Epoch(int(number), *figures))
        self.best_state = state["best_state"]
        vars(self).update(state["position"])


def train(
    datasets: Sequence[TableDataset],
    settings: TrainSettings,
    device: torch.device,
    on_epoch: Callable[[Epoch], None],
    checkpoints: Checkpoints | None = None,
    on_compiled: Callable[[float], None] = lambda _: None,
) -> Outcome:
    """Train the model of `settings` on two datasets, the training and the validation rows; see `fit`.

    `on_compiled` hears how many seconds compiling took. Raises TruefitError as `begin` does.
    """
    train_rows, validation_rows = datasets
    engine, sampler = begin(train_rows, settings, device)
    if isinstance(engine, CompiledEngine):
        on_compiled(engine.compile_seconds)
    loader = make_loader(train_rows, sampler, device)
    validation = make_loader(validation_rows, SequentialChunks(len(validation_rows)), device)
    return fit(engine, loader, sampler, validation, settings, on_epoch, checkpoints)


def begin(train_rows: TableDataset, settings: TrainSettings, device: torch.device) -> tuple[Engine, ShuffledChunks]:
    """Return the engine with the model at its start, and the order of the training rows.

    The engine has been chosen, where the settings say auto. Raises TruefitError where the device cannot hold the table's
    numbers.
    """
    if device.type == "mps" and train_rows.table.dtype == "float64":
        raise TruefitError("train.device: found mps with prepare.dtype float64, allowed: float32, which is all that it has")
    model = build_model(settings.model, train_rows.table, settings.standardize, settings.seed)
    batch_size = settings.batch_rows(len(train_rows))
    assert settings.engine != "auto"
    engine = make_engine(
        settings.engine,
        model,
        settings.loss,
        settings.optimizer,
        settings.clip_norm,
        device,
        settings.compile.graph(len(train_rows), batch_size),
    )
    return engine, ShuffledChunks(len(train_rows), batch_size, settings.seed, settings.shuffle)


def fit(
    engine: Engine,
    train_loader: Loader,
    sampler: ShuffledChunks,
    validation_loader: Loader,
    settings: TrainSettings,
    on_epoch: Callable[[Epoch], None],
    checkpoints: Checkpoints | None = None,
) -> Outcome:
    """Train for `settings.epochs`, or until early stopping, calling `on_epoch` after each epoch.

    With `checkpoints` the training goes on from the latest, calling `on_epoch` for the epochs before it as well, and ends
    with the same bits as one that was never interrupted. The state kept is the best where early stopping has a patience, or
    else the final one. Raises TruefitError, naming epoch and batch, when a loss is not finite, and StoppedError, after
    saving a checkpoint, when SIGTERM or SIGINT asks for it.
    """
    progress = Progress(settings, engine.state_dict())
    if checkpoints is not None and (saved := checkpoints.load()) is not None:
        progress.load_state(saved["progress"])
        engine.load_training_state(saved["engine"])
        for epoch in progress.epochs:
            on_epoch(epoch)

    def pause(ended_epoch: int | None = None) -> None:
        if checkpoints is not None and checkpoints.due(ended_epoch):
            checkpoints.save({"progress": progress.state(), "engine": engine.training_state()})
            if checkpoints.signal is not None:
                where = f"after {len(progress.epochs)} of {settings.epochs} epochs; the next run goes on from there"
                raise StoppedError(checkpoints.signal, where)

    with checkpoints.deferred_signals if checkpoints is not None else nullcontext():
        while len(progress.epochs) < settings.epochs and not progress.stopped_early:
            number = len(progress.epochs) + 1
            sampler.set_epoch(number, start=progress.rows)
            if not progress.rows:
                engine.begin_epoch(number, progress.schedule.learning_rate)
            _train_epoch(engine, train_loader, sampler.batch_size, number, settings, progress, pause)
            started = time.perf_counter()
            validation_loss = _validate(engine, validation_loader, number, settings)
            seconds = progress.seconds + time.perf_counter() - started
            train_loss, speed = progress.loss / progress.rows, progress.rows / progress.seconds
            epoch = Epoch(number, train_loss, validation_loss, progress.schedule.learning_rate, seconds, speed)
            if progress.end_epoch(epoch):
                progress.best_state = engine.state_dict()
            on_epoch(epoch)
            pause(number)
    final_state = engine.state_dict()
    kept_state = final_state if settings.early_stopping.patience is None else progress.best_state
    return Outcome(progress.epochs, final_state, progress.best_state, progress.best_epoch, kept_state)


def _train_epoch(
    engine: Engine,
    loader: Loader,
    batch_size: int,
    epoch: int,
    settings: TrainSettings,
    progress: Progress,
    pause: Callable[[], None],
) -> None:
    """Take an epoch's steps, adding to `progress`, with a pause after each chunk."""
    started = time.perf_counter() - progress.seconds
    for features, target in read_ahead(loader):
        losses = engine.train_chunk(features, target, batch_size)
        finite = torch.isfinite(losses)
        if not finite.all():
            batch = progress.batches + int(finite.logical_not().nonzero()[0]) + 1
            raise _not_finite(f"epoch {epoch}, batch {batch}: the training loss", settings)
        progress.loss += float(losses.sum())
        progress.rows += len(features)
        progress.batches += len(losses)
        progress.seconds = time.perf_counter() - started
        pause()


def _validate(engine: Engine, loader: Loader, epoch: int, settings: TrainSettings) -> float:
    """Return the mean loss of the validation rows."""
    total, rows = 0.0, 0
    for features, target in loader:
        total, rows = total + engine.validation_loss(features, target), rows + len(features)
    if not math.isfinite(total):
        raise _not_finite(f"epoch {epoch}, after its last batch: the validation loss", settings)
    return total / rows


def _not_finite(what: str, settings: TrainSettings) -> TruefitError:
    """Return the error that says what to try, of what the settings do not do already."""
    advice = [f"a train.optimizer.lr below {settings.optimizer.lr:g}"]
    advice += [] if settings.standardize else ["train.standardize: true"]
    advice += ["a train.clip_norm"] if settings.engine in ("torch", "compiled") and settings.clip_norm is None else []
    return TruefitError(f"{what} is not finite; try {' or '.join(advice)}")
