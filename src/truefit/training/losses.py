"""Losses: what a training step makes smaller. Another one is a name and a case here."""

from collections.abc import Callable
from typing import Literal, Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from truefit.core.config import Settings, require_defaults
from truefit.data.dataset import target_and_weight

Reduction = Literal["mean", "sum"]
Loss = Callable[[Tensor, Tensor], Tensor]  # (prediction [B, 1], target [B, 1], or [B, 2] with the rows' weights) -> a scalar


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


def make_loss(settings: LossSettings, reduction: Reduction = "sum") -> Loss:
    """Return the function (prediction [B, 1], target [B, 1]) -> the loss summed over the rows, or their mean, a scalar.

    With a target [B, 2] each row's loss is multiplied by its weight: the mean is Σwl / B.

    >>> import torch
    >>> errors, weighted = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.0, 1.0], [0.0, 0.5], [0.0, 2.0]])
    >>> [float(make_loss(LossSettings(name=name))(errors, weighted)) for name in ("mse", "l1", "huber")]
    [18.5, 6.5, 5.25]
    """
    # Without the hooks of a module's call, which a small step would notice.
    plain, each = unweighted_loss(settings, reduction).forward, unweighted_loss(settings, "none").forward

    def loss(prediction: Tensor, target: Tensor) -> Tensor:
        if target.size(1) == 1:
            unweighted: Tensor = plain(prediction, target)
            return unweighted
        actual, weight = target_and_weight(target)
        weighted: Tensor = each(prediction, actual) * weight
        return weighted.mean() if reduction == "mean" else weighted.sum()

    return loss


def unweighted_loss(settings: LossSettings, reduction: Literal[Reduction, "none"]) -> nn.Module:
    """Return the function (prediction [B, 1], target [B, 1]) -> the rows' losses, reduced or, with "none", as they are [B, 1].

    huber is half the squared error up to `delta`, and beyond it a line of slope `delta`, so that single rows far away weigh
    less (Huber, "Robust estimation of a location parameter", 1964).

    >>> import torch
    >>> errors = torch.tensor([[0.0], [1.0], [3.0]])
    >>> [float(unweighted_loss(LossSettings(name=name), "sum")(errors, torch.zeros(3, 1))) for name in ("mse", "l1", "huber")]
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
