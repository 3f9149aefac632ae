"""fit(): losses weighted by rows, repeatable to the bit, every setting felt, early stopping, and losses that blow up."""

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers_training import (
    CPU,
    PLAIN,
    SCALED,
    UNSCALED,
    Rows,
    State,
    global_streams,
    normal_line,
    same_bits,
    tensors,
    train_with,
    untrained,
    write_prepared,
)

from truefit.core.errors import TruefitError
from truefit.data.batches import ShuffledChunks
from truefit.data.dataset import open_verified
from truefit.data.generating import GenerateSettings
from truefit.data.table import Dtype, read_table
from truefit.ingest.prepare import PrepareSettings, write_table
from truefit.ingest.synthetic import write_csv
from truefit.model.files import ModelDescription, load_model, save_model
from truefit.model.scaling import ScaleSettings
from truefit.training.engines import EngineName
from truefit.training.loop import train
from truefit.training.progress import Epoch, Outcome, read_history
from truefit.training.settings import TrainSettings, trained_with

ENGINES: tuple[EngineName, ...] = ("numpy", "autograd", "torch")


def write_line(folder: Path, rows: int = 50, dtype: Dtype = "float64") -> None:
    """Write a table of `rows` training rows and 13 validation rows around a line through two features."""
    write_prepared(folder, normal_line(rows, (2.0, -1.0)), normal_line(13, (2.0, -1.0), seed=1), dtype=dtype)


def validation_losses(outcome: Outcome) -> list[float]:
    return [epoch.validation_loss for epoch in outcome.epochs]


# Losses.


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("batch_size", [7, 50, 1, 64])
def test_epoch_losses_are_means_over_rows(tmp_path: Path, batch_size: int, reduction: str) -> None:
    write_line(tmp_path, rows=50)
    rows, lr = normal_line(50, (2.0, -1.0)), 0.05 if reduction == "mean" else 0.005
    settings: dict[str, Any] = {"optimizer": {"lr": lr}, "loss": {"reduction": reduction}, **PLAIN}
    outcome = train_with(tmp_path, batch_size=batch_size, epochs=3, seed=3, **settings)
    model = untrained(read_table(tmp_path), seed=3)
    weight, bias = (model.state_dict()[f"body.{name}"][0].numpy().copy() for name in ("weight", "bias"))
    sampler = ShuffledChunks(50, batch_size, 3, "full")
    validation = normal_line(13, (2.0, -1.0), seed=1)
    for epoch in outcome.epochs:
        sampler.set_epoch(epoch.epoch)
        order, squares = torch.cat(list(sampler)).numpy(), 0.0
        for at in range(0, 50, batch_size):
            batch = rows[order[at : at + batch_size]]
            x, error = batch[:, :-1], bias + batch[:, :-1] @ weight - batch[:, -1]
            squares += float((error**2).sum())
            divisor = len(batch) if reduction == "mean" else 1
            weight, bias = weight - lr * 2 * (error @ x) / divisor, bias - lr * 2 * error.sum() / divisor
        assert epoch.train_loss == pytest.approx(squares / 50, rel=1e-10)
        error = bias + validation[:, :-1] @ weight - validation[:, -1]
        assert epoch.validation_loss == pytest.approx(float((error**2).mean()), rel=1e-10)


def test_losses_of_tables_longer_than_a_chunk_are_means_over_rows(tmp_path: Path) -> None:
    rows = normal_line(70_001)
    write_prepared(tmp_path, rows, normal_line(70_003, seed=1))
    # From a start that is better than predicting the mean, since a training that ends above it has failed.
    outcome = train_with(tmp_path, engine="numpy", batch_size=4096, epochs=1, seed=0, optimizer={"lr": 1e-300}, **PLAIN)
    model = untrained(read_table(tmp_path), seed=0)
    with torch.no_grad():
        for data, found in (
            (rows, outcome.epochs[0].train_loss),
            (normal_line(70_003, seed=1), validation_losses(outcome)[0]),
        ):
            x, y = tensors(data)
            assert found == pytest.approx(float(((model(x) - y) ** 2).mean()), rel=1e-10)


@pytest.mark.parametrize("scale", [UNSCALED, SCALED], ids=["unscaled", "scaled"])
@pytest.mark.parametrize("loss", ["mse", "l1", "huber"])
def test_losses_are_the_trainings_own_in_the_datas_units(tmp_path: Path, loss: str, scale: ScaleSettings) -> None:
    rows, others = (normal_line(count, (2.0, -1.0), seed=seed) for count, seed in ((50, 0), (13, 1)))
    table = write_prepared(tmp_path, rows, others)
    settings: dict[str, Any] = {"loss": {"name": loss}, "batch_size": "all", "optimizer": {"lr": 0.2}, **PLAIN}
    settings["scale"] = scale.model_dump()
    before, outcome = (train_with(tmp_path, epochs=epochs, **settings) for epochs in (19, 20))
    delta = table.std[-1] if scale == SCALED else 1.0  # huber's, which is in units of the scaled target

    def mean_loss(state: State, of: Rows) -> float:
        model, (x, y) = untrained(table, scale=scale), tensors(of)
        model.load_state_dict(state)
        error = (model(x) - y).abs().detach()
        line = torch.where(error < delta, error**2 / 2, delta * (error - delta / 2))
        return float({"mse": error**2, "l1": error, "huber": line}[loss].mean())

    last = outcome.epochs[-1]
    assert last.train_loss == pytest.approx(mean_loss(before.final_state, rows), rel=1e-9)
    assert last.validation_loss == pytest.approx(mean_loss(outcome.final_state, others), rel=1e-9)


# The same bits.

MLP: dict[str, Any] = {"name": "mlp", "hidden": [8, 8], "dropout": 0.2}


@pytest.mark.parametrize(
    "settings",
    [
        {"engine": "numpy"},
        {"engine": "autograd"},
        {"engine": "torch"},
        {"model": MLP, "optimizer": {"name": "adam", "lr": 0.01}, "shuffle": "block", "clip_norm": 1.0},
        {"model": MLP, "schedule": {"name": "plateau", "patience": 1}, "early_stopping": {"patience": 3}},
    ],
    ids=["numpy", "autograd", "torch", "adam", "stopping"],
)
def test_the_same_settings_give_the_same_bits_whatever_the_global_streams(tmp_path: Path, settings: dict[str, Any]) -> None:
    write_line(tmp_path, dtype="float32")
    outcomes = []
    for number in (1, 2):
        torch.manual_seed(number)
        np.random.seed(number)
        before = global_streams()
        outcomes.append(train_with(tmp_path, epochs=8, **settings))
        assert global_streams() == before
    one, other = outcomes
    assert one.history().equals(other.history())
    for name in ("final_state", "best_state", "kept_state"):
        assert same_bits(getattr(one, name), getattr(other, name))


def test_more_epochs_leave_the_earlier_ones_as_they_are(tmp_path: Path) -> None:
    write_line(tmp_path)
    settings: dict[str, Any] = {"model": MLP, "schedule": {"name": "constant"}}
    short, long = (train_with(tmp_path, epochs=epochs, **settings).history() for epochs in (15, 20))
    assert long[:15].equals(short)


# Every setting is felt.

BASE: dict[str, Any] = {"epochs": 12, "optimizer": {"lr": 0.05}, "schedule": {"name": "constant"}}
ON_MLP = BASE | {"model": {"name": "mlp", "hidden": [4]}}
PLATEAU = {"name": "plateau", "patience": 0, "factor": 0.5}
LONG = BASE | {"epochs": 30}


@pytest.mark.parametrize(
    ("settings", "change"),
    [
        (BASE, {"seed": 43}),
        (BASE, {"scale": {"features": "none"}}),
        (BASE, {"scale": {"target": "none"}}),
        (BASE, {"model": {"name": "mlp", "hidden": [4]}}),
        (ON_MLP, {"model": {"name": "mlp", "hidden": [5]}}),
        (ON_MLP, {"model": {"name": "mlp", "hidden": [4, 8]}}),
        (ON_MLP, {"model": {"name": "mlp", "hidden": [4], "activation": "tanh"}}),
        (ON_MLP, {"model": {"name": "mlp", "hidden": [4], "activation": "gelu"}}),
        (ON_MLP, {"model": {"name": "mlp", "hidden": [4], "dropout": 0.5}}),
        (BASE, {"loss": {"name": "l1"}}),
        (BASE, {"loss": {"name": "huber"}}),
        (BASE, {"loss": {"reduction": "sum"}}),
        (BASE, {"optimizer": {"lr": 0.06}}),
        (BASE, {"optimizer": {"name": "adam", "lr": 0.05}}),
        (BASE, {"optimizer": {"name": "adamw", "lr": 0.05}}),
        (BASE, {"optimizer": {"lr": 0.05, "momentum": 0.9}}),
        (BASE | {"optimizer": {"lr": 0.05, "momentum": 0.9}}, {"optimizer": {"lr": 0.05, "momentum": 0.9, "nesterov": True}}),
        (BASE, {"optimizer": {"lr": 0.05, "weight_decay": 0.1}}),
        (BASE, {"schedule": {"name": "step", "step_size": 1}}),
        (BASE | {"schedule": {"name": "step", "step_size": 1}}, {"schedule": {"name": "step", "step_size": 2}}),
        (BASE | {"schedule": {"name": "step", "step_size": 1}}, {"schedule": {"name": "step", "step_size": 1, "gamma": 0.5}}),
        (BASE, {"schedule": {"name": "cosine"}}),
        (BASE | {"schedule": {"name": "cosine"}}, {"schedule": {"name": "cosine", "min_lr": 0.02}}),
        (LONG, {"schedule": PLATEAU}),
        (LONG | {"schedule": PLATEAU}, {"schedule": PLATEAU | {"patience": 3}}),
        (LONG | {"schedule": PLATEAU}, {"schedule": PLATEAU | {"factor": 0.1}}),
        (BASE, {"batch_size": "all"}),
        (BASE, {"batch_size": 7}),
        (BASE, {"batch_size": 1}),
        (BASE, {"epochs": 13}),
        (BASE, {"clip_norm": 0.5}),
        (LONG, {"early_stopping": {"patience": 1}}),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else None,
)
def test_every_setting_has_an_effect(tmp_path: Path, settings: dict[str, Any], change: dict[str, Any]) -> None:
    write_line(tmp_path)
    before, after = (train_with(tmp_path, **chosen).kept_state for chosen in (settings, settings | change))
    assert not same_bits(before, after)


def test_shuffling_blocks_orders_a_table_of_several_blocks_in_another_way(tmp_path: Path) -> None:
    write_line(tmp_path, rows=5000)
    full, block = (train_with(tmp_path, **BASE, shuffle=shuffle, batch_size=500) for shuffle in ("full", "block"))
    assert not same_bits(full.final_state, block.final_state)
    assert block.epochs[-1].validation_loss == pytest.approx(full.epochs[-1].validation_loss, rel=0.1)


def test_every_setting_of_a_training_is_one_that_the_tests_here_change() -> None:
    tested = {"seed", "scale", "model", "loss", "optimizer", "schedule", "batch_size", "shuffle", "epochs", "clip_norm"}
    # The engine changes the way and not the curve; device and threads are test_device's, shards are test_group's.
    assert set(TrainSettings.model_fields) == tested | {"early_stopping", "engine", "compile", "device", "threads", "shards"}


def test_batch_size_all_is_one_step_an_epoch_on_all_rows(tmp_path: Path) -> None:
    write_line(tmp_path, rows=50)
    every, fifty = (train_with(tmp_path, batch_size=size, epochs=30) for size in ("all", 50))
    assert same_bits(every.final_state, fifty.final_state)
    assert every.history().equals(fifty.history())


def test_clip_norm_bounds_how_far_an_epoch_can_go(tmp_path: Path) -> None:
    write_line(tmp_path, rows=48)
    table = read_table(tmp_path)
    start = untrained(table, seed=3).state_dict()  # which is better than predicting the mean
    settings: dict[str, Any] = {"epochs": 1, "batch_size": 16, "optimizer": {"lr": 1.0}, **PLAIN}
    end = train_with(tmp_path, clip_norm=1e-3, seed=3, **settings).final_state
    moved = torch.cat([(end[name] - start[name]).flatten() for name in start])
    assert 0 < float(moved.norm()) <= 3 * 1e-3 * (1 + 1e-6)


def test_the_steps_take_the_schedules_learning_rate(tmp_path: Path) -> None:
    write_line(tmp_path)
    settings: dict[str, Any] = {"schedule": {"name": "step", "step_size": 1, "gamma": 1e-300}}
    one, three = (train_with(tmp_path, epochs=epochs, **settings) for epochs in (1, 3))
    assert [epoch.learning_rate for epoch in three.epochs] == [0.05, pytest.approx(5e-302), 0.0]
    assert same_bits(three.final_state, one.final_state)


def test_a_cosine_spans_all_the_epochs_of_the_training(tmp_path: Path) -> None:
    write_line(tmp_path)
    outcome = train_with(tmp_path, epochs=4)  # the default schedule
    expected = [0.025 * (1 + math.cos(math.pi * number / 4)) for number in range(4)]
    assert [epoch.learning_rate for epoch in outcome.epochs] == pytest.approx(expected, rel=1e-12)


def test_plateau_lowers_the_learning_rate_once_the_validation_loss_no_longer_falls(tmp_path: Path) -> None:
    write_line(tmp_path)
    outcome = train_with(tmp_path, epochs=30, schedule=PLATEAU)
    rates, losses = [epoch.learning_rate for epoch in outcome.epochs], validation_losses(outcome)
    first = rates.index(0.025)
    assert rates[:first] == [0.05] * first
    assert losses[first - 1] >= min(losses[: first - 1]) * (1 - 1e-4)
    assert all(later < earlier for earlier, later in pairwise(losses[: first - 1]))


# Early stopping.


def write_turning_point(folder: Path) -> None:
    """Write a table whose validation loss falls until the coefficient passes 1 on its way to 2, and rises from then on."""
    x = np.array([-1.0, 1.0])
    write_prepared(folder, np.column_stack([x, 2 * x]), np.column_stack([x, x]))


# Each epoch takes the coefficient, which is 0.36 at first, a twentieth of the way to 2.
SLOWLY: dict[str, Any] = {"seed": 0, "batch_size": "all", "optimizer": {"lr": 0.025}, "epochs": 60, **PLAIN}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("patience", [1, 3])
def test_early_stopping_waits_for_patience_and_keeps_the_best_state(tmp_path: Path, patience: int, engine: EngineName) -> None:
    write_turning_point(tmp_path)
    losses = validation_losses(train_with(tmp_path, **SLOWLY, engine=engine))
    best = losses.index(min(losses)) + 1
    assert 5 < best < 50
    outcome = train_with(tmp_path, **SLOWLY, engine=engine, early_stopping={"patience": patience})
    assert validation_losses(outcome) == losses[: best + patience]
    assert outcome.best_epoch == best
    until_best = train_with(tmp_path, **(SLOWLY | {"epochs": best}), engine=engine).final_state
    assert same_bits(outcome.best_state, until_best)
    assert same_bits(outcome.kept_state, until_best)
    assert not same_bits(outcome.final_state, until_best)


def test_without_a_patience_all_epochs_run_and_the_final_state_is_kept(tmp_path: Path) -> None:
    write_turning_point(tmp_path)
    outcome = train_with(tmp_path, **SLOWLY)
    losses = validation_losses(outcome)
    assert len(losses) == 60
    assert outcome.best_epoch == losses.index(min(losses)) + 1 < 60
    until_best = train_with(tmp_path, **(SLOWLY | {"epochs": outcome.best_epoch})).final_state
    assert same_bits(outcome.best_state, until_best)
    assert same_bits(outcome.kept_state, outcome.final_state)
    assert not same_bits(outcome.kept_state, outcome.best_state)


def test_early_stopping_counts_from_the_best_epoch_and_not_from_any_bad_one(tmp_path: Path) -> None:
    write_line(tmp_path)
    settings: dict[str, Any] = {"epochs": 40, "batch_size": 4, "seed": 4, "optimizer": {"lr": 0.1}, **PLAIN}
    losses = validation_losses(train_with(tmp_path, **settings))
    patience, best, waited, expected = 4, math.inf, 0, 0
    for loss in losses:
        best, waited, expected = (loss, 0, expected + 1) if loss < best else (best, waited + 1, expected + 1)
        if waited == patience:
            break
    until_best = losses[: losses.index(best) + 1]
    assert any(later >= earlier for earlier, later in pairwise(until_best))  # a rise was waited out
    assert expected < 40
    outcome = train_with(tmp_path, **settings, early_stopping={"patience": patience})
    assert validation_losses(outcome) == losses[:expected]


def test_a_loss_that_keeps_falling_stops_nothing(tmp_path: Path) -> None:
    rows = normal_line(20, noise=0.0)
    write_prepared(tmp_path, rows, rows)
    outcome = train_with(tmp_path, batch_size="all", optimizer={"lr": 0.1}, epochs=20, early_stopping={"patience": 1})
    assert len(outcome.epochs) == outcome.best_epoch == 20
    assert same_bits(outcome.kept_state, outcome.final_state)


def test_falls_of_no_more_than_min_delta_count_as_none(tmp_path: Path) -> None:
    write_turning_point(tmp_path)
    losses = validation_losses(train_with(tmp_path, **SLOWLY))
    min_delta = losses[3] - losses[4]  # falls grow smaller: those up to epoch 4 are larger, those from epoch 5 on are not
    outcome = train_with(tmp_path, **SLOWLY, early_stopping={"patience": 1, "min_delta": min_delta})
    assert validation_losses(outcome) == losses[:5]


def test_small_falls_add_up_until_they_exceed_min_delta(tmp_path: Path) -> None:
    write_turning_point(tmp_path)
    losses = validation_losses(train_with(tmp_path, **SLOWLY))
    min_delta = 1.5 * (losses[0] - losses[1])
    assert losses[0] - losses[2] > min_delta
    outcome = train_with(tmp_path, **SLOWLY, early_stopping={"patience": 2, "min_delta": min_delta})
    assert len(outcome.epochs) > 3


def test_the_best_state_is_that_of_the_lowest_loss_also_with_a_min_delta(tmp_path: Path) -> None:
    write_turning_point(tmp_path)
    outcome = train_with(tmp_path, **SLOWLY, early_stopping={"patience": 3, "min_delta": 100.0})
    assert len(outcome.epochs) == 4
    assert validation_losses(outcome) == sorted(validation_losses(outcome), reverse=True)
    assert outcome.best_epoch == 4
    assert same_bits(outcome.kept_state, outcome.final_state)


# Losses that are not finite; test_divergence.py has what the errors advise.


def write_unstable(folder: Path, rows: int, dtype: Dtype = "float64") -> None:
    """Write rows (x, y) = (1e10, 1): with WILDLY each step multiplies the error by some -2e29, and so a loss by 4e58."""
    write_prepared(folder, np.array([[1e10, 1.0]] * rows), np.array([[1e10, 1.0]] * 3), dtype=dtype)


WILDLY: dict[str, Any] = {"optimizer": {"lr": 1e9}, **PLAIN}


@pytest.mark.parametrize("engine", ENGINES)
def test_a_training_loss_that_is_not_finite_is_an_error_with_epoch_and_batch(tmp_path: Path, engine: EngineName) -> None:
    # The loss is some 1e20 at first: the sixth, about 1e313, is the first to exceed float64. Four batches an epoch.
    write_unstable(tmp_path, rows=8)
    seen: list[Epoch] = []
    settings = TrainSettings.model_validate({"engine": engine, "batch_size": 2, **WILDLY})
    with pytest.raises(TruefitError, match=r"^epoch 2, batch 2: the training loss is not finite; try ") as error:
        train(open_verified(tmp_path, "train", "validation"), settings, CPU, seen.append)
    assert len(str(error.value).splitlines()) == 1
    assert [epoch.epoch for epoch in seen] == [1]


@pytest.mark.parametrize("engine", ENGINES)
def test_the_batch_named_is_counted_over_all_chunks_of_an_epoch(tmp_path: Path, engine: EngineName) -> None:
    write_unstable(tmp_path, rows=280_000)  # a chunk holds one batch of 40,000 rows
    with pytest.raises(TruefitError, match=r"^epoch 1, batch 6: the training loss is not finite"):
        train_with(tmp_path, engine=engine, batch_size=40_000, **WILDLY)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_validation_loss_that_is_not_finite_is_an_error_with_its_epoch(tmp_path: Path, engine: EngineName) -> None:
    # Five steps: the last training loss is still finite, that of the state after it is not.
    write_unstable(tmp_path, rows=10)
    expected = r"^epoch 1, after its last batch: the validation loss is not finite; try "
    with pytest.raises(TruefitError, match=expected):
        train_with(tmp_path, engine=engine, batch_size=2, **WILDLY)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_float32_training_that_blows_up_is_the_same_error(tmp_path: Path, engine: EngineName) -> None:
    # float32 ends at 3.4e38, which the second loss exceeds.
    write_unstable(tmp_path, rows=8, dtype="float32")
    with pytest.raises(TruefitError, match=r"^epoch 1, batch 2: the training loss is not finite; try "):
        train_with(tmp_path, engine=engine, batch_size=2, **WILDLY)


def test_a_batch_that_the_ones_after_it_recover_from_is_still_named(tmp_path: Path) -> None:
    # In float32 the square of 1e20 is infinite. The clipped step after it goes nowhere, and the later losses are finite.
    rows = normal_line(12) * [1.0, 1e17]
    rows[0, 1] = 1e20
    write_prepared(tmp_path, rows, normal_line(3), dtype="float32")
    order = torch.cat(list(ShuffledChunks(12, 1, 5, "full"))).tolist()
    batch = order.index(0) + 1
    assert 1 < batch < 12
    with pytest.raises(TruefitError, match=rf"^epoch 1, batch {batch}: the training loss is not finite"):
        train_with(tmp_path, batch_size=1, clip_norm=1.0, seed=5, **PLAIN)


@pytest.mark.parametrize("engine", ENGINES)
def test_validation_losses_are_summed_in_float64(tmp_path: Path, engine: EngineName) -> None:
    # Squares of 1e18 are within float32's range, and the sum of a thousand is not.
    rows = np.array([[0.0, 1e18], [0.0, -1e18]] * 1000)
    write_prepared(tmp_path, rows, rows, dtype="float32")
    outcome = train_with(tmp_path, engine=engine, batch_size=1, epochs=1, optimizer={"lr": 1e-30}, **PLAIN)
    assert validation_losses(outcome) == [pytest.approx(1e36, rel=1e-6)]


def test_a_device_that_cannot_hold_float64_is_refused_for_such_a_table(tmp_path: Path) -> None:
    write_line(tmp_path)
    with pytest.raises(TruefitError) as error:
        train(open_verified(tmp_path, "train", "validation"), TrainSettings(), torch.device("mps"), lambda _: None)
    expected = "train.device: found mps with prepare.dtype float64, allowed: float32, which is all that it has"
    assert str(error.value) == expected


# What comes out.


def test_on_epoch_is_called_once_after_each_epoch(tmp_path: Path) -> None:
    write_line(tmp_path)
    seen: list[Epoch] = []
    outcome = train(open_verified(tmp_path, "train", "validation"), TrainSettings(epochs=5), CPU, seen.append)
    assert [epoch.epoch for epoch in seen] == [1, 2, 3, 4, 5]
    assert seen == outcome.epochs
    assert all(epoch.epoch_seconds > 0 and epoch.train_rows_per_second > 0 for epoch in seen)


def test_an_error_of_on_epoch_ends_the_training(tmp_path: Path) -> None:
    write_line(tmp_path)

    def fail(epoch: Epoch) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(open_verified(tmp_path, "train", "validation"), TrainSettings(), CPU, fail)


def test_the_history_holds_the_epochs_without_their_timings(tmp_path: Path) -> None:
    write_line(tmp_path)
    outcome = train_with(tmp_path, epochs=3, schedule={"name": "step", "step_size": 2})
    history = outcome.history()
    assert list(history) == ["epoch", "train_loss", "validation_loss", "learning_rate"]
    assert history["epoch"].tolist() == [1, 2, 3]
    assert history["train_loss"].tolist() == [epoch.train_loss for epoch in outcome.epochs]
    assert history["validation_loss"].tolist() == validation_losses(outcome)
    assert history["learning_rate"].tolist() == pytest.approx([0.05, 0.05, 0.005])


# What is learned.


def test_the_defaults_learn_the_tutorials_line(tmp_path: Path) -> None:
    write_csv(GenerateSettings(), tmp_path / "synthetic.csv")
    table = write_table(PrepareSettings(csv=str(tmp_path / "synthetic.csv")), tmp_path / "prepared").table
    outcome = train_with(tmp_path / "prepared")
    model = untrained(table, scale=SCALED)
    model.load_state_dict(outcome.kept_state)
    line = model.line()
    assert line is not None
    intercept, coefficients = line
    assert intercept == pytest.approx(1.0, abs=0.05)
    assert coefficients == [pytest.approx(2.0, abs=0.05)]
    # The noise's variance is 0.01; the 100 validation losses around it have a standard deviation of 0.0014.
    assert outcome.epochs[-1].validation_loss == pytest.approx(0.01, abs=0.005)


def curve(rows: int, seed: int) -> Rows:
    """Return rows of y = sin(3x), x uniform on [-1, 1)."""
    x = np.random.default_rng(seed).uniform(-1, 1, rows)
    return np.column_stack([x, np.sin(3 * x)])


def test_an_mlp_learns_a_curve_that_a_line_cannot(tmp_path: Path) -> None:
    write_prepared(tmp_path, curve(400, 0), curve(100, 1))
    adam: dict[str, Any] = {"optimizer": {"name": "adam", "lr": 0.02}, "epochs": 20}
    line = train_with(tmp_path, **adam)
    mlp = train_with(tmp_path, **adam, model={"name": "mlp", "hidden": [32], "activation": "tanh"})
    assert min(validation_losses(mlp)) < 0.05 * min(validation_losses(line))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("constant", ["0.1", "123456.789"])
def test_a_feature_constant_in_training_can_be_scaled_and_vary_elsewhere(tmp_path: Path, dtype: Dtype, constant: str) -> None:
    # Through the real prepare, whose mean of equal numbers must not be off by their last digit.
    rows = [f"{constant},{x},{1 + 2 * x},train" for x in np.linspace(-1, 1, 353)]
    varied = [f"{float(constant) + 0.5},{x},{1 + 2 * x},{split}" for x in (0.1, 0.2) for split in ("validation", "test")]
    (tmp_path / "own.csv").write_text("\n".join(["c,x,y,split", *rows, *varied]) + "\n")
    settings = {"csv": str(tmp_path / "own.csv"), "dtype": dtype, "split": {"column": "split"}}
    write_table(PrepareSettings.model_validate(settings), tmp_path / "prepared")
    outcome = train_with(tmp_path / "prepared", epochs=20)
    # The coefficient of the constant feature stays where it started, below 1 / √2: half of it is what the loss can show.
    assert outcome.epochs[-1].validation_loss < 0.13


# What evaluate takes from the files of train.


@pytest.mark.parametrize(
    "content", ["a,b\n1,x\n", "", "epoch,train_loss,validation_loss,learning_rate\n1,x,1.0,0.1\n", "epoch,train_loss\n1,1.0\n"]
)
def test_a_damaged_history_is_one_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "history.csv"
    path.write_text(content)
    with pytest.raises(TruefitError) as caught:
        read_history(path)
    assert str(caught.value) == (
        f"{path}: damaged, allowed: the columns epoch, train_loss, validation_loss, learning_rate, with numbers; "
        "`dvc repro --force train` writes it anew"
    )


def test_a_missing_history_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        TruefitError, match=r"history\.csv: cannot be read: No such file or directory; `dvc repro train` writes it$"
    ):
        read_history(tmp_path / "history.csv")


def test_a_history_reads_back_as_it_was(tmp_path: Path) -> None:
    write_line(tmp_path)
    history = train_with(tmp_path, epochs=3).history()
    history.to_csv(tmp_path / "history.csv", index=False)
    pd.testing.assert_frame_equal(read_history(tmp_path / "history.csv"), history)


def described(tmp_path: Path, settings: TrainSettings, **changes: object) -> ModelDescription:
    """Return what model.json says of a model of the settings, with some of these changed or, where empty, left out."""
    write_line(tmp_path)
    training = {key: value for key, value in {**settings.beside_the_model(), **changes}.items() if value != {}}
    table, model = read_table(tmp_path), settings.model
    state = untrained(table, model, settings.scale).state_dict()
    save_model(tmp_path, state, model, settings.scale, table, training)
    return load_model(tmp_path, table)[1]


def test_a_model_says_how_it_was_trained(tmp_path: Path) -> None:
    settings = TrainSettings.model_validate(
        {
            "scale": {"features": "none", "target": "log"},
            "model": {"name": "mlp", "hidden": [3]},
            "loss": {"name": "huber", "delta": 0.5},
            "epochs": 9,
        }
    )
    assert trained_with(described(tmp_path, settings), tmp_path / "model.json") == settings


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"loss": {}}, "training: lacks settings, allowed: all that stage train writes"),
        ({"loss": {"name": "l1"}}, "training: lacks settings, allowed: all that stage train writes"),
        ({"epochs": 0}, "training.epochs: Input should be greater than or equal to 1"),
    ],
)
def test_a_model_that_does_not_say_how_it_was_trained_is_refused(tmp_path: Path, changes: dict[str, Any], fault: str) -> None:
    description, path = described(tmp_path, TrainSettings(), **changes), tmp_path / "model.json"
    with pytest.raises(TruefitError) as caught:
        trained_with(description, path)
    assert str(caught.value) == f"{path}: {fault}; `dvc repro --force train` writes it anew"
