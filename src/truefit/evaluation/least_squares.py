"""The least-squares fit: the line that no gradient descent can beat on the training rows."""

from typing import NamedTuple

import numpy as np

from truefit.data.batches import CHUNK_ROWS
from truefit.data.dataset import TableDataset
from truefit.evaluation.metrics import Array, float64_chunks


class LeastSquaresFit(NamedTuple):
    """The least-squares line, [intercept, coefficients…] of length F + 1, and its mse on the training rows."""

    line: Array
    train_mse: float


def least_squares(train: TableDataset) -> LeastSquaresFit:
    """Return the line that minimises the squared error over the training rows.

    The rows (1, x, y), features and target standardised so that offsets and units cost no digits, are reduced to one
    triangular factor, a chunk at a time, by stacking each chunk under the factor so far and taking the QR decomposition
    again (TSQR: Demmel, Grigori, Hoemmen and Langou, 2012). That keeps the accuracy which the normal equations lose by
    squaring the condition number. Where features depend on each other, the shortest solution is taken. The rotations keep
    lengths, so that the errors which it leaves in the factor have the squared sum of those of all rows.
    """
    mean, std = np.array(train.table.mean), np.array(train.table.std)
    std = np.where(std > 0, std, 1)
    factor: Array = np.empty((0, len(mean) + 1))
    for features, target in float64_chunks(train):
        rows = (np.column_stack([features, target]) - mean) / std
        stacked = np.vstack([factor, np.column_stack([np.ones(len(rows)), rows])])
        factor = np.asarray(np.linalg.qr(stacked, mode="r"))
    # NumPy's tolerance for the rank of one decomposition, for as many as there were.
    rank_tolerance = np.finfo(np.float64).eps * factor.shape[1] * -(-len(train) // CHUNK_ROWS)
    solution = np.linalg.lstsq(factor[:, :-1], factor[:, -1], rcond=rank_tolerance)[0]
    errors = (factor[:, -1] - factor[:, :-1] @ solution) * std[-1]
    coefficients = solution[1:] / std[:-1] * std[-1]
    line = np.asarray([mean[-1] + std[-1] * solution[0] - mean[:-1] @ coefficients, *coefficients])
    return LeastSquaresFit(line, float(errors @ errors) / len(train))
