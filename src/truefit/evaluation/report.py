"""How good a model is on the test rows, and how good it could have been.

Reads splits of the prepared table; writes nothing. Guarantees float64 arithmetic and memory bounded by a chunk of rows, for
any number of rows; a figure that is undefined (r2 of a constant target) is None and never NaN.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import nn

from truefit.core.config import Params, Settings
from truefit.data.batches import CHUNK_ROWS, SequentialChunks, make_loader
from truefit.data.dataset import TableDataset
from truefit.data.generating import TARGET, GenerateSettings
from truefit.data.table import Table
from truefit.model.models import Linear

Array = NDArray[Any]  # float64
Predictor = Callable[[Array], Array]
Metrics = dict[str, float | None]


class EvaluateSettings(Settings):
    """Section `evaluate`: how many test rows, evenly spaced, predictions.csv and the pictures show at most."""

    sample: int = Field(1000, ge=1)


def model_predictor(model: nn.Module, dtype: torch.dtype) -> Predictor:
    """Return the function features [N, F] -> predictions [N] of a model, under eval() and no_grad()."""
    model.eval()

    def predict(features: Array) -> Array:
        with torch.no_grad():
            prediction: Array = model(torch.from_numpy(features).to(dtype))[:, 0].double().numpy()
        return prediction

    return predict


def line_predictor(solution: Array) -> Predictor:
    """Return the function features [N, F] -> predictions [N] of the line [intercept, coefficients…]."""
    return lambda features: solution[0] + features @ solution[1:]


class Optimum(NamedTuple):
    """The least-squares line, [intercept, coefficients…] of length F + 1, and its mse on the training rows."""

    line: Array
    train_mse: float


def least_squares(train: TableDataset) -> Optimum:
    """Return the line that minimises the squared error over the training rows.

    The rows (1, x, y), features and target standardised so that offsets and units cost no digits, are reduced to one
    triangular factor, a chunk at a time, by stacking each chunk under the factor so far and taking the QR decomposition
    again (TSQR: Demmel, Grigori, Hoemmen and Langou, 2012). That needs memory for one chunk, and keeps the accuracy which
    the normal equations lose by squaring the condition number. What is left is a system of F + 2 rows; where features
    depend on each other, its shortest solution is taken. The rotations keep lengths, so that the errors which the solution
    leaves there have the squared sum of those of all rows.
    """
    mean, std = np.array(train.table.mean), np.array(train.table.std)
    std = np.where(std > 0, std, 1)
    factor: Array = np.empty((0, len(mean) + 1))
    for features, target in _chunks(train):
        rows = (np.column_stack([features, target]) - mean) / std
        stacked = np.vstack([factor, np.column_stack([np.ones(len(rows)), rows])])
        factor = np.asarray(np.linalg.qr(stacked, mode="r"))
    # NumPy's tolerance for the rank of one decomposition, for as many as there were.
    rank_tolerance = np.finfo(np.float64).eps * factor.shape[1] * -(-len(train) // CHUNK_ROWS)
    solution = np.linalg.lstsq(factor[:, :-1], factor[:, -1], rcond=rank_tolerance)[0]
    errors = (factor[:, -1] - factor[:, :-1] @ solution) * std[-1]
    coefficients = solution[1:] / std[:-1] * std[-1]
    line = np.asarray([mean[-1] + std[-1] * solution[0] - mean[:-1] @ coefficients, *coefficients])
    return Optimum(line, float(errors @ errors) / len(train))


def score(test: TableDataset, predict: Predictor) -> Metrics:
    """Return mse, rmse, mae and r2 of the predictions on the test rows.

    r2 = 1 - Σ(y - p)² / Σ(y - ȳ)², None where all targets are equal.
    """
    rows, squares, absolute, total, total_squares = 0, 0.0, 0.0, 0.0, 0.0
    origin: float | None = None
    for features, target in _chunks(test):
        error = target - predict(features)
        # Taken from the first row's, so that equal targets have no variance, and an offset does not cost its digits.
        origin = float(target[0]) if origin is None else origin
        shifted = target - origin
        rows += len(target)
        squares, absolute = squares + float((error**2).sum()), absolute + float(np.abs(error).sum())
        total, total_squares = total + float(shifted.sum()), total_squares + float((shifted**2).sum())
    variation = total_squares - total**2 / rows
    return {
        "mse": squares / rows,
        "rmse": math.sqrt(squares / rows),
        "mae": absolute / rows,
        "r2": 1 - squares / variation if variation > 0 else None,
    }


def report(test: TableDataset, model: nn.Module, optimum: Array, truth: GenerateSettings | None) -> dict[str, Any]:
    """Return what metrics.json holds.

    `test` and `least_squares` have the scores of the model and of `optimum`, the least-squares line [F + 1];
    `excess_mse` is the model's mse over that of least squares, minus 1. A linear model adds its `parameters`, in the
    data's units, and synthetic data, whose settings are `truth`, the true ones.
    """
    table = test.table
    ours = score(test, model_predictor(model, getattr(torch, table.dtype)))
    best = score(test, line_predictor(optimum))
    assert ours["mse"] is not None and best["mse"] is not None
    content: dict[str, Any] = {
        "test": ours,
        "least_squares": best,
        "excess_mse": ours["mse"] / best["mse"] - 1 if best["mse"] > 0 else None,
    }
    if isinstance(model, Linear):
        intercept, coefficients = model.intercept_and_coefficients()
        content["parameters"] = _line(intercept, table.features, coefficients)
    if truth is not None:
        line = _line(truth.intercept, truth.features, list(truth.coefficients))
        content["truth"] = line | {"noise_mse": truth.noise_std**2}
    return content


def loss_levels(loss: str, optimum: Optimum, truth: GenerateSettings | None) -> dict[str, float]:
    """Return what the curves of an mse may be held against, by what it is: the optimum, and the noise of synthetic data.

    Empty for other losses, which least squares does not minimise.
    """
    if loss != "mse":
        return {}
    levels = {"least squares, training rows": optimum.train_mse}
    return levels if truth is None else levels | {"noise floor": truth.noise_std**2}


def truth_of(table: Table, synthetic_csv: Path) -> GenerateSettings | None:
    """Return the settings that drew the table's data, or None where it is not the whole of the synthetic CSV."""
    if Path(table.csv.path) != synthetic_csv:
        return None
    settings = Params().section("generate", GenerateSettings)
    return settings if (table.features, table.target) == (settings.features, TARGET) else None


def sample_predictions(test: TableDataset, predict: Predictor, sample: int) -> tuple[Array, pd.DataFrame]:
    """Return at most `sample` evenly spaced test rows: features [N, F], and row, actual, predicted and residual."""
    count = min(sample, len(test))
    index = torch.arange(count) * len(test) // count
    features, target = (values.double().numpy() for values in test[index])
    predicted = predict(features)
    actual = target[:, 0]
    columns = {"row": index.numpy(), "actual": actual, "predicted": predicted, "residual": actual - predicted}
    return features, pd.DataFrame(columns)


def _chunks(dataset: TableDataset) -> Iterator[tuple[Array, Array]]:
    """Give a split's features [C, F] and targets [C], in float64."""
    for features, target in make_loader(dataset, SequentialChunks(len(dataset))):
        yield features.double().numpy(), target[:, 0].double().numpy()


def _line(intercept: float, features: list[str], coefficients: list[float]) -> dict[str, Any]:
    return {"intercept": intercept, "coefficients": dict(zip(features, coefficients, strict=True))}
