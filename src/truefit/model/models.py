"""The models and their initial parameters.

Reads and writes nothing. Guarantees that the initial parameters depend on the seed alone, and that standardisation travels
inside the state_dict.
"""

import math
from itertools import pairwise
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from truefit.core.config import Settings, invalid_value, require_defaults
from truefit.core.seeds import torch_seed
from truefit.data.table import Table


class ModelSettings(Settings):
    """`train.model`: a line through the features, or a multi-layer perceptron."""

    name: Literal["linear", "mlp"] = "linear"
    hidden: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(strict=False)] = ()
    activation: Literal["relu", "tanh", "gelu"] = "relu"
    dropout: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _hidden_layers_are_the_mlps(self) -> Self:
        if self.name == "linear":
            require_defaults(self, ("hidden", "activation", "dropout"), "with model linear, which has no hidden layers")
        elif not self.hidden:
            raise invalid_value("hidden", [], "at least one layer's size with model mlp, such as [64, 64]")
        return self


class Standardize(nn.Module):
    """(x - mean) / std of the training rows, kept as buffers; a constant feature, whose std is 0, is only centred."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", torch.where(std > 0, std, 1))

    def forward(self, features: Tensor) -> Tensor:
        """Return the standardised features [B, F]."""
        return (features - self.mean) / self.std


class Dropout(nn.Module):
    """Zeroes each value with probability `p` in training and scales the rest by 1 / (1 - p).

    As `torch.nn.Dropout` (Srivastava et al., 2014), but from a generator of its own instead of the global stream, set anew
    for each epoch, so that an epoch's masks depend on (seed, layer, epoch) alone. Where masks are drawn beforehand, as for a
    compiled graph, which cannot draw from a generator, they come in as the buffer `keep`.
    """

    keep: Tensor | None

    def __init__(self, p: float, seed: int, layer: int) -> None:
        super().__init__()
        self.p, self.seed, self.layer = p, seed, layer
        self.register_buffer("keep", None, persistent=False)
        self.begin_epoch(0, torch.device("cpu"))

    def begin_epoch(self, epoch: int, device: torch.device) -> None:
        """Set the generator, on the device of the values to come, to the epoch's own stream."""
        seed = torch_seed(self.seed, "dropout", self.layer, epoch)
        self.generator = torch.Generator(device).manual_seed(seed)

    def forward(self, values: Tensor) -> Tensor:
        """Return the values [B, H], masked and scaled in training, as they are otherwise."""
        if not self.training:
            return values
        keep = self.draw(torch.empty_like(values)) if self.keep is None else self.keep
        return values * keep / (1 - self.p)

    def draw(self, mask: Tensor) -> Tensor:
        """Fill `mask` [B, H] with the next mask of ones and zeroes, and return it."""
        return mask.bernoulli_(1 - self.p, generator=self.generator)


def _undrawn(inputs: int, outputs: int) -> nn.Linear:
    """Return a layer that `build_model` gives its parameters: until then they have a shape, and no memory.

    `nn.utils.skip_init` would draw nothing either, and imports a computer algebra system, sympy, to make room for them.
    """
    return nn.Linear(inputs, outputs, device="meta")


class Linear(nn.Module):
    """prediction = bias + features · weight, on standardised features where asked for."""

    def __init__(self, features: int, standardize: nn.Module) -> None:
        super().__init__()
        self.standardize = standardize
        self.linear = _undrawn(features, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Return the predictions [B, 1] for features [B, F]."""
        prediction: Tensor = self.linear(self.standardize(features))
        return prediction

    def intercept_and_coefficients(self) -> tuple[float, list[float]]:
        """Return the line in the data's own units, in float64, standardised or not."""
        weight, intercept = self.linear.weight[0].detach().double(), self.linear.bias[0].detach().double()
        if isinstance(self.standardize, Standardize):
            weight = weight / self.standardize.std.double()
            intercept = intercept - weight @ self.standardize.mean.double()
        return float(intercept), weight.tolist()


class MLP(nn.Module):
    """Linear layers with an activation, and dropout where asked for, after each but the last."""

    def __init__(self, features: int, settings: ModelSettings, standardize: nn.Module, seed: int) -> None:
        super().__init__()
        activations: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}
        self.standardize = standardize
        layers: list[nn.Module] = []
        for number, (inputs, outputs) in enumerate(pairwise([features, *settings.hidden])):
            layers += [_undrawn(inputs, outputs), activations[settings.activation]()]
            layers += [Dropout(settings.dropout, seed, number)] if settings.dropout else []
        self.layers = nn.Sequential(*layers, _undrawn(settings.hidden[-1], 1))

    def forward(self, features: Tensor) -> Tensor:
        """Return the predictions [B, 1] for features [B, F]."""
        prediction: Tensor = self.layers(self.standardize(features))
        return prediction


def build_model(settings: ModelSettings, table: Table, standardize: bool, seed: int) -> Linear | MLP:
    """Return the model for the table's features, in its dtype, on the CPU, with initial parameters from the seed.

    Weights and biases are uniform within ±1/√inputs, torch's own rule for `nn.Linear`, drawn in float64 and then rounded,
    so that float32 and float64 start from the same point.
    """
    width, dtype = len(table.features), getattr(torch, table.dtype)
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
    return model.to(dtype)


def assemble(settings: ModelSettings, width: int, standardize: nn.Module, seed: int) -> Linear | MLP:
    """Return the model for so many features, whose layers have no parameters yet."""
    return Linear(width, standardize) if settings.name == "linear" else MLP(width, settings, standardize, seed)
