"""No training with random settings ends well and worse than the mean; where one fails, its advice, followed once, works.

A few here; `make torture` tries 200.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_torture import SEED, TORTURE
from helpers_training import Rows, followed, train_with, write_prepared
from sklearn.datasets import load_diabetes

from truefit.core.errors import TruefitError
from truefit.training.losses import LossSettings, make_loss

COUNT = 200 if TORTURE else 3
SCALES = [{"features": features, "target": target} for features in ("standard", "none") for target in ("standard", "none")]


def curved(rows: int, generator: np.random.Generator) -> Rows:
    """Return rows of two features in units of their own, and of a large target that is no line of them."""
    x = generator.uniform(0, 1, (rows, 2))
    target = 4e5 + 3e5 * np.sin(3 * x[:, 0]) * x[:, 1] + 1e4 * generator.standard_normal(rows)
    return np.column_stack([x * [50.0, 2000.0], target])


def heavy(rows: int, generator: np.random.Generator) -> Rows:
    """Return rows of three features with long tails, one of them nearly another."""
    x = generator.standard_t(3, (rows, 3))
    x[:, 2] = x[:, 0] + 0.01 * x[:, 2]
    return np.column_stack([x, 3 + x @ [1.0, -2.0, 0.5] + generator.standard_normal(rows)])


def diabetes(rows: int, generator: np.random.Generator) -> Rows:
    data = load_diabetes()
    return np.column_stack([data.data, data.target])[generator.permutation(len(data.target))[:rows]]


def draw(generator: np.random.Generator) -> dict[str, Any]:
    """Return settings of section train, within reach of what they may be."""

    def one(*values: Any) -> Any:
        return values[generator.integers(len(values))]

    optimizer = {"name": one("sgd", "adam", "adamw"), "lr": float(10 ** generator.uniform(-6, 1))}
    if optimizer["name"] == "sgd":
        optimizer["momentum"] = one(0.0, 0.5, 0.9)
    return {
        "model": one({"name": "linear"}, {"name": "mlp", "hidden": one([8], [32, 16])}),
        "scale": one(*SCALES),
        "loss": {"name": one("mse", "mse", "l1", "huber"), "reduction": one("mean", "mean", "sum")},
        "optimizer": {**optimizer, "weight_decay": one(0.0, 0.0, 1e-3, 0.1)},
        "schedule": {"name": one("constant", "step", "cosine", "plateau")},
        "batch_size": one(8, 16, 64, "all"),
        "epochs": one(2, 5, 10, 20),
        "clip_norm": one(None, None, 1.0),
        "seed": int(generator.integers(1000)),
    }


def loss_of_the_mean(rows: Rows, settings: dict[str, Any]) -> float:
    """Return the mean loss of predicting the mean of the training rows' targets, in the target's unit."""
    target = torch.from_numpy(rows[:, -1:].copy())
    loss, scaled = LossSettings.model_validate(settings["loss"]), settings["scale"]["target"] == "standard"
    std = float(target.std(correction=0)) if scaled else 1.0
    error = (target - target.mean()) / std
    return float(make_loss(loss)(error, torch.zeros_like(error))) / len(rows) * std ** (1 if loss.name == "l1" else 2)


@pytest.mark.parametrize("make_rows", [curved, heavy, diabetes])
def test_random_settings_end_below_the_mean_or_with_advice_that_works(tmp_path: Path, make_rows: Any) -> None:
    failed = []
    for number in range(-(-COUNT // 3)):
        generator = np.random.default_rng([SEED, number])
        rows, settings = make_rows(400, generator), draw(generator)
        write_prepared(tmp_path / str(number), rows, make_rows(40, generator), dtype="float32")
        told = f"TRUEFIT_SEED={SEED}, number {number}: {settings}"
        try:
            outcome = train_with(tmp_path / str(number), **settings)
        except TruefitError as error:
            try:
                outcome = train_with(tmp_path / str(number), **followed(settings, str(error)))
            except TruefitError as again:
                failed.append(f"{told}\n{error}\n{again}")
                continue
            settings = followed(settings, str(error))
        limit = loss_of_the_mean(rows.astype(np.float32).astype(np.float64), settings)
        assert outcome.epochs[-1].train_loss <= limit * (1 + 1e-6), told
    # Advice is none of the promises: followed once it failed in 1 case of 223 when it was measured.
    assert len(failed) <= COUNT // 100, "\n".join(failed)
