"""A training that failed is an error: since which epoch, by which cell, and with advice that works once it is followed."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_training import (
    CPU,
    PLAIN,
    SCALED,
    UNSCALED,
    Rows,
    followed,
    normal_line,
    tensors,
    train_with,
    untrained,
    write_prepared,
)

from truefit.core.errors import TruefitError
from truefit.data.dataset import open_verified
from truefit.model.scaling import fit_scaling
from truefit.training.divergence import largest_eigenvalue, stable_rate
from truefit.training.loop import train
from truefit.training.progress import Epoch, Outcome
from truefit.training.settings import TrainSettings

CONSTANT = {"schedule": {"name": "constant"}}
MLP = {"name": "mlp", "hidden": [8]}
ALL: dict[str, Any] = {"batch_size": "all", **CONSTANT}


def line(rows: int = 200, seed: int = 0) -> Rows:
    """Return rows of three features around a line, in units of their own."""
    return normal_line(rows, (2.0, -1.0, 0.5), seed=seed) * [3.0, 0.1, 20.0, 50.0] + [100.0, -5.0, 7.0, 1e4]


def write_line(folder: Path) -> Rows:
    rows = line()
    write_prepared(folder, rows, line(40, seed=1))
    return rows


def failure(folder: Path, **settings: Any) -> str:
    """Return the text of the error in which a training ends, one line."""
    with pytest.raises(TruefitError) as error:
        train_with(folder, **settings)
    (text,) = str(error.value).splitlines()
    return text


def explained(outcome: Outcome, rows: Rows) -> float:
    """Return the share of the target's variance that the last epoch explained."""
    return 1 - outcome.epochs[-1].train_loss / float(rows[:, -1].var())


# Rates that are too large.

TOO_LARGE: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": {"lr": 3.0}},
    "single rows": {"optimizer": {"lr": 0.5}, "batch_size": 1, "engine": "numpy"},
    "all rows": {"optimizer": {"lr": 1.5}, **ALL},
    "momentum": {"optimizer": {"lr": 0.3, "momentum": 0.95}},
    "nesterov": {"optimizer": {"lr": 3.0, "momentum": 0.9, "nesterov": True}},
    "weight decay": {"optimizer": {"lr": 0.5, "weight_decay": 5.0}},
    "strong decay": {"optimizer": {"lr": 0.05, "weight_decay": 1000.0}},
    "sum": {"optimizer": {"lr": 0.1}, "loss": {"reduction": "sum"}},
    "l1": {"optimizer": {"lr": 10.0}, "loss": {"name": "l1"}, **CONSTANT},
    "huber": {"optimizer": {"lr": 10.0}, "loss": {"name": "huber"}, **CONSTANT},
    "mlp": {"optimizer": {"lr": 5.0}, "model": MLP},
    "adam": {"optimizer": {"name": "adam", "lr": 10.0}, "model": MLP},
    "unscaled": {"optimizer": {"lr": 0.05}, "scale": UNSCALED.model_dump()},
    "unscaled features": {"optimizer": {"lr": 0.05}, "scale": {"features": "none"}},
}


@pytest.mark.parametrize("name", TOO_LARGE)
def test_a_rate_that_is_too_large_ends_in_advice_that_works(tmp_path: Path, name: str) -> None:
    rows, settings = write_line(tmp_path), TOO_LARGE[name]
    text = failure(tmp_path, **settings)
    finite = r"epoch \d+: the training loss, .+, is above that of .+, .+; it rose from epoch \d+ on"
    assert re.match(rf"epoch \d+, .+: the (training|validation) loss is not finite; try |{finite}; try ", text), text
    advised = followed(settings, text)
    assert advised["optimizer"]["lr"] < settings["optimizer"]["lr"] or "scale" in settings
    outcome = train_with(tmp_path, **advised)
    if name == "weight decay":  # which holds the weights well below those of least squares
        assert 0.3 < explained(outcome, rows) < 0.7
    elif name == "l1":
        assert outcome.epochs[-1].train_loss < 0.2 * float(np.abs(rows[:, -1] - rows[:, -1].mean()).mean())
    else:
        assert explained(outcome, rows) > 0.95


@pytest.mark.parametrize("scale", ["features", "target"])
def test_what_is_not_scaled_is_to_be_scaled_first(tmp_path: Path, scale: str) -> None:
    write_line(tmp_path)
    text = failure(tmp_path, scale={scale: "none"}, optimizer={"lr": 3.0})
    assert "; try train.scale: {features: standard, target: standard} with train.optimizer.lr: " in text


def test_a_logarithm_of_the_target_stays_one_in_the_advice(tmp_path: Path) -> None:
    rows = line()
    write_prepared(tmp_path, rows, rows[:40])
    text = failure(tmp_path, scale={"features": "none", "target": "log"})
    assert "; try train.scale: {features: standard, target: log} with train.optimizer.lr: " in text


def test_the_error_tells_the_epoch_of_the_lowest_loss_from_which_it_rose(tmp_path: Path) -> None:
    rows, seen = write_line(tmp_path), list[Epoch]()
    settings = TrainSettings.model_validate(TOO_LARGE["momentum"])
    with pytest.raises(TruefitError) as error:
        train(open_verified(tmp_path, "train", "validation"), settings, CPU, seen.append)
    losses = [epoch.train_loss for epoch in seen]
    lowest = losses.index(min(losses)) + 1
    assert 1 < lowest < 50
    assert str(error.value).startswith(
        f"epoch 50: the training loss, {losses[-1]:.6g}, is above that of predicting the mean, {rows[:, -1].var():.6g}; "
        f"it rose from epoch {lowest + 1} on; try train.optimizer.lr: "
    )


def test_a_training_that_ends_worse_than_it_began_is_an_error_also_where_it_beats_the_mean(tmp_path: Path) -> None:
    rows = normal_line(200)
    start = untrained(write_prepared(tmp_path, rows, rows[:40]), seed=6)
    noise = 0.1 * np.random.default_rng(3).standard_normal(200)
    with torch.no_grad():
        rows[:, -1] = start(tensors(rows)[0])[:, 0].numpy() + noise
    write_prepared(tmp_path, rows, rows[:40])
    untrained_loss = f"{(noise**2).mean():.6g}"
    # Steps of single rows with a large rate rattle around the optimum, at which this training begins.
    text = failure(tmp_path, engine="numpy", seed=6, batch_size=1, **PLAIN | {"optimizer": {"lr": 0.1}})
    assert f"is above that of the untrained model, {untrained_loss}; it rose from epoch 1 on" in text
    found = re.match(r"epoch 50: the training loss, ([\d.]+),", text)
    assert found is not None
    assert float(found[1]) < rows[:, -1].var()


# Rates that are too small.


@pytest.mark.parametrize("settings", [{}, {"epochs": 1}, {"model": MLP, "seed": 6}, {"optimizer": {"name": "adam"}}], ids=str)
def test_a_rate_that_is_too_small_was_still_falling_and_is_to_be_raised(tmp_path: Path, settings: dict[str, Any]) -> None:
    rows = write_line(tmp_path)
    settings = {"seed": 1} | settings | {"optimizer": {**settings.get("optimizer", {}), "lr": 1e-7}}
    text = failure(tmp_path, **settings)
    assert "; it was still falling; try train.optimizer.lr: " in text
    advised = followed(settings, text)
    assert advised["optimizer"]["lr"] > 1e-7
    assert explained(train_with(tmp_path, **advised), rows) > 0.9


def test_with_a_good_rate_and_too_few_steps_there_are_to_be_more(tmp_path: Path) -> None:
    rows = write_line(tmp_path)
    settings = {**ALL, "epochs": 3, "optimizer": {"lr": 0.05}}
    text = failure(tmp_path, **settings)
    assert "; it was still falling; try " in text
    advised = followed(settings, text)
    assert advised["epochs"] > 3
    assert explained(train_with(tmp_path, **advised), rows) > 0.9


# Which epoch counts.


def test_early_stoppings_best_state_counts_as_the_result(tmp_path: Path) -> None:
    rows = write_line(tmp_path)
    scaled = (rows[:, :-1] - rows[:, :-1].mean(axis=0)) / rows[:, :-1].std(axis=0)
    # A little above the largest stable rate: the loss falls at first, until what grows outweighs what shrinks.
    rate = 1.01 / np.linalg.eigvalsh(scaled.T @ scaled / len(rows)).max()
    settings: dict[str, Any] = {**ALL, "optimizer": {"lr": float(rate)}, "epochs": 200}
    assert "it rose from epoch" in failure(tmp_path, **settings)
    outcome = train_with(tmp_path, **settings, early_stopping={"patience": 200})
    assert 1 < outcome.best_epoch < 200
    assert outcome.epochs[-1].train_loss > rows[:, -1].var() > outcome.epochs[outcome.best_epoch - 1].train_loss


def test_a_best_state_that_is_no_good_is_an_error_too(tmp_path: Path) -> None:
    write_line(tmp_path)
    settings: dict[str, Any] = {**ALL, "optimizer": {"lr": 1.5}, "early_stopping": {"patience": 5}}
    text = failure(tmp_path, **settings)
    assert re.match(r"epoch \d+: .+; it rose from epoch \d+ on; try train.optimizer.lr: ", text)
    train_with(tmp_path, **followed(settings, text))


def test_a_best_state_before_a_rise_is_no_reason_for_more_epochs(tmp_path: Path) -> None:
    rows = write_line(tmp_path)
    scaled = (rows[:, :-1] - rows[:, :-1].mean(axis=0)) / rows[:, :-1].std(axis=0)
    # The best epoch is one of the first, before which the loss fell, and is not good enough.
    rate = 1.03 / np.linalg.eigvalsh(scaled.T @ scaled / len(rows)).max()
    settings: dict[str, Any] = {**ALL, "optimizer": {"lr": float(rate)}, "early_stopping": {"patience": 20}}
    text = failure(tmp_path, **settings)
    assert re.match(r"epoch [1-9]: .+; it rose from epoch [2-9] on; try train.optimizer.lr: ", text), text
    train_with(tmp_path, **followed(settings, text))


def test_a_single_epoch_is_judged_by_the_state_it_ends_with(tmp_path: Path) -> None:
    rows = write_line(tmp_path)
    # One step, whose loss is that of the untrained model.
    (epoch,) = train_with(tmp_path, **ALL, optimizer={"lr": 0.4}, epochs=1).epochs
    assert epoch.train_loss > rows[:, -1].var()
    assert "it was still falling" in failure(tmp_path, **ALL, optimizer={"lr": 1e-3}, epochs=1)


def test_a_training_with_dropout_is_judged_without_it(tmp_path: Path) -> None:
    rows = normal_line(200, (2.0, -1.0, 0.5))
    rows[:, -1] = rows[:, 0] + 2 * np.random.default_rng(3).standard_normal(200)
    write_prepared(tmp_path, rows, rows[:40])
    outcome = train_with(tmp_path, model={"name": "mlp", "hidden": [16], "dropout": 0.9}, epochs=5)
    assert outcome.epochs[-1].train_loss > rows[:, -1].var()


def test_a_target_that_nothing_explains_is_learned_as_its_mean(tmp_path: Path) -> None:
    rows = line()
    rows[:, -1] = np.random.default_rng(9).normal(size=200)
    write_prepared(tmp_path, rows, rows[:40])
    assert 0 < explained(train_with(tmp_path), rows) < 0.1


@pytest.mark.parametrize("scale", [SCALED, UNSCALED], ids=["scaled", "unscaled"])
def test_a_constant_target_is_learned(tmp_path: Path, scale: Any) -> None:
    rows = normal_line(200)
    rows[:, -1] = 3.0
    write_prepared(tmp_path, rows, rows[:40])
    assert train_with(tmp_path, scale=scale.model_dump()).epochs[-1].train_loss < 1e-3


# Cells that are at fault.


@pytest.mark.parametrize("scale", [SCALED, UNSCALED], ids=["scaled", "unscaled"])
@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize(("column", "value"), [("y", 3e19), ("x2", 1e30), ("x1", -1e30)], ids=["3e19", "1e30", "-1e30"])
def test_a_cell_beyond_all_others_is_named(tmp_path: Path, column: str, value: float, split: str, scale: Any) -> None:
    rows = {"train": normal_line(200, (0.1, -0.1)), "validation": normal_line(40, (0.1, -0.1), seed=1)}
    rows[split][17, ["x1", "x2", "y"].index(column)] = value
    write_prepared(tmp_path, rows["train"], rows["validation"], dtype="float32")
    text = failure(tmp_path, scale=scale.model_dump())
    place = f"{split} row 17, column '{column}': found {value:g}, while nearly all of the column is within "
    assert re.search(rf"[;:] {re.escape(place)}[\d.]+; mend it in the CSV, or leave the row out$", text), text


def test_a_row_is_counted_over_the_chunks_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("truefit.data.batches.CHUNK_ROWS", 7)
    rows = normal_line(200)
    rows[150, 0] = 1e30
    write_prepared(tmp_path, rows, normal_line(40, seed=1), dtype="float32")
    assert "before epoch 1: train row 150, column 'x1': found 1e+30, while" in failure(tmp_path, **PLAIN)


@pytest.mark.parametrize("place", [0, -1], ids=["feature", "target"])
def test_a_column_of_zeros_for_the_most_part_has_no_cell_at_fault(tmp_path: Path, place: int) -> None:
    rows = line()
    rows[np.random.default_rng(3).random(200) < 0.9, place] = 0.0
    rows[0, place] = 1e8
    write_prepared(tmp_path, rows, rows[:40], dtype="float32")
    assert len(train_with(tmp_path).epochs) == TrainSettings().epochs


def test_a_target_of_which_the_logarithm_is_taken_has_no_cell_at_fault(tmp_path: Path) -> None:
    rows = normal_line(200)
    rows[:, -1] = np.exp(10 * rows[:, -1])
    write_prepared(tmp_path, rows, rows[:40])
    assert train_with(tmp_path, scale={"target": "log"}).epochs[-1].train_loss < 2


def test_a_cell_of_the_training_rows_is_not_to_blame_for_the_validation_loss(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    rows = np.column_stack([generator.normal(size=(48, 100)), generator.normal(size=48)])
    rows[0, 0] = 1e8
    write_prepared(tmp_path, rows, generator.normal(size=(20, 101)))
    outcome = train_with(tmp_path, engine="numpy", epochs=500, optimizer={"lr": 0.02})
    assert outcome.epochs[-1].validation_loss > 100 * outcome.epochs[-1].train_loss


@pytest.mark.parametrize("lr", [1e-8, 1e-10, 1e-15])
def test_rounding_at_a_rate_that_moves_nothing_is_no_rise(tmp_path: Path, lr: float) -> None:
    write_line(tmp_path)
    assert "; it was still falling; try train.optimizer.lr: 0." in failure(tmp_path, seed=1, optimizer={"lr": lr})


def test_large_columns_have_no_cell_at_fault(tmp_path: Path) -> None:
    rows = normal_line(200) * 1e9
    write_prepared(tmp_path, rows, rows[:40])
    assert "; try train.scale" in failure(tmp_path, **PLAIN)


# The largest stable rate.


def rate(folder: Path, **settings: Any) -> float:
    """Return the largest stable rate for the table in `folder`, whose columns are taken as they are."""
    chosen, datasets = TrainSettings.model_validate(settings), open_verified(folder, "train", "validation")
    return stable_rate(datasets[0], fit_scaling(UNSCALED, datasets), chosen)


def write_signs(folder: Path) -> None:
    """Write rows of two signs and a line through them: [1, x1, x2] has the squared length 3, and the second moments 1."""
    signs = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]] * 25, dtype=float)
    rows = np.column_stack([signs, 1 + signs @ [2.0, -1.0]])
    write_prepared(folder, rows, rows[:8])


@pytest.mark.parametrize("features", [1, 3, 10])
def test_for_a_batch_of_all_rows_it_is_one_over_the_largest_eigenvalue(tmp_path: Path, features: int) -> None:
    rows = normal_line(5000, (1.0,) * features)
    rows[:, :-1] += np.arange(features)
    write_prepared(tmp_path, rows, rows[:5])
    design = np.column_stack([np.ones(5000), rows[:, :-1]])
    largest = np.linalg.eigvalsh(design.T @ design / 5000).max()
    assert rate(tmp_path, batch_size="all") == pytest.approx(1 / largest, rel=0.01)  # but for the largest row's 1/5000
    assert rate(tmp_path, batch_size=1) == pytest.approx(1 / np.square(design).sum(axis=1).max(), rel=1e-9)


@pytest.mark.parametrize(
    ("settings", "share"),
    [
        ({"loss": {"name": "huber"}}, 2.0),
        ({"loss": {"reduction": "sum"}}, 1 / 10),
        ({"optimizer": {"momentum": 0.9}}, 0.1),
        # The curvature of batches of 10 rows is 2 (3 + 9 · 1) / 10 = 2.4.
        ({"optimizer": {"weight_decay": 2.4}}, 0.5),
    ],
)
def test_losses_sums_momentum_and_weight_decay_change_it(tmp_path: Path, settings: dict[str, Any], share: float) -> None:
    write_signs(tmp_path)
    plain = rate(tmp_path, batch_size=10)
    assert plain == pytest.approx(2 / 2.4, rel=1e-6)
    assert rate(tmp_path, batch_size=10, **settings) == pytest.approx(share * plain, rel=1e-6)


@pytest.mark.parametrize("batch_size", ["all", 1])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_below_it_a_training_converges_and_above_it_diverges(tmp_path: Path, batch_size: int | str, reduction: str) -> None:
    write_signs(tmp_path)
    settings: dict[str, Any] = {
        "engine": "numpy",
        "batch_size": batch_size,
        "loss": {"reduction": reduction},
        "epochs": 60,
        **PLAIN,
    }
    stable = rate(tmp_path, **settings)
    # All rows lie on the line and have the same length, so that the bound is reached.
    below, above = ({**settings, "optimizer": {"lr": share * stable}} for share in (0.95, 1.05))
    assert train_with(tmp_path, **below).epochs[-1].train_loss < 1e-6
    assert "it rose from epoch" in (text := failure(tmp_path, **above)) or "is not finite" in text


@pytest.mark.parametrize("columns", [1, 2, 7, 40])
def test_the_largest_eigenvalue_is_numpys(columns: int) -> None:
    generator = np.random.default_rng(columns)
    rows = generator.standard_normal((300, columns)) @ generator.standard_normal((columns, columns))
    assert largest_eigenvalue(rows) == pytest.approx(np.linalg.eigvalsh(rows.T @ rows / 300).max(), rel=1e-3)


def test_features_that_are_each_others_negative_have_the_largest_eigenvalue_of_both() -> None:
    x = np.random.default_rng(0).standard_normal(200)
    x = (x - x.mean()) / x.std()
    assert largest_eigenvalue(np.column_stack([np.ones(200), x, -x])) == pytest.approx(2.0, rel=1e-6)
