"""A training that failed: how that is known, from which epoch on, whether a cell is at fault, and what to try."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from truefit.core.errors import TruefitError
from truefit.core.seeds import numpy_generator
from truefit.core.text import one_line
from truefit.data.batches import Chunk, sequential_loader
from truefit.data.dataset import TableDataset, target_and_weight
from truefit.model.models import Model
from truefit.model.scaling import ScaleSettings, Scaling, fit_scaling
from truefit.training.build import untrained_model
from truefit.training.losses import degree, make_loss
from truefit.training.optimizers import HIGHEST
from truefit.training.progress import Outcome
from truefit.training.range_test import falling_rate
from truefit.training.settings import TrainSettings

Array = NDArray[np.float64]

# Up to these shares, of its fall and of itself, a loss has not risen.
NOISE, LEAST_RISE = 0.1, 1e-3
ODD = 1e9  # a cell so many times as large as nearly all of its column, or as 1, is at fault
SAMPLE_NUMBERS = 1 << 21  # of the rows that stand for all, at most
ITERATIONS = 100  # of the power iteration
TESTED_ROWS = 1024  # of its batches, at most
STRONG_DECAY = 10.0  # pulls at a weight several times as much as the loss of a scaled feature does
FEW_STEPS = 200  # with fewer, a training may be too short at any learning rate


class NotFiniteError(Exception):
    """A loss that is not finite; the text says which, and where."""


def require_learned(
    outcome: Outcome, kept: int, datasets: Sequence[TableDataset], settings: TrainSettings, device: torch.device
) -> None:
    """Raise TruefitError where the training loss of epoch `kept` is above the untrained model's or that of the mean.

    An epoch's loss is a mean over a time in which the model still learns, and dropout is on. So after a single epoch, or with
    dropout, the loss of the state that is kept counts, where it is lower.
    """
    model = untrained_model(datasets, settings)
    untrained, mean = _losses(model, datasets[0], settings, device)
    bar, whose = min((untrained, "the untrained model"), (mean if mean > 0 else math.inf, "predicting the mean"))
    losses = [untrained, *(epoch.train_loss for epoch in outcome.epochs)]
    reached = losses[kept]
    if not reached <= bar and (kept == 1 or settings.model.dropout):
        model.load_state_dict(outcome.kept_state)
        losses[kept] = reached = _losses(model, datasets[0], settings, device)[0]
    if reached <= bar:
        last = outcome.epochs[kept - 1]
        if last.validation_loss > ODD * last.train_loss and (fault := odd_cell(datasets[0], datasets[1:], settings)):
            raise TruefitError(f"epoch {kept}: the validation loss, {last.validation_loss:.4g}, is that of one cell; {fault}")
        return
    first = _first_of_rise(losses)
    course = f"it rose from epoch {first} on" if first else "it was still falling"
    what = f"epoch {kept}: the training loss, {reached:.6g}, is above that of {whose}, {bar:.6g}; {course}"
    raise failed(what, datasets, settings, device, rose=first is not None)


def _first_of_rise(losses: Sequence[float]) -> int | None:
    """Return the epoch from which the losses rose, the untrained model's being that of epoch 0, or None.

    The noise from epoch to epoch, beside which a rate that is far too low hardly moves anything, is no rise.
    """
    lowest = int(np.argmin(losses))
    if losses[-1] - losses[lowest] > max(NOISE * (losses[0] - losses[lowest]), LEAST_RISE * losses[lowest]):
        return lowest + 1
    return next((epoch for epoch, loss in enumerate(losses) if loss > (1 + NOISE) * losses[0]), None)


def require_even(datasets: Sequence[TableDataset], settings: TrainSettings) -> None:
    """Raise TruefitError where the training rows' standard deviation of a column is nothing but that of odd cells.

    Scaled by it, float32 would hardly tell the column's other cells from each other.
    """
    train_rows, *_ = datasets
    std = np.array(train_rows.table.std)
    if (std > ODD * _typical(train_rows)).any() and (fault := odd_cell(train_rows, [train_rows], settings)):
        raise TruefitError(f"before epoch 1: {fault}")


def failed(
    what: str, datasets: Sequence[TableDataset], settings: TrainSettings, device: torch.device, rose: bool = True
) -> TruefitError:
    """Return the error for a training of which `what` says how it failed, with the cell at fault, or what to try."""
    return TruefitError(f"{what}; {odd_cell(datasets[0], datasets, settings) or advice(datasets, settings, device, rose)}")


def odd_cell(train_rows: TableDataset, datasets: Sequence[TableDataset], settings: TrainSettings) -> str | None:
    """Return the place of the cell of `datasets` that is farthest beyond the training rows of its column, or None.

    A target of which the logarithm is taken has none.
    """
    columns, typical = train_rows.table.names, _typical(train_rows)
    dtype = np.dtype(train_rows.table.dtype).type  # in whose digits the CSV can be searched
    if settings.scale.target == "log":
        typical[-1] = math.inf
    found = (ODD, "")
    for rows in datasets:
        before = 0
        for chunk in _rows(rows):
            share = np.abs(chunk) / typical
            row, column = (int(index) for index in np.unravel_index(share.argmax(), share.shape))
            place = (
                f"{rows.split} row {before + row}, column '{one_line(columns[column])}': found {dtype(chunk[row, column])!s}"
            )
            rest = f"while nearly all of the column is within {typical[column]:.4g}"
            found = max(found, (float(share[row, column]), f"{place}, {rest}; mend it in the CSV, or leave the row out"))
            before += len(chunk)
    return found[1] or None


def advice(datasets: Sequence[TableDataset], settings: TrainSettings, device: torch.device, rose: bool) -> str:
    """Return settings to try: scaling, where that is off, and a learning rate, lower than now where the loss `rose`."""
    target = settings.scale.target if settings.scale.target != "none" else "standard"
    scaled = settings.model_copy(update={"scale": ScaleSettings(features="standard", target=target)})
    keys = [f"train.scale: {{features: standard, target: {target}}}"] if scaled.scale != settings.scale else []
    if settings.optimizer.weight_decay >= STRONG_DECAY:
        keys += ["train.optimizer.weight_decay: 0.0"]
        scaled = scaled.model_copy(update={"optimizer": settings.optimizer.model_copy(update={"weight_decay": 0.0})})
    rate, lr = good_rate(datasets, scaled, device), settings.optimizer.lr
    enough = bool(keys) or rose or (rate is not None and _rounded_down(rate) > lr)  # for the number of steps to stay as it is
    if rate is None:
        rate = lr / 10
    elif rose and scaled.scale == settings.scale:
        rate = min(rate, lr / 3)
    if enough:
        keys += [f"train.optimizer.lr: {_rounded_down(rate):g}"]
    rows = len(datasets[0])
    steps = max(FEW_STEPS, 0 if enough else 2 * settings.steps(rows))
    if settings.steps(rows) < steps:
        keys += [f"train.epochs: {-(-steps * settings.epochs // settings.steps(rows))}"]
    return f"try {' with '.join(keys)}"


def good_rate(datasets: Sequence[TableDataset], settings: TrainSettings, device: torch.device) -> float | None:
    """Return a learning rate at which the loss falls, by theory for a linear model with sgd, or else by a short range test."""
    quadratic = settings.model.name == "linear" and settings.loss.name != "l1"
    if quadratic and settings.optimizer.name == "sgd" and settings.clip_norm is None:
        return stable_rate(datasets[0], fit_scaling(settings.scale, datasets), settings) / 2
    plain = {"engine": "torch", "batch_size": min(settings.batch_rows(len(datasets[0])), TESTED_ROWS)}
    return falling_rate(datasets, settings.model_copy(update=plain), device)


def stable_rate(train_rows: TableDataset, scale: Scaling, settings: TrainSettings) -> float:
    """Return the largest learning rate at which sgd on batches of B rows is stable, for a linear model.

    For the loss e²/2 it is 2B / (β + (B - 1)λ), with λ the largest eigenvalue of the second moments of the inputs, the
    constant 1 among them, and β the largest squared length of a row's inputs: S. Ma, R. Bassily and M. Belkin, "The Power of
    Interpolation" (ICML 2018), theorem 1. The loss mse is twice that, and a sum B times the mean. A weight decay adds to the
    curvature, and a momentum m multiplies steps by 1 / (1 - m) in the long run (Polyak, 1964). A weight w of a row does what
    inputs √w times as large would.
    """
    sample = _inputs(scale, *_sample(train_rows))
    largest = max(float(np.square(_inputs(scale, *chunk)).sum(axis=1).max()) for chunk in sequential_loader(train_rows))
    batch = settings.batch_rows(len(train_rows))
    curvature = (largest + (batch - 1) * largest_eigenvalue(sample)) / batch
    curvature *= (2 if settings.loss.name == "mse" else 1) * (batch if settings.loss.reduction == "sum" else 1)
    return min(2 / (curvature + settings.optimizer.weight_decay) * (1 - settings.optimizer.momentum), HIGHEST)


def largest_eigenvalue(rows: Array) -> float:
    """Return the largest eigenvalue of rowsᵀ rows / N, for rows [N, K], by power iteration (Golub and Van Loan, 7.3.1)."""
    # A vector of ones would be orthogonal to the largest of two features that are each other's negative.
    vector: Array = numpy_generator(0, "power iteration").standard_normal((rows.shape[1],))
    length = 0.0
    for _ in range(ITERATIONS):
        vector = rows.T @ (rows @ (vector / np.linalg.norm(vector))) / len(rows)
        before, length = length, float(np.linalg.norm(vector))
        if length <= before * (1 + 1e-6):
            break
    return length


def _losses(model: Model, train_rows: TableDataset, settings: TrainSettings, device: torch.device) -> tuple[float, float]:
    """Return the mean loss of the model on the training rows, and that of predicting their mean, in the data's units."""
    body, loss = model.body.eval().to(device), make_loss(settings.loss)
    centre = train_rows.table.mean[-1] if settings.scale.target == "none" else 0.0
    ours, means = 0.0, 0.0
    with torch.no_grad():
        for features, target in sequential_loader(train_rows, device, model.scale):
            actual = target.double()
            ours += float(loss(body(features.to(device)).cpu().double(), actual))
            means += float(loss(torch.full_like(actual[:, :1], centre), actual))
    unit = model.scale.unit ** degree(settings.loss) / len(train_rows)
    return ours * unit, means * unit


def _typical(train_rows: TableDataset) -> Array:
    """Return the size [F + 1] within which all but the largest hundredth of a column's cells are, or 1 where that is less."""
    sizes = np.sort(np.abs(_columns(*_sample(train_rows))), axis=0)
    typical: Array = np.maximum(sizes[-1 - max(1, -(-len(sizes) // 100)) if len(sizes) > 1 else -1], 1)
    return typical


def _rows(rows: TableDataset) -> Iterator[Array]:
    """Give the rows' columns [C, F + 1], in float64."""
    return (_columns(*chunk) for chunk in sequential_loader(rows))


def _columns(features: Tensor, target: Tensor) -> Array:
    """Return the columns [C, F + 1], in float64, without the weights."""
    return torch.cat([features, target[:, :1]], dim=1).double().numpy()


def _sample(rows: TableDataset) -> Chunk:
    """Return evenly spaced rows, of which there are so many as to be no more than SAMPLE_NUMBERS numbers."""
    count = min(len(rows), max(1, SAMPLE_NUMBERS // len(rows.table.names)))
    return rows[torch.arange(count) * len(rows) // count]


def _inputs(scale: Scaling, features: Tensor, target: Tensor) -> Array:
    """Return the inputs [C, F + 1] of a linear model, the constant 1 and the scaled features, times the root of the weight."""
    scaled = scale.scale_features(features.double())
    inputs = torch.cat([torch.ones(len(scaled), 1, dtype=torch.float64), scaled.double()], dim=1)
    for weight in target_and_weight(target)[1:]:
        inputs *= weight.double().sqrt()
    return inputs.numpy()


def _rounded_down(rate: float) -> float:
    """Return the rate with two digits.

    >>> _rounded_down(0.0479)
    0.047
    """
    unit = 10.0 ** (math.floor(math.log10(rate)) - 1)
    return float(f"{math.floor(rate / unit + 1e-9) * unit:.2g}")
