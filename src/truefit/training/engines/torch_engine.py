"""Engine `torch`: an `nn.Module`, a loss function and an optimizer, joined by `make_train_step`.

Reads and writes nothing. Takes every model, loss and optimizer of the settings, on every device.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from truefit.model.models import Dropout
from truefit.training.engines.base import to_device
from truefit.training.optimization import LossSettings, OptimizerSettings, batch_sums, make_loss, make_optimizer

TrainStep = Callable[[Tensor, Tensor], Tensor]


def make_train_step(
    model: nn.Module, loss: nn.Module, optimizer: torch.optim.Optimizer, clip_norm: float | None = None
) -> TrainStep:
    """Return the function that takes one training step on a batch (features [B, F], target [B, 1]).

    The function returns the batch's loss before the step, as a scalar without a graph. The model is to be in train() mode.
    With `clip_norm` the gradient is scaled down to that Euclidean norm where it is longer (Pascanu et al., 2013).
    """
    parameters = list(model.parameters())

    def train_step(features: Tensor, target: Tensor) -> Tensor:
        for parameter in parameters:
            parameter.grad = None  # what optimizer.zero_grad() does, but for a profiler's hooks, a tenth of a small step
        value: Tensor = loss(model(features), target)
        value.backward()
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, clip_norm)
        optimizer.step()
        return value.detach()

    return train_step


class TorchEngine:
    """Any model, loss and optimizer, with torch doing all the work of a step."""

    def __init__(
        self,
        model: nn.Module,
        loss: LossSettings,
        optimizer: OptimizerSettings,
        clip_norm: float | None,
        device: torch.device,
    ) -> None:
        self.model = model.to(device)
        self.device = device
        self.reduction = loss.reduction
        self.optimizer = make_optimizer(list(self.model.parameters()), optimizer)
        self._step = make_train_step(self.model, make_loss(loss.name, loss.reduction), self.optimizer, clip_norm)
        self._summed_loss = make_loss(loss.name, "sum")

    def begin_epoch(self, epoch: int, learning_rate: float) -> None:
        """Set the learning rate and the streams that dropout draws from."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        for dropout in self._dropouts():
            dropout.begin_epoch(epoch, self.device)

    def train_chunk(self, features: Tensor, target: Tensor, batch_size: int) -> Tensor:
        """Take a step for each batch of (features [C, F], target [C, 1]); return their summed losses, float64 [K]."""
        x, y = to_device(features, self.device), to_device(target, self.device)
        self.model.train()
        losses = [self._step(*batch) for batch in zip(x.split(batch_size), y.split(batch_size), strict=True)]
        return batch_sums(torch.stack(losses).cpu().double(), len(x), batch_size, self.reduction)

    def validation_loss(self, features: Tensor, target: Tensor) -> float:
        """Return the loss summed over all rows, under eval() and no_grad()."""
        self.model.eval()
        with torch.no_grad():
            return float(self._summed_loss(self.model(features.to(self.device)), target.to(self.device)))

    def state_dict(self) -> dict[str, Tensor]:
        """Return a copy of the model's state_dict, on the CPU."""
        return {name: tensor.detach().cpu().clone() for name, tensor in self.model.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the parameters and buffers of a state_dict with the same names."""
        self.model.load_state_dict(state)

    def training_state(self) -> dict[str, Any]:
        """Return the parameters, the optimizer's state with its learning rate, and where dropout's streams are."""
        streams = [dropout.generator.get_state() for dropout in self._dropouts()]
        return {"model": self.state_dict(), "optimizer": self.optimizer.state_dict(), "dropout": streams}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Go on from a `training_state`."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for dropout, stream in zip(self._dropouts(), state["dropout"], strict=True):
            dropout.begin_epoch(0, self.device)  # makes the generator on the device
            dropout.generator.set_state(stream)

    def _dropouts(self) -> list[Dropout]:
        return [module for module in self.model.modules() if isinstance(module, Dropout)]
