"""The step with each batch in shards, whose gradients are added in one fixed order, by one process or by several.

A shard's gradient, and its loss, follow from its rows alone, and the order in which they are added from the number of shards
alone: so the bits do not depend on how many processes share the work. Each of them moves its own copy of the parameters.
"""

import copy
from itertools import islice
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

Shard = tuple[Tensor, Tensor]  # its features [B, F] and target [B, 1], or [B, 2] with weights


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
        # The sum of a step, of which the gradients are views, so that a pass back adds to it.
        self._total = self._parameters[0].new_zeros(sum(parameter.numel() for parameter in self._parameters) + 1)
        for parameter, gradient in zip(self._parameters, split(self._total, self._parameters), strict=True):
            parameter.grad = gradient
        self._rooms = [self._total.new_empty(0)] * 2
        self._shares: dict[int, Tensor] = {}  # by a batch's rows
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
        batches, last = divmod(len(x) if rows is None else rows, batch_size)
        sizes = self._cut.sizes(batch_size) * batches + (self._cut.sizes(last) if last else [])
        shards = zip(x.split(sizes), y.split(sizes), strict=True)
        losses = []
        for size in [batch_size] * batches + ([last] if last else []):
            self._add_up([*islice(shards, self._cut.own)], self._share(size))
            self._group.sum(self._total)
            self._move()
            losses.append(self._total[-1].clone())
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

    def _share(self, rows: int) -> Tensor:
        """Return what the loss of each row of a batch counts for."""
        if rows not in self._shares:
            self._shares[rows] = self._total.new_tensor(1 / rows if self._settings.loss.reduction == "mean" else 1.0)
        return self._shares[rows]

    def _draw_from(self, shard: int) -> None:
        for dropout, stream in zip(self._dropouts, self._streams[shard], strict=True):
            dropout.generator = stream

    def _add_up(self, shards: list[Shard], share: Tensor) -> None:
        """Let the total be the sum over own shards of the gradient of their share of the batch's loss, and of their loss."""
        if len(shards) <= 2:
            self._add_pair(shards, 0, share)
            return
        sums = []
        for first in range(0, len(shards), 2):
            self._add_pair(shards[first : first + 2], first, share)
            sums.append(self._total.clone())
        self._total.copy_(ordered_sum(sums))

    def _add_pair(self, shards: list[Shard], first: int, share: Tensor) -> None:
        """Do so for own shard number `first`, or for it and the next, whose gradients one pass back adds: a + b is b + a."""
        losses = []
        for number, (features, target) in enumerate(shards, first):
            self._draw_from(number)
            losses.append(self._loss(self.model(self._placed(features, number - first)), target.contiguous()))
        summed = ordered_sum(losses)
        self._total.zero_()
        summed.backward(share)
        self._total[-1] = summed.detach()

    def _placed(self, features: Tensor, room: int) -> Tensor:
        """Return a shard's features in one of two rooms, so that they lie alike in memory everywhere: products depend on that.

        These are kept, since the memory of a new tensor is slow at its first use.
        """
        place = self._rooms[room][: len(features)]
        if place.shape != features.shape:
            place = self._rooms[room] = torch.empty_like(features, memory_format=torch.contiguous_format)
        return place.copy_(features)

    def _move(self) -> None:
        """Move the parameters against the gradient."""
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
        for rows in set(cut._replace(first=0, own=cut.shards).sizes(graph.batch_size)):
            x, y = torch.zeros(rows, first.shape[1]).to(first), torch.zeros(rows, 1 + graph.weighted).to(first)
            self._masks[rows] = [x.new_ones(shape) for shape in dropout_shapes(self.model, x)]
            self._graphs[rows] = compiled(self._make_gradient(), graph.cpp_wrapper)
            self.model.train()
            given = optimizer_tensors(self.optimizer, self._parameters)[0], self._masks[rows], x, y, self._rate
            self.compile_seconds += timed_first_call(self._graphs[rows], *given)
        self._moved = compiled(self._make_move(), graph.cpp_wrapper)
        changing = copy.deepcopy(optimizer_tensors(self.optimizer, self._parameters))
        self.compile_seconds += timed_first_call(self._moved, *changing, self._rate, self._total)

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

    def _add_up(self, shards: list[Shard], share: Tensor) -> None:
        self._total.copy_(ordered_sum([self._gradient(number, shard, share) for number, shard in enumerate(shards)]))

    def _gradient(self, number: int, shard: Shard, share: Tensor) -> Tensor:
        """Return the gradient of an own shard's share of the loss, and the shard's loss behind it [P + 1]."""
        graph = self._graphs.get(len(shard[0]))
        if graph is None:
            self._add_pair([shard], number, share)
            return self._total.clone()
        features, target = self._placed(shard[0], 0), shard[1].clone()
        masks = self._masks[len(features)]
        self._draw_from(number)
        for dropout, mask in zip(self._dropouts, masks, strict=True):
            dropout.draw(mask)
        with torch.no_grad():
            vector: Tensor = graph([parameter.detach() for parameter in self._parameters], masks, features, target, share)
        return vector

    def _move(self) -> None:
        rate = self._rate.fill_(self.optimizer.param_groups[0]["lr"])
        with torch.no_grad():
            self._moved(*optimizer_tensors(self.optimizer, self._parameters), rate, self._total)


def split(vector: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
    """Return views of a vector [P + 1] in the shapes of the parameters."""
    pieces = vector[:-1].split([parameter.numel() for parameter in parameters])
    return [piece.view(parameter.shape) for piece, parameter in zip(pieces, parameters, strict=True)]
