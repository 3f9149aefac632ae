"""A model on the disk: model.pt, the state_dict, and model.json, how to rebuild the model around it.

Reads and writes both. Guarantees that nothing is unpickled: loading takes tensors only, and checks their digest.
"""

import hashlib
import io
import pickle
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn

from truefit.core.errors import ModelError
from truefit.core.files import write_bytes, write_json
from truefit.data.table import Dtype, Table
from truefit.model.models import MLP, Linear, ModelSettings, Standardize, assemble

MODEL_PT = "model.pt"
MODEL_JSON = "model.json"

T = TypeVar("T")

# What zipfile and torch's own unpickler, which runs nothing, raise for a file that is not what it should be.
_UNREADABLE = (
    *(zipfile.BadZipFile, zlib.error, pickle.UnpicklingError, EOFError, RuntimeError, NotImplementedError),
    *(ValueError, TypeError, KeyError, IndexError, AttributeError, AssertionError),
)


class ModelDescription(BaseModel):
    """What model.json says: all that is needed, beside the state_dict, to rebuild the model and to use it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    model: ModelSettings
    standardize: bool
    features: list[str]
    target: str
    dtype: Dtype
    state_dict_sha256: str


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


def load_state_dict(path: Path, of_stage: bool = True) -> dict[str, Tensor]:
    """Return the state_dict in `path`, on the CPU; raises ModelError when the file holds anything but tensors.

    The error says what to do where the file is one `of_stage` train.
    """
    return _load(path, read_state_dict, of_stage)


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
    description = _load(folder / MODEL_JSON, read_description, of_stage=True)
    trained, found = [*description.features, description.target, description.dtype], [*table.columns, table.dtype]
    if trained != found:
        path = folder / MODEL_JSON
        raise ModelError(f"{path}: trained on {', '.join(trained)}, found in the table: {', '.join(found)}")
    return _open(folder, description, of_stage=True), description


def open_model(folder: Path) -> tuple[Linear | MLP, ModelDescription]:
    """Return the model saved in `folder`, under eval(), and its description: no table is needed.

    Raises ModelError when a file is missing or damaged.
    """
    description = _load(folder / MODEL_JSON, read_description, of_stage=False)
    return _open(folder, description, of_stage=False), description


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
        model = assemble(description.model, width, scale, seed=0).to_empty(device="cpu").to(getattr(torch, description.dtype))
        model.load_state_dict(state)
    except RuntimeError:
        raise ValueError(f"its tensors do not fit the model that {named} describes") from None
    return model.eval()


def _open(folder: Path, description: ModelDescription, of_stage: bool) -> Linear | MLP:
    try:
        return rebuild_model(description, load_state_dict(folder / MODEL_PT, of_stage), str(folder / MODEL_JSON))
    except ValueError as error:
        raise ModelError(f"{folder / MODEL_PT}: {error}") from None


def _load(path: Path, read: Callable[[bytes], T], of_stage: bool) -> T:
    try:
        return read(path.read_bytes())
    except OSError as error:
        fault, advice = f"cannot be read: {error.strerror}", "`dvc repro train` writes it"
    except ValueError as error:
        fault, advice = str(error), "`dvc repro --force train` writes it anew"
    raise ModelError(f"{path}: {fault}" + (f"; {advice}" if of_stage else ""))
