import numpy as np
import pytest

from truefit.data.columns.base import Array, Column
from truefit.data.columns.boolean import Boolean
from truefit.data.columns.category import Category
from truefit.data.columns.date import Date
from truefit.data.columns.encoding import Encoding
from truefit.data.columns.number import Number

ALL: list[Column] = [
    Number(name="plain"),
    Category(name="c", names=["a", "b"], fill=[-1.0], gaps=True),
    Number(name="filled", fill=[2.5], gaps=True),
    Number(name="also plain"),
    Date(name="d", first=20_000.0, times=True),
    Boolean(name="b", fill=[1.0]),
]
STORED = np.array(
    [
        [1.5, 0, np.nan, -1, 20_001, 3600, 1],
        [2.5, 2, 7, -2, 19_999, 0, np.nan],
        [3.5, np.nan, 8, -3, 20_454, 86_399, 0],
    ]
)


def one_by_one(columns: list[Column], stored: Array) -> Array:
    """Return the features [B, K] that each column makes by itself."""
    made, at = [], 0
    for column in columns:
        out = np.zeros((len(stored), len(column.features)), stored.dtype)
        column.encode(stored[:, at : at + column.stored], out)
        made.append(out)
        at += column.stored
    return np.concatenate(made, axis=1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("copies", [1, 300])
def test_a_tables_features_are_those_of_its_columns_side_by_side(dtype: str, copies: int) -> None:
    columns, stored = ALL * copies, np.tile(STORED, copies).astype(dtype)
    encoding = Encoding(columns)

    features = encoding.features(stored)

    assert features.dtype == dtype
    assert encoding.names == [name for column in columns for name in column.features]
    np.testing.assert_array_equal(features, one_by_one(columns, stored))
    assert np.isfinite(features).all()


def test_the_target_stays_behind_the_features() -> None:
    rows = Encoding(ALL).rows(np.column_stack([STORED, [10, 20, 30]]))

    assert rows[:, -1].tolist() == [10, 20, 30]
    np.testing.assert_array_equal(rows[:, :-1], one_by_one(ALL, STORED))


def test_a_table_of_plain_numbers_is_not_copied() -> None:
    encoding, stored = Encoding([Number(name="x1"), Number(name="x2")]), np.ones((2, 3))

    assert encoding.features(stored[:, :2]).base is stored
    assert encoding.rows(stored) is stored


def test_no_rows_have_no_features() -> None:
    assert Encoding(ALL).features(STORED[:0]).shape == (0, len(Encoding(ALL).names))
