"""The models and their initial parameters. Another one is a name, its settings, a class and a case here."""

import math
from itertools import pairwise
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from truefit.core.config import Settings, invalid_value, require_defaults
from truefit.core.seeds import torch_seed
from truefit.data.table import Table
from truefit.model.layers import Dropout, Standardize, linear_on_meta


class ModelSettings(Settings):
    """`train.model`: a line through the features, or a multi-layer perceptron."""

    name: Literal["linear", "mlp"] = "linear"
    hidden: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(strict=False)] = ()
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
    """Features [B, F] in the data's units -> predictions [B, 1]; F is `width`."""

    def __init__(self, width: int, standardize: nn.Module) -> None:
        super().__init__()
        self.width = width
        self.standardize = standardize

    def line(self) -> tuple[float, list[float]] | None:
        """Return the intercept and the coefficients in the data's own units, or None where the model is no line."""
        return None


class Linear(Model):
    """prediction = bias + features · weight."""

    def __init__(self, width: int, standardize: nn.Module) -> None:
        super().__init__(width, standardize)
        self.linear = linear_on_meta(width, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Return the predictions [B, 1] for features [B, F]."""
        prediction: Tensor = self.linear(self.standardize(features))
        return prediction

    def line(self) -> tuple[float, list[float]]:
        """Return the intercept and the coefficients in the data's own units, in float64."""
        weight, intercept = self.linear.weight[0].detach().double(), self.linear.bias[0].detach().double()
        if isinstance(self.standardize, Standardize):
            weight = weight / self.standardize.std.double()
            intercept = intercept - weight @ self.standardize.mean.double()
        return float(intercept), weight.tolist()


class MLP(Model):
    """Linear layers with an activation, and perhaps dropout, after each but the last."""

    def __init__(self, width: int, settings: ModelSettings, standardize: nn.Module, seed: int) -> None:
        super().__init__(width, standardize)
        activations: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}
        layers: list[nn.Module] = []
        for number, (inputs, outputs) in enumerate(pairwise([width, *settings.hidden])):
            layers += [linear_on_meta(inputs, outputs), activations[settings.activation]()]
            if settings.dropout:
                layers.append(Dropout(settings.dropout, seed, number))
        self.layers = nn.Sequential(*layers, linear_on_meta(settings.hidden[-1], 1))

    def forward(self, features: Tensor) -> Tensor:
        """Return the predictions [B, 1] for features [B, F]."""
        prediction: Tensor = self.layers(self.standardize(features))
        return prediction


def build_model(settings: ModelSettings, table: Table, standardize: bool, seed: int) -> Model:
    """Return the model for the table's features, in its dtype, on the CPU.

    Weights and biases are uniform within ±1/√inputs, torch's own rule for `nn.Linear`, drawn in float64 and then rounded,
    so that float32 and float64 start from the same point.
    """
    width = len(table.features)
    mean, std = torch.tensor([table.mean[:width], table.std[:width]], dtype=torch.float64)
    model = assemble(settings, width, Standardize(mean, std) if standardize else nn.Identity(), seed)
    generator = torch.Generator().manual_seed(torch_seed(seed, "init"))
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Linear):
                bound = 1 / math.sqrt(layer.in_features)
                for name, parameter in layer.named_parameters():
                    drawn = torch.empty(parameter.shape, dtype=torch.float64).uniform_(-bound, bound, generator=generator)
                    setattr(layer, name, nn.Parameter(drawn))
    return model.to(getattr(torch, table.dtype))


def assemble(settings: ModelSettings, width: int, standardize: nn.Module, seed: int) -> Model:
    """Return the model for so many features, whose layers have no parameters yet."""
    match settings.name:
        case "linear":
            return Linear(width, standardize)
        case "mlp":
            return MLP(width, settings, standardize, seed)
