"""Columns of the kinds, taught by texts, and what they make of others; a table of all kinds."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from truefit.data.columns.base import Column

Texts = Sequence[str | None]
Array = NDArray[Any]

ALL_KINDS: dict[str, Any] = {
    "region": "category",
    "smoker": "boolean",
    "sold": "date",
    "seen": {"kind": "date", "format": "%d.%m.%y"},
}


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


def rows_of_all_kinds(count: int = 60, seed: int = 0) -> pd.DataFrame:
    """Return rows of all kinds, some with gaps, as texts; every fifth is no training row."""
    generator = np.random.default_rng(seed)
    day = pd.to_datetime("2026-01-01") + pd.to_timedelta(generator.integers(0, 400, count), unit="D")
    frame = pd.DataFrame(
        {
            "x": generator.normal(0, 10, count).round(2).astype(str),
            "region": generator.choice(["north", "south", "größe, 1", 'a "b"'], count),
            "smoker": generator.choice(["yes", "NO", "t", "F"], count),
            "sold": (day + pd.to_timedelta(generator.integers(0, 86_400, count), unit="s")).strftime("%Y-%m-%d %H:%M:%S"),
            "seen": day.strftime("%d.%m.%y"),
            "y": generator.normal(0, 1, count).round(3).astype(str),
            "s": ["train", "train", "train", "validation", "test"] * (count // 5),
        }
    )
    for name in ("x", "region", "smoker", "sold", "seen"):
        frame.loc[generator.random(count) < 0.1, name] = generator.choice(["", "NA", "?"])
    return frame
