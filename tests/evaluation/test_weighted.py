"""Weights of rows in metrics, least squares and the report: as scikit-learn's sample_weight, and as repeated rows."""

from pathlib import Path

import numpy as np
import pytest
from helpers_training import Rows, normal_line, repeated, untrained, weighted_rows, write_prepared
from sklearn.linear_model import LinearRegression
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

from truefit.data.dataset import TableDataset
from truefit.data.table import Dtype
from truefit.evaluation.least_squares import least_squares
from truefit.evaluation.metrics import line_predictor, score
from truefit.evaluation.note import describe
from truefit.evaluation.report import compute_metrics, summary
from truefit.training.settings import TrainSettings

LINE = np.array([0.5, 1.5, -0.7])


def drawn_rows(rows: int, seed: int = 0) -> Rows:
    """Return rows of two features, off the line where x1 is large, whose weights are anything between 0 and 5."""
    drawn = normal_line(rows, (2.0, -1.0), seed=seed, noise=0.5)
    drawn[:, -1] += drawn[:, 0] ** 2
    return weighted_rows(drawn, np.random.default_rng(seed + 1).uniform(0, 5, rows))


def counted_rows(rows: int, seed: int = 0) -> Rows:
    drawn = drawn_rows(rows, seed)
    return np.column_stack([drawn[:, :-1], np.floor(drawn[:, -1])])


# Metrics.


@pytest.mark.parametrize("rows", [2, 57, 70_003], ids=["two rows", "one chunk", "two chunks"])
@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_scores_are_those_of_scikit_learn_with_sample_weight(tmp_path: Path, dtype: Dtype, offset: float, rows: int) -> None:
    stored = (drawn_rows(rows) + np.array([0, 0, offset, 0])).astype(dtype).astype(np.float64)
    write_prepared(tmp_path, drawn_rows(20), stored, dtype=dtype, weighted=True)
    line = LINE + np.array([offset, 0, 0])
    actual, predicted, weights = stored[:, 2], line[0] + stored[:, :2] @ line[1:], stored[:, 3]
    mse = mean_squared_error(actual, predicted, sample_weight=weights)
    expected = {
        "mse": mse,
        "rmse": np.sqrt(mse),
        "mae": mean_absolute_error(actual, predicted, sample_weight=weights),
        "r2": r2_score(actual, predicted, sample_weight=weights),
    }
    # A float32 weight is rounded once more where it is divided by the mean.
    rel = 1e-9 if dtype == "float64" else 1e-6
    found = score(TableDataset(tmp_path, "test"), line_predictor(line))
    assert found == {name: pytest.approx(value, rel=rel) for name, value in expected.items()}


def test_scores_by_whole_weights_are_those_of_repeated_rows_and_weight_0_is_none(tmp_path: Path) -> None:
    rows = counted_rows(300)
    assert {*rows[:, -1]} == {0, 1, 2, 3, 4}
    rows[rows[:, -1] == 0, 2] += 100
    write_prepared(tmp_path / "weighted", rows, rows, weighted=True)
    write_prepared(tmp_path / "repeated", repeated(rows), repeated(rows))
    weighted, other = (score(TableDataset(tmp_path / name, "test"), line_predictor(LINE)) for name in ("weighted", "repeated"))
    assert weighted == {name: pytest.approx(value, rel=1e-12) for name, value in other.items()}


def test_r2_is_undefined_where_all_targets_that_count_are_equal(tmp_path: Path) -> None:
    rows = drawn_rows(30)
    rows[:, 2] = 1e8 / 3
    rows[0, 2:] = 7, 0
    write_prepared(tmp_path, drawn_rows(20), rows, weighted=True)
    assert score(TableDataset(tmp_path, "test"), line_predictor(LINE))["r2"] is None


# Least squares.


@pytest.mark.parametrize("rows", [57, 70_003], ids=["one chunk", "two chunks"])
def test_least_squares_is_scikit_learns_weighted_line(tmp_path: Path, rows: int) -> None:
    drawn = drawn_rows(rows)
    write_prepared(tmp_path, drawn, drawn[:20], weighted=True)
    fit = least_squares(TableDataset(tmp_path, "train"))
    expected = LinearRegression().fit(drawn[:, :2], drawn[:, 2], sample_weight=drawn[:, 3])
    np.testing.assert_allclose(fit.line, [expected.intercept_, *expected.coef_], rtol=1e-9)
    errors = drawn[:, 2] - expected.predict(drawn[:, :2])
    assert fit.train_mse == pytest.approx(np.average(errors**2, weights=drawn[:, 3]), rel=1e-9)


def test_least_squares_by_whole_weights_is_that_of_repeated_rows(tmp_path: Path) -> None:
    rows = counted_rows(100)
    rows[rows[:, -1] == 0, 2] += 100
    write_prepared(tmp_path / "weighted", rows, rows, weighted=True)
    write_prepared(tmp_path / "repeated", repeated(rows), repeated(rows))
    weighted, other = (least_squares(TableDataset(tmp_path / name, "train")) for name in ("weighted", "repeated"))
    np.testing.assert_allclose(weighted.line, other.line, rtol=1e-10)
    assert weighted.train_mse == pytest.approx(other.train_mse, rel=1e-10)


def test_a_feature_that_varies_only_where_nothing_counts_has_no_coefficient(tmp_path: Path) -> None:
    rows = counted_rows(100)
    rows[:, 1] = np.where(rows[:, -1] == 0, rows[:, 1], 0.1)
    table = write_prepared(tmp_path, rows, rows, weighted=True)
    assert table.std[1] == 0
    line = least_squares(TableDataset(tmp_path, "train")).line
    kept = rows[rows[:, -1] > 0]
    expected = LinearRegression().fit(kept[:, :1], kept[:, 2], sample_weight=kept[:, 3])
    np.testing.assert_allclose(line[0] + 0.1 * line[2], expected.intercept_, rtol=1e-9)
    assert line[1] == pytest.approx(expected.coef_[0], rel=1e-9)


# What is told.


def test_the_report_and_the_note_name_the_weights_where_there_are_some(tmp_path: Path) -> None:
    rows = drawn_rows(30)
    for name, weighted in (("with", True), ("without", False)):
        given = rows if weighted else rows[:, :-1]
        table = write_prepared(tmp_path / name, given, given, weighted=weighted)
        test = TableDataset(tmp_path / name, "test")
        metrics = compute_metrics(test, untrained(table), LINE, None)
        assert metrics.get("weight") == ("w" if weighted else None)
        told = "scores and losses are weighted by 'w'"
        assert (told in summary(metrics)) == weighted
        assert (told in describe(table, TrainSettings(), metrics)) == weighted
