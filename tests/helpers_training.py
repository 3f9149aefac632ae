"""Prepared tables made from arrays, and trainings on them, for the tests of engines, models, training and evaluation."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ruamel.yaml import YAML
from torch import Tensor

from truefit.core.files import write_json
from truefit.data.columns.number import Number
from truefit.data.dataset import features_and_target, open_verified
from truefit.data.table import TABLE_JSON, CsvSource, Dtype, Split, Table, Weight
from truefit.data.writing import ArrayWriter
from truefit.model.files import save_model
from truefit.model.models import Model, ModelSettings, build_model
from truefit.model.scaling import ScaleSettings, Scaling
from truefit.training.loop import train
from truefit.training.progress import Outcome
from truefit.training.settings import TrainSettings

Rows = NDArray[np.float64]  # [N, F + 1], the target last
State = dict[str, Tensor]

CPU = torch.device("cpu")

SCALED, UNSCALED = ScaleSettings(), ScaleSettings(features="none", target="none")
# Gradient descent as it stands in the books: on the rows as they are, with one rate.
PLAIN: dict[str, Any] = {"scale": UNSCALED.model_dump(), "schedule": {"name": "constant"}}


def normal_line(rows: int, coefficients: Sequence[float] = (2.0,), *, seed: int = 0, noise: float = 0.1) -> Rows:
    """Return rows of standard normal features around the line with intercept 1."""
    generator = np.random.default_rng(seed)
    features = generator.standard_normal((rows, len(coefficients)))
    target = 1 + features @ np.asarray(coefficients) + noise * generator.standard_normal(rows)
    return np.column_stack([features, target])


def write_prepared(
    folder: Path,
    train_rows: Rows,
    validation_rows: Rows,
    test_rows: Rows | None = None,
    dtype: Dtype = "float64",
    csv: str = "data/own.csv",
    weighted: bool = False,
) -> Table:
    """Write a prepared table of these rows; its columns are x1 … xF and y. Without test rows, validation's are taken.

    Where the rows are `weighted`, their weights are one more column, behind the target.
    """
    arrays: dict[Split, NDArray[Any]] = {
        "train": train_rows.astype(dtype),
        "validation": validation_rows.astype(dtype),
        "test": (validation_rows if test_rows is None else test_rows).astype(dtype),
    }
    folder.mkdir(parents=True, exist_ok=True)
    digests: dict[Split, str | list[str]] = {}
    for split, array in arrays.items():
        rows, columns = array.shape
        with ArrayWriter(folder / f"{split}.npy", rows, columns, dtype) as writer:
            writer.write(array)
            digests[split] = writer.sha256
    stored = arrays["train"].astype(np.float64)
    stored, weights = (stored[:, :-1], stored[:, -1]) if weighted else (stored, np.ones(len(stored)))
    first = stored[np.argmax(weights > 0)]
    shifted = stored - first  # so that the standard deviation of a constant column is exactly 0
    mean = np.average(shifted, axis=0, weights=weights) if weighted else shifted.mean(axis=0)
    std = np.sqrt(np.average((shifted - mean) ** 2, axis=0, weights=weights)) if weighted else shifted.std(axis=0)
    table = Table(
        csv=CsvSource(path=csv, sha256="0" * 64),
        columns=[Number(name=f"x{number}") for number in range(1, stored.shape[1])],
        target="y",
        weight=Weight(name="w", mean=float(weights.mean())) if weighted else None,
        dtype=dtype,
        rows={split: len(array) for split, array in arrays.items()},
        mean=(first + mean).tolist(),
        std=std.tolist(),
        sha256=digests,
    )
    write_json(folder / TABLE_JSON, table.model_dump())
    return table


def renamed(table: Table, names: Sequence[str], **others: Any) -> Table:
    """Return the table's description with features, which are numbers, of other names, and whatever else is given."""
    columns = [Number(name=name) for name in names]
    # Not all tests have moments for so many columns.
    return Table.model_construct(**dict(table) | {"columns": columns} | others)


def write_scaled(folder: Path, features: int = 2, dtype: Dtype = "float64", rows: Rows | None = None) -> Table:
    """Write a table whose features have different offsets and scales, and return its description."""
    if rows is None:
        rows = normal_line(20, [1.0] * features)
        rows[:, :-1] = rows[:, :-1] * np.arange(2, 2 + features) + 10
    return write_prepared(folder, rows, rows, dtype=dtype)


def untrained(table: Table, settings: ModelSettings | None = None, scale: ScaleSettings = UNSCALED, seed: int = 7) -> Model:
    """Return the untrained model for a table, by default linear, scaled by what the table's description says."""
    mean, std = (torch.tensor(values, dtype=getattr(torch, table.dtype)) for values in (table.mean, table.std))
    return build_model(settings or ModelSettings(), Scaling(scale, mean, std), table, seed)


def save_untrained(
    folder: Path, table: Table, settings: ModelSettings | None = None, scale: ScaleSettings = UNSCALED, seed: int = 7
) -> None:
    """Write what `untrained` returns to `folder`, as stage train writes a model."""
    settings = settings or ModelSettings()
    save_model(folder, untrained(table, settings, scale, seed).state_dict(), settings, scale, table)


def weighted_rows(rows: Rows, weights: Sequence[float] | NDArray[np.float64]) -> Rows:
    """Return the rows with their weights behind the target."""
    return np.column_stack([rows, weights])


def repeated(rows: Rows) -> Rows:
    """Return each of the rows as often as its weight, the last column, says, and without it."""
    return np.repeat(rows[:, :-1], rows[:, -1].astype(int), axis=0)


def tensors(rows: Rows, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Return rows as an engine takes them: features [N, F] and target [N, 1]."""
    return features_and_target(torch.tensor(rows, dtype=dtype))


def train_with(folder: Path, **settings: Any) -> Outcome:
    """Train on the CPU with these settings, written as in params.yaml."""
    return train(open_verified(folder, "train", "validation"), TrainSettings.model_validate(settings), CPU, lambda _: None)


def followed(settings: dict[str, Any], text: str) -> dict[str, Any]:
    """Return the settings with what the text says to try."""
    followed = dict(settings)
    _, said, advice = text.rpartition("; try ")
    assert said
    for assignment in advice.split(" with "):
        ((key, value),) = YAML(typ="safe").load(assignment).items()
        section, _, name = key.removeprefix("train.").partition(".")
        followed[section] = {**followed.get(section, {}), name: value} if name else value
    return followed


def same_bits(one: State, other: State) -> bool:
    """Say whether two state_dicts have the same names, dtypes and bits."""
    return list(one) == list(other) and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def global_streams() -> tuple[object, ...]:
    """Return the states of the random generators that a whole process shares: Python's, NumPy's and torch's."""
    return random.getstate(), repr(np.random.get_state()), torch.get_rng_state().tolist()
