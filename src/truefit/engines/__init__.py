"""Ways to take the same training step: from the gradient by hand to `nn.Module` and `torch.optim`.

Each engine takes a chunk of batches and returns their losses (base.Engine). From the same seed all follow the same loss
curve to rounding. A further engine is a module here, a name in `EngineName` and a case in `make_engine`.
"""

from typing import Literal

import torch

from truefit.engines.autograd_engine import AutogradEngine
from truefit.engines.base import Engine
from truefit.engines.numpy_engine import NumpyEngine
from truefit.engines.torch_engine import TorchEngine, make_train_step
from truefit.models import MLP, Linear
from truefit.optimization import LossSettings, OptimizerSettings

__all__ = ["Engine", "EngineName", "make_engine", "make_train_step"]

EngineName = Literal["numpy", "autograd", "torch"]


def make_engine(
    name: EngineName,
    model: Linear | MLP,
    loss: LossSettings,
    optimizer: OptimizerSettings,
    clip_norm: float | None,
    device: torch.device,
) -> Engine:
    """Return the engine called `name`, starting from the parameters of `model`, on `device`.

    `numpy` and `autograd` have only the linear model, the MSE loss and plain SGD; the training's settings refuse the rest.
    """
    if name == "torch":
        return TorchEngine(model, loss, optimizer, clip_norm, device)
    assert isinstance(model, Linear)
    if name == "autograd":
        return AutogradEngine(model, loss.reduction, device)
    return NumpyEngine(model, loss.reduction)
