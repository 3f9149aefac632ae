"""Engine `numpy`: gradient descent with everything written out: forward, loss, gradient and update."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from truefit.data.dataset import target_and_weight
from truefit.training.engines.base import weighted
from truefit.training.losses import Reduction


class NumpyEngine:
    """The linear model y = b + x·w, the squared error, and plain SGD, on arrays.

    With the errors e = b + x·w - y of a batch of B rows, the loss is Σe²/B, and its derivatives are dL/dw = 2 xᵀe/B and
    dL/db = 2 Σe/B; with the reduction `sum`, without the division by B. Where rows have weights, the loss is that of e²
    times the weight, and the derivatives are those of e times the weight.
    """

    def __init__(self, body: nn.Module, reduction: Reduction) -> None:
        self.reduction = reduction
        self.load_training_state({"model": body.state_dict(), "learning_rate": 0.0})

    def begin_epoch(self, epoch: int, learning_rate: float) -> None:
        """Set the learning rate."""
        self.learning_rate = learning_rate

    def train_chunk(self, features: Tensor, target: Tensor, batch_size: int) -> Tensor:
        """Take a step for each batch of (features [C, F], target [C, 1]); return their summed losses, float64 [K]."""
        arrays, starts = (features.numpy(), *target_and_weight(target.numpy())), range(0, len(features), batch_size)
        batches = zip(*([array[at : at + batch_size] for at in starts] for array in arrays), strict=True)
        # A diverging loss is reported by whoever asked for the steps, not by NumPy's warnings.
        with np.errstate(over="ignore", invalid="ignore"):
            losses = [self._step(*batch) for batch in batches]
        return torch.tensor(losses, dtype=torch.float64)

    def validation_loss(self, features: Tensor, target: Tensor) -> float:
        """Return the squared errors' sum."""
        with np.errstate(over="ignore", invalid="ignore"):
            actual, *weight = target_and_weight(target.numpy())
            error = (features.numpy() @ self.weight + self.bias).astype(np.float64) - actual
            return float(weighted(error**2, *weight).sum())

    def state_dict(self) -> dict[str, Tensor]:
        """Return a copy of the parameters."""
        # A weight is [1, F], as nn.Linear keeps it; the formulas read better with w [F, 1].
        return {"weight": torch.tensor(self.weight.T), "bias": torch.tensor(self.bias)}

    def training_state(self) -> dict[str, Any]:
        """Return the parameters and the learning rate."""
        return {"model": self.state_dict(), "learning_rate": self.learning_rate}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Go on from a `training_state`."""
        self.learning_rate = state["learning_rate"]
        arrays = {name: tensor.detach().cpu().numpy().copy() for name, tensor in state["model"].items()}
        self.weight, self.bias = arrays["weight"].T, arrays["bias"]  # w [F, 1], b [1]

    def _step(self, x: NDArray[Any], y: NDArray[Any], row_weight: NDArray[Any] | None = None) -> float:
        """Take one step on the batch x [B, F], y [B, 1]; return its loss, summed over its rows."""
        error = x @ self.weight + self.bias - y  # [B, 1]
        counted = weighted(error, row_weight)
        rows = len(x) if self.reduction == "mean" else 1
        weight_gradient = 2 * (x.T @ counted) / rows
        bias_gradient = 2 * counted.sum(axis=0) / rows
        self.weight = self.weight - self.learning_rate * weight_gradient
        self.bias = self.bias - self.learning_rate * bias_gradient
        return float((error * counted).sum())
