"""Metrics: how far predictions are from the targets. Another one is a class and an entry in METRICS here.

metrics.json, the printed table, MLflow and the comparison of two runs follow from METRICS.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from truefit.core.errors import TruefitError
from truefit.core.text import one_line
from truefit.data.batches import sequential_loader
from truefit.data.dataset import TableDataset

Array = NDArray[Any]  # float64
Predictor = Callable[[Array], Array]  # features [N, F] -> predictions [N]
Scores = dict[str, float | None]
FARTHEST = 1e140  # from 0, so that the sum of so large errors, in any number of rows, has a square in float64


class Metric(Protocol):
    """A figure of some rows, which come chunk by chunk."""

    def add(self, target: Array, predicted: Array) -> None:
        """Take the targets [C] and predictions [C] of some more rows."""

    def value(self) -> float | None:
        """Return the figure of all rows so far, at least one; None where it is undefined."""


class MSE:
    """Σ(y - p)² / N."""

    rows, squares = 0, 0.0

    def add(self, target: Array, predicted: Array) -> None:
        """Add the squared errors."""
        self.rows += len(target)
        self.squares += float(((target - predicted) ** 2).sum())

    def value(self) -> float | None:
        """Return the mean."""
        return self.squares / self.rows


class RMSE(MSE):
    """√(Σ(y - p)² / N), in the target's unit."""

    def value(self) -> float | None:
        """Return the root of the mean."""
        return math.sqrt(self.squares / self.rows)


class MAE:
    """Σ|y - p| / N, in the target's unit."""

    rows, absolute = 0, 0.0

    def add(self, target: Array, predicted: Array) -> None:
        """Add the absolute errors."""
        self.rows += len(target)
        self.absolute += float(np.abs(target - predicted).sum())

    def value(self) -> float | None:
        """Return the mean."""
        return self.absolute / self.rows


class R2(MSE):
    """r2 = 1 - Σ(y - p)² / Σ(y - ȳ)², the share of the targets' variation that is explained; None where there is none."""

    origin: float | None = None
    total, total_squares = 0.0, 0.0

    def add(self, target: Array, predicted: Array) -> None:
        """Add the squared errors, and the targets."""
        super().add(target, predicted)
        # From the first row's, so that equal targets have no variance, and an offset does not cost its digits.
        self.origin = float(target[0]) if self.origin is None else self.origin
        shifted = target - self.origin
        self.total += float(shifted.sum())
        self.total_squares += float((shifted**2).sum())

    def value(self) -> float | None:
        """Return the share."""
        variation = self.total_squares - self.total**2 / self.rows
        return 1 - self.squares / variation if variation > 0 else None


METRICS: dict[str, type[Metric]] = {
    "mse": MSE,
    "rmse": RMSE,
    "mae": MAE,
    "r2": R2,
}
UNIT_SCALE = ("r2", "excess_mse")  # differences from 0 or 1, and so no scale for their own error
UNDEFINED = {"r2": "all targets of the test rows are equal"}  # why a metric is None


def score(rows: TableDataset, predict: Predictor, whose: str = "the model's") -> Scores:
    """Return each of METRICS of the predictions on the rows; errors say `whose` they are.

    Raises TruefitError, naming the row, for a target or a prediction that is not finite, or too large to be squared.
    """
    metrics, before = {name: make() for name, make in METRICS.items()}, 0
    for features, target in float64_chunks(rows):
        with np.errstate(over="ignore", invalid="ignore"):
            predicted = predict(features)
        _require_moderate(rows, before, features, target, "the target")
        _require_moderate(rows, before, features, predicted, f"{whose} prediction")
        before += len(target)
        for metric in metrics.values():
            metric.add(target, predicted)
    return {name: metric.value() for name, metric in metrics.items()}


def _require_moderate(rows: TableDataset, before: int, features: Array, values: Array, what: str) -> None:
    """Raise TruefitError for the first of the values [C], of the rows behind the first `before`, that metrics cannot take.

    It names the one of the row's features [F] that lies the most standard deviations away from the training rows' mean.
    """
    moderate = np.abs(values) <= FARTHEST
    if moderate.all():
        return
    index, width = int(np.argmin(moderate)), features.shape[1]
    mean, std = np.array(rows.table.mean[:width]), np.array(rows.table.std[:width])
    with np.errstate(over="ignore"):
        column = int(np.argmax(np.abs(features[index] - mean) / np.where(std > 0, std, 1)))
    place = f"{rows.split} row {before + index}, counted from 0, whose {one_line(rows.table.features[column])} is"
    found = f"{features[index, column]:.6g}: found {values[index]:.6g} as {what}"
    allowed = f"allowed: between {-FARTHEST:g} and {FARTHEST:g}"
    raise TruefitError(f"{place} {found}, {allowed}; leave the row out of the CSV, or train with a smaller learning rate")


def model_predictor(model: nn.Module, dtype: torch.dtype) -> Predictor:
    """Return a model's predictions, under eval() and no_grad()."""
    model.eval()

    def predict(features: Array) -> Array:
        with torch.no_grad():
            prediction: Array = model(torch.from_numpy(features).to(dtype))[:, 0].double().numpy()
        return prediction

    return predict


def line_predictor(line: Array) -> Predictor:
    """Return the predictions of the line [intercept, coefficients…]."""
    return lambda features: line[0] + features @ line[1:]


def float64_chunks(rows: TableDataset) -> Iterator[tuple[Array, Array]]:
    """Give the features [C, F] and targets [C] of all rows, in float64."""
    for features, target in sequential_loader(rows):
        yield features.double().numpy(), target[:, 0].double().numpy()
