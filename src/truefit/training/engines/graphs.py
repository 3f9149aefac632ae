"""The training step as functions of tensors alone, and a function as a graph of `torch.compile`."""

import copy
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value

from truefit.model.layers import Dropout
from truefit.training.engines.base import StepSettings
from truefit.training.losses import Loss, make_loss
from truefit.training.optimizers import update

OptimizerState = dict[str, list[Tensor]]  # for each of torch's names a tensor a parameter

Objective = Callable[[list[Tensor], list[Tensor], Tensor, Tensor], Tensor]  # of parameters, dropouts' masks, x and y


def make_objective(model: nn.Module, loss: Loss) -> Objective:
    """Return the loss as a function of a model's parameters, for one in train() mode.

    It takes the parameters, for each dropout a mask [B, H], and the rows x [B, F], y [B, 1 or 2].
    """
    buffers, model = dict(model.named_buffers()), _with_products(model)
    names = [name for name, _ in model.named_parameters()]
    names += [f"{name}.keep" for name, module in model.named_modules() if isinstance(module, Dropout)]

    def objective(parameters: list[Tensor], masks: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
        tensors = buffers | dict(zip(names, parameters + masks, strict=True))
        return loss(functional_call(model, tensors, (x,)), y)

    return objective


def move(step: StepSettings, parameters: list[Tensor], gradients: list[Tensor], state: OptimizerState, rate: Tensor) -> None:
    """Move the parameters in place, against gradients that are clipped first, as `make_train_step`'s are."""
    if step.clip_norm is not None:
        # As nn.utils.clip_grad_norm_ does, which wants parameters that hold their gradients.
        norm = nn.utils.get_total_norm(gradients, foreach=False)
        gradients = [gradient * (step.clip_norm / (norm + 1e-6)).clamp(max=1) for gradient in gradients]
    update(step.optimizer, parameters, gradients, state, rate)


def make_steps(model: nn.Module, step: StepSettings, batches: int) -> Callable[..., Tensor]:
    """Return the function that takes `batches` training steps, for a model in train() mode.

    It takes the parameters and the optimizer's state, which it changes in place; the learning rate; for each dropout its masks
    [batches, B, H]; and the rows x [batches·B, F], y [batches·B, 1 or 2]. It returns the batches' summed losses [batches].
    """
    # The mean itself, since Inductor would make of a sum that is divided another graph, which rounds otherwise.
    gradient_and_value = grad_and_value(make_objective(model, make_loss(step.loss, step.loss.reduction)))

    def steps(
        parameters: list[Tensor], state: OptimizerState, rate: Tensor, masks: list[Tensor], x: Tensor, y: Tensor
    ) -> Tensor:
        losses = []
        for batch, (features, target) in enumerate(zip(x.chunk(batches), y.chunk(batches), strict=True)):
            gradients, value = gradient_and_value(parameters, [mask[batch] for mask in masks], features, target)
            move(step, parameters, gradients, state, rate)
            losses.append(value * len(features) if step.loss.reduction == "mean" else value)
        return torch.stack(losses)

    return steps


def compiled(function: Callable[..., Any], cpp_wrapper: bool) -> Callable[..., Any]:
    """Return the function as one graph, made at its first call, for tensors of the modes, shapes and layouts of that call."""
    options: dict[str, Any] = {
        "cpp_wrapper": cpp_wrapper,
        "deterministic": True,
        # One of Inductor's patterns in torch 2.13 makes addmm of `gradient.add(parameter, alpha=decay)`, where the
        # gradient is a matrix product, and loses the alpha. Without patterns the step is right.
        "pattern_matcher": False,
        # Checking all that a call is given takes as long as four of its steps. The graph itself refuses another shape or
        # layout.
        "guard_filter_fn": torch.compiler.skip_all_guards_unsafe,
    }
    # Isolated, so that no engine takes the graph of another: without checks, the same function has the same graph.
    graph: Callable[..., Any] = torch.compile(  # type: ignore[call-overload]  # has not heard of isolate_recompiles
        function, fullgraph=True, dynamic=False, isolate_recompiles=True, options=options
    )
    return graph


def timed_first_call(graph: Callable[..., Any], *given: Any) -> float:
    """Make the graph, by a first call on what it may change; return its seconds."""
    started = time.perf_counter()
    with torch.no_grad(), warnings.catch_warnings():
        # Advice for products that keep fewer digits, which the other engines do not take either.
        warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores", category=UserWarning)
        graph(*given)
    return time.perf_counter() - started


def optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> tuple[list[Tensor], OptimizerState]:
    """Return the parameters, and the optimizer's state, as a graph takes them, which changes both in place."""
    states = [optimizer.state[parameter] for parameter in parameters]
    return [parameter.detach() for parameter in parameters], {name: [state[name] for state in states] for name in states[0]}


def dropout_shapes(model: nn.Module, x: Tensor) -> list[torch.Size]:
    """Return the shapes [B, H] of what each dropout of the model is given for x [B, F]."""
    shapes: list[torch.Size] = []
    with ExitStack() as hooks, torch.no_grad():
        for dropout in (module for module in model.modules() if isinstance(module, Dropout)):
            hooks.enter_context(dropout.register_forward_pre_hook(lambda _, given: shapes.append(given[0].shape)))
        model.eval()(x)
    return shapes


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
