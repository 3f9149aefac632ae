"""The range test finds a rate at which a training's loss falls, and says where there is none."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_training import CPU, Rows, global_streams, normal_line, write_prepared

from truefit.data.dataset import open_verified
from truefit.training.range_test import RATES, falling_rate
from truefit.training.settings import TrainSettings

MLP: dict[str, Any] = {"model": {"name": "mlp", "hidden": [8], "dropout": 0.3}, "optimizer": {"name": "adam"}}


def found(folder: Path, rows: Rows, rates: list[float] = RATES, **settings: Any) -> float | None:
    write_prepared(folder, rows, rows[:4])
    return falling_rate(open_verified(folder, "train", "validation"), TrainSettings.model_validate(settings), CPU, rates)


def test_for_a_quadratic_the_rate_is_below_the_largest_stable_one_and_near_it(tmp_path: Path) -> None:
    # The loss of all rows is a quadratic with the Hessian 2 XᵀX/N; gradient descent on it is stable up to 2/λmax.
    rows = normal_line(200, (2.0, -1.0, 0.5))
    design = np.column_stack([np.ones(200), rows[:, :-1]])
    stable = 2 / np.linalg.eigvalsh(2 * design.T @ design / 200).max()
    rate = found(tmp_path, rows, batch_size="all", scale={"features": "none", "target": "none"})
    assert rate is not None
    assert stable / 10 < rate < stable


@pytest.mark.parametrize(("start", "end"), [(1e-12, 1e-9), (5.0, 10.0)])
def test_there_is_none_where_the_loss_does_not_fall(tmp_path: Path, start: float, end: float) -> None:
    assert found(tmp_path, normal_line(64), np.geomspace(start, end, 100).tolist(), batch_size=8) is None


def test_a_loss_that_is_not_finite_at_once_gives_none(tmp_path: Path) -> None:
    assert found(tmp_path, normal_line(64), [1e80] * 20, batch_size="all") is None


@pytest.mark.parametrize("settings", [{}, MLP])
def test_it_repeats_itself_and_leaves_the_global_streams(tmp_path: Path, settings: dict[str, Any]) -> None:
    before = global_streams()
    assert len({found(tmp_path, normal_line(64), **settings) for _ in range(2)}) == 1
    assert global_streams() == before
