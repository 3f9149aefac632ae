import numpy as np
import pyarrow as pa
import pytest
from helpers_columns import features, taught

from truefit.data.columns import category
from truefit.data.columns.category import MOST_NAMES, Category

COLUMN = Category(name="c")


def names(column: object) -> list[str]:
    assert isinstance(column, Category)
    return column.names


@pytest.mark.parametrize("chunks", [1, 3])
def test_names_are_the_training_rows_most_frequent_first_and_then_by_the_alphabet(chunks: int) -> None:
    column = taught(COLUMN, ["b", "z", "a", "z", "ä", "B", "b"], others=["c", "c", "c", "a", "a"], chunks=chunks)

    assert names(column) == ["b", "z", "B", "a", "ä"]
    assert column.features == ["c=b", "c=z", "c=B", "c=a", "c=ä", "c=(other)"]


def test_each_name_has_a_feature_and_all_others_one() -> None:
    column = taught(COLUMN, ["a", "a", "b"], others=["c"])

    assert features(column, ["b", "a", "c", "never", " b", ""]) == [
        [0, 1, 0],
        [1, 0, 0],
        *[[0, 0, 1]] * 4,
    ]


def test_at_most_a_hundred_names_have_a_feature_of_their_own() -> None:
    texts = [f"n{number:03}" for number in range(130) for _ in range(1 + (number >= 120))]

    column = taught(COLUMN, texts)

    assert names(column) == [f"n{number:03}" for number in [*range(120, 130), *range(90)]]
    assert len(column.features) == MOST_NAMES + 1
    assert np.argmax(features(column, ["n129", "n000", "n089", "n090", "n119"]), axis=1).tolist() == [9, 10, 99, 100, 100]


def test_a_missing_one_is_a_value_of_its_own_where_training_rows_had_gaps() -> None:
    column = taught(COLUMN, ["a", None, "b", "a"], fills=True)

    assert column.features == ["c=a", "c=b", "c=(other)", "c=(missing)"]
    assert features(column, [None, "b", "never"]) == [[0, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0]]


def test_features_of_others_and_of_gaps_are_told_from_names_that_are_called_so() -> None:
    column = taught(COLUMN, ["(other)", "((other))", "(missing)", None], fills=True)

    assert column.features == ["c=((other))", "c=(missing)", "c=(other)", "c=(((other)))", "c=((missing))"]
    assert features(column, ["x", None]) == [[0, 0, 0, 1, 0], [0, 0, 0, 0, 1]]


def test_a_missing_one_is_another_where_they_had_none() -> None:
    column = taught(COLUMN, ["a", "b"], fills=True, others=[None])

    assert column.features == ["c=a", "c=b", "c=(other)"]
    assert features(column, [None, "b"]) == [[0, 0, 1], [0, 1, 0]]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_is_stored_of_a_row_is_what_is_made_of_its_text_later(dtype: str) -> None:
    learner = COLUMN.learner(True)
    texts = pa.array(["x", "b", None, "c", "b", "a", "b", "c"])
    rows, bad = learner.parse(texts)
    learner.add(rows[2:])  # x is in no training row
    column = learner.fitted()

    assert not bad.any()
    np.testing.assert_array_equal(learner.stored(rows.astype(dtype)), column.parse(texts)[0].astype(dtype))


def test_a_column_of_gaps_alone_teaches_nothing() -> None:
    with pytest.raises(ValueError, match=r"^no value in the training rows$"):
        taught(COLUMN, [None, None], fills=True, others=["a"])


def test_more_texts_than_memory_is_to_hold_are_no_category(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(category, "MOST_TEXTS", 3)

    assert names(taught(COLUMN, ["a", "b", "c", "a"])) == ["a", "b", "c"]
    with pytest.raises(ValueError, match=r"^more than 3 different texts$"):
        taught(COLUMN, ["a", "b"], others=["c", "d"])
