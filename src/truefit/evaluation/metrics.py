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

from truefit.data.batches import sequential_loader
from truefit.data.dataset import TableDataset

Array = NDArray[Any]  # float64
Predictor = Callable[[Array], Array]  # features [N, F] -> predictions [N]
Scores = dict[str, float | None]


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


def score(rows: TableDataset, predict: Predictor) -> Scores:
    """Return each of METRICS of the predictions on the rows."""
    metrics = {name: make() for name, make in METRICS.items()}
    for features, target in float64_chunks(rows):
        predicted = predict(features)
        for metric in metrics.values():
            metric.add(target, predicted)
    return {name: metric.value() for name, metric in metrics.items()}


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
