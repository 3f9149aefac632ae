"""A trained model for whoever has rows: features in, predictions out, also in a process that MLflow starts.

`truefit predict`, a model that MLflow loaded and one that it serves give the same bits. MLflow keeps a copy of this module,
and of those that it imports, with each model.
"""

import math
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import nn

from truefit.data.columns.base import Column
from truefit.data.columns.number import Number
from truefit.data.table import EXACT, Table
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
        self._missing = _missing_values(description.format)

    def predict(self, model_input: "pd.DataFrame", params: dict[str, Any] | None = None) -> Array:
        """Return the predictions [N], in the model's dtype and the data's units, for the rows of a table with its columns.

        Raises ValueError, naming row and column, for a cell that stage prepare would not take: a text that is none of the
        column's kind, a missing value where they are not filled, a number that is not finite in the model's dtype, an integer
        that the dtype makes another one of, or a number that it takes for 0.
        """
        columns, dtype, index = self._description.columns, self._description.dtype, model_input.index
        stored = np.concatenate([_stored(column, model_input[column.name], self._missing) for column in columns], axis=1)
        with np.errstate(over="ignore"):
            values = stored.astype(dtype)
        for at, column in zip(self._places, columns, strict=False):
            given, kept = stored[:, at], values[:, at]
            if isinstance(column, Number):
                _require_kept(column, given, kept, index, dtype)
            if column.fill is None and np.isnan(kept).any():
                row = int(np.argmax(np.isnan(kept)))
                raise ValueError(f"row {index[row]}, column {column.name!r}: found a missing value, allowed: {column.allowed}")
        with _one_thread():
            features = self._description.encoding.features(values)
            predicted: Array = np.concatenate([values[:0, 0], *predictions(self._model, [features])])
        for row in np.flatnonzero(~np.isfinite(predicted)).tolist():
            found = f"features whose prediction is {predicted[row]}"
            raise ValueError(f"row {index[row]}: found {found}, allowed: a finite {dtype}")
        return predicted


class _Missing(NamedTuple):
    """The texts that stand for a missing value, and the numbers, however these are written."""

    texts: list[str]
    numbers: list[float]

    def left_out(self, numbers: Array) -> Array:
        """Return the numbers with nan for those that stand for a missing value."""
        return np.where(np.isin(numbers, self.numbers), np.nan, numbers)


def _missing_values(form: dict[str, Any]) -> _Missing:
    """Return what stands for a missing value in the format of a CSV; only a table that was made otherwise has none."""
    texts, numbers = form.get("missing", []), []
    for text in texts:
        plain = text.replace(form.get("thousands") or "", "").replace(form.get("decimal", "."), ".")
        with suppress(ValueError):
            numbers.append(float(plain))
    return _Missing(texts, [number for number in numbers if math.isfinite(number)])


def _stored(column: Column, cells: "pd.Series[Any]", missing: _Missing) -> Array:
    """Return the stored numbers [N, S] of a column's cells; raises ValueError for one that is none of its kind."""
    known = ~cells.isna().to_numpy()
    if isinstance(column, Number) and cells.dtype.kind in "biuf":
        return missing.left_out(cells.to_numpy(np.float64, na_value=np.nan))[:, None]
    texts = [str(cell).strip(" \t") if there else None for cell, there in zip(cells, known, strict=True)]
    texts = [None if text in missing.texts else text for text in texts]
    if isinstance(column, Number):
        given = np.array([math.nan if text is None else _number(text) for text in texts], np.float64)
        numbers, bad = missing.left_out(given)[:, None], np.isnan(given) & [text is not None for text in texts]
    else:
        # Of what pandas has as dates, the text is ISO 8601.
        kind = column.model_copy(update={"format": None}) if cells.dtype.kind == "M" else column
        numbers, bad = kind.parse(pa.array(texts, pa.string()))
    for row in np.flatnonzero(bad).tolist():
        raise ValueError(f"row {cells.index[row]}, column {column.name!r}: found {texts[row]!r}, allowed: {column.allowed}")
    return numbers


def _number(text: str) -> float:
    """Return the number that the text says, or nan."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _require_kept(column: Column, given: Array, values: Array, index: Any, dtype: str) -> None:
    """Raise ValueError for the first of the numbers given [N] that is not kept, as it has to be, in the model's dtype."""
    integers = (given == np.trunc(given)) & (np.abs(given) <= EXACT)
    kept = np.where(integers, values == given, (values != 0) | (given == 0))
    finite = np.isfinite(values) | (np.isnan(given) & (column.fill is not None))
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
    """Return three rows as an example of what the model takes: of numbers, the mean and a deviation to either side."""
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
