"""Scaling: what an engine is given, what comes back in the data's units, and what the model's state holds of it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_data import prepare
from helpers_training import (
    SCALED,
    UNSCALED,
    Rows,
    normal_line,
    save_untrained,
    tensors,
    train_with,
    untrained,
    write_prepared,
    write_scaled,
)

from truefit.core.errors import TableError
from truefit.data import batches
from truefit.data.dataset import open_verified
from truefit.data.table import Dtype
from truefit.model.files import load_model
from truefit.model.models import ModelSettings
from truefit.model.scaling import LONG_ROW, ScaleSettings, Scaling, fit_scaling

LOG = ScaleSettings(target="log")
MLP = ModelSettings(name="mlp", hidden=(5, 4))
MIXED = [UNSCALED, SCALED, ScaleSettings(features="none"), ScaleSettings(target="none")]


def away(rows: int = 40) -> Rows:
    """Return rows of two features and a target, none of which is near a mean of 0 or a standard deviation of 1."""
    return normal_line(rows, (1.0, -2.0)) * [3.0, 0.1, 50.0] + [100.0, -5.0, 1e4]


def positive(rows: int = 200) -> Rows:
    """Return rows whose target is the exponential of a line."""
    data = normal_line(rows, (0.5, -1.0))
    data[:, -1] = np.exp(data[:, -1])
    return data


def fitted(folder: Path, settings: ScaleSettings, rows: Rows, others: Rows | None = None, dtype: Dtype = "float64") -> Scaling:
    write_prepared(folder, rows, rows[:5] if others is None else others, dtype=dtype)
    return fit_scaling(settings, open_verified(folder, "train", "validation"))


# What an engine is given.


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_scaled_training_rows_have_mean_0_and_standard_deviation_1(tmp_path: Path, dtype: Dtype) -> None:
    scale = fitted(tmp_path, SCALED, away(), dtype=dtype)
    features, target = scale(torch.tensor(away(), dtype=getattr(torch, dtype)))
    scaled = torch.cat([features, target], dim=1).double().numpy()
    # The mean of 1e4, rounded to float32, is off by 1e-5 of the target's standard deviation of 100.
    tolerance = 1e-12 if dtype == "float64" else 2e-5
    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=tolerance)
    np.testing.assert_allclose(scaled.std(axis=0), 1, rtol=tolerance)
    assert features.dtype == getattr(torch, dtype)


def test_other_rows_are_scaled_by_the_training_rows(tmp_path: Path) -> None:
    others = away(5) + 7
    scale = fitted(tmp_path, SCALED, away(), others)
    expected = (others - away().mean(axis=0)) / away().std(axis=0)
    np.testing.assert_allclose(torch.cat(scale(torch.tensor(others)), dim=1).numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("constant", [4.0, 0.1, 123456.789])
def test_a_constant_column_is_only_centred(tmp_path: Path, constant: float, dtype: Dtype) -> None:
    rows = away()
    rows[:, 1:] = constant
    scale = fitted(tmp_path, SCALED, rows, dtype=dtype)
    features, target = scale(torch.tensor(rows, dtype=getattr(torch, dtype)))
    assert features[:, 1].tolist() == target[:, 0].tolist() == [0.0] * len(rows)
    assert float(scale.scale_features(tensors(rows + 1.5, getattr(torch, dtype))[0])[0, 1]) == pytest.approx(1.5, abs=0.01)


@pytest.mark.parametrize("scale", MIXED, ids=str)
def test_what_is_not_to_be_scaled_stays_as_it_is(tmp_path: Path, scale: ScaleSettings) -> None:
    features, target = fitted(tmp_path, scale, away())(torch.tensor(away()))
    assert torch.equal(features, tensors(away())[0]) == (scale.features == "none")
    assert torch.equal(target, tensors(away())[1]) == (scale.target == "none")


@pytest.mark.parametrize("scale", MIXED, ids=str)
def test_a_row_is_scaled_alike_wherever_it_lies_in_a_chunk(tmp_path: Path, scale: ScaleSettings) -> None:
    rows = torch.tensor(away(2 * LONG_ROW + 7))
    scale_chunk = fitted(tmp_path, scale, away())
    apart = [torch.cat(scale_chunk(row[None].clone()), dim=1) for row in rows]
    assert torch.equal(torch.cat(apart), torch.cat(scale_chunk(rows), dim=1))


def test_a_logarithm_is_scaled_too(tmp_path: Path) -> None:
    _, target = fitted(tmp_path, LOG, positive())(torch.tensor(positive()))
    logarithm = np.log(positive()[:, -1])
    np.testing.assert_allclose(target[:, 0].numpy(), (logarithm - logarithm.mean()) / logarithm.std(), rtol=1e-9, atol=1e-12)


def test_a_logarithms_scale_is_that_of_all_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "CHUNK_ROWS", 7)
    scale, logarithm = fitted(tmp_path, LOG, positive()), np.log(positive()[:, -1])
    assert scale.target_mean is not None
    assert [scale.target_mean.item(), scale.unit] == pytest.approx([logarithm.mean(), logarithm.std()])


@pytest.mark.parametrize(("split", "row"), [("train", 9), ("validation", 3)])
@pytest.mark.parametrize("value", [0.0, -1.5])
def test_a_target_without_a_logarithm_is_named_by_file_column_split_and_row(
    tmp_path: Path, split: str, row: int, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "CHUNK_ROWS", 4)
    rows = {"train": positive(20), "validation": positive(5)}
    rows[split][row, -1] = value
    with pytest.raises(TableError) as error:
        fitted(tmp_path, LOG, rows["train"], rows["validation"])
    assert str(error.value) == (
        f"data/own.csv: column 'y', {split} row {row}: found {value:g}, "
        "allowed: a positive number with train.scale.target: log; or take train.scale.target: standard"
    )


# What comes back.


@pytest.mark.parametrize("scale", [*MIXED, LOG], ids=str)
@pytest.mark.parametrize("settings", [ModelSettings(), MLP], ids=["linear", "mlp"])
def test_predictions_are_the_bodys_brought_back_to_the_datas_units(
    tmp_path: Path, settings: ModelSettings, scale: ScaleSettings
) -> None:
    rows = positive()
    scaling = fitted(tmp_path, scale, rows)
    model = untrained(open_verified(tmp_path, "train")[0].table, settings, scale)
    model.scale = scaling
    x = rows[:, :-1]
    scaled = (x - x.mean(axis=0)) / x.std(axis=0) if scale.features == "standard" else x
    y = np.log(rows[:, -1]) if scale == LOG else rows[:, -1]
    with torch.no_grad():
        expected = model.body(torch.from_numpy(scaled)).numpy()
        found = model(tensors(rows)[0]).numpy()
    if scale.target != "none":
        expected = expected * y.std() + y.mean()
    np.testing.assert_allclose(found, np.exp(expected) if scale == LOG else expected, rtol=1e-10)


@pytest.mark.parametrize("scale", [*MIXED, LOG], ids=str)
def test_unscaling_undoes_scaling(tmp_path: Path, scale: ScaleSettings) -> None:
    fit = fitted(tmp_path, scale, positive())
    _, scaled = fit(torch.tensor(positive()))
    torch.testing.assert_close(fit.unscale(scaled), tensors(positive())[1], rtol=1e-12, atol=0)


@pytest.mark.parametrize("scale", MIXED, ids=str)
def test_the_line_is_the_model_in_the_datas_units(tmp_path: Path, scale: ScaleSettings) -> None:
    model = untrained(write_prepared(tmp_path, away(), away(5)), scale=scale)
    line = model.line()
    assert line is not None
    intercept, coefficients = line
    assert (type(intercept), [type(value) for value in coefficients]) == (float, [float] * 2)
    with torch.no_grad():
        expected = model(tensors(away())[0])[:, 0].numpy()
    np.testing.assert_allclose(intercept + away()[:, :-1] @ coefficients, expected, rtol=1e-12)


def test_the_line_of_a_logarithm_is_the_logarithm_of_the_model(tmp_path: Path) -> None:
    model = untrained(write_prepared(tmp_path, positive(), positive(5)), scale=LOG)
    line = model.line()
    assert line is not None
    with torch.no_grad():
        expected = model(tensors(positive())[0])[:, 0].log().numpy()
    np.testing.assert_allclose(line[0] + positive()[:, :-1] @ line[1], expected, rtol=1e-9, atol=1e-12)


def test_the_line_of_a_constant_feature_is_the_model_in_the_datas_units(tmp_path: Path) -> None:
    rows = away()
    rows[:, 1] = 4.0
    model = untrained(write_prepared(tmp_path, rows, rows[:5]), scale=SCALED)
    line = model.line()
    assert line is not None
    rows[:, 1] += 0.5
    with torch.no_grad():
        expected = model(tensors(rows)[0])[:, 0].numpy()
    np.testing.assert_allclose(line[0] + rows[:, :-1] @ line[1], expected, rtol=1e-12)


def test_the_line_keeps_float64s_digits_of_a_float32_model(tmp_path: Path) -> None:
    model = untrained(write_scaled(tmp_path, dtype="float32"), scale=SCALED)
    line, state = model.line(), {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}
    assert line is not None
    slopes = state["body.weight"][0] / state["scale.feature_std"] * state["scale.target_std"]
    np.testing.assert_allclose(line[1], slopes, rtol=1e-14)
    inside = state["body.bias"] - (state["body.weight"][0] / state["scale.feature_std"] * state["scale.feature_mean"]).sum()
    assert line[0] == pytest.approx(float((inside * state["scale.target_std"] + state["scale.target_mean"])[0]), rel=1e-13)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_trained_line_is_that_of_least_squares_whatever_the_columns_scales(tmp_path: Path, dtype: Dtype) -> None:
    rows = away(400).astype(dtype).astype(np.float64)
    table = write_prepared(tmp_path, rows, rows[:5], dtype=dtype)
    outcome = train_with(tmp_path, batch_size="all", optimizer={"lr": 0.4}, epochs=300)
    model = untrained(table, scale=SCALED)
    model.load_state_dict(outcome.kept_state)
    line = model.line()
    assert line is not None
    best = np.linalg.lstsq(np.column_stack([np.ones(len(rows)), rows[:, :-1]]), rows[:, -1])[0]
    # float32 holds the means to 6e-8 of themselves, which the slopes multiply.
    np.testing.assert_allclose([line[0], *line[1]], best, rtol=1e-9 if dtype == "float64" else 1e-5)


def test_a_log_target_learns_a_curve_that_grows_by_factors(tmp_path: Path) -> None:
    table = write_prepared(tmp_path, positive(400), positive(50))
    outcome = train_with(tmp_path, scale={"target": "log"})
    model = untrained(table)
    model = type(model)(fit_scaling(LOG, open_verified(tmp_path, "train", "validation")), model.body)
    model.load_state_dict(outcome.kept_state)
    with torch.no_grad():
        found = model(tensors(positive(400))[0])[:, 0].numpy()
    # The noise of the logarithm has a standard deviation of 0.1.
    assert float(np.std(np.log(found / positive(400)[:, -1]))) < 0.12


# What the state holds.


def test_the_models_state_is_its_scaling_and_its_body(tmp_path: Path) -> None:
    table = write_scaled(tmp_path)
    state = untrained(table, scale=SCALED).state_dict()
    numbers = [f"scale.{column}_{kind}" for column in ("feature", "target") for kind in ("mean", "std")]
    assert list(state) == [*numbers, "body.weight", "body.bias"]
    assert state["scale.feature_mean"].tolist() == table.mean[:-1]
    assert state["scale.feature_std"].tolist() == table.std[:-1]
    assert state["scale.target_mean"].tolist() == table.mean[-1:]
    assert state["scale.target_std"].tolist() == table.std[-1:]
    assert list(untrained(table).state_dict()) == ["body.weight", "body.bias"]
    assert list(untrained(table, scale=ScaleSettings(features="none")).state_dict())[:2] == numbers[2:]


def test_scaling_has_nothing_to_be_trained(tmp_path: Path) -> None:
    model = untrained(write_scaled(tmp_path), scale=SCALED)
    assert list(model.scale.parameters()) == []


def test_a_training_leaves_the_scaling_as_it_was_fitted(tmp_path: Path) -> None:
    table = write_prepared(tmp_path, away(), away(5))
    state, before = train_with(tmp_path).kept_state, untrained(table, scale=SCALED).state_dict()
    for name in (name for name in before if name.startswith("scale.")):
        assert torch.equal(state[name], before[name])


@pytest.mark.parametrize("scale", [*MIXED, LOG], ids=str)
def test_a_model_read_back_scales_as_the_one_that_was_saved(tmp_path: Path, scale: ScaleSettings) -> None:
    table = prepare(tmp_path, "x1,x2,y\n" + "".join(f"{row},{row * row},{3 + row}\n" for row in range(30)))
    save_untrained(tmp_path / "model", table, scale=scale)
    model, description = load_model(tmp_path / "model", table)
    assert description.scale == scale
    features = torch.tensor([[0.5, 2.0], [7.0, 1.0]])
    assert torch.equal(model(features), untrained(table, scale=scale)(features))
