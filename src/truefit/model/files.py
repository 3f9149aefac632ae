"""A model on the disk: model.pt, the state_dict, and model.json, how to rebuild the model around it.

Nothing is unpickled: loading takes tensors only, and checks their digest.
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor

from truefit.core.errors import TruefitError
from truefit.core.files import write_bytes
from truefit.core.text import one_line
from truefit.data.columns import AnyColumn
from truefit.data.columns.encoding import Encoding
from truefit.data.table import Dtype, Table
from truefit.model.models import Model, ModelSettings, make_body
from truefit.model.scaling import ScaleSettings, unfitted_scaling

MODEL_PT = "model.pt"
MODEL_JSON = "model.json"
_ANEW = "`dvc repro --force train` writes it anew"

T = TypeVar("T")


class ModelDescription(BaseModel, frozen=True, extra="forbid", strict=True):
    """What model.json says; `training` and `format` hold settings that rebuilding the model does not need.

    `format` is that of the CSV which the table was prepared from.
    """

    model: ModelSettings
    scale: ScaleSettings
    columns: list[AnyColumn]
    target: str
    dtype: Dtype
    state_dict_sha256: str
    training: dict[str, Any] = {}
    format: dict[str, Any] = {}

    @cached_property
    def encoding(self) -> Encoding:
        """What makes the model's features of the columns' stored numbers."""
        return Encoding(self.columns)


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
    if isinstance(state, dict) and all(isinstance(value, Tensor) for value in state.values()):
        return dict(state)
    named = state.items() if isinstance(state, dict) else ()
    strange = [f"{name!r}: {type(value).__name__}" for name, value in named if not isinstance(value, Tensor)]
    raise ValueError(f"found {(strange or [type(state).__name__])[0]}, allowed: a dictionary of tensors")


def read_tensors(content: bytes) -> Any:
    """Return what torch.save wrote, on the CPU: tensors and plain values; raises ValueError, saying why, for anything else."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            damaged = archive.testzip()
        if damaged is None:
            return torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except Exception as error:  # whatever zipfile, and torch's unpickler, which runs nothing, make of a damaged file
        raise ValueError("damaged, or not a state_dict") from error
    raise ValueError(f"damaged, in its part {damaged}")


def save_model(
    folder: Path,
    state: Mapping[str, Tensor],
    settings: ModelSettings,
    scale: ScaleSettings,
    table: Table,
    training: Mapping[str, Any] | None = None,
) -> dict[str, bytes]:
    """Write model.pt, the state_dict, and model.json, its description, to `folder`; return both files' contents by name."""
    description = ModelDescription(
        model=settings,
        scale=scale,
        columns=table.columns,
        target=table.target,
        dtype=table.dtype,
        state_dict_sha256=state_dict_digest(state),
        training=dict(training or {}),
        format=table.csv.format,
    )
    text = json.dumps(description.model_dump(mode="json"), indent=2, allow_nan=False) + "\n"
    files = {MODEL_PT: state_dict_bytes(state), MODEL_JSON: text.encode()}
    for name, content in files.items():
        write_bytes(folder / name, content)
    return files


def load_model(folder: Path, table: Table) -> tuple[Model, ModelDescription]:
    """Open the model of stage train; raises TruefitError also when it was trained on other columns than the table's."""
    model, description = open_model(folder, of_stage=True)
    if (description.columns, description.target, description.dtype) != (table.columns, table.target, table.dtype):
        trained, found = [*description.encoding.names, description.target, description.dtype], [*table.names, table.dtype]
        wanted, there = (", ".join(map(one_line, names)) for names in (trained, found))
        fault = f"trained on {wanted}, found in the table: {there}"
        if trained == found:
            fault = f"trained on the same columns of other training rows; {_ANEW}"
        raise TruefitError(f"{folder / MODEL_JSON}: {fault}")
    return model, description


def open_model(folder: Path, of_stage: bool = False) -> tuple[Model, ModelDescription]:
    """Return the model saved in `folder`, under eval(), and its description.

    Raises TruefitError when a file is missing or damaged, which says what to do where the folder is that `of_stage` train.
    """
    description = _load(folder / MODEL_JSON, read_description, of_stage)
    state = _load(folder / MODEL_PT, read_state_dict, of_stage)
    try:
        return rebuild_model(description, state, str(folder / MODEL_JSON)), description
    except ValueError as error:
        advice = f"; {_ANEW}" if of_stage else ""
        raise TruefitError(f"{folder / MODEL_PT}: {error}{advice}") from None


def read_description(content: bytes) -> ModelDescription:
    """Return the description that a model.json holds; raises ValueError, saying why, for anything else."""
    try:
        return ModelDescription.model_validate_json(content)
    except ValidationError as error:
        faults = error.errors()
        # A file that is damaged has the keys that were written, or is no JSON. A key too many says more than one too few.
        keys = {kind: fault for fault in reversed(faults) if (kind := fault["type"]) in ("extra_forbidden", "missing")}
        first = keys.get("extra_forbidden") or keys.get("missing") or faults[0]
        place = ".".join(map(str, first["loc"]))
        if keys:
            found = f"{'no' if first['type'] == 'missing' else 'the'} key {place}"
            advice = "train again, or predict with the code at the commit of its run"
            raise ValueError(f"written by another version of truefit: found {found}; {advice}") from None
        raise ValueError(f"damaged: {place}{': ' if place else ''}{first['msg']}") from None


def rebuild_model(description: ModelDescription, state: Mapping[str, Tensor], named: str = MODEL_JSON) -> Model:
    """Return the model of a description, which errors call `named`, with a state_dict's tensors, under eval().

    Raises ValueError when they are not the tensors that the description was written for, or do not fit it.
    """
    if state_dict_digest(state) != description.state_dict_sha256:
        raise ValueError(f"its tensors are not those that {named} was written for")
    width = len(description.encoding.names)
    try:
        body = make_body(description.model, width, seed=0).to_empty(device="cpu")
        model = Model(unfitted_scaling(description.scale, width), body).to(getattr(torch, description.dtype))
        model.load_state_dict(state)
    except RuntimeError:
        raise ValueError(f"its tensors do not fit the model that {named} describes") from None
    return model.eval()


def _load(path: Path, read: Callable[[bytes], T], of_stage: bool) -> T:
    try:
        return read(path.read_bytes())
    except OSError as error:
        fault, advice = f"cannot be read: {error.strerror}", "`dvc repro train` writes it"
    except ValueError as error:
        fault, advice = str(error), _ANEW
    raise TruefitError(f"{path}: {fault}" + (f"; {advice}" if of_stage else ""))
