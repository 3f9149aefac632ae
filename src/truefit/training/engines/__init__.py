"""Ways to take the same training step. Another one is a module here, a name in `EngineName` and a case in `make_engine`."""

from typing import Literal

import torch
from torch import nn

from truefit.data.shards import Cut
from truefit.training.engines.autograd_engine import AutogradEngine
from truefit.training.engines.base import Engine, StepSettings
from truefit.training.engines.compiled_engine import CompiledEngine, CompileSettings, Graph, unmet_need
from truefit.training.engines.numpy_engine import NumpyEngine
from truefit.training.engines.sharded_engine import CompiledShardedEngine, ShardedEngine
from truefit.training.engines.torch_engine import TorchEngine
from truefit.training.group import Group

EngineName = Literal["numpy", "autograd", "torch", "compiled"]
# From so many steps on, what the graph saves at each, 0.2 to 0.6 ms, is about what making it takes, 20 to 70 s: see the lab
# notebook.
COMPILING_PAYS = 100_000


def choose_engine(steps: int, device: torch.device, step: StepSettings, compiling: CompileSettings) -> tuple[EngineName, str]:
    """Return the faster of the engines that take every setting, for so many steps, and the reason."""
    if steps < COMPILING_PAYS:
        return "torch", f"for {steps:,} steps compiling does not pay; it does from {COMPILING_PAYS:,} on"
    if device.type not in ("cpu", "cuda"):
        return "torch", f"compiled does not run on {device.type}"
    if need := unmet_need(device, step, compiling.cpp_wrapper):
        return "torch", f"compiled needs {need}"
    return "compiled", f"for {steps:,} steps compiling pays"


def make_engine(
    name: EngineName, body: nn.Module, step: StepSettings, device: torch.device, graph: Graph | None = None
) -> Engine:
    """Return the engine called `name` for a model's body, of which `compiled` needs the `graph`.

    That the engine can do the rest, TrainSettings holds.
    """
    match name:
        case "compiled":
            assert graph is not None
            return CompiledEngine(body, step, device, graph)
        case "torch":
            return TorchEngine(body, step, device)
        case "autograd":
            return AutogradEngine(body, step.loss.reduction, device)
        case "numpy":
            return NumpyEngine(body, step.loss.reduction)


def make_sharded(
    name: EngineName, body: nn.Module, step: StepSettings, device: torch.device, group: Group, cut: Cut, graph: Graph
) -> Engine:
    """Return the engine called `name`, torch or compiled, whose batches are cut into shards, for a process of the group."""
    if name == "compiled":
        return CompiledShardedEngine(body, step, device, group, cut, graph)
    assert name == "torch"
    return ShardedEngine(body, step, device, group, cut)
