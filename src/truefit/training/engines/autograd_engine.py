"""Engine `autograd`: parameters are tensors made on the device; `backward()` takes the gradient, the update is by hand."""

from typing import Any

import torch
from torch import Tensor, nn

from truefit.data.dataset import target_and_weight
from truefit.training.engines.base import to_device, weighted
from truefit.training.losses import Reduction


class AutogradEngine:
    """The linear model, the squared error and plain SGD, on two tensors with `requires_grad`."""

    def __init__(self, body: nn.Module, reduction: Reduction, device: torch.device) -> None:
        self.reduction = reduction
        self.device = device
        self.load_training_state({"model": body.state_dict(), "learning_rate": 0.0})

    def begin_epoch(self, epoch: int, learning_rate: float) -> None:
        """Set the learning rate."""
        self.learning_rate = learning_rate

    def train_chunk(self, features: Tensor, target: Tensor, batch_size: int) -> Tensor:
        """Take a step for each batch of (features [C, F], target [C, 1]); return their summed losses, float64 [K]."""
        tensors = to_device(features, self.device), *target_and_weight(to_device(target, self.device))
        batches = zip(*(tensor.split(batch_size) for tensor in tensors), strict=True)
        losses = [self._step(*batch) for batch in batches]
        return torch.stack(losses).cpu().double()

    def validation_loss(self, features: Tensor, target: Tensor) -> float:
        """Return the squared errors' sum."""
        with torch.no_grad():
            predicted = (features.to(self.device) @ self.weight + self.bias).cpu()
        actual, *weight = target_and_weight(target.double())
        return float(weighted((predicted.double() - actual) ** 2, *weight).sum())

    def state_dict(self) -> dict[str, Tensor]:
        """Return a copy of the parameters, on the CPU; a weight is [1, F], as nn.Linear keeps it."""
        return {"weight": self.weight.T.detach().cpu().clone(), "bias": self.bias.detach().cpu().clone()}

    def training_state(self) -> dict[str, Any]:
        """Return the parameters and the learning rate."""
        return {"model": self.state_dict(), "learning_rate": self.learning_rate}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Go on from a `training_state`, with parameters made anew on the device."""
        self.learning_rate = state["learning_rate"]
        tensors: dict[str, Tensor] = state["model"]
        weight, bias, dtype = tensors["weight"].T.tolist(), tensors["bias"].tolist(), tensors["weight"].dtype
        self.weight = torch.tensor(weight, dtype=dtype, device=self.device, requires_grad=True)  # [F, 1]
        self.bias = torch.tensor(bias, dtype=dtype, device=self.device, requires_grad=True)  # [1]

    def _step(self, x: Tensor, y: Tensor, row_weight: Tensor | None = None) -> Tensor:
        """Take one step on the batch x [B, F], y [B, 1]; return its loss, summed over its rows."""
        error = x @ self.weight + self.bias - y  # [B, 1]
        loss = weighted(error**2, row_weight).sum()
        # The derivative of what is made smaller by the sum: with the mean, 1/B.
        loss.backward(loss.new_tensor(1 / len(x) if self.reduction == "mean" else 1))
        with torch.no_grad():
            for parameter in (self.weight, self.bias):
                assert parameter.grad is not None
                # In place, so that autograd keeps its leaf, and outside the graph, since the update is not part of the loss.
                parameter -= self.learning_rate * parameter.grad
                parameter.grad.zero_()  # backward() adds to what is there
        return loss.detach()
