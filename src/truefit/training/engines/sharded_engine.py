"""The step with each batch in shards, whose gradients are added in one fixed order, by one process or by several.

A shard's gradient, and its loss, follow from its rows alone, and the order in which they are added from the number of shards
alone: so the bits do not depend on how many processes share the work. Each of them moves its own copy of the parameters.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad_and_value

from truefit.data.shards import Cut, ordered_sum
from truefit.training.engines.base import StepSettings, to_device
from truefit.training.engines.compiled_engine import Graph, require_compiler
from truefit.training.engines.graphs import (
    OptimizerState,
    compiled,
    dropout_shapes,
    make_objective,
    move,
    optimizer_tensors,
    timed_first_call,
)
from truefit.training.engines.torch_engine import TorchEngine
from truefit.training.group import Group
from truefit.training.losses import make_loss
from truefit.training.optimizers import first_state, make_optimizer


class ShardedEngine(TorchEngine):
    """The engine `torch` with batches in shards. The model's parameters, and a loss behind them, go as one vector [P + 1]."""

    def __init__(
        self, model: nn.Module, step: StepSettings, device: torch.device, group: Group, cut: Cut, fused: bool = True
    ) -> None:
        super().__init__(model, step, device)
        self._group, self._cut, self._settings = group, cut, step
        self._parameters = list(self.model.parameters())
        # All processes take this part of a step, so it counts for more than in one alone: a third of the plain one's time.
        self.optimizer = make_optimizer(self._parameters, step.optimizer, fused)
        self._streams: list[list[torch.Generator]] = []  # for each own shard, dropout's
        self._open_streams(0)

    def begin_epoch(self, epoch: int, learning_rate: float) -> None:
        """Set the learning rate, and for each shard the streams that dropout draws from."""
        super().begin_epoch(epoch, learning_rate)
        self._open_streams(epoch)

    def train_chunk(self, features: Tensor, target: Tensor, batch_size: int, rows: int | None = None) -> Tensor:
        """Take a step for each batch of a chunk of so many `rows`; return their losses, summed over all shards, float64 [K].

        Of each batch, (features, target) has the rows that are in the process's own shards; without `rows`, these are all.
        """
        x, y = to_device(features, self.device), to_device(target, self.device)
        self.model.train()
        left, at, losses = len(x) if rows is None else rows, 0, []
        while left:
            size = min(batch_size, left)
            first, *_, last = self._cut.bounds(size)
            own = slice(at, at + last - first)
            losses.append(self._take_step(x[own], y[own], size))
            left, at = left - size, own.stop
        return torch.stack(losses).cpu().double()

    def training_state(self) -> dict[str, Any]:
        """Return what the engine `torch` does, with the streams of all shards, whichever process has them."""
        state = super().training_state()
        if self._dropouts:
            own = torch.stack([torch.stack([stream.get_state() for stream in shard]) for shard in self._streams])
            state["dropout"] = self._group.gather(own).flatten(0, 1)  # [V, dropouts, bytes]
        return state

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Go on from a `training_state`, also of another number of processes."""
        super().load_training_state(state | {"dropout": [dropout.generator.get_state() for dropout in self._dropouts]})
        for shard, streams in enumerate(self._streams, self._cut.first):
            for stream, saved in zip(streams, state["dropout"][shard] if streams else (), strict=True):
                stream.set_state(saved.clone())

    def _open_streams(self, epoch: int) -> None:
        own = range(self._cut.first, self._cut.first + self._cut.own)
        self._streams = [[dropout.stream(epoch, self.device, shard) for dropout in self._dropouts] for shard in own]

    def _take_step(self, x: Tensor, y: Tensor, rows: int) -> Tensor:
        """Take the step for a batch of so many rows, of which x and y have the own ones; return its loss, a scalar."""
        share = torch.tensor(1 / rows if self._settings.loss.reduction == "mean" else 1.0, dtype=x.dtype, device=self.device)
        vectors = []
        for streams, (features, target) in zip(self._streams, self._cut.parts(rows, x, y), strict=True):
            for dropout, stream in zip(self._dropouts, streams, strict=True):
                dropout.generator = stream
            # A fresh tensor each, so that no shard lies otherwise in memory elsewhere.
            vectors.append(self._gradient(_fresh(features), _fresh(target), share))
        total = self._group.sum(ordered_sum(vectors))
        self._move(total)
        return total[-1].clone()

    def _gradient(self, features: Tensor, target: Tensor, share: Tensor) -> Tensor:
        """Return the gradient of a shard's share of the batch's loss, and the shard's summed loss behind it [P + 1]."""
        summed = self._loss(self.model(features), target)
        gradients = torch.autograd.grad(summed, self._parameters, share)
        return torch.cat([*(gradient.reshape(-1) for gradient in gradients), summed.detach().reshape(1)])

    def _move(self, total: Tensor) -> None:
        """Move the parameters against the gradient in [P + 1]."""
        for parameter, gradient in zip(self._parameters, split(total, self._parameters), strict=True):
            parameter.grad = gradient
        if self._settings.clip_norm is not None:
            nn.utils.clip_grad_norm_(self._parameters, self._settings.clip_norm)
        self.optimizer.step()


class CompiledShardedEngine(ShardedEngine):
    """The same with two graphs, one for a shard's gradient and one for the move; a short last batch's gradient goes without.

    Between them the processes exchange their sums. Raises TruefitError as CompiledEngine does.
    """

    def __init__(
        self, model: nn.Module, step: StepSettings, device: torch.device, group: Group, cut: Cut, graph: Graph
    ) -> None:
        require_compiler(device, step, graph.cpp_wrapper)
        super().__init__(model, step, device, group, cut, fused=False)  # the graph makes one of its own
        for parameter in self._parameters:
            self.optimizer.state[parameter] = first_state(step.optimizer, parameter)
        first = self._parameters[0]  # a layer's weight [H, F]
        self._rate = torch.zeros((), dtype=first.dtype, device=device)
        self._masks: dict[int, list[Tensor]] = {}  # by a shard's rows
        self._graphs = {}
        self.compile_seconds = 0.0
        whole = cut._replace(first=0, own=cut.shards).parts(graph.batch_size, torch.arange(graph.batch_size))
        for rows in {len(shard) for (shard,) in whole}:
            x, y = torch.zeros(rows, first.shape[1]).to(first), torch.zeros(rows, 1 + graph.weighted).to(first)
            self._masks[rows] = [x.new_ones(shape) for shape in dropout_shapes(self.model, x)]
            self._graphs[rows] = compiled(self._make_gradient(), graph.cpp_wrapper)
            self.model.train()
            given = optimizer_tensors(self.optimizer, self._parameters)[0], self._masks[rows], x, y, self._rate
            self.compile_seconds += timed_first_call(self._graphs[rows], *given)
        self._moved = compiled(self._make_move(), graph.cpp_wrapper)
        changing = copy.deepcopy(optimizer_tensors(self.optimizer, self._parameters))
        vector = first.new_zeros(sum(parameter.numel() for parameter in self._parameters) + 1)
        self.compile_seconds += timed_first_call(self._moved, *changing, self._rate, vector)

    def _make_gradient(self) -> Any:
        objective = make_objective(self.model, make_loss(self._settings.loss))

        def shared(values: list[Tensor], masks: list[Tensor], x: Tensor, y: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
            summed = objective(values, masks, x, y)
            return summed * share, summed

        def gradient(values: list[Tensor], masks: list[Tensor], x: Tensor, y: Tensor, share: Tensor) -> Tensor:
            gradients, (_, summed) = grad_and_value(shared, has_aux=True)(values, masks, x, y, share)
            return torch.cat([*(each.reshape(-1) for each in gradients), summed.reshape(1)])

        return gradient

    def _make_move(self) -> Any:
        step, parameters = self._settings, self._parameters

        def moved(values: list[Tensor], state: OptimizerState, rate: Tensor, total: Tensor) -> None:
            move(step, values, split(total, parameters), state, rate)

        return moved

    def _gradient(self, features: Tensor, target: Tensor, share: Tensor) -> Tensor:
        graph = self._graphs.get(len(features))
        if graph is None:
            return super()._gradient(features, target, share)
        masks = self._masks[len(features)]
        for dropout, mask in zip(self._dropouts, masks, strict=True):
            dropout.draw(mask)
        with torch.no_grad():
            vector: Tensor = graph([parameter.detach() for parameter in self._parameters], masks, features, target, share)
        return vector

    def _move(self, total: Tensor) -> None:
        rate = self._rate.fill_(self.optimizer.param_groups[0]["lr"])
        with torch.no_grad():
            self._moved(*optimizer_tensors(self.optimizer, self._parameters), rate, total)


def split(vector: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
    """Return views of a vector [P + 1] in the shapes of the parameters."""
    pieces = vector[:-1].split([parameter.numel() for parameter in parameters])
    return [piece.view(parameter.shape) for piece, parameter in zip(pieces, parameters, strict=True)]


def _fresh(values: Tensor) -> Tensor:
    return values.clone(memory_format=torch.contiguous_format)
