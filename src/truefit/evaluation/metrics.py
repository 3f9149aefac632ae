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
from truefit.data.dataset import TableDataset, target_and_weight

Array = NDArray[Any]  # float64
Predictor = Callable[[Array], Array]  # features [N, F] -> predictions [N]
Scores = dict[str, float | None]
FARTHEST = 1e140  # from 0, so that the sum of so large errors, in any number of rows, has a square in float64


class Metric(Protocol):
    """A figure of some rows, which come chunk by chunk."""

    def add(self, target: Array, predicted: Array, weight: Array | None = None) -> None:
        """Take the targets [C] and predictions [C] of some more rows, and their weights [C], all above 0, or None."""

    def value(self) -> float | None:
        """Return the figure of all rows so far, at least one; None where it is undefined."""


def weighted_sum(values: Array, weight: Array | None) -> float:
    """Return the sum of the values [C] of some rows, by their weights.

    >>> weighted_sum(np.array([1.0, 2.0]), None), weighted_sum(np.array([1.0, 2.0]), np.array([0.5, 3.0]))
    (3.0, 6.5)
    """
    return float((values if weight is None else values * weight).sum())


class _Rows:
    """Adds up what rows weigh: 1 each, where they have no weights."""

    weight = 0.0

    def add(self, target: Array, predicted: Array, weight: Array | None = None) -> None:
        """Add the rows' weights."""
        self.weight += len(target) if weight is None else float(weight.sum())


class MSE(_Rows):
    """Σw(y - p)² / Σw."""

    squares = 0.0

    def add(self, target: Array, predicted: Array, weight: Array | None = None) -> None:
        """Add the squared errors."""
        super().add(target, predicted, weight)
        self.squares += weighted_sum((target - predicted) ** 2, weight)

    def value(self) -> float | None:
        """Return the mean."""
        return self.squares / self.weight


class RMSE(MSE):
    """√(Σw(y - p)² / Σw), in the target's unit."""

    def value(self) -> float | None:
        """Return the root of the mean."""
        return math.sqrt(self.squares / self.weight)


class MAE(_Rows):
    """Σw|y - p| / Σw, in the target's unit."""

    absolute = 0.0

    def add(self, target: Array, predicted: Array, weight: Array | None = None) -> None:
        """Add the absolute errors."""
        super().add(target, predicted, weight)
        self.absolute += weighted_sum(np.abs(target - predicted), weight)

    def value(self) -> float | None:
        """Return the mean."""
        return self.absolute / self.weight


class R2(MSE):
    """r2 = 1 - Σw(y - p)² / Σw(y - ȳ)², the share of the targets' variation that is explained; None where there is none.

    ȳ is the weighted mean.
    """

    origin: float | None = None
    total, total_squares = 0.0, 0.0

    def add(self, target: Array, predicted: Array, weight: Array | None = None) -> None:
        """Add the squared errors, and the targets."""
        super().add(target, predicted, weight)
        # From the first row's, so that equal targets have no variance, and an offset does not cost its digits.
        self.origin = float(target[0]) if self.origin is None else self.origin
        shifted = target - self.origin
        self.total += weighted_sum(shifted, weight)
        self.total_squares += weighted_sum(shifted**2, weight)

    def value(self) -> float | None:
        """Return the share."""
        variation = self.total_squares - self.total**2 / self.weight
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
    """Return each of METRICS of the predictions on the rows, by their weights; errors say `whose` they are.

    Raises TruefitError, naming the row, for a target or a prediction that is not finite, or too large to be squared.
    """
    metrics, before = {name: make() for name, make in METRICS.items()}, 0
    for features, target, weight in float64_chunks(rows):
        with np.errstate(over="ignore", invalid="ignore"):
            predicted = predict(features)
        _require_moderate(rows, before, features, target, "the target")
        _require_moderate(rows, before, features, predicted, f"{whose} prediction")
        before += len(target)
        if weight is not None:
            counts = weight > 0
            target, predicted, weight = target[counts], predicted[counts], weight[counts]
        for metric in metrics.values() if len(target) else ():
            metric.add(target, predicted, weight)
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


def float64_chunks(rows: TableDataset) -> Iterator[tuple[Array, Array, Array | None]]:
    """Give the features [C, F] and targets [C] of all rows, and their weights [C] where they have some, in float64."""
    for features, target in sequential_loader(rows):
        actual, *weight = (part[:, 0].double().numpy() for part in target_and_weight(target))
        yield features.double().numpy(), actual, weight[0] if weight else None
