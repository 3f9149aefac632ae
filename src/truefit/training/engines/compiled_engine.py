"""Engine `compiled`: the training step as a function, many batches of it in one `torch.compile` graph.

Reads and writes Inductor's cache, in the folder that TORCHINDUCTOR_CACHE_DIR names. Takes what the engine `torch` takes, on
the CPU and on CUDA; guarantees the same losses, to rounding, and with itself the same bits.

One eager step of a small model is nearly all overhead: Python, the dispatcher, autograd, the optimizer. In the graph none of
that is left. Gradients come from `torch.func`, and the update is the function under torch's own optimizer.
"""

import copy
import importlib.util
import os
import shutil
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from truefit.core.config import Settings
from truefit.core.errors import TruefitError
from truefit.data.batches import CHUNK_ROWS
from truefit.model.models import Dropout
from truefit.training.engines.base import to_device
from truefit.training.engines.torch_engine import TorchEngine
from truefit.training.optimization import LossSettings, OptimizerSettings, batch_sums, make_loss

# The optimizer's tensors for each parameter, under torch's names for them.
_SLOTS = {"sgd": ("momentum_buffer",), "adam": ("exp_avg", "exp_avg_sq"), "adamw": ("exp_avg", "exp_avg_sq")}


class CompileSettings(Settings):
    """`train.compile`: how the engine `compiled` makes its graph."""

    batches: int = Field(16, ge=1)
    cpp_wrapper: bool = True

    def graph(self, rows: int, batch_size: int) -> "Graph":
        """Return the graph for epochs of so many rows: no more batches than an epoch has, nor rows than a chunk should."""
        most = min(rows, CHUNK_ROWS) // batch_size
        return Graph(max(1, min(self.batches, most)), batch_size, self.cpp_wrapper)


class Graph(NamedTuple):
    """What a graph is made for: so many batches a call, of so many rows, called through C++ or through Python."""

    batches: int
    batch_size: int
    cpp_wrapper: bool


def missing_tool(device: torch.device) -> str | None:
    """Return what would have to be installed before anything can be compiled for `device`; None where all is there."""
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "the package triton"
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        return f"a C++ compiler: found no {compiler} (Debian: apt-get install g++)"
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        return "Python's headers: found no Python.h (Debian: apt-get install python3-dev)"
    return None


def make_steps(
    model: nn.Module, loss: LossSettings, optimizer: OptimizerSettings, clip_norm: float | None, batches: int
) -> Callable[..., Tensor]:
    """Return the function that takes as many training steps as `batches`, each on its part of the rows it is given.

    It takes the parameters and the optimizer's tensors for them, which it changes in place: `slots`, one list for each name in
    torch's state, and `counts`, the steps taken; the learning rate; for each dropout its masks [batches, B, H]; and the rows
    x [batches·B, F], y [batches·B, 1]. It returns each batch's loss before its step [batches]. The model is to be in train()
    mode.
    """
    buffers, model = dict(model.named_buffers()), _with_products(model)
    names = [name for name, _ in model.named_parameters()]
    keeps = [f"{name}.keep" for name, module in model.named_modules() if isinstance(module, Dropout)]
    criterion = make_loss(loss.name, loss.reduction)

    def value(parameters: list[Tensor], masks: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
        tensors = buffers | dict(zip(names + keeps, parameters + masks, strict=True))
        result: Tensor = criterion(functional_call(model, tensors, (x,)), y)
        return result

    gradient_and_value = grad_and_value(value)

    def steps(
        parameters: list[Tensor],
        slots: list[list[Tensor]],
        counts: list[Tensor],
        rate: Tensor,
        masks: list[Tensor],
        x: Tensor,
        y: Tensor,
    ) -> Tensor:
        losses = []
        for batch, (features, target) in enumerate(zip(x.chunk(batches), y.chunk(batches), strict=True)):
            gradients, result = gradient_and_value(parameters, [mask[batch] for mask in masks], features, target)
            if clip_norm is not None:
                # As nn.utils.clip_grad_norm_ does, which wants parameters that hold their gradients.
                norm = nn.utils.get_total_norm(gradients, foreach=False)
                gradients = [gradient * (clip_norm / (norm + 1e-6)).clamp(max=1) for gradient in gradients]
            _update(optimizer, parameters, gradients, slots, counts, rate)
            losses.append(result)
        return torch.stack(losses)

    return steps


class CompiledEngine(TorchEngine):
    """The engine `torch`, but for whole runs of batches, which one graph takes; batches that are left over go by themselves.

    The graph changes the model's parameters and the optimizer's state in place, so that all the rest, single steps,
    validation and checkpoints, is the engine `torch`'s own. `compile_seconds` is what making the graph took. Raises
    TruefitError, naming what to install, where there is no compiler.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: LossSettings,
        optimizer: OptimizerSettings,
        clip_norm: float | None,
        device: torch.device,
        graph: Graph,
    ) -> None:
        if missing := missing_tool(device):
            raise TruefitError(f"train.engine: compiled needs {missing}; or take the engine torch")
        super().__init__(model, loss, optimizer, clip_norm, device)
        self._parameters = list(self.model.parameters())
        self._slots = _SLOTS[optimizer.name] if optimizer.name != "sgd" or optimizer.momentum else ()
        for parameter in self._parameters:
            # What torch makes at its first step, but with the number of steps in float64, as the eager step computes with it:
            # a float32 would lose digits of adam's correction, 1 - 0.999^step, at the first steps.
            slots = {name: torch.zeros_like(parameter) for name in self._slots}
            count = {} if optimizer.name == "sgd" else {"step": torch.zeros((), dtype=torch.float64)}
            self.optimizer.state[parameter] = slots | count
        self._rate = torch.zeros((), dtype=self._parameters[0].dtype, device=device)
        options: dict[str, str | int | bool | Callable[..., Any]] = {
            "cpp_wrapper": graph.cpp_wrapper,
            "deterministic": True,
            # One of Inductor's patterns in torch 2.13 makes addmm of `gradient.add(parameter, alpha=decay)`, where the
            # gradient is a matrix product, and loses the alpha. Without patterns the step is right.
            "pattern_matcher": False,
            # Checking all that a call is given takes as long as four of its steps. Modes, shapes and layouts are those of the
            # first call, and the graph itself refuses another shape or layout.
            "guard_filter_fn": torch.compiler.skip_all_guards_unsafe,
        }
        steps = make_steps(self.model, loss, optimizer, clip_norm, graph.batches)
        # Isolated, so that no engine takes the graph of another: without checks, the same function has the same graph.
        self._steps = torch.compile(  # type: ignore[call-overload]  # torch's overloads have not heard of isolate_recompiles
            steps, fullgraph=True, dynamic=False, isolate_recompiles=True, options=options
        )
        self._run_rows = graph.batches * graph.batch_size
        self._masks = self._make_masks(graph)
        self.compile_seconds = self._compile()

    def train_chunk(self, features: Tensor, target: Tensor, batch_size: int) -> Tensor:
        """Take a step for each batch of (features [C, F], target [C, 1]); return their summed losses, float64 [K]."""
        x, y = to_device(features, self.device), to_device(target, self.device)
        whole = len(x) // self._run_rows * self._run_rows
        self.model.train()
        state = self._state()
        losses = []
        with torch.no_grad():
            for run in zip(x[:whole].split(self._run_rows), y[:whole].split(self._run_rows), strict=True) if whole else ():
                self._draw_masks()
                losses.append(self._steps(*state, self._masks, *run))
        if whole < len(x):
            rest = zip(x[whole:].split(batch_size), y[whole:].split(batch_size), strict=True)
            losses += [self._step(*batch)[None] for batch in rest]
        return batch_sums(torch.cat(losses).cpu().double(), len(x), batch_size, self.reduction)

    def _compile(self) -> float:
        """Make the graph, by a first call on copies of all that it changes; return the seconds that it took."""
        started = time.perf_counter()
        width = next(layer.in_features for layer in self.model.modules() if isinstance(layer, nn.Linear))
        # Of the layout of those that a loader gives: views of rows that end with the target.
        rows = torch.zeros(self._run_rows, width + 1, dtype=self._rate.dtype)
        x, y = to_device(rows[:, :-1], self.device), to_device(rows[:, -1:], self.device)
        self.model.train()
        with torch.no_grad():
            parameters, slots, counts, rate = self._state()
            copies = [_copies(parameters), [_copies(slot) for slot in slots], _copies(counts), rate]
            self._steps(*copies, self._masks, x, y)
        return time.perf_counter() - started

    def _state(self) -> tuple[list[Tensor], list[list[Tensor]], list[Tensor], Tensor]:
        """Return the parameters, the optimizer's tensors and counts, and the learning rate, as the graph takes them."""
        states = [self.optimizer.state[parameter] for parameter in self._parameters]
        parameters = [parameter.detach() for parameter in self._parameters]
        slots = [[state[name] for state in states] for name in self._slots]
        counts = [state["step"] for state in states if "step" in state]
        return parameters, slots, counts, self._rate.fill_(self.optimizer.param_groups[0]["lr"])

    def _make_masks(self, graph: Graph) -> list[Tensor]:
        """Return room for each dropout's masks [batches, B, H] of one call; the n-th dropout follows the n-th linear layer."""
        widths = [layer.out_features for layer in self.model.modules() if isinstance(layer, nn.Linear)]
        shapes = [(graph.batches, graph.batch_size, width) for width, _ in zip(widths, self._dropouts(), strict=False)]
        return [torch.ones(shape, dtype=self._rate.dtype, device=self.device) for shape in shapes]

    def _draw_masks(self) -> None:
        """Draw the masks batch by batch, as single steps would."""
        for dropout, masks in zip(self._dropouts(), self._masks, strict=True):
            for mask in masks:
                dropout.draw(mask)


class _Product(nn.Linear):
    """A layer of one output, as a sum of products: loops that Inductor joins with those around them, also backwards.

    A matrix product is a call into a library, which for one column costs more than the work.
    """

    def forward(self, values: Tensor) -> Tensor:
        """Return the outputs [B, 1] for values [B, H]."""
        return (values * self.weight).sum(1, keepdim=True) + self.bias


def _with_products(model: nn.Module) -> nn.Module:
    """Return a copy of the model, without memory of its own, whose layers of one output are sums of products."""
    model = copy.deepcopy(model).to("meta")
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and layer.out_features == 1:
            model.set_submodule(name, _Product(layer.in_features, 1, device="meta"))
    return model


def _copies(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.clone() for tensor in tensors]


def _update(
    optimizer: OptimizerSettings,
    parameters: list[Tensor],
    gradients: list[Tensor],
    slots: list[list[Tensor]],
    counts: list[Tensor],
    rate: Tensor,
) -> None:
    """Move the parameters, and what the optimizer keeps for them, by the function under torch's own optimizer."""
    if optimizer.name == "sgd":
        buffers: list[Tensor | None] = [*slots[0]] if slots else [None] * len(parameters)
        sgd(
            parameters,
            gradients,
            buffers,
            foreach=False,
            fused=False,
            weight_decay=optimizer.weight_decay,
            momentum=optimizer.momentum,
            lr=rate,  # type: ignore[arg-type]  # a tensor, so that another rate is not another graph
            dampening=0.0,
            nesterov=optimizer.nesterov,
            maximize=False,
        )
    else:
        step = adam if optimizer.name == "adam" else adamw
        step(
            parameters,
            gradients,
            slots[0],
            slots[1],
            [],
            counts,
            foreach=False,
            fused=False,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=rate,
            weight_decay=optimizer.weight_decay,
            eps=1e-8,
            maximize=False,
        )
