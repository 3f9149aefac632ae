"""Engine `torch`: an `nn.Module`, a loss function and an optimizer, joined by `make_train_step`."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from truefit.model.layers import Dropout
from truefit.training.engines.base import StepSettings, to_device
from truefit.training.losses import Loss, Reduction, make_loss
from truefit.training.optimizers import make_optimizer

TrainStep = Callable[[Tensor, Tensor], Tensor]


def make_train_step(
    model: nn.Module,
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    reduction: Reduction = "mean",
    clip_norm: float | None = None,
) -> TrainStep:
    """Return the function that takes one training step on a batch (features [B, F], target [B, 1]).

    `loss` is summed over the rows; the step makes their mean or their sum smaller, as `reduction` says. The function returns
    the batch's summed loss before the step, as a scalar without a graph. The model is to be in train() mode. With `clip_norm`
    the gradient is scaled down to that Euclidean norm where it is longer (Pascanu et al., 2013).
    """
    parameters = list(model.parameters())

    @cache
    def weight(rows: int) -> Tensor:
        share = 1 / rows if reduction == "mean" else 1.0
        return torch.tensor(share, dtype=parameters[0].dtype, device=parameters[0].device)

    def train_step(features: Tensor, target: Tensor) -> Tensor:
        for parameter in parameters:
            parameter.grad = None  # what optimizer.zero_grad() does, but for a profiler's hooks, a tenth of a small step
        summed = loss(model(features), target)
        summed.backward(weight(len(target)))  # what (summed / B).backward() does, without the division
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, clip_norm)
        optimizer.step()
        return summed.detach()

    return train_step


class TorchEngine:
    """Any module, loss and optimizer, with torch doing all the work of a step."""

    def __init__(self, model: nn.Module, step: StepSettings, device: torch.device) -> None:
        self.model = model.to(device)
        self.device = device
        self.optimizer = make_optimizer(list(self.model.parameters()), step.optimizer)
        self._loss = make_loss(step.loss)
        self._step = make_train_step(self.model, self._loss, self.optimizer, step.loss.reduction, step.clip_norm)
        self._dropouts = [module for module in self.model.modules() if isinstance(module, Dropout)]

    def begin_epoch(self, epoch: int, learning_rate: float) -> None:
        """Set the learning rate and the streams that dropout draws from."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        for dropout in self._dropouts:
            dropout.begin_epoch(epoch, self.device)

    def train_chunk(self, features: Tensor, target: Tensor, batch_size: int) -> Tensor:
        """Take a step for each batch of (features [C, F], target [C, 1]); return their summed losses, float64 [K]."""
        x, y = to_device(features, self.device), to_device(target, self.device)
        self.model.train()
        losses = [self._step(*batch) for batch in zip(x.split(batch_size), y.split(batch_size), strict=True)]
        return torch.stack(losses).cpu().double()

    def validation_loss(self, features: Tensor, target: Tensor) -> float:
        """Return the loss summed over all rows, under eval() and no_grad()."""
        self.model.eval()
        with torch.no_grad():
            predicted = self.model(features.to(self.device)).cpu()
        return float(self._loss(predicted.double(), target.double()))

    def state_dict(self) -> dict[str, Tensor]:
        """Return a copy of the module's state_dict, on the CPU."""
        return {name: tensor.detach().cpu().clone() for name, tensor in self.model.state_dict().items()}

    def training_state(self) -> dict[str, Any]:
        """Return the parameters, the optimizer's state, and where dropout's streams are."""
        streams = [dropout.generator.get_state() for dropout in self._dropouts]
        return {"model": self.state_dict(), "optimizer": self.optimizer.state_dict(), "dropout": streams}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Go on from a `training_state`."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for dropout, stream in zip(self._dropouts, state["dropout"], strict=True):
            dropout.begin_epoch(0, self.device)  # makes the generator on the device
            dropout.generator.set_state(stream)
