"""Losses: what a training step makes smaller. Another one is a name and a case here."""

from typing import Literal, Self

from pydantic import Field, model_validator
from torch import nn

from truefit.core.config import Settings, require_defaults

Reduction = Literal["mean", "sum"]


class LossSettings(Settings):
    """`train.loss`; `delta` is huber's, in units of the scaled target."""

    name: Literal["mse", "l1", "huber"] = "mse"
    reduction: Reduction = "mean"
    delta: float = Field(1.0, gt=0, le=1e9)

    @model_validator(mode="after")
    def _delta_is_hubers(self) -> Self:
        if self.name != "huber":
            require_defaults(self, ("delta",), f"with loss {self.name}, which has none")
        return self


def make_loss(settings: LossSettings, reduction: Reduction = "sum") -> nn.Module:
    """Return the function (prediction [B, 1], target [B, 1]) -> the loss summed over the rows, or their mean, a scalar.

    huber is half the squared error up to `delta`, and beyond it a line of slope `delta`, so that single rows far away weigh
    less (Huber, "Robust estimation of a location parameter", 1964).

    >>> import torch
    >>> errors = torch.tensor([[0.0], [1.0], [3.0]])
    >>> [float(make_loss(LossSettings(name=name))(errors, torch.zeros(3, 1))) for name in ("mse", "l1", "huber")]
    [10.0, 4.0, 3.0]
    """
    match settings.name:
        case "mse":
            return nn.MSELoss(reduction=reduction)
        case "l1":
            return nn.L1Loss(reduction=reduction)
        case "huber":
            return nn.HuberLoss(reduction=reduction, delta=settings.delta)


def degree(settings: LossSettings) -> int:
    """Return the power of the target's unit that the loss is in: with errors `s` times as large it is `s ** degree` times so.

    huber's delta is to grow with them. In the data's units it is `delta` standard deviations of the target.
    """
    match settings.name:
        case "mse" | "huber":
            return 2
        case "l1":
            return 1
