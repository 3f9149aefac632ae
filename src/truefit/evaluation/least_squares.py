"""The least-squares fit: the line that no gradient descent can beat on the training rows."""

import mmap
from typing import NamedTuple

import numpy as np
from scipy.linalg.lapack import dtpmqrt, dtpqrt, dtrcon, dtrtrs

from truefit.data.batches import SequentialChunks
from truefit.data.dataset import TableDataset
from truefit.evaluation.metrics import Array, float64_chunks

PANEL_COLUMNS = 32  # that the decomposition takes at a time


class LeastSquaresFit(NamedTuple):
    """The least-squares line, [intercept, coefficients…] of length F + 1, and its mse on the training rows."""

    line: Array
    train_mse: float


def least_squares(train: TableDataset) -> LeastSquaresFit:
    """Return the line that minimises the squared error over the training rows.

    The rows (1, x), standardised so that offsets and units cost no digits, are reduced to one triangular factor, into which
    each chunk is rotated in place: the QR decomposition of a triangle on a chunk (LAPACK's tpqrt; TSQR: Demmel, Grigori,
    Hoemmen and Langou, 2012). That keeps the accuracy which the normal equations lose by squaring the condition number. Where
    features depend on each other, the shortest solution is taken. The rotations keep lengths, so that what they leave of the
    targets has the squared sum of the errors of all rows. A row and its target are multiplied by the root of its weight.
    """
    mean, std = np.array(train.table.mean), np.array(train.table.std)
    used = np.flatnonzero(std[:-1])  # of the shortest solution, a column that does not vary has no part
    mean, std = mean[[*used, -1]], np.append(std[used], std[-1] or 1)
    width = len(mean)
    # Not by np.zeros, which asks for huge pages: in these the half that stays empty would take memory too.
    memory = mmap.mmap(-1, 8 * width**2, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    factor: Array = np.ndarray((width, width), buffer=memory, order="F")
    goal, squares, total = np.zeros((width, 1)), 0.0, 0.0
    for features, target, weight in float64_chunks(train):
        rows = _standardised(features if len(used) == features.shape[1] else features[:, used], mean[:-1], std[:-1])
        errors = (target[:, None] - mean[-1]) / std[-1]
        if weight is not None:
            root = np.sqrt(weight)[:, None]
            rows *= root
            errors *= root
        total += len(target) if weight is None else float(weight.sum())
        factor, reflectors, scales, _ = dtpqrt(0, min(PANEL_COLUMNS, width), factor, rows, overwrite_a=True, overwrite_b=True)
        goal, rest, _ = dtpmqrt(0, reflectors, scales, goal, errors, trans="T")
        squares += float((rest**2).sum())
        del features, rows, reflectors  # before the next chunk is read
    # NumPy's tolerance for the rank of one decomposition, for as many as there were.
    tolerance = np.finfo(np.float64).eps * (width + 1) * len(SequentialChunks(len(train), train.row_bytes))
    solution = _solve(factor, goal, len(train), tolerance)
    squares += float(((goal[:, 0] - factor @ solution) ** 2).sum())
    coefficients = np.zeros(len(train.table.features))
    coefficients[used] = solution[1:] / std[:-1] * std[-1]
    intercept = mean[-1] + std[-1] * solution[0] - mean[:-1] @ coefficients[used]
    return LeastSquaresFit(np.append(intercept, coefficients), squares * float(std[-1]) ** 2 / total)


def _standardised(features: Array, mean: Array, std: Array) -> Array:
    """Return the rows (1, (x - mean) / std) [C, F + 1], column by column, as LAPACK wants them."""
    rows = np.ones((len(features), features.shape[1] + 1), order="F")
    rows[:, 1:] = features
    rows[:, 1:] -= mean
    rows[:, 1:] /= std
    return rows


def _solve(factor: Array, goal: Array, rows: int, tolerance: float) -> Array:
    """Return the shortest x [F + 1] that brings factor · x, a triangle of so many rows, closest to goal [F + 1, 1]."""
    condition, _ = dtrcon(factor)
    if condition > tolerance:
        solution: Array = dtrtrs(factor, goal)[0]
    else:
        # Rows of the triangle beyond the data's are zeros.
        solution = np.linalg.lstsq(factor[:rows], goal[:rows], rcond=tolerance)[0]
    return solution[:, 0]
