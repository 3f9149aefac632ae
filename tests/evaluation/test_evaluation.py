"""Scores as scikit-learn has them, least squares as NumPy has it, also where the numbers are awkward, and the report."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from helpers_memory import peak_memories
from helpers_training import SCALED, Rows, normal_line, renamed, tensors, untrained, write_prepared
from numpy.typing import NDArray
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

from evaluate import print_next
from truefit.core.config import Params
from truefit.core.errors import TruefitError
from truefit.data.dataset import TableDataset
from truefit.data.generating import GenerateSettings
from truefit.data.table import Dtype, Table
from truefit.evaluation.least_squares import LeastSquaresFit, least_squares
from truefit.evaluation.metrics import FARTHEST, Predictor, line_predictor, model_predictor, score
from truefit.evaluation.report import compute_metrics, generating_settings, loss_levels, sample_predictions, summary
from truefit.model.layers import Dropout
from truefit.model.models import ModelSettings
from truefit.training.settings import TrainSettings

Array = NDArray[np.float64]


def write_test_rows(folder: Path, rows: Rows, dtype: Dtype = "float64", train_rows: Rows | None = None) -> Table:
    trained = rows[:20] if train_rows is None else train_rows
    return write_prepared(folder, trained, rows[:5], rows, dtype=dtype)


# Scores.


@pytest.mark.parametrize("rows", [2, 57, 70_003], ids=["two rows", "one chunk", "two chunks"])
@pytest.mark.parametrize("offset", [0.0, 1e8])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_scores_are_those_of_scikit_learn(tmp_path: Path, dtype: Dtype, offset: float, rows: int) -> None:
    stored = (normal_line(rows, (2.0, -1.0)) * [1, 1, 100] + [0, 0, offset]).astype(dtype).astype(np.float64)
    write_test_rows(tmp_path, stored, dtype)
    coefficients = np.array([offset + 80, 190.0, -110.0])
    actual, predicted = stored[:, -1], coefficients[0] + stored[:, :-1] @ coefficients[1:]
    mse = mean_squared_error(actual, predicted)
    expected = {
        "mse": mse,
        "rmse": np.sqrt(mse),
        "mae": mean_absolute_error(actual, predicted),
        "r2": r2_score(actual, predicted),
    }
    found = score(TableDataset(tmp_path, "test"), line_predictor(coefficients))
    assert list(found) == ["mse", "rmse", "mae", "r2"]
    assert found == {name: pytest.approx(value, rel=1e-9) for name, value in expected.items()}


def test_r2_keeps_its_digits_where_the_test_rows_lie_far_from_the_training_rows(tmp_path: Path) -> None:
    near = normal_line(57)
    far = near + np.array([0, 1e8])
    write_test_rows(tmp_path, far, train_rows=near)
    predict: Predictor = lambda features: 1e8 + 1.5 + 2 * features[:, 0]  # noqa: E731
    assert score(TableDataset(tmp_path, "test"), predict)["r2"] == pytest.approx(
        r2_score(far[:, -1], predict(far[:, :-1])), rel=1e-6
    )


@pytest.mark.parametrize("constant", [0.0, 0.1, 0.7, 3.3, 1e8 / 3])
@pytest.mark.parametrize("rows", [1, 37, 100])
def test_r2_of_a_constant_target_is_none(tmp_path: Path, rows: int, constant: float) -> None:
    tested = normal_line(rows)
    tested[:, -1] = constant
    write_test_rows(tmp_path, tested, train_rows=normal_line(20))
    found = score(TableDataset(tmp_path, "test"), lambda features: features[:, 0])
    assert found["r2"] is None
    assert found["mse"] == pytest.approx(float(((constant - tested[:, 0]) ** 2).mean()), rel=1e-12)


def test_a_perfect_prediction_scores_no_error_and_an_r2_of_1(tmp_path: Path) -> None:
    rows = np.array([[0.0, 1.0], [1.0, 3.0], [2.0, 5.0]])
    write_test_rows(tmp_path, rows)
    assert score(TableDataset(tmp_path, "test"), line_predictor(np.array([1.0, 2.0]))) == {
        "mse": 0.0,
        "rmse": 0.0,
        "mae": 0.0,
        "r2": 1.0,
    }


@pytest.mark.parametrize("predicted", [np.inf, -np.inf, np.nan, 1e200])
@pytest.mark.parametrize("row", [0, 29, 70_001], ids=["first", "last", "in another chunk"])
def test_a_prediction_that_has_no_square_is_refused_by_its_row(tmp_path: Path, row: int, predicted: float) -> None:
    rows = normal_line(max(row + 2, 30), (2.0, -1.0))
    rows[row, 1] = 123
    write_test_rows(tmp_path, rows)

    def predict(features: Array) -> Array:
        return np.where(features[:, 1] == 123, predicted, 0.0)

    with pytest.raises(TruefitError) as caught:
        score(TableDataset(tmp_path, "test"), predict, "the other's")
    assert str(caught.value) == (
        f"test row {row}, counted from 0, whose x2 is 123: found {predicted:.6g} as the other's prediction, "
        "allowed: between -1e+140 and 1e+140; leave the row out of the CSV, or train with a smaller learning rate"
    )


def test_an_overflow_inside_a_prediction_is_refused_without_a_warning(tmp_path: Path) -> None:
    rows = normal_line(30, (2.0, -1.0))
    rows[3, :-1] = 1e300
    write_test_rows(tmp_path, rows, train_rows=rows[10:])
    for line in ([0.0, 1e10, 0.0], [0.0, 1e10, -1e10]):
        with pytest.raises(TruefitError, match=r"test row 3, .*: found -?(inf|nan) as"):
            score(TableDataset(tmp_path, "test"), line_predictor(np.array(line)))


def test_a_target_that_has_no_square_is_refused_by_its_row(tmp_path: Path) -> None:
    rows = normal_line(30)
    rows[29, -1] = -1e200
    write_test_rows(tmp_path, rows)
    with pytest.raises(TruefitError, match=r"test row 29, .*: found -1e\+200 as the target, allowed: between"):
        score(TableDataset(tmp_path, "test"), line_predictor(np.array([1.0, 2.0])))


def test_the_largest_numbers_allowed_have_finite_scores(tmp_path: Path) -> None:
    rows = normal_line(30)
    rows[:, -1] = np.where(np.arange(30) % 2, FARTHEST, -FARTHEST)
    write_test_rows(tmp_path, rows)
    found = score(TableDataset(tmp_path, "test"), lambda features: np.full(len(features), FARTHEST))
    assert found == {
        name: pytest.approx(value) for name, value in {"mse": 2e280, "rmse": 2e280**0.5, "mae": 1e140, "r2": -1}.items()
    }


# Least squares.


def fit(folder: Path, rows: Rows) -> Array:
    """Return the least-squares solution for these training rows."""
    write_prepared(folder, rows, rows[:5])
    return least_squares(TableDataset(folder, "train")).line


def residuals(rows: Rows, solution: Array) -> Array:
    return np.asarray(rows[:, -1] - line_predictor(solution)(rows[:, :-1]))


def smallest_mse(rows: Rows) -> float:
    """Return the least mean squared error there can be, found with NumPy on standardised columns."""
    centred = rows - rows.mean(axis=0)
    features = centred[:, :-1] / rows[:, :-1].std(axis=0)
    weights = np.linalg.lstsq(features, centred[:, -1])[0]
    return float(((centred[:, -1] - features @ weights) ** 2).mean())


@pytest.mark.parametrize("rows", [40, 70_003], ids=["one chunk", "two chunks"])
def test_least_squares_is_numpys(tmp_path: Path, rows: int) -> None:
    data = normal_line(rows, (2.0, -1.0, 0.5))
    expected = np.linalg.lstsq(np.column_stack([np.ones(rows), data[:, :-1]]), data[:, -1])[0]
    np.testing.assert_allclose(fit(tmp_path, data), expected, rtol=1e-12)


def test_least_squares_of_float32_rows_is_taken_in_float64(tmp_path: Path) -> None:
    data = normal_line(40, (2.0, -1.0)).astype(np.float32)
    write_prepared(tmp_path, data.astype(np.float64), normal_line(3, (2.0, -1.0)), dtype="float32")
    exact = data.astype(np.float64)
    expected = np.linalg.lstsq(np.column_stack([np.ones(40), exact[:, :-1]]), exact[:, -1])[0]
    np.testing.assert_allclose(least_squares(TableDataset(tmp_path, "train")).line, expected, rtol=1e-12)


@pytest.mark.parametrize("rows", [50, 70_003], ids=["one chunk", "two chunks"])
@pytest.mark.parametrize(
    ("scales", "offset", "target_offset"),
    [
        ([1, 1, 1], 1e6, 0),
        ([1e-3, 1e-3, 1e-3], 1e6, 0),
        ([1e-6, 1, 1e6], 0, 0),
        ([1e-9, 1, 1e9], 0, 0),
        ([1e-2, 1, 1e6], 1e5, 1e8),
    ],
    ids=["offset", "small on an offset", "scales", "wider scales", "all of it"],
)
def test_least_squares_reaches_the_optimum_of_ill_conditioned_columns(
    tmp_path: Path, scales: list[float], offset: float, target_offset: float, rows: int
) -> None:
    data = normal_line(rows, (2.0, -1.0, 0.5)) * [*scales, 1] + [offset, -offset, offset, target_offset]
    solution = fit(tmp_path, data)
    # Predictions alone, sums of terms up to 2e9, are rounded by 5e-7, which makes 1e-6 of an error of 0.1.
    assert float((residuals(data, solution) ** 2).mean()) == pytest.approx(smallest_mse(data), rel=5e-6)
    # The noise, 0.1, leaves each coefficient a standard error of 0.1 / √rows of its column's scale.
    np.testing.assert_allclose(solution[1:] * scales, [2.0, -1.0, 0.5], atol=5 * 0.1 / np.sqrt(rows))


@pytest.mark.parametrize("rows", [50, 5_000, 70_003])
def test_features_that_depend_on_each_other_do_not_break_least_squares(tmp_path: Path, rows: int) -> None:
    plain = normal_line(rows, (2.0, -1.0))
    mixed = 0.3 * plain[:, 0] + 0.7 * plain[:, 1]
    dependent = np.column_stack([plain[:, :2], mixed, plain[:, 0] * 3, plain[:, -1]])
    solution = fit(tmp_path / "dependent", dependent)
    assert np.abs(solution).max() < 10
    expected = residuals(plain, fit(tmp_path / "plain", plain))
    np.testing.assert_allclose(residuals(dependent, solution), expected, atol=1e-9)


@pytest.mark.parametrize("constant", [0.0, 0.1, -3.3, 1e6 / 3])
@pytest.mark.parametrize("rows", [50, 70_003])
def test_a_constant_feature_does_not_break_least_squares(tmp_path: Path, rows: int, constant: float) -> None:
    plain = normal_line(rows)
    with_constant = np.insert(plain, 1, constant, axis=1)
    solution = fit(tmp_path / "constant", with_constant)
    assert np.abs(solution).max() < 10
    expected = residuals(plain, fit(tmp_path / "plain", plain))
    np.testing.assert_allclose(residuals(with_constant, solution), expected, atol=1e-8)


def test_fewer_rows_than_features_are_fitted_exactly_by_a_short_solution(tmp_path: Path) -> None:
    data = normal_line(3, (1.0,) * 6)
    solution = fit(tmp_path, data)
    np.testing.assert_allclose(residuals(data, solution), 0, atol=1e-9)
    assert np.abs(solution).max() < 20


def test_a_constant_target_is_fitted_by_its_value_alone(tmp_path: Path) -> None:
    data = normal_line(50)
    data[:, -1] = 0.3
    np.testing.assert_allclose(fit(tmp_path, data), [0.3, 0.0], atol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rows", [40, 70_003], ids=["one chunk", "two chunks"])
@pytest.mark.parametrize("kind", ["plain", "units and offsets", "dependent", "constant feature"])
def test_the_mse_of_the_optimum_is_its_score_on_the_training_rows(tmp_path: Path, kind: str, rows: int, dtype: Dtype) -> None:
    data = normal_line(rows, (2.0, -1.0))
    if kind == "units and offsets":
        data = data * [1, 1e-3, 1e3] + [10, 0, 1e4]
    elif kind == "dependent":
        data = np.insert(data, 2, data[:, 0] - data[:, 1], axis=1)
    elif kind == "constant feature":
        data = np.insert(data, 1, 0.1, axis=1)
    write_prepared(tmp_path, data, data[:5], dtype=dtype)
    train = TableDataset(tmp_path, "train")
    optimum = least_squares(train)
    assert optimum.train_mse == pytest.approx(score(train, line_predictor(optimum.line))["mse"], rel=1e-9)


def test_the_mse_of_an_exact_fit_is_as_good_as_zero(tmp_path: Path) -> None:
    few = normal_line(3, (1.0,) * 6)
    write_prepared(tmp_path, few, few)
    assert least_squares(TableDataset(tmp_path, "train")).train_mse == pytest.approx(0, abs=1e-18)


IMPORTS = """
from truefit.data.dataset import TableDataset
from truefit.evaluation.least_squares import least_squares
"""


def test_least_squares_of_a_wide_table_needs_memory_for_a_chunk_of_it(tmp_path: Path) -> None:
    for rows in (100, 65_536):
        data = np.random.default_rng(1).normal(size=(rows, 257))
        write_prepared(tmp_path / str(rows), data, data[:5], dtype="float32")
    works = [f"least_squares(TableDataset(Path('{rows}'), 'train'))" for rows in (100, 65_536)]
    few, many = peak_memories(IMPORTS, works, tmp_path)
    # Some chunks of 17 MB and of 34 MB in float64, and the file, which is mapped, with 67 MB; all rows in float64 are 135 MB.
    assert many - few < 300


def test_only_an_mse_is_held_against_the_optimum_and_only_synthetic_data_against_its_noise() -> None:
    optimum, truth = LeastSquaresFit(np.array([1.0, 2.0]), 0.25), GenerateSettings(noise_std=0.5)
    assert loss_levels(TrainSettings(), optimum, truth) == {"least squares, training rows": 0.25, "noise floor": 0.25}
    assert loss_levels(TrainSettings(), optimum, None) == {"least squares, training rows": 0.25}
    others = [{"loss": {"name": "l1"}}, {"loss": {"name": "huber"}}, {"scale": {"target": "log"}}]
    assert [loss_levels(TrainSettings.model_validate(other), optimum, truth) for other in others] == [{}] * 3


# Predictors.


def test_a_line_predicts_its_intercept_plus_features_times_coefficients() -> None:
    predict = line_predictor(np.array([1.0, 2.0, -3.0]))
    assert predict(np.array([[1.0, 1.0], [0.5, 2.0]])).tolist() == [0.0, -4.0]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_models_predictions_are_those_under_eval_in_its_own_dtype(tmp_path: Path, dtype: Dtype) -> None:
    table = write_test_rows(tmp_path, normal_line(30), dtype)
    model = untrained(table, ModelSettings(name="mlp", hidden=(8,), dropout=0.5))
    predict = model_predictor(model, getattr(torch, dtype))
    found = predict(normal_line(30)[:, :-1])
    assert found.shape == (30,)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(predict(normal_line(30)[:, :-1]), found)
    first, activation, dropout, last = model.body.children()
    assert isinstance(dropout, Dropout)
    features, _ = tensors(normal_line(30), getattr(torch, dtype))
    expected = last(activation(first(features)))[:, 0].detach().double().numpy()
    np.testing.assert_array_equal(found, expected)


# The report.


def write_report_rows(folder: Path) -> Table:
    return write_prepared(
        folder, normal_line(40, (2.0, -1.0)), normal_line(5, (2.0, -1.0)), normal_line(9, (2.0, -1.0), seed=1)
    )


def test_the_report_of_a_linear_model_on_synthetic_data_has_the_designs_keys(tmp_path: Path) -> None:
    table = write_report_rows(tmp_path)
    model = untrained(table, scale=SCALED)
    truth = GenerateSettings(intercept=1.0, coefficients=(2.0, -1.0), noise_std=0.3)
    optimum = least_squares(TableDataset(tmp_path, "train")).line
    content = compute_metrics(TableDataset(tmp_path, "test"), model, optimum, truth)
    assert list(content) == ["test", "least_squares", "excess_mse", "parameters", "truth"]
    ours, best = (
        score(TableDataset(tmp_path, "test"), model_predictor(model, torch.float64)),
        score(TableDataset(tmp_path, "test"), line_predictor(optimum)),
    )
    assert (content["test"], content["least_squares"]) == (ours, best)
    assert ours["mse"] is not None
    assert best["mse"] is not None
    assert content["excess_mse"] == ours["mse"] / best["mse"] - 1
    line = model.line()
    assert line is not None
    intercept, coefficients = line
    assert content["parameters"] == {
        "intercept": intercept,
        "coefficients": {"x1": coefficients[0], "x2": coefficients[1]},
    }
    assert content["truth"] == {"intercept": 1.0, "coefficients": {"x1": 2.0, "x2": -1.0}, "noise_mse": pytest.approx(0.09)}
    assert json.loads(json.dumps(content, allow_nan=False)) == content


def test_the_report_of_an_mlp_has_no_parameters_and_of_own_data_no_truth(tmp_path: Path) -> None:
    table = write_report_rows(tmp_path)
    model = untrained(table, ModelSettings(name="mlp", hidden=(4,)))
    content = compute_metrics(TableDataset(tmp_path, "test"), model, least_squares(TableDataset(tmp_path, "train")).line, None)
    assert list(content) == ["test", "least_squares", "excess_mse"]


def test_the_excess_of_the_optimum_itself_is_zero(tmp_path: Path) -> None:
    table = write_report_rows(tmp_path)
    optimum = least_squares(TableDataset(tmp_path, "train")).line
    model = untrained(table)
    with torch.no_grad():
        model.get_parameter("body.bias").fill_(float(optimum[0]))
        model.get_parameter("body.weight").copy_(torch.from_numpy(optimum[None, 1:]))
    assert compute_metrics(TableDataset(tmp_path, "test"), model, optimum, None)["excess_mse"] == pytest.approx(0, abs=1e-12)


def test_the_excess_over_an_optimum_without_error_is_none(tmp_path: Path) -> None:
    rows = np.array([[0.0, 1.0], [1.0, 3.0], [2.0, 5.0]])
    table = write_test_rows(tmp_path, rows)
    content = compute_metrics(TableDataset(tmp_path, "test"), untrained(table), np.array([1.0, 2.0]), None)
    assert content["excess_mse"] is None
    assert content["test"]["mse"] > 0
    assert "excess mse is undefined: the mse of least squares is 0" in summary(content).splitlines()


def test_an_excess_beyond_float64_is_none(tmp_path: Path) -> None:
    rows = np.array([[0.0, 1e-160], [1.0, 0.0], [2.0, 0.0]])
    table = write_test_rows(tmp_path, rows)
    model = untrained(table)
    content = compute_metrics(TableDataset(tmp_path, "test"), model, np.array([0.0, 0.0]), None)
    assert 0 < content["least_squares"]["mse"] < 1e-310
    assert content["excess_mse"] is None
    assert "excess mse is undefined: the mse over that of least squares is beyond float64" in summary(content).splitlines()


@pytest.mark.parametrize(
    ("excess", "line"),
    [
        (0.02781, "excess mse over least squares: +2.781%"),
        (-0.5, "excess mse over least squares: -50.000%"),
        (9.0, "excess mse over least squares: +900.000%"),
        (9.01, "the mse is 10 times that of least squares"),
        (1234.5, "the mse is 1.24e+03 times that of least squares"),
        (13577064304795.47, "the mse is 1.36e+13 times that of least squares"),
    ],
)
def test_an_excess_is_a_percentage_up_to_ten_times_least_squares(excess: float, line: str) -> None:
    scores = {"mse": 1.0, "rmse": 1.0, "mae": 1.0, "r2": 0.5}
    printed = summary({"test": scores, "least_squares": scores, "excess_mse": excess})
    assert printed.splitlines()[3:] == [line]


def test_long_figures_are_printed_apart() -> None:
    scores = {"mse": 2.98137e-30, "rmse": 1.72666e-15, "mae": 7.59513e-15, "r2": -7.59513e30}
    printed = summary({"test": scores, "least_squares": scores, "excess_mse": 0.0})
    assert printed.splitlines()[1].split() == ["model", "2.98137e-30", "1.72666e-15", "7.59513e-15", "-7.59513e+30"]


@pytest.mark.parametrize(("r2", "said"), [(-0.01, True), (0.0, False), (0.5, False), (None, False)])
def test_a_model_worse_than_the_mean_is_said_in_words(r2: float | None, said: bool) -> None:
    scores = {"mse": 1.0, "rmse": 1.0, "mae": 1.0, "r2": r2}
    line = "the model is worse than predicting the mean of the test rows' targets for each row, since r2 is below 0"
    content = {"test": scores, "least_squares": scores | {"r2": -0.5}, "excess_mse": 0.0}
    assert (line in summary(content).splitlines()) == said


def test_the_report_of_a_constant_target_has_no_r2(tmp_path: Path) -> None:
    rows = normal_line(30)
    rows[:, -1] = 0.1
    table = write_test_rows(tmp_path, rows)
    content = compute_metrics(
        TableDataset(tmp_path, "test"),
        untrained(table),
        least_squares(TableDataset(tmp_path, "train")).line,
        None,
    )
    assert content["test"]["r2"] is None
    assert content["least_squares"]["r2"] is None
    assert "r2 is undefined: all targets of the test rows are equal" in summary(content).splitlines()
    json.dumps(content, allow_nan=False)


def test_names_are_printed_on_one_line(tmp_path: Path) -> None:
    rows = write_report_rows(tmp_path)
    names = ["sold\nat", "x" * 300]
    table = renamed(rows, names)
    test = TableDataset(tmp_path, "test", table)
    content = compute_metrics(test, untrained(table), np.array([1.0, 2.0, -1.0]), None)
    assert list(content["parameters"]["coefficients"]) == names
    *_, learned = summary(content).splitlines()
    assert re.fullmatch(r"learned: \S+ \S+·sold\\nat \S+·x{39}…", learned)


# The truth.


@pytest.fixture
def synthetic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Table:
    """Return the table of the whole synthetic CSV, in a workspace whose params.yaml says how it was drawn."""
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text("generate: {rows: 70, coefficients: [2.0, -1.0], noise_std: 0.5}\n")
    rows = normal_line(20, (2.0, -1.0))
    return write_prepared(tmp_path / "prepared", rows, rows, csv="data/synthetic.csv")


CSV = Path("data/synthetic.csv")


def test_the_truth_of_the_synthetic_csv_is_what_it_was_drawn_from(synthetic: Table) -> None:
    assert generating_settings(synthetic, CSV, Params()) == GenerateSettings(rows=70, coefficients=(2.0, -1.0), noise_std=0.5)


def test_another_spelling_of_the_synthetic_csvs_path_is_the_same_file(synthetic: Table) -> None:
    spelled = synthetic.model_copy(update={"csv": synthetic.csv.model_copy(update={"path": "./data/synthetic.csv"})})
    assert generating_settings(spelled, CSV, Params()) == generating_settings(synthetic, CSV, Params()) is not None


@pytest.mark.parametrize(
    "change",
    [{"names": ["x1"]}, {"names": ["x1", "y"], "target": "x2"}],
    ids=["a subset", "another target"],
)
def test_other_columns_than_the_whole_synthetic_csv_have_no_truth(synthetic: Table, change: dict[str, Any]) -> None:
    assert generating_settings(renamed(synthetic, **change), CSV, Params()) is None


def test_features_in_another_order_keep_the_truth_and_its_names(synthetic: Table) -> None:
    table = renamed(synthetic, ["x2", "x1"])
    truth = generating_settings(table, CSV, Params())
    test = TableDataset(Path("prepared"), "test", table)
    content = compute_metrics(test, untrained(table), np.array([1.0, -1.0, 2.0]), truth)
    assert list(content["truth"]["coefficients"].items()) == [("x2", -1.0), ("x1", 2.0)]
    assert summary(content).splitlines()[-1] == "true: 1 -1·x2 +2·x1"


def test_an_own_csv_has_no_truth_even_with_the_same_columns(synthetic: Table) -> None:
    own = synthetic.model_copy(update={"csv": synthetic.csv.model_copy(update={"path": "data/own.csv"})})
    assert generating_settings(own, CSV, Params()) is None


# The sample.


@pytest.mark.parametrize(
    ("sample", "expected"),
    [(4, [0, 2, 5, 7]), (1, [0]), (9, [0, 1, 2, 3, 4, 5, 6, 7, 8]), (10, list(range(10))), (1000, list(range(10)))],
)
def test_a_sample_is_bounded_and_evenly_spaced(tmp_path: Path, sample: int, expected: list[int]) -> None:
    rows = normal_line(10, (2.0, -1.0))
    write_test_rows(tmp_path, rows)
    features, table = sample_predictions(TableDataset(tmp_path, "test"), line_predictor(np.array([1.0, 2.0, -1.0])), sample)
    assert table["row"].tolist() == expected
    np.testing.assert_array_equal(features, rows[expected, :-1])


def test_a_sample_spans_all_rows_of_a_long_table(tmp_path: Path) -> None:
    write_test_rows(tmp_path, normal_line(10_007))
    _, table = sample_predictions(TableDataset(tmp_path, "test"), line_predictor(np.array([1.0, 2.0])), 1000)
    steps = np.diff(table["row"].to_numpy())
    assert len(table) == 1000
    assert (table["row"].iloc[0], set(steps.tolist())) == (0, {10, 11})
    assert table["row"].iloc[-1] >= 10_007 - 11


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_samples_columns_are_the_rows_values_and_their_differences(tmp_path: Path, dtype: Dtype) -> None:
    stored = normal_line(10).astype(dtype).astype(np.float64)
    write_test_rows(tmp_path, stored, dtype)
    features, table = sample_predictions(TableDataset(tmp_path, "test"), line_predictor(np.array([1.0, 2.0])), 5)
    chosen = stored[[0, 2, 4, 6, 8]]
    assert list(table) == ["row", "actual", "predicted", "residual"]
    assert features.dtype == np.float64
    np.testing.assert_array_equal(table["actual"], chosen[:, -1])
    np.testing.assert_array_equal(table["predicted"], 1 + 2 * chosen[:, 0])
    np.testing.assert_array_equal(table["residual"], table["actual"] - table["predicted"])


# What the stage prints at its end.


PLACE = "/#/experiments/7/runs/42711d48d1eb4ab1/artifacts/figures/fit.png?workflowType=machine_learning"
RERUN = "      truefit rerun 42711d48   run it again, and compare every bit\n"


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        (
            "sqlite:////x/mlflow.db",
            "next: make ui                  then look at the run's pictures in MLflow:\n"
            f"      http://127.0.0.1:5000{PLACE}\n{RERUN}",
        ),
        ("http://mlflow:80/", f"next: look at the run's pictures in MLflow:\n      http://mlflow:80{PLACE}\n{RERUN}"),
    ],
)
def test_the_stage_ends_with_where_its_pictures_are_and_what_to_type_next(
    uri: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store = SimpleNamespace(uri=uri, redacted_uri=uri, experiment={"mine": "7"}.get)
    print_next(cast(Any, SimpleNamespace(run_id="42711d48d1eb4ab1", joined=True)), cast(Any, store), "mine", "fit.png")
    assert capsys.readouterr().out == expected


def test_an_evaluation_without_a_training_is_not_said_to_be_run_again(capsys: pytest.CaptureFixture[str]) -> None:
    store = SimpleNamespace(uri="http://mlflow", redacted_uri="http://mlflow", experiment={"mine": "7"}.get)
    print_next(cast(Any, SimpleNamespace(run_id="42711d48d1eb4ab1", joined=False)), cast(Any, store), "mine", "fit.png")
    assert "rerun" not in capsys.readouterr().out


def test_a_run_that_waits_in_its_journal_can_be_sent_next(capsys: pytest.CaptureFixture[str]) -> None:
    print_next(cast(Any, SimpleNamespace(run_id=None)), cast(Any, None), "mine", "fit.png")
    assert capsys.readouterr().out == "next: truefit sync             send the run, once its store can be reached\n"
