"""The models and their initial parameters. Another one is a name, its settings and a case here."""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from truefit.core.config import Settings, invalid_value, require_defaults
from truefit.core.seeds import torch_seed
from truefit.data.table import Table
from truefit.model.layers import Dropout, linear_on_meta
from truefit.model.scaling import Scaling

LARGEST_LAYER = 2**24  # beyond, the sizes of two layers multiply to more than an integer of torch's holds


class ModelSettings(Settings):
    """`train.model`: a line through the features, or a multi-layer perceptron."""

    name: Literal["linear", "mlp"] = "linear"
    hidden: Annotated[tuple[Annotated[int, Field(ge=1, le=LARGEST_LAYER)], ...], Field(strict=False)] = ()
    activation: Literal["relu", "tanh", "gelu"] = "relu"
    dropout: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _hidden_layers_are_the_mlps(self) -> Self:
        if self.name != "mlp":
            require_defaults(self, ("hidden", "activation", "dropout"), f"with model {self.name}, which has no hidden layers")
        elif not self.hidden:
            raise invalid_value("hidden", [], "at least one layer's size with model mlp, such as [64, 64]")
        return self


class Model(nn.Module):
    """Features [B, F] -> predictions [B, 1], both in the data's units; between them `body`, which knows scaled values alone.

    An engine trains the body, on rows that `scale` has scaled.
    """

    def __init__(self, scale: Scaling, body: nn.Module) -> None:
        super().__init__()
        self.scale = scale
        self.body = body

    def forward(self, features: Tensor) -> Tensor:
        """Return the predictions [B, 1] for features [B, F]."""
        return self.scale.unscale(self.body(self.scale.scale_features(features)))

    def state_around(self, body: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the state_dict of this model with another state of its body."""
        return self.scale.state_dict(prefix="scale.") | {f"body.{name}": tensor for name, tensor in body.items()}

    def line(self) -> tuple[float, list[float]] | None:
        """Return the intercept and the coefficients in the data's own units, in float64, or None where the model is no line.

        With `train.scale.target: log` they are those of the target's logarithm.
        """
        if not isinstance(self.body, nn.Linear):
            return None
        bias, weight = self.scale.unscale_line(self.body.bias.detach()[0].double(), self.body.weight.detach()[0].double())
        return float(bias), weight.tolist()


def build_model(settings: ModelSettings, scale: Scaling, table: Table, seed: int) -> Model:
    """Return the model for the table's features, in its dtype, on the CPU.

    Weights and biases are uniform within ±1/√inputs, torch's own rule for `nn.Linear`, drawn in float64 and then rounded,
    so that float32 and float64 start from the same point. A feature that is 0 in all training rows, such as that for other
    names than those they have, teaches nothing, and starts, and stays, without a say.
    """
    body = make_body(settings, len(table.features), seed)
    mean, std = np.array(table.mean[:-1]), np.array(table.std[:-1])
    silent = torch.from_numpy((std == 0) & ((mean == 0) | (scale.settings.features == "standard")))
    generator = torch.Generator().manual_seed(torch_seed(seed, "init"))
    with torch.no_grad():
        for layer in body.modules():
            if isinstance(layer, nn.Linear):
                bound = 1 / math.sqrt(layer.in_features)
                for name, parameter in layer.named_parameters():
                    drawn = torch.empty(parameter.shape, dtype=torch.float64).uniform_(-bound, bound, generator=generator)
                    setattr(layer, name, nn.Parameter(drawn))
        first = next((layer for layer in body.modules() if isinstance(layer, nn.Linear)), None)
        if first is not None and first.in_features == len(silent):  # as it is where the features are its inputs
            first.weight[:, silent] = 0
    return Model(scale, body).to(getattr(torch, table.dtype))


def make_body(settings: ModelSettings, width: int, seed: int) -> nn.Module:
    """Return what the name stands for, of so many features, whose layers have no parameters yet."""
    match settings.name:
        case "linear":
            return linear_on_meta(width, 1)
        case "mlp":
            return _layers(settings, width, seed)


def _layers(settings: ModelSettings, width: int, seed: int) -> nn.Sequential:
    """Return linear layers with an activation, and perhaps dropout, after each but the last."""
    activations: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}
    layers: list[nn.Module] = []
    for number, (inputs, outputs) in enumerate(pairwise([width, *settings.hidden])):
        layers += [linear_on_meta(inputs, outputs), activations[settings.activation]()]
        if settings.dropout:
            layers.append(Dropout(settings.dropout, seed, number))
    return nn.Sequential(*layers, linear_on_meta(settings.hidden[-1], 1))
