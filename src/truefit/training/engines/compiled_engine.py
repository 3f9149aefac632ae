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
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from truefit.core.config import Settings
from truefit.core.errors import TruefitError
from truefit.data.batches import chunk_rows
from truefit.data.dataset import features_and_target
from truefit.training.engines.base import StepSettings, to_device
from truefit.training.engines.graphs import compiled, dropout_shapes, make_steps, optimizer_tensors, timed_first_call
from truefit.training.engines.torch_engine import TorchEngine
from truefit.training.optimizers import first_state


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


def require_compiler(device: torch.device, step: StepSettings, cpp_wrapper: bool) -> None:
    """Raise TruefitError, naming what to install or to set, where there is no compiler, or none that is right."""
    if need := unmet_need(device, step, cpp_wrapper):
        raise TruefitError(f"train.engine: compiled needs {need}; or take the engine torch")


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


class CompiledEngine(TorchEngine):
    """The engine `torch`, but for whole runs of batches, which one graph takes; batches that are left over go by themselves.

    The graph changes the model's parameters and the optimizer's state in place, so that all the rest is the engine `torch`'s
    own. Raises TruefitError, naming what to install or to set, where there is no compiler, or none that is right.
    """

    def __init__(self, model: nn.Module, step: StepSettings, device: torch.device, graph: Graph) -> None:
        require_compiler(device, step, graph.cpp_wrapper)
        super().__init__(model, step, device)
        self._parameters = list(self.model.parameters())
        for parameter in self._parameters:
            self.optimizer.state[parameter] = first_state(step.optimizer, parameter)
        self._rate = torch.zeros((), dtype=self._parameters[0].dtype, device=device)
        self._run_rows = graph.batches * graph.batch_size
        self._steps = compiled(make_steps(self.model, step, graph.batches), graph.cpp_wrapper)
        first = self._parameters[0]  # a layer's weight [H, F]
        # As the loader gives them: views of rows on the CPU, of which a copy on the device is made for each.
        features = first.shape[1]
        rows = torch.zeros(self._run_rows, features + 1 + graph.weighted, dtype=first.dtype)
        x, y = (to_device(values, device) for values in features_and_target(rows, features))
        shapes = dropout_shapes(self.model, x[: graph.batch_size])
        self._masks = [torch.ones(graph.batches, *shape, dtype=y.dtype, device=device) for shape in shapes]
        self.model.train()
        changing = copy.deepcopy(optimizer_tensors(self.optimizer, self._parameters))
        self.compile_seconds = timed_first_call(self._steps, *changing, self._rate, self._masks, x, y)

    def train_chunk(self, features: Tensor, target: Tensor, batch_size: int) -> Tensor:
        """Take a step for each batch of (features [C, F], target [C, 1]); return their summed losses, float64 [K]."""
        x, y = to_device(features, self.device), to_device(target, self.device)
        whole = len(x) // self._run_rows * self._run_rows
        self.model.train()
        parameters, state = optimizer_tensors(self.optimizer, self._parameters)
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

    def _draw_masks(self) -> None:
        """Draw the masks batch by batch, as single steps would."""
        for dropout, masks in zip(self._dropouts, self._masks, strict=True):
            for mask in masks:
                dropout.draw(mask)
