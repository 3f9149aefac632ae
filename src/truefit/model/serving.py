"""A trained model for whoever has rows: features in, predictions out, also in a process that MLflow starts.

`truefit predict`, a model that MLflow loaded and one that it serves give the same bits. MLflow keeps a copy of this module,
and of those that it imports, with each model.
"""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from truefit.data.columns.base import Column
from truefit.data.columns.number import Number
from truefit.data.table import EXACT, Table
from truefit.model.cells import CellReader
from truefit.model.files import ModelDescription, open_model

if TYPE_CHECKING:
    import pandas as pd

# This room and those below it: the code that goes with a model.
ROOMS = ("core", "data", "model")
# What they import, and what MLflow needs to hand them rows.
PACKAGES = ("mlflow", "numpy", "pandas", "pyarrow", "pydantic", "ruamel.yaml", "torch")
# Always so many rows: a matrix product may round otherwise for another number of rows.
MODEL_ROWS = 4096

_THREADS = threading.Lock()  # their number is the process's
Array = NDArray[Any]  # of the model's dtype


class ServedModel:
    """What MLflow's pyfunc wraps."""

    def __init__(self, model: nn.Module, description: ModelDescription) -> None:
        self._model = model
        self._description = description
        self._places = list(accumulate((column.stored for column in description.columns), initial=0))
        self._cells = CellReader(description.format)

    def predict(self, model_input: "pd.DataFrame", params: dict[str, Any] | None = None) -> Array:
        """Return the predictions [N], in the model's dtype and the data's units, for the rows of a table with its columns.

        A column may be left out where missing values are filled, but not all of them. Raises ValueError, naming row and
        column, for a cell that stage prepare would not take: what is none of the column's kind, a missing value where they
        are not filled, a number that is not finite in the model's dtype, an integer that the dtype makes another one of, or a
        number that it takes for 0.
        """
        columns, dtype, index = self._description.columns, self._description.dtype, model_input.index
        if not {*model_input.columns} & {column.name for column in columns}:
            raise ValueError(f"found no column {columns[0].name!r}, allowed: one that holds {columns[0].allowed}")
        stored = np.concatenate([self._cells.stored(column, _cells(model_input, column)) for column in columns], axis=1)
        with np.errstate(over="ignore"):
            values = stored.astype(dtype)
        for at, column in zip(self._places, columns, strict=False):
            given, kept = stored[:, at], values[:, at]
            if column.fill is None and np.isnan(given).any():
                row = int(np.argmax(np.isnan(given)))
                raise ValueError(f"row {index[row]}, column {column.name!r}: found a missing value, allowed: {column.allowed}")
            if isinstance(column, Number):
                _require_kept(column, given, kept, index, dtype)
        encode = self._description.encoding.features  # by the batch, since of one column there may be a hundred features
        features = (encode(values[start : start + MODEL_ROWS]) for start in range(0, len(values), MODEL_ROWS))
        with _one_thread():
            predicted: Array = np.concatenate([values[:0, 0], *predictions(self._model, features)])
        for row in np.flatnonzero(~np.isfinite(predicted)).tolist():
            found = f"features whose prediction is {predicted[row]}"
            raise ValueError(f"row {index[row]}: found {found}, allowed: a finite {dtype}")
        return predicted


def _cells(frame: "pd.DataFrame", column: Column) -> "pd.Series[Any]":
    """Return a column of the table, which is missing values where the table has none of that name, and these are filled."""
    found = frame.loc[:, frame.columns == column.name]
    if found.shape[1] == 1:
        return found.iloc[:, 0]
    if found.shape[1] or column.fill is None:
        number = f"{found.shape[1]} columns" if found.shape[1] else "no column"
        raise ValueError(f"found {number} {column.name!r}, allowed: one that holds {column.allowed}")
    return frame.reindex(columns=[column.name])[column.name]


def _require_kept(column: Column, given: Array, values: Array, index: Any, dtype: str) -> None:
    """Raise ValueError for the first of the numbers given [N] that is not kept, as it has to be, in the model's dtype."""
    integers = (given == np.trunc(given)) & (np.abs(given) <= EXACT)
    kept = np.where(integers, values == given, (values != 0) | (given == 0))
    finite = np.isfinite(values) | np.isnan(given)
    for row in np.flatnonzero(~(finite & kept)).tolist():
        allowed = f"a finite {dtype}" if not finite[row] else "a number that float32 holds"
        raise ValueError(f"row {index[row]}, column {column.name!r}: found {given[row]}, allowed: {allowed}")


@contextmanager
def _one_thread() -> Iterator[None]:
    """Hold torch to one thread, as `truefit predict` does: with more, a wide model may round otherwise."""
    with _THREADS:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def predictions(model: nn.Module, blocks: Iterable[Array]) -> Iterator[Array]:
    """Give the predictions [C] of the blocks' rows [N, F], C being MODEL_ROWS but at the end.

    Row i of all is at i modulo MODEL_ROWS in a batch of the model, which zeros fill at the end: its prediction depends on the
    row and that place alone.
    """
    rows, filled = torch.empty(0), 0
    for values in blocks:
        if not len(rows):
            rows = torch.zeros(MODEL_ROWS, values.shape[1], dtype=torch.from_numpy(values[:0]).dtype)
        while len(values):
            taken = values[: MODEL_ROWS - filled]
            rows.numpy()[filled : filled + len(taken)] = taken
            filled, values = filled + len(taken), values[len(taken) :]
            if filled == MODEL_ROWS:
                yield _apply(model, rows)
                filled = 0
    if filled:
        rows[filled:] = 0
        yield _apply(model, rows)[:filled]


def example_rows(table: Table) -> "pd.DataFrame":
    """Return three rows as an example of what the model takes: of numbers, the mean and a deviation to either side.

    MLflow calls for it by `Run.log_model`.
    """
    # None of the table's own rows, which are not to leave the machine with each run.
    import pandas as pd

    means = dict(zip(table.names, zip(table.mean, table.std, strict=True), strict=True))
    return pd.DataFrame({column.name: column.example(*means[column.features[0]]) for column in table.columns})


def _apply(model: nn.Module, rows: torch.Tensor) -> Array:
    with torch.no_grad():
        predicted: Array = model(rows)[:, 0].numpy()
    return predicted


def _load_pyfunc(path: str) -> ServedModel:
    """Return the model saved in the folder; MLflow calls the function of this name in the module that it is told of."""
    return ServedModel(*open_model(Path(path)))
