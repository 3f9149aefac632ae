"""How far a training is: its epochs so far, the best of them, and the position inside the one that goes on."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from truefit.core.errors import TruefitError
from truefit.training.schedules import Schedule
from truefit.training.settings import TrainSettings

State = dict[str, Tensor]
CURVES = ("train_loss", "validation_loss", "learning_rate")  # what stands in history.csv, and what a rerun compares


@dataclass(frozen=True)
class Epoch:
    """One epoch's figures, by their names in MLflow; losses are means over rows, by their weights."""

    epoch: int
    train_loss: float
    validation_loss: float
    learning_rate: float
    epoch_seconds: float
    train_rows_per_second: float

    def metrics(self) -> dict[str, float]:
        """Return the figures; in MLflow the epoch is their step."""
        return {name: value for name, value in asdict(self).items() if name != "epoch"}


@dataclass(frozen=True)
class Outcome:
    """What a training ends with; `best_state` has the lowest validation loss."""

    epochs: list[Epoch]
    final_state: State
    best_state: State
    best_epoch: int
    kept_state: State

    def history(self) -> pd.DataFrame:
        """Return the losses and learning rates, a row an epoch, as history.csv holds them."""
        return pd.DataFrame(self.epochs)[["epoch", *CURVES]]


def read_history(path: Path) -> pd.DataFrame:
    """Return what `Outcome.history` gave, from a file; raises TruefitError where it is not there, or damaged."""
    try:
        return pd.read_csv(path)[["epoch", *CURVES]].astype({"epoch": "int64", **dict.fromkeys(CURVES, "float64")})
    except OSError as error:
        raise TruefitError(f"{path}: cannot be read: {error.strerror}; `dvc repro train` writes it") from None
    except (ValueError, KeyError):
        allowed = f"the columns epoch, {', '.join(CURVES)}, with numbers"
        raise TruefitError(f"{path}: damaged, allowed: {allowed}; `dvc repro --force train` writes it anew") from None


@dataclass
class Position:
    """How far the epoch is that goes on; `loss` is summed over its rows so far."""

    loss: float = 0.0
    rows: int = 0
    batches: int = 0
    seconds: float = 0.0


class Progress:
    """What a checkpoint holds beside the engine's state; schedule and early stopping follow from the epochs so far."""

    def __init__(self, settings: TrainSettings, state: State) -> None:
        self.schedule = Schedule(settings.schedule, settings.optimizer.lr, settings.epochs)
        self._stopping = settings.early_stopping
        self.epochs: list[Epoch] = []
        self.best_loss, self.best_epoch, self.best_state = math.inf, 0, state
        self._reference_loss, self._reference_epoch = math.inf, 0  # of the last fall by more than min_delta
        self.position = Position()

    def end_epoch(self, epoch: Epoch) -> bool:
        """Add an epoch; return whether its validation loss is the lowest so far."""
        self.epochs.append(epoch)
        self.schedule.advance(epoch.validation_loss)
        if epoch.validation_loss < self._reference_loss - self._stopping.min_delta:
            self._reference_loss, self._reference_epoch = epoch.validation_loss, epoch.epoch
        best = epoch.validation_loss < self.best_loss
        if best:
            self.best_loss, self.best_epoch = epoch.validation_loss, epoch.epoch
        self.position = Position()
        return best

    @property
    def stopped_early(self) -> bool:
        """Whether the validation loss has not fallen for as long as early stopping waits."""
        patience = self._stopping.patience
        return patience is not None and len(self.epochs) - self._reference_epoch >= patience

    def state(self) -> dict[str, Any]:
        """Return all of it as tensors and plain values."""
        epochs = [asdict(epoch) for epoch in self.epochs]
        return {"epochs": epochs, "best_state": self.best_state, "position": asdict(self.position)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take what `state` returned, on a new Progress of the same settings."""
        for epoch in state["epochs"]:
            self.end_epoch(Epoch(**epoch))
        self.best_state = state["best_state"]
        self.position = Position(**state["position"])
