import numpy as np
import pytest

from truefit.data.columns.base import Array
from truefit.data.columns.number import Number


def learned(*chunks: Array, fills: bool = True, every: int = 1) -> Number:
    """Return a column that has learned from chunks of training rows."""
    learner = Number(name="x").learner(fills)
    for chunk in chunks:
        learner.add(chunk[:, None], every)
    column = learner.fitted()
    assert isinstance(column, Number)
    return column


def test_a_number_is_a_feature_as_it_is() -> None:
    out = np.zeros((2, 1))
    learned(np.ones(3), fills=False).encode(np.array([[1.5], [-2.0]]), out)

    assert out.tolist() == [[1.5], [-2.0]]


@pytest.mark.parametrize(("values", "median"), [([3, 1, 2], 2), ([4, 1, 2, 9], 3), ([0.1, 0.1], 0.1), ([np.nan, 7], 7)])
def test_a_missing_one_is_the_median_of_those_that_are_there(values: list[float], median: float) -> None:
    assert learned(np.array(values, float)).fill == [median]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_median_of_chunks_is_that_of_all(dtype: str) -> None:
    values = np.random.default_rng(0).normal(1e3, 1, 10_001).astype(dtype)
    values[::7] = np.nan

    assert learned(*np.array_split(values, 13)).fill == [float(np.nanmedian(values.astype(np.float64)))]


@pytest.mark.parametrize("chunks", [1, 4, 97])
def test_of_more_rows_than_are_kept_evenly_spaced_ones_are_looked_at(chunks: int) -> None:
    values = np.random.default_rng(1).permutation(1000).astype(float)

    assert learned(*np.array_split(values, chunks), every=7).fill == [float(np.median(values[::7]))]


def test_only_where_training_rows_had_gaps_there_is_a_feature_that_tells() -> None:
    with_gaps, without = learned(np.array([1.0, np.nan, 3.0])), learned(np.array([1.0, 2.0, 3.0]))

    assert with_gaps.features == ["x", "x=(missing)"]
    assert without.features == ["x"]
    told, untold = np.zeros((2, 2)), np.zeros((2, 1))
    with_gaps.encode(np.array([[np.nan], [5.0]]), told)
    without.encode(np.array([[np.nan], [5.0]]), untold)
    assert told.tolist() == [[2, 1], [5, 0]]
    assert untold.tolist() == [[2], [5]]


def test_a_column_without_a_value_teaches_nothing() -> None:
    with pytest.raises(ValueError, match=r"^no value in the training rows$"):
        learned(np.array([np.nan, np.nan]))
