"""Columns of the kinds, taught by texts, and what they make of others."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from truefit.data.columns.base import Column

Texts = Sequence[str | None]
Array = NDArray[Any]


def parse(column: Column, texts: Texts) -> tuple[list[list[float]], list[bool]]:
    """Return the numbers of texts, and which are none of the kind."""
    numbers, bad = column.parse(pa.array(texts, pa.string()))
    return numbers.tolist(), bad.tolist()


def taught(column: Column, train: Texts, fills: bool = False, others: Texts = (), chunks: int = 1) -> Column:
    """Return the column as it has learned from training rows, beside which the table has others."""
    learner = column.learner(fills)
    rows, _ = learner.parse(pa.array(train, pa.string()))
    learner.parse(pa.array(others, pa.string()))
    for chunk in np.array_split(rows, chunks):
        learner.add(chunk)
    return learner.fitted()


def features(column: Column, texts: Texts, dtype: str = "float32") -> list[list[float]]:
    """Return the features that the column makes of texts, by way of what is stored in the dtype."""
    numbers, bad = column.parse(pa.array(texts, pa.string()))
    assert not bad.any()
    out = np.zeros((len(texts), len(column.features)), dtype)
    column.encode(numbers.astype(dtype), out)
    return out.tolist()
