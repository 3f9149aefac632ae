"""The protocol that every engine follows, and what a step is, whatever the engine.

Legend for shapes: C rows a chunk, B rows a batch, K batches a chunk, F features.
"""

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from truefit.data.dataset import Values
from truefit.training.losses import LossSettings
from truefit.training.optimizers import OptimizerSettings


class StepSettings(NamedTuple):
    """What a training step is, whatever the engine."""

    loss: LossSettings = LossSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    clip_norm: float | None = None


class Engine(Protocol):
    """One way to take training steps on a model's body; holds its parameters while it trains, and knows scaled rows alone."""

    def begin_epoch(self, epoch: int, learning_rate: float) -> None:
        """Set what changes between epochs; epochs count from 1."""

    def train_chunk(self, features: Tensor, target: Tensor, batch_size: int) -> Tensor:
        """Take a step for each batch of the chunk (features [C, F], target [C, 1]), the last batch perhaps short.

        With weights the target is [C, 2], and a row's loss, and so its gradient, is multiplied by its weight. Return each
        batch's loss before its step, summed over its rows: float64 [K] on the CPU.
        """

    def validation_loss(self, features: Tensor, target: Tensor) -> float:
        """Return the loss summed in float64 over the rows of (features [C, F], target [C, 1 or 2]), changing nothing."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return a copy of the parameters, on the CPU, with the names that the torch module gives them."""

    def training_state(self) -> dict[str, Any]:
        """Return all that the next step depends on beside its batch, as tensors and plain values; the step may change it."""

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Go on from a `training_state` of an engine with the same settings, to the bit, also inside an epoch."""


def weighted(values: Values, weight: Values | None = None) -> Values:
    """Return the values [B, 1] of rows times their weights [B, 1], where they have some."""
    return values if weight is None else values * weight


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Return the tensor on the device; from pinned memory without waiting, so that the copy and the steps before overlap."""
    return values.to(device, non_blocking=values.is_pinned())
