"""The loss, the optimizer and the learning rate's schedule: their settings, and the torch objects these describe.

Reads and writes nothing. Guarantees that a setting which has no effect under another is refused, not ignored.
"""

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.optim import lr_scheduler

from truefit.core.config import Settings, invalid_value, require_defaults

Reduction = Literal["mean", "sum"]


class LossSettings(Settings):
    """`train.loss`: what a training step makes smaller, over the rows of its batch."""

    name: Literal["mse", "l1", "huber"] = "mse"
    reduction: Reduction = "mean"


class OptimizerSettings(Settings):
    """`train.optimizer`: how a step moves the parameters; what is not here has torch's default."""

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = Field(0.1, gt=0)
    momentum: float = Field(0.0, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _momentum_is_sgds(self) -> Self:
        if self.name != "sgd":
            require_defaults(self, ("momentum", "nesterov"), f"with optimizer {self.name}, which has none")
        if self.nesterov and self.momentum == 0:
            raise invalid_value("nesterov", True, "False without a momentum")
        return self


class ScheduleSettings(Settings):
    """`train.schedule`: how the learning rate changes from epoch to epoch.

    constant: not at all. step: multiplied by `gamma` every `step_size` epochs. cosine: down to `min_lr` along half a cosine
    over all epochs. plateau: multiplied by `factor` when the validation loss has not fallen, by torch's threshold of 0.01 %,
    for more than `patience` epochs.
    """

    name: Literal["constant", "step", "cosine", "plateau"] = "constant"
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


def make_loss(name: str, reduction: Reduction) -> nn.Module:
    """Return the loss function (prediction [B, 1], target [B, 1]) -> scalar."""
    losses: dict[str, type[nn.Module]] = {"mse": nn.MSELoss, "l1": nn.L1Loss, "huber": nn.HuberLoss}
    return losses[name](reduction=reduction)


def make_optimizer(parameters: list[nn.Parameter], settings: OptimizerSettings) -> torch.optim.Optimizer:
    """Return the torch optimizer for `parameters`."""
    lr, decay = settings.lr, settings.weight_decay
    # What torch finds out at each step; its own choice elsewhere.
    foreach = False if parameters[0].device.type == "cpu" else None
    match settings.name:
        case "sgd":
            momentum, nesterov = settings.momentum, settings.nesterov
            return torch.optim.SGD(
                parameters, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=decay, foreach=foreach
            )
        case "adam":
            return torch.optim.Adam(parameters, lr=lr, weight_decay=decay, foreach=foreach)
        case "adamw":
            return torch.optim.AdamW(parameters, lr=lr, weight_decay=decay, foreach=foreach)


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
        """Go on to the next epoch, given the validation loss of the one that ended."""
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


def batch_sums(losses: Tensor, rows: int, batch_size: int, reduction: Reduction) -> Tensor:
    """Return each batch's summed loss [K], from its loss as the step gave it [K], the rows of all batches and their size.

    The last batch may be short, so a mean of batch means would weigh its rows more than others'.
    """
    if reduction == "sum":
        return losses
    sizes = torch.full_like(losses, batch_size)
    sizes[-1] = rows - batch_size * (len(losses) - 1)
    return losses * sizes
