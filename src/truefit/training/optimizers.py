"""Optimizers: how a step moves the parameters. Another one is a name, and a case in each of the functions here."""

from collections.abc import Sequence
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from truefit.core.config import Settings, invalid_value, require_defaults

HIGHEST = 1e9  # far below what float32 holds


class OptimizerSettings(Settings):
    """`train.optimizer`; what is not here has torch's default."""

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = Field(0.05, gt=0, le=HIGHEST)
    momentum: float = Field(0.0, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(0.0, ge=0, le=HIGHEST)

    @model_validator(mode="after")
    def _momentum_is_sgds(self) -> Self:
        if self.name != "sgd":
            require_defaults(self, ("momentum", "nesterov"), f"with optimizer {self.name}, which has none")
        if self.nesterov and self.momentum == 0:
            raise invalid_value("nesterov", True, "false without a momentum")
        return self


def make_optimizer(
    parameters: list[nn.Parameter], settings: OptimizerSettings, fused: bool | None = None
) -> torch.optim.Optimizer:
    """Return the torch optimizer for `parameters`; `fused` takes one kernel for all of a step, which rounds otherwise."""
    lr = settings.lr
    groups = [
        {"params": [parameters[place] for place in places], "weight_decay": decay}
        for places, decay in _by_decay(parameters, settings.weight_decay)
    ]
    # What torch finds out at each step; its own choice elsewhere.
    foreach = False if fused or parameters[0].device.type == "cpu" else None
    how: dict[str, Any] = {"foreach": foreach, "fused": fused}
    match settings.name:
        case "sgd":
            return torch.optim.SGD(groups, lr=lr, momentum=settings.momentum, nesterov=settings.nesterov, **how)
        case "adam":
            return torch.optim.Adam(groups, lr=lr, **how)
        case "adamw":
            return torch.optim.AdamW(groups, lr=lr, **how)


def _by_decay(parameters: Sequence[Tensor], decay: float) -> list[tuple[list[int], float]]:
    """Return groups of the parameters' places, each with its weight decay: biases, which only move the predictions, have none.

    Goodfellow, Bengio and Courville, "Deep Learning" (2016), section 7.1.
    """
    places = range(len(parameters))
    if not decay:
        return [([*places], 0.0)]
    weights = [place for place in places if parameters[place].ndim > 1]
    return [(weights, decay), ([place for place in places if place not in weights], 0.0)]


def first_state(settings: OptimizerSettings, parameter: Tensor) -> dict[str, Tensor]:
    """Return what torch's optimizer keeps for a parameter before its first step, by torch's names."""
    match settings.name:
        case "sgd":
            return {"momentum_buffer": torch.zeros_like(parameter)} if settings.momentum else {}
        case "adam" | "adamw":
            moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            # In float64, as the eager step computes: float32 loses digits of the correction 1 - 0.999^step at the first steps.
            return moments | {"step": torch.zeros((), dtype=torch.float64)}


def update(
    settings: OptimizerSettings, parameters: list[Tensor], gradients: list[Tensor], state: dict[str, list[Tensor]], lr: Tensor
) -> None:
    """Move the parameters in place, with the function under torch's own optimizer, for a compiled graph.

    `state` holds, for each name in `first_state`, a tensor a parameter, and changes in place too. `lr` is a tensor, so that
    another rate is not another graph.
    """
    for places, decay in _by_decay(parameters, settings.weight_decay):
        chosen, slopes = ([tensors[place] for place in places] for tensors in (parameters, gradients))
        own = {name: [tensors[place] for place in places] for name, tensors in state.items()}
        common: dict[str, Any] = {"lr": lr, "weight_decay": decay, "foreach": False, "maximize": False, "fused": False}
        match settings.name:
            case "sgd":
                buffers: list[Tensor | None] = [*own.get("momentum_buffer", [None] * len(chosen))]
                momentum, nesterov = settings.momentum, settings.nesterov
                sgd(chosen, slopes, buffers, momentum=momentum, dampening=0.0, nesterov=nesterov, **common)
            case "adam" | "adamw":
                step = adam if settings.name == "adam" else adamw
                defaults: dict[str, Any] = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "amsgrad": False}
                step(chosen, slopes, own["exp_avg"], own["exp_avg_sq"], [], own["step"], **defaults, **common)
