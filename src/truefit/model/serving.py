"""A trained model for whoever has rows: features in, predictions out, also in a process that MLflow starts.

`truefit predict`, a model that MLflow loaded and one that it serves give the same bits. MLflow keeps a copy of this module,
and of those that it imports, with each model.
"""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from truefit.data.table import EXACT, Table
from truefit.model.files import ModelDescription, open_model

if TYPE_CHECKING:
    import pandas as pd

# This room and those below it: the code that goes with a model.
ROOMS = ("core", "data", "model")
# What they import, and what MLflow needs to hand them rows.
PACKAGES = ("mlflow", "numpy", "pandas", "pydantic", "ruamel.yaml", "torch")
# Always so many rows: a matrix product may round otherwise for another number of rows.
MODEL_ROWS = 4096

_THREADS = threading.Lock()  # their number is the process's
Array = NDArray[Any]  # of the model's dtype


class ServedModel:
    """What MLflow's pyfunc wraps."""

    def __init__(self, model: nn.Module, description: ModelDescription) -> None:
        self._model = model
        self._description = description

    def predict(self, model_input: "pd.DataFrame", params: dict[str, Any] | None = None) -> Array:
        """Return the predictions [N], in the model's dtype and the data's units, for the rows of a table with its features.

        Raises ValueError, naming row and column, for a number that is not finite in the model's dtype, and for one that stage
        prepare would not take for it: an integer that it makes another one of, or a number that it takes for 0.
        """
        names, dtype, index = self._description.features, self._description.dtype, model_input.index
        given = model_input[names].to_numpy(np.float64)
        with np.errstate(over="ignore"):
            values = given.astype(dtype)
        finite = np.isfinite(values)
        for row, column in np.argwhere(~(finite & _kept(given, values))).tolist():
            where, found = f"row {index[row]}, column {names[column]!r}", given[row, column]
            allowed = f"a finite {dtype}" if not finite[row, column] else "a number that float32 holds"
            raise ValueError(f"{where}: found {found}, allowed: {allowed}")
        with _one_thread():
            predicted: Array = np.concatenate([values[:0, 0], *predictions(self._model, [values])])
        for row in np.flatnonzero(~np.isfinite(predicted)).tolist():
            found = f"features whose prediction is {predicted[row]}"
            raise ValueError(f"row {index[row]}: found {found}, allowed: a finite {dtype}")
        return predicted


def _kept(given: Array, values: Array) -> NDArray[np.bool_]:
    """Return which of the numbers given are kept, as far as they have to be, in the model's dtype."""
    integers = (given == np.trunc(given)) & (np.abs(given) <= EXACT)
    kept: NDArray[np.bool_] = np.where(integers, values == given, (values != 0) | (given == 0))
    return kept


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
    """Return the features' means, and a standard deviation to either side, as an example of what the model takes."""
    # None of the table's own rows, which are not to leave the machine with each run.
    import pandas as pd

    width = len(table.features)
    mean, std = np.array(table.mean[:width]), np.array(table.std[:width])
    return pd.DataFrame([mean - std, mean, mean + std], columns=table.features)


def _apply(model: nn.Module, rows: torch.Tensor) -> Array:
    with torch.no_grad():
        predicted: Array = model(rows)[:, 0].numpy()
    return predicted


def _load_pyfunc(path: str) -> ServedModel:
    """Return the model saved in the folder; MLflow calls the function of this name in the module that it is told of."""
    return ServedModel(*open_model(Path(path)))
