"""The models, their initial parameters, and a model on the disk.

Reads and writes model.pt (the state_dict) and model.json (how to rebuild the model around it). Guarantees that the initial
parameters depend on the seed alone, that standardisation travels inside the state_dict, and that nothing is unpickled:
loading takes tensors only and checks their digest.
"""

import hashlib
import io
import math
import pickle
import zipfile
import zlib
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor, nn

from truefit.config import Settings, impossible, require_defaults
from truefit.errors import ModelError
from truefit.files import write_bytes, write_json
from truefit.seeds import torch_seed
from truefit.table import Dtype, Table

MODEL_PT = "model.pt"
MODEL_JSON = "model.json"

# What zipfile and torch's own unpickler, which runs nothing, raise for a file that is not what it should be.
_UNREADABLE = (
    *(zipfile.BadZipFile, zlib.error, pickle.UnpicklingError, EOFError, RuntimeError, NotImplementedError),
    *(ValueError, TypeError, KeyError, IndexError, AttributeError, AssertionError),
)


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
            raise impossible("hidden", [], "at least one layer's size with model mlp, such as [64, 64]")
        return self


class ModelDescription(BaseModel):
    """What model.json says: all that is needed, beside the state_dict, to rebuild the model and to use it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    model: ModelSettings
    standardize: bool
    features: list[str]
    target: str
    dtype: Dtype
    state_dict_sha256: str


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
    model = _assemble(settings, width, Standardize(mean, std) if standardize else nn.Identity(), seed)
    generator = torch.Generator().manual_seed(torch_seed(seed, "init"))
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Linear):
                bound = 1 / math.sqrt(layer.in_features)
                for name, parameter in layer.named_parameters():
                    drawn = torch.empty(parameter.shape, dtype=torch.float64).uniform_(-bound, bound, generator=generator)
                    setattr(layer, name, nn.Parameter(drawn))
    return model.to(dtype)


def _assemble(settings: ModelSettings, width: int, standardize: nn.Module, seed: int) -> Linear | MLP:
    """Return the model for so many features, whose layers have no parameters yet."""
    return Linear(width, standardize) if settings.name == "linear" else MLP(width, settings, standardize, seed)


def state_dict_digest(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of a state_dict's tensors: names, dtypes, shapes and bytes, whatever file or device they are in."""
    digest = hashlib.sha256()
    for name, tensor in state.items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def state_dict_bytes(state: Mapping[str, Tensor]) -> bytes:
    """Return a state_dict in torch's file format, the same bytes for the same tensors on the same kind of machine."""
    # Not straight to a file, whose name torch would write into it.
    content = io.BytesIO()
    torch.save(dict(state), content)
    return content.getvalue()


def read_state_dict(content: bytes) -> dict[str, Tensor]:
    """Return the state_dict that `content` holds, on the CPU; raises ValueError, saying why, for anything but tensors."""
    state = read_tensors(content)
    found = None if isinstance(state, dict) else type(state).__name__
    for name, value in state.items() if found is None else ():
        if not isinstance(value, Tensor):
            found = f"{name!r}: {type(value).__name__}"
            break
    if found:
        raise ValueError(f"found {found}, allowed: a dictionary of tensors")
    return dict(state)


def read_tensors(content: bytes) -> Any:
    """Return what torch.save wrote, on the CPU: tensors and plain values; raises ValueError, saying why, for anything else."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            # Checked before torch reads it: a damaged pickle can make it raise almost anything.
            damaged = archive.testzip()
        if damaged is None:
            return torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except _UNREADABLE:
        raise ValueError("damaged, or not a state_dict") from None
    raise ValueError(f"damaged, in its part {damaged}")


def load_state_dict(path: Path) -> dict[str, Tensor]:
    """Return the state_dict in `path`, on the CPU; raises ModelError when the file holds anything but tensors."""
    try:
        return read_state_dict(path.read_bytes())
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ModelError(f"{path}: {error}; `dvc repro --force train` writes it anew") from None


def save_model(folder: Path, state: Mapping[str, Tensor], settings: ModelSettings, standardize: bool, table: Table) -> None:
    """Write the state_dict to `folder`/model.pt and the model's description to `folder`/model.json."""
    write_bytes(folder / MODEL_PT, state_dict_bytes(state))
    description = ModelDescription(
        model=settings,
        standardize=standardize,
        features=table.features,
        target=table.target,
        dtype=table.dtype,
        state_dict_sha256=state_dict_digest(state),
    )
    write_json(folder / MODEL_JSON, description.model_dump())


def load_model(folder: Path, table: Table) -> tuple[Linear | MLP, ModelDescription]:
    """Return the model saved in `folder`, rebuilt for the table's features, under eval(), and its description.

    Raises ModelError when a file is missing or damaged, or when the model was trained on other columns than the table's.
    """
    description = _load_description(folder / MODEL_JSON)
    trained, found = [*description.features, description.target, description.dtype], [*table.columns, table.dtype]
    if trained != found:
        path = folder / MODEL_JSON
        raise ModelError(f"{path}: trained on {', '.join(trained)}, found in the table: {', '.join(found)}")
    return _load(folder, description), description


def open_model(folder: Path) -> tuple[Linear | MLP, ModelDescription]:
    """Return the model saved in `folder`, under eval(), and its description: no table is needed.

    Raises ModelError when a file is missing or damaged.
    """
    description = _load_description(folder / MODEL_JSON)
    return _load(folder, description), description


def read_description(content: bytes) -> ModelDescription:
    """Return the description that a model.json holds; raises ValueError, saying why, for anything else."""
    try:
        return ModelDescription.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = f"{'.'.join(map(str, first['loc']))}: " if first["loc"] else ""
        raise ValueError(f"damaged: {place}{first['msg']}") from None


def rebuild_model(description: ModelDescription, state: Mapping[str, Tensor], named: str = MODEL_JSON) -> Linear | MLP:
    """Return the model of a description, which errors call `named`, with a state_dict's tensors, under eval().

    Raises ValueError when they are not the tensors that the description was written for, or do not fit it.
    """
    if state_dict_digest(state) != description.state_dict_sha256:
        raise ValueError(f"its tensors are not those that {named} was written for")
    width = len(description.features)
    scale = Standardize(torch.zeros(width), torch.ones(width)) if description.standardize else nn.Identity()
    try:
        model = _assemble(description.model, width, scale, seed=0).to_empty(device="cpu").to(getattr(torch, description.dtype))
        model.load_state_dict(state)
    except RuntimeError:
        raise ValueError(f"its tensors do not fit the model that {named} describes") from None
    return model.eval()


def _load_description(path: Path) -> ModelDescription:
    try:
        return read_description(path.read_bytes())
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}; `dvc repro train` writes it") from None
    except ValueError as error:
        raise ModelError(f"{path}: {error}; `dvc repro --force train` writes it anew") from None


def _load(folder: Path, description: ModelDescription) -> Linear | MLP:
    try:
        return rebuild_model(description, load_state_dict(folder / MODEL_PT), str(folder / MODEL_JSON))
    except ValueError as error:
        raise ModelError(f"{folder / MODEL_PT}: {error}") from None
