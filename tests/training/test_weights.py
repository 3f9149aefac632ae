"""Weights of rows in a training: each row as often as its weight says, alike in all engines."""

import signal
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
    normal_line,
    repeated,
    same_bits,
    train_with,
    untrained,
    weighted_rows,
    write_prepared,
)
from sklearn.linear_model import LinearRegression
from torch import nn

from truefit.core.errors import StoppedError, TruefitError
from truefit.data import batches
from truefit.data.dataset import TableDataset, open_verified
from truefit.model.scaling import ScaleSettings, fit_scaling
from truefit.training.checkpoint import Checkpoints, CheckpointSettings
from truefit.training.divergence import stable_rate
from truefit.training.engines import EngineName, make_engine
from truefit.training.engines.base import StepSettings
from truefit.training.loop import train
from truefit.training.losses import LossSettings, make_loss
from truefit.training.settings import TrainSettings

EAGER: tuple[EngineName, ...] = ("numpy", "autograd", "torch")
ALL: dict[str, Any] = {"batch_size": "all", "optimizer": {"lr": 0.1}, "epochs": 20}
LOG = ScaleSettings(target="log")


def counted_rows(rows: int = 60, seed: int = 0) -> Rows:
    """Return rows of two features whose weights are 0, 1, 2 or 3, some of each."""
    return weighted_rows(normal_line(rows, (2.0, -1.0), seed=seed), np.arange(rows, dtype=float) % 4)


def write_both(folder: Path, rows: Rows, others: Rows) -> tuple[Path, Path]:
    """Write a table of weighted rows, and one in which they are repeated; return their folders."""
    write_prepared(folder / "weighted", rows, others, weighted=True)
    write_prepared(folder / "repeated", repeated(rows), repeated(others))
    return folder / "weighted", folder / "repeated"


# In the loss.


@pytest.mark.parametrize("loss", ["mse", "l1", "huber"])
@pytest.mark.parametrize("scale", [UNSCALED, SCALED, LOG], ids=["unscaled", "scaled", "log"])
def test_whole_weights_train_as_repeated_rows_do(tmp_path: Path, scale: ScaleSettings, loss: str) -> None:
    offset = np.array([0, 0, 20 if scale is LOG else 0, 0])
    rows, others = (counted_rows(count, seed) + offset for count, seed in ((60, 0), (21, 1)))
    settings = ALL | {"scale": scale.model_dump(), "loss": {"name": loss}}
    one, other = (train_with(folder, **settings) for folder in write_both(tmp_path, rows, others))
    np.testing.assert_allclose(one.history().to_numpy(), other.history().to_numpy(), rtol=1e-10, atol=0)
    for name, tensor in other.final_state.items():
        torch.testing.assert_close(one.final_state[name], tensor, rtol=1e-10, atol=1e-12)


def test_the_size_of_all_weights_together_has_no_effect(tmp_path: Path) -> None:
    rows, others = counted_rows(), counted_rows(20, seed=1)
    histories = []
    for factor in (1.0, 2.0**-140, 2.0**40):
        scaled, validating = (part * [1, 1, 1, factor] for part in (rows, others))
        write_prepared(tmp_path, scaled, validating, dtype="float32", weighted=True)
        histories.append(train_with(tmp_path, epochs=3).history())
    assert histories[0].equals(histories[1])
    assert histories[0].equals(histories[2])


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 1e-5)])
def test_all_eager_engines_follow_the_same_loss_curve(tmp_path: Path, dtype: Any, tolerance: float, reduction: str) -> None:
    write_prepared(tmp_path, counted_rows(), counted_rows(20, seed=1), dtype=dtype, weighted=True)
    settings: dict[str, Any] = {"batch_size": 7, "loss": {"reduction": reduction}, "optimizer": {"lr": 0.01}, "epochs": 12}
    numpy, autograd, torch_ = (train_with(tmp_path, engine=name, **settings).history().to_numpy() for name in EAGER)
    for other in (numpy, autograd):
        np.testing.assert_allclose(other, torch_, rtol=tolerance, atol=0)


@pytest.mark.xdist_group("compiled")  # the first in a process also imports the compiler
def test_the_engine_compiled_follows_the_loss_curve_of_torch(tmp_path: Path) -> None:
    write_prepared(tmp_path, counted_rows(), counted_rows(20, seed=1), weighted=True)
    common: dict[str, Any] = {"batch_size": 7, "epochs": 5}
    eager = train_with(tmp_path, **common)
    compiled = train_with(tmp_path, engine="compiled", compile={"batches": 2, "cpp_wrapper": False}, **common)
    np.testing.assert_allclose(compiled.history().to_numpy(), eager.history().to_numpy(), rtol=1e-10, atol=0)


@pytest.mark.parametrize("engine", EAGER)
def test_full_batches_end_at_scikit_learns_weighted_line(tmp_path: Path, engine: EngineName) -> None:
    rows = counted_rows() * [1, 1, 1, 0.3]
    rows[::5, 2] += 3  # so that another weighting is another line
    table = write_prepared(tmp_path, rows, rows, weighted=True)
    outcome = train_with(tmp_path, engine=engine, batch_size="all", optimizer={"lr": 0.2}, epochs=400)
    model = untrained(table, scale=SCALED)
    model.load_state_dict(outcome.final_state)
    line = model.line()
    assert line is not None
    expected = LinearRegression().fit(rows[:, :2], rows[:, 2], sample_weight=rows[:, 3])
    np.testing.assert_allclose([line[0], *line[1]], [expected.intercept_, *expected.coef_], rtol=0, atol=1e-6)
    mse = np.average((expected.predict(rows[:, :2]) - rows[:, 2]) ** 2, weights=rows[:, 3])
    assert outcome.epochs[-1].validation_loss == pytest.approx(mse, rel=1e-6)
    assert outcome.epochs[-1].train_loss == pytest.approx(mse, rel=1e-6)


def test_an_epochs_losses_are_over_the_weight_of_their_split(tmp_path: Path) -> None:
    # With one step an epoch, a training loss is that of the state after the epoch before.
    rows, others = counted_rows(), counted_rows(20, seed=1) * [1, 1, 1, 50]
    table = write_prepared(tmp_path, rows, others, weighted=True)
    first, second = (train_with(tmp_path, **ALL | {"epochs": epochs, "optimizer": {"lr": 0.3}, **PLAIN}) for epochs in (1, 2))
    model = untrained(table)
    model.load_state_dict(first.final_state)
    for loss, part in ((second.epochs[1].train_loss, rows), (first.epochs[0].validation_loss, others)):
        error = model(torch.from_numpy(part[:, :2])).detach().numpy()[:, 0] - part[:, 2]
        assert loss == pytest.approx(np.average(error**2, weights=part[:, 3]), rel=1e-12)


def test_a_batch_of_rows_without_weight_takes_no_step() -> None:
    x, y = torch.ones(4, 2, dtype=torch.float64), torch.tensor([[3.0, 0.0]] * 4, dtype=torch.float64)
    for name in EAGER:
        engine = make_engine(name, nn.Linear(2, 1, dtype=torch.float64), StepSettings(), CPU)
        before = engine.state_dict()
        engine.begin_epoch(1, 0.1)
        assert engine.train_chunk(x, y, 4).tolist() == [0.0]
        assert same_bits(engine.state_dict(), before)


class StopEach(Checkpoints):
    """Stops the training at every place where it could pause, one after the other."""

    def due(self, ended_epoch: int | None = None) -> bool:
        self.deferred_signals.first = signal.SIGTERM
        return True


def test_a_stopped_training_goes_on_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "CHUNK_BATCHES", 3)
    write_prepared(tmp_path, counted_rows(100), counted_rows(20, seed=1), dtype="float32", weighted=True)
    settings = TrainSettings(batch_size=7, epochs=2)
    datasets = open_verified(tmp_path, "train", "validation")
    whole, stops = train(datasets, settings, CPU), 0
    resumed = None
    while resumed is None:
        try:
            with StopEach(tmp_path / "a", CheckpointSettings(epochs=1)) as checkpoints:
                resumed = train(datasets, settings, CPU, checkpoints=checkpoints)
        except StoppedError:
            stops += 1
    assert stops == 2 * 7  # 14 whole batches in 5 chunks, the short one, and the epoch's end
    assert same_bits(resumed.final_state, whole.final_state)
    assert resumed.history().equals(whole.history())


# Without weights.


def test_without_weights_a_loss_has_the_bits_of_torchs_own() -> None:
    prediction, target = (torch.randn(1000, 1, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    for name, module in (("mse", nn.MSELoss), ("l1", nn.L1Loss)):
        settings = LossSettings.model_validate({"name": name})
        for reduction in ("mean", "sum"):
            own = make_loss(settings, reduction)(prediction, target)
            assert torch.equal(own, module(reduction=reduction)(prediction, target))


def test_weights_of_1_change_nothing_beyond_rounding(tmp_path: Path) -> None:
    rows, others = normal_line(60, (2.0, -1.0)), normal_line(20, (2.0, -1.0), seed=1)
    write_prepared(tmp_path / "plain", rows, others)
    ones, validating = (weighted_rows(part, np.ones(len(part))) for part in (rows, others))
    write_prepared(tmp_path / "ones", ones, validating, weighted=True)
    plain, weighted = (train_with(tmp_path / name, epochs=5).history().to_numpy() for name in ("plain", "ones"))
    np.testing.assert_allclose(weighted, plain, rtol=1e-12, atol=0)


# Where a training is judged.


def test_the_mean_that_a_training_must_beat_is_the_weighted_one(tmp_path: Path) -> None:
    # Half of the rows are at 10 and weigh nearly nothing. The weighted mean, near 0, is what the model has to reach.
    rows = weighted_rows(normal_line(80, (0.0, 0.0), noise=0.01), [1.0, 1e-6] * 40)
    rows[1::2, 2] += 10
    write_prepared(tmp_path, rows, rows, weighted=True)
    settings: dict[str, Any] = {"scale": UNSCALED.model_dump(), "schedule": {"name": "constant"}, "batch_size": "all"}
    with pytest.raises(TruefitError, match=r"above that of predicting the mean, 0\.0002"):
        train_with(tmp_path, optimizer={"lr": 0.02}, epochs=20, **settings)
    assert train_with(tmp_path, optimizer={"lr": 0.2}, epochs=200, **settings).epochs[-1].train_loss < 0.0003


def test_the_stable_rate_is_that_of_repeated_rows_in_full_batches(tmp_path: Path) -> None:
    rows, rates = normal_line(4000, (2.0, -1.0)), []
    rows = weighted_rows(rows, np.minimum(np.floor(4 * rows[:, 0] ** 2), 4))
    for folder in write_both(tmp_path, rows, counted_rows(20, seed=1)):
        dataset = TableDataset(folder, "train")
        settings = TrainSettings(batch_size="all", scale=UNSCALED)
        rates.append(stable_rate(dataset, fit_scaling(settings.scale, [dataset]), settings))
    # A full batch has the curvature of all rows, but for the share of its longest one, in both tables a small one.
    assert rates[0] == pytest.approx(rates[1], rel=0.02)


def test_the_stable_rate_of_single_rows_is_that_of_the_one_that_weighs_most(tmp_path: Path) -> None:
    rows = counted_rows(400)
    write_prepared(tmp_path, rows, rows, weighted=True)
    dataset, settings = TableDataset(tmp_path, "train"), TrainSettings(batch_size=1, scale=UNSCALED)
    heaviest = (rows[:, 3] / rows[:, 3].mean() * (1 + (rows[:, :2] ** 2).sum(axis=1))).max()
    assert stable_rate(dataset, fit_scaling(UNSCALED, [dataset]), settings) == pytest.approx(1 / heaviest, rel=1e-12)
