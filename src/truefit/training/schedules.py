"""Schedules: how the learning rate changes from epoch to epoch. Another one is a name, its keys and a case here."""

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch.optim import lr_scheduler

from truefit.core.config import Settings, require_defaults


class ScheduleSettings(Settings):
    """`train.schedule`.

    step: times `gamma` every `step_size` epochs. cosine: down to `min_lr` along half a cosine over all epochs. plateau: times
    `factor` when the validation loss has not fallen, by torch's threshold of 0.01 %, for more than `patience` epochs.
    """

    name: Literal["constant", "step", "cosine", "plateau"] = "cosine"
    step_size: int = Field(10, ge=1)
    gamma: float = Field(0.1, gt=0, le=1)
    min_lr: float = Field(0.0, ge=0)
    factor: float = Field(0.1, gt=0, lt=1)
    patience: int = Field(10, ge=0)

    @model_validator(mode="after")
    def _keys_belong_to_the_name(self) -> Self:
        keys = {"step": ("step_size", "gamma"), "cosine": ("min_lr",), "plateau": ("factor", "patience")}
        for name, others in keys.items():
            if name != self.name:
                require_defaults(self, others, f"with schedule {self.name}")
        return self


class Schedule:
    """The learning rate of each epoch, whatever the engine: torch's scheduler on a stand-in optimizer with no gradients."""

    def __init__(self, settings: ScheduleSettings, lr: float, epochs: int) -> None:
        self._optimizer = torch.optim.SGD([torch.zeros(1)], lr=lr)
        self._scheduler = self._make_scheduler(settings, epochs)

    @property
    def learning_rate(self) -> float:
        """The learning rate of the epoch to come."""
        return float(self._optimizer.param_groups[0]["lr"])

    def advance(self, validation_loss: float) -> None:
        """Go on to the next epoch."""
        self._optimizer.step()  # moves nothing; torch warns where a scheduler goes ahead of its optimizer
        if isinstance(self._scheduler, lr_scheduler.ReduceLROnPlateau):
            self._scheduler.step(validation_loss)
        else:
            self._scheduler.step()

    def _make_scheduler(self, settings: ScheduleSettings, epochs: int) -> lr_scheduler.LRScheduler:
        match settings.name:
            case "constant":
                return lr_scheduler.ConstantLR(self._optimizer, factor=1.0)
            case "step":
                return lr_scheduler.StepLR(self._optimizer, settings.step_size, settings.gamma)
            case "cosine":
                return lr_scheduler.CosineAnnealingLR(self._optimizer, epochs, settings.min_lr)
            case "plateau":
                return lr_scheduler.ReduceLROnPlateau(self._optimizer, factor=settings.factor, patience=settings.patience)
