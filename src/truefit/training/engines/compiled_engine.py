"""Engine `compiled`: the training step as a function, many batches of it in one `torch.compile` graph.

One eager step of a small model is nearly all overhead: Python, the dispatcher, autograd, the optimizer. In the graph none of
that is left.
"""

import copy
import importlib.util
import os
import shutil
import sys
import sysconfig
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value

from truefit.core.config import Settings
from truefit.core.errors import TruefitError
from truefit.data.batches import chunk_rows
from truefit.data.dataset import features_and_target
from truefit.model.layers import Dropout
from truefit.training.engines.base import StepSettings, to_device
from truefit.training.engines.torch_engine import TorchEngine
from truefit.training.losses import make_loss
from truefit.training.optimizers import first_state, update

OptimizerState = dict[str, list[Tensor]]  # for each of torch's names a tensor a parameter


class CompileSettings(Settings):
    """`train.compile`."""

    batches: int = Field(16, ge=1)
    cpp_wrapper: bool = True

    def graph(self, rows: int, batch_size: int, row_bytes: int, weighted: bool = False) -> "Graph":
        """Return the graph for epochs of so many rows: no more batches than an epoch has, nor rows than a chunk should."""
        most = min(rows, chunk_rows(row_bytes)) // batch_size
        return Graph(max(1, min(self.batches, most)), batch_size, self.cpp_wrapper, weighted)


class Graph(NamedTuple):
    """What a graph is made for: so many batches a call, of so many rows, which may have weights."""

    batches: int
    batch_size: int
    cpp_wrapper: bool
    weighted: bool = False


def unmet_need(device: torch.device, step: StepSettings, cpp_wrapper: bool) -> str | None:
    """Return what is to be installed, or set, before such steps can be compiled for the device, or None."""
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            return "the package triton"
        if cpp_wrapper and step.optimizer.name != "sgd":
            # They count steps on the CPU, as torch's own do. Called from C++, such a graph took wrong steps with torch 2.11,
            # and nothing said so; called from Python, right ones: see the lab notebook.
            return f"train.compile.cpp_wrapper: false with {step.optimizer.name} on cuda, where the other takes wrong steps"
        if cpp_wrapper and torch.version.cuda and not _has_cuda_headers():
            wrapper = "or train.compile.cpp_wrapper: false"
            return f"CUDA's headers: found no cuda.h (set CUDA_HOME to a CUDA toolkit's folder), {wrapper}"
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        return f"a C++ compiler: found no {compiler} (Debian: apt-get install g++)"
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        return "Python's headers: found no Python.h (Debian: apt-get install python3-dev)"
    return None


def _has_cuda_headers() -> bool:
    """Say whether Inductor's wrapper in C++ finds cuda.h, which torch does not bring, as it does triton's compiler."""
    # Imports setuptools, which only a compilation needs.
    from torch.utils.cpp_extension import include_paths

    try:
        folders = include_paths("cuda")
    except OSError:  # torch found no toolkit
        return False
    # Of /usr/include, which every compiler searches, torch says nothing.
    return any((Path(folder) / "cuda.h").exists() for folder in [*folders, "/usr/include"])


def make_steps(model: nn.Module, step: StepSettings, batches: int) -> Callable[..., Tensor]:
    """Return the function that takes `batches` training steps, for a model in train() mode.

    It takes the parameters and the optimizer's state, which it changes in place; the learning rate; for each dropout its masks
    [batches, B, H]; and the rows x [batches·B, F], y [batches·B, 1 or 2]. It returns the batches' summed losses [batches].
    """
    buffers, model = dict(model.named_buffers()), _with_products(model)
    names = [name for name, _ in model.named_parameters()]
    keeps = [f"{name}.keep" for name, module in model.named_modules() if isinstance(module, Dropout)]
    # The mean itself, since Inductor would make of a sum that is divided another graph, which rounds otherwise.
    loss = make_loss(step.loss, step.loss.reduction)

    def objective(parameters: list[Tensor], masks: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
        tensors = buffers | dict(zip(names + keeps, parameters + masks, strict=True))
        return loss(functional_call(model, tensors, (x,)), y)

    gradient_and_value = grad_and_value(objective)

    def steps(
        parameters: list[Tensor], state: OptimizerState, rate: Tensor, masks: list[Tensor], x: Tensor, y: Tensor
    ) -> Tensor:
        losses = []
        for batch, (features, target) in enumerate(zip(x.chunk(batches), y.chunk(batches), strict=True)):
            gradients, value = gradient_and_value(parameters, [mask[batch] for mask in masks], features, target)
            if step.clip_norm is not None:
                # As nn.utils.clip_grad_norm_ does, which wants parameters that hold their gradients.
                norm = nn.utils.get_total_norm(gradients, foreach=False)
                gradients = [gradient * (step.clip_norm / (norm + 1e-6)).clamp(max=1) for gradient in gradients]
            update(step.optimizer, parameters, gradients, state, rate)
            losses.append(value * len(features) if step.loss.reduction == "mean" else value)
        return torch.stack(losses)

    return steps


class CompiledEngine(TorchEngine):
    """The engine `torch`, but for whole runs of batches, which one graph takes; batches that are left over go by themselves.

    The graph changes the model's parameters and the optimizer's state in place, so that all the rest is the engine `torch`'s
    own. Raises TruefitError, naming what to install or to set, where there is no compiler, or none that is right.
    """

    def __init__(self, model: nn.Module, step: StepSettings, device: torch.device, graph: Graph) -> None:
        if need := unmet_need(device, step, graph.cpp_wrapper):
            raise TruefitError(f"train.engine: compiled needs {need}; or take the engine torch")
        super().__init__(model, step, device)
        self._parameters = list(self.model.parameters())
        for parameter in self._parameters:
            self.optimizer.state[parameter] = first_state(step.optimizer, parameter)
        self._rate = torch.zeros((), dtype=self._parameters[0].dtype, device=device)
        self._run_rows = graph.batches * graph.batch_size
        options: dict[str, Any] = {
            "cpp_wrapper": graph.cpp_wrapper,
            "deterministic": True,
            # One of Inductor's patterns in torch 2.13 makes addmm of `gradient.add(parameter, alpha=decay)`, where the
            # gradient is a matrix product, and loses the alpha. Without patterns the step is right.
            "pattern_matcher": False,
            # Checking all that a call is given takes as long as four of its steps. Modes, shapes and layouts are those of the
            # first call, and the graph itself refuses another shape or layout.
            "guard_filter_fn": torch.compiler.skip_all_guards_unsafe,
        }
        # Isolated, so that no engine takes the graph of another: without checks, the same function has the same graph.
        self._steps = torch.compile(  # type: ignore[call-overload]  # torch's overloads have not heard of isolate_recompiles
            make_steps(self.model, step, graph.batches),
            fullgraph=True,
            dynamic=False,
            isolate_recompiles=True,
            options=options,
        )
        first = self._parameters[0]  # a layer's weight [H, F]
        # As the loader gives them: views of rows on the CPU, of which a copy on the device is made for each.
        features = first.shape[1]
        rows = torch.zeros(self._run_rows, features + 1 + graph.weighted, dtype=first.dtype)
        x, y = (to_device(values, device) for values in features_and_target(rows, features))
        shapes = self._dropout_shapes(x[: graph.batch_size])
        self._masks = [torch.ones(graph.batches, *shape, dtype=y.dtype, device=device) for shape in shapes]
        self.compile_seconds = self._compile(x, y)

    def train_chunk(self, features: Tensor, target: Tensor, batch_size: int) -> Tensor:
        """Take a step for each batch of (features [C, F], target [C, 1]); return their summed losses, float64 [K]."""
        x, y = to_device(features, self.device), to_device(target, self.device)
        whole = len(x) // self._run_rows * self._run_rows
        self.model.train()
        parameters, state = self._tensors()
        rate = self._rate.fill_(self.optimizer.param_groups[0]["lr"])
        losses = []
        with torch.no_grad():
            for run in zip(x[:whole].split(self._run_rows), y[:whole].split(self._run_rows), strict=True) if whole else ():
                self._draw_masks()
                losses.append(self._steps(parameters, state, rate, self._masks, *run))
        if whole < len(x):
            rest = zip(x[whole:].split(batch_size), y[whole:].split(batch_size), strict=True)
            losses += [self._step(*batch)[None] for batch in rest]
        return torch.cat(losses).cpu().double()

    def _compile(self, x: Tensor, y: Tensor) -> float:
        """Make the graph, by a first call on copies of all that it changes; return its seconds."""
        started = time.perf_counter()
        parameters, state = copy.deepcopy(self._tensors())
        self.model.train()
        with torch.no_grad(), warnings.catch_warnings():
            # Advice for products that keep fewer digits, which the other engines do not take either.
            warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores", category=UserWarning)
            self._steps(parameters, state, self._rate, self._masks, x, y)
        return time.perf_counter() - started

    def _tensors(self) -> tuple[list[Tensor], OptimizerState]:
        states = [self.optimizer.state[parameter] for parameter in self._parameters]
        parameters = [parameter.detach() for parameter in self._parameters]
        return parameters, {name: [state[name] for state in states] for name in states[0]}

    def _dropout_shapes(self, x: Tensor) -> list[torch.Size]:
        """Return the shapes [B, H] of what each dropout is given for x [B, F]."""
        shapes: list[torch.Size] = []
        with ExitStack() as hooks, torch.no_grad():
            for dropout in self._dropouts:
                hooks.enter_context(dropout.register_forward_pre_hook(lambda _, given: shapes.append(given[0].shape)))
            self.model.eval()(x)
        return shapes

    def _draw_masks(self) -> None:
        """Draw the masks batch by batch, as single steps would."""
        for dropout, masks in zip(self._dropouts, self._masks, strict=True):
            for mask in masks:
                dropout.draw(mask)


class _Product(nn.Linear):
    """A layer of one output as loops, which Inductor joins with others; a call into a library costs more than the work."""

    def forward(self, values: Tensor) -> Tensor:
        """Return the outputs [B, 1] for values [B, H]."""
        return (values * self.weight).sum(1, keepdim=True) + self.bias


def _with_products(model: nn.Module) -> nn.Module:
    """Return a copy of the model, on meta, whose layers of one output are sums of products."""
    model = copy.deepcopy(model).to("meta")
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and layer.out_features == 1:
            product = _Product(layer.in_features, 1, device="meta")
            if layer is model:  # a line, which is nothing but this layer
                return product
            model.set_submodule(name, product)
    return model
