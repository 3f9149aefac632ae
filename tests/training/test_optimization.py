"""Losses, learning rates and the weight of short batches."""

import math
from typing import Any

import pytest
import torch

from truefit.training.losses import LossSettings, make_loss
from truefit.training.schedules import Schedule, ScheduleSettings


def learning_rates(settings: dict[str, Any], lr: float, losses: list[float]) -> list[float]:
    """Return the learning rate of each epoch, one a validation loss, and of the epoch after the last."""
    schedule = Schedule(ScheduleSettings.model_validate(settings), lr, len(losses))
    rates = [schedule.learning_rate]
    for loss in losses:
        schedule.advance(loss)
        rates.append(schedule.learning_rate)
    return rates


def test_constant_never_changes() -> None:
    assert learning_rates({"name": "constant"}, 0.3, [1.0] * 8) == [0.3] * 9


def test_step_multiplies_by_gamma_every_step_size_epochs() -> None:
    rates = learning_rates({"name": "step", "step_size": 3, "gamma": 0.5}, 0.8, [1.0] * 8)
    assert rates == pytest.approx([0.8, 0.8, 0.8, 0.4, 0.4, 0.4, 0.2, 0.2, 0.2], rel=1e-12)


def test_step_has_its_defaults() -> None:
    rates = learning_rates({"name": "step"}, 1.0, [1.0] * 20)
    assert rates == pytest.approx([1.0] * 10 + [0.1] * 10 + [0.01], rel=1e-12)


def test_cosine_goes_down_half_a_cosine_to_min_lr() -> None:
    rates = learning_rates({"name": "cosine", "min_lr": 0.2}, 1.0, [1.0] * 4)
    # min_lr + (lr - min_lr) · (1 + cos(π · k / 4)) / 2, for k = 0 … 4
    half = 0.4 / math.sqrt(2)
    assert rates == pytest.approx([1.0, 0.6 + half, 0.6, 0.6 - half, 0.2], rel=1e-12)


def test_cosine_goes_down_to_zero_by_default() -> None:
    assert learning_rates({"name": "cosine"}, 0.5, [1.0, 1.0]) == pytest.approx([0.5, 0.25, 0.0], abs=1e-15)


def test_plateau_multiplies_by_factor_after_more_than_patience_epochs_without_a_lower_loss() -> None:
    losses = [1.0, 0.9, 0.9, 0.95, 0.9, 0.8, 0.8, 0.8, 0.8]
    rates = learning_rates({"name": "plateau", "factor": 0.5, "patience": 1}, 0.8, losses)
    assert rates == pytest.approx([0.8, 0.8, 0.8, 0.8, 0.4, 0.4, 0.4, 0.4, 0.2, 0.2], rel=1e-12)


def test_plateau_with_patience_zero_reacts_at_once() -> None:
    rates = learning_rates({"name": "plateau", "factor": 0.5, "patience": 0}, 0.8, [1.0, 1.0, 0.5])
    assert rates == pytest.approx([0.8, 0.8, 0.4, 0.4], rel=1e-12)


def test_plateau_has_its_defaults() -> None:
    rates = learning_rates({"name": "plateau"}, 1.0, [1.0] * 12)
    assert rates == pytest.approx([1.0] * 12 + [0.1], rel=1e-12)


def test_only_plateau_heeds_the_validation_loss() -> None:
    for name in ("constant", "step", "cosine"):
        worse, better = [1.0 + number for number in range(30)], [1.0 / (1 + number) for number in range(30)]
        assert learning_rates({"name": name}, 0.1, worse) == learning_rates({"name": name}, 0.1, better)


@pytest.mark.parametrize(("name", "values"), [("mse", [0.25, 9.0]), ("l1", [0.5, 3.0]), ("huber", [0.125, 2.5])])
def test_losses_are_the_sum_or_the_mean_of_the_rows(name: str, values: list[float]) -> None:
    settings = LossSettings.model_validate({"name": name})
    prediction, target = torch.tensor([[1.5], [2.0]]), torch.tensor([[1.0], [5.0]])  # errors 0.5 and -3
    assert float(make_loss(settings)(prediction, target)) == sum(values)
    assert float(make_loss(settings, "mean")(prediction, target)) == sum(values) / 2


def test_beyond_delta_hubers_loss_is_a_line() -> None:
    loss, zero = make_loss(LossSettings(name="huber", delta=0.5)), torch.zeros(1, 1)
    at_three, at_four = float(loss(zero + 3, zero)), float(loss(zero + 4, zero))
    assert at_three == 0.5 * (3.0 - 0.25)
    assert at_four - at_three == 0.5
    assert float(make_loss(LossSettings(name="huber", delta=10.0))(zero + 3, zero)) == 4.5
