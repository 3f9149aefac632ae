import pytest
from helpers_columns import features, parse, taught

from truefit.data.columns.boolean import Boolean

COLUMN = Boolean(name="b")


@pytest.mark.parametrize("text", ["true", "True", "TRUE", "tRuE", "yes", "YES", "t", "T", "y", "Y", "1"])
def test_words_for_true_are_1_whatever_the_case(text: str) -> None:
    assert parse(COLUMN, [text]) == ([[1.0]], [False])


@pytest.mark.parametrize("text", ["false", "False", "FALSE", "no", "No", "f", "F", "n", "N", "0"])
def test_words_for_false_are_0_whatever_the_case(text: str) -> None:
    assert parse(COLUMN, [text]) == ([[0.0]], [False])


@pytest.mark.parametrize("text", ["", "2", "-1", "1.0", "on", "truee", "tr", "yes no", "Ｔ", "ｔrue", "ja"])
def test_other_texts_are_none(text: str) -> None:
    assert parse(COLUMN, ["yes", text, "no"])[1] == [False, True, False]


def test_a_missing_one_is_the_more_frequent_of_the_two() -> None:
    assert taught(COLUMN, ["yes", "no", "no", None], fills=True).fill == [0.0]
    assert taught(COLUMN, ["yes", "no", None], fills=True).fill == [1.0]
    assert taught(COLUMN, ["yes", "no"]).fill is None


def test_the_feature_is_0_or_1_and_a_gap_has_its_own() -> None:
    column = taught(COLUMN, ["yes", "yes", "no", None], fills=True)

    assert column.features == ["b", "b=(missing)"]
    assert features(column, ["F", "T", None]) == [[0, 0], [1, 0], [1, 1]]
