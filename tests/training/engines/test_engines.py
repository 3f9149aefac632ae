"""The engines take the same training step, and each takes it rightly. They have a model's body, and see scaled rows alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_training import (
    CPU,
    SCALED,
    UNSCALED,
    Rows,
    normal_line,
    same_bits,
    tensors,
    train_with,
    untrained,
    write_prepared,
)
from torch import Tensor, nn

from truefit.data.columns.number import Number
from truefit.data.table import CsvSource, Dtype, Table
from truefit.model.models import ModelSettings
from truefit.model.scaling import ScaleSettings
from truefit.training.device import available_devices
from truefit.training.engines import EngineName, make_engine
from truefit.training.engines.autograd_engine import AutogradEngine
from truefit.training.engines.base import Engine, StepSettings
from truefit.training.engines.torch_engine import make_train_step
from truefit.training.losses import LossSettings
from truefit.training.optimizers import OptimizerSettings

ENGINES: tuple[EngineName, ...] = ("numpy", "autograd", "torch")
SCALES = [UNSCALED, SCALED, ScaleSettings(features="none"), ScaleSettings(target="none")]
LINEAR = ModelSettings()
DROPOUT_MLP = ModelSettings(name="mlp", hidden=(8, 8), dropout=0.5)


def describe(features: int, dtype: Dtype = "float64") -> Table:
    """Return the description of a table."""
    return Table(
        csv=CsvSource(path="own.csv", sha256="0" * 64),
        columns=[Number(name=f"x{number}") for number in range(1, features + 1)],
        target="y",
        dtype=dtype,
        rows={"train": 1, "validation": 1, "test": 1},
        mean=[3.0] * (features + 1),
        std=[2.0] * (features + 1),
        sha256={"train": "", "validation": "", "test": ""},
    )


def new_body(settings: ModelSettings = LINEAR, dtype: Dtype = "float64") -> nn.Module:
    return untrained(describe(3, dtype), settings, seed=1).body


def new_engine(
    name: EngineName = "torch",
    settings: ModelSettings = LINEAR,
    *,
    loss: LossSettings | None = None,
    optimizer: OptimizerSettings | None = None,
    clip_norm: float | None = None,
    lr: float = 0.1,
) -> Engine:
    """Return an engine, about to begin its first epoch, for three features in float64."""
    step = StepSettings(loss or LossSettings(), optimizer or OptimizerSettings(lr=lr), clip_norm)
    engine = make_engine(name, new_body(settings), step, CPU)
    engine.begin_epoch(1, lr)
    return engine


def rows_of_three(rows: int = 23, seed: int = 0) -> Rows:
    return normal_line(rows, (2.0, -1.0, 0.5), seed=seed)


# The same curve.


@pytest.mark.parametrize("scale", [UNSCALED, SCALED], ids=["unscaled", "scaled"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("batch_size", ["all", 10, 7, 1])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 1e-5)])
def test_all_engines_follow_the_same_loss_curve(
    tmp_path: Path, dtype: Dtype, tolerance: float, batch_size: int | str, reduction: str, scale: ScaleSettings
) -> None:
    write_prepared(tmp_path, rows_of_three(50) + np.array([0.5, -1.0, 2.0, 0.0]), rows_of_three(13, seed=1), dtype=dtype)
    rate, rows = {"all": (0.1, 50), 10: (0.05, 10), 7: (0.05, 7), 1: (0.01, 1)}[batch_size]
    settings: dict[str, Any] = {
        "batch_size": batch_size,
        "loss": {"reduction": reduction},
        "scale": scale.model_dump(),
        "optimizer": {"lr": rate if reduction == "mean" else rate / rows},
        "epochs": 12,
    }
    numpy, autograd, torch_ = (train_with(tmp_path, engine=name, **settings).history() for name in ENGINES)
    assert torch_["train_loss"].iloc[-1] < 0.9 * torch_["train_loss"].iloc[0]
    for other in (numpy, autograd):
        np.testing.assert_allclose(other.to_numpy(), torch_.to_numpy(), rtol=tolerance, atol=0)


@pytest.mark.parametrize("scale", SCALES, ids=str)
@pytest.mark.parametrize("engine", ENGINES)
def test_full_batches_end_at_the_least_squares_solution(tmp_path: Path, engine: EngineName, scale: ScaleSettings) -> None:
    rows = rows_of_three(60) * [1.2, 0.9, 1.0, 3.0] + [0.5, -0.5, 1.0, -20.0]
    table = write_prepared(tmp_path, rows, rows)
    settings: dict[str, Any] = {"batch_size": "all", "optimizer": {"lr": 0.2}, "epochs": 400}
    outcome = train_with(tmp_path, engine=engine, scale=scale.model_dump(), **settings)
    model = untrained(table, scale=scale)
    model.load_state_dict(outcome.final_state)
    line = model.line()
    assert line is not None
    intercept, coefficients = line
    design = np.column_stack([np.ones(len(rows)), rows[:, :-1]])
    expected = np.linalg.lstsq(design, rows[:, -1])[0]
    np.testing.assert_allclose([intercept, *coefficients], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_loss_returned_is_each_batchs_sum_before_its_step(engine: EngineName) -> None:
    x, y = tensors(rows_of_three(10))
    start = new_engine(engine).state_dict()
    losses = new_engine(engine).train_chunk(x, y, 4)
    assert len(losses) == 3
    first = x[:4] @ start["weight"].T + start["bias"] - y[:4]
    assert float(losses[0]) == pytest.approx(float((first**2).sum()), rel=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("engine", ENGINES)
def test_the_losses_returned_are_float64_on_the_cpu_and_without_a_graph(engine: EngineName, dtype: Dtype) -> None:
    made = make_engine(engine, new_body(dtype=dtype), StepSettings(), CPU)
    made.begin_epoch(1, 0.1)
    losses = made.train_chunk(*tensors(rows_of_three(10), getattr(torch, dtype)), 4)
    assert (losses.shape, losses.dtype, losses.device.type) == ((3,), torch.float64, "cpu")
    assert not losses.requires_grad


@pytest.mark.parametrize("engine", ENGINES)
def test_losses_and_steps_do_not_depend_on_how_batches_are_put_into_chunks(engine: EngineName) -> None:
    x, y = tensors(rows_of_three(22))
    whole, parts = new_engine(engine), new_engine(engine)
    together = whole.train_chunk(x, y, 4)
    apart = torch.cat([parts.train_chunk(x[at : at + 8], y[at : at + 8], 4) for at in (0, 8, 16)])
    torch.testing.assert_close(apart, together, rtol=1e-12, atol=0)
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], tensor, rtol=1e-12, atol=0)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_learning_rate_is_that_of_the_epoch_begun(engine: EngineName) -> None:
    x, y = tensors(rows_of_three())
    trained = new_engine(engine, lr=0.1)
    before = trained.state_dict()["weight"]
    trained.begin_epoch(2, 0.05)
    trained.train_chunk(x, y, len(x))
    slow = trained.state_dict()["weight"] - before
    other = new_engine(engine, lr=0.1)
    other.train_chunk(x, y, len(x))
    fast = other.state_dict()["weight"] - before
    torch.testing.assert_close(fast, 2 * slow, rtol=1e-12, atol=0)


# The gradient by hand.


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_step_goes_down_the_gradient_that_torch_finds(engine: EngineName, reduction: str) -> None:
    x, y = tensors(rows_of_three())
    trained = new_engine(engine, loss=LossSettings(reduction=reduction), lr=1.0)  # type: ignore[arg-type]
    before = trained.state_dict()
    trained.train_chunk(x, y, len(x))
    after = trained.state_dict()
    weight, bias = (before[name].requires_grad_() for name in ("weight", "bias"))
    error = x @ weight.T + bias - y
    gradients = torch.autograd.grad((error**2).mean() if reduction == "mean" else (error**2).sum(), [weight, bias])
    for name, gradient in zip(("weight", "bias"), gradients, strict=True):
        found = before[name].detach() - after[name]
        torch.testing.assert_close(found, gradient, rtol=1e-10, atol=1e-12)


def test_the_gradient_by_hand_agrees_with_finite_differences() -> None:
    rows = rows_of_three()
    x, y = tensors(rows)
    engine = new_engine("numpy", lr=1.0)
    start = engine.state_dict()
    parameters = torch.cat([start["bias"], start["weight"][0]]).numpy()

    def loss(values: np.ndarray[Any, np.dtype[np.float64]]) -> float:
        return float(np.mean((values[0] + rows[:, :-1] @ values[1:] - rows[:, -1]) ** 2))

    steps = 1e-5 * np.eye(4)
    expected = [(loss(parameters + step) - loss(parameters - step)) / 2e-5 for step in steps]
    engine.train_chunk(x, y, len(x))
    end = engine.state_dict()
    found = parameters - torch.cat([end["bias"], end["weight"][0]]).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-7)


# The state.


@pytest.mark.parametrize("engine", ENGINES)
def test_the_state_has_the_names_shapes_and_dtypes_of_the_torch_module(engine: EngineName) -> None:
    x, y = tensors(rows_of_three())
    trained = new_engine(engine)
    trained.train_chunk(x, y, 4)
    expected = {name: (t.shape, t.dtype) for name, t in new_body().state_dict().items()}
    state = trained.state_dict()
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in state.items()} == expected
    assert list(state) == list(expected)


@pytest.mark.parametrize("engine", ENGINES)
def test_all_engines_start_from_the_bodys_parameters(engine: EngineName) -> None:
    assert same_bits(new_engine(engine).state_dict(), dict(new_body().state_dict()))


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_given_anothers_training_state_goes_on_as_that_one(engine: EngineName) -> None:
    x, y = tensors(rows_of_three())
    one, other = (new_engine(engine) for _ in range(2))
    one.train_chunk(x, y, 4)
    other.load_training_state(one.training_state())
    assert same_bits(other.state_dict(), one.state_dict())
    assert torch.equal(other.train_chunk(x, y, 4), one.train_chunk(x, y, 4))
    assert same_bits(other.state_dict(), one.state_dict())


@pytest.mark.parametrize("engine", ENGINES)
def test_a_state_given_out_is_a_copy(engine: EngineName) -> None:
    x, y = tensors(rows_of_three())
    trained = new_engine(engine)
    given = trained.state_dict()
    before = {name: tensor.clone() for name, tensor in given.items()}
    trained.train_chunk(x, y, 4)
    assert same_bits(given, before)
    after = trained.state_dict()
    for tensor in trained.state_dict().values():
        tensor.fill_(7.0)
    assert same_bits(trained.state_dict(), after)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_state_taken_in_is_copied(engine: EngineName) -> None:
    trained = new_engine(engine)
    taken = trained.training_state()
    before = {name: tensor.clone() for name, tensor in taken["model"].items()}
    trained.load_training_state(taken)
    for tensor in taken["model"].values():
        tensor.fill_(7.0)
    assert same_bits(trained.state_dict(), before)


@pytest.mark.parametrize("device", [name for name in available_devices() if name != "mps"])
def test_autograd_keeps_its_parameters_as_leaves_on_the_device(device: str) -> None:
    engine = AutogradEngine(new_body(), "mean", torch.device(device))
    engine.begin_epoch(1, 0.1)
    x, y = tensors(rows_of_three())
    engine.train_chunk(x, y, 4)
    for parameter in (engine.weight, engine.bias):
        assert parameter.is_leaf
        assert parameter.requires_grad
        assert parameter.device.type == torch.device(device).type
    assert {tensor.device.type for tensor in engine.state_dict().values()} == {"cpu"}


@pytest.mark.parametrize("device", [name for name in available_devices() if name != "mps"])
def test_the_torch_engine_takes_the_same_steps_on_every_device_there_is(device: str) -> None:
    x, y = tensors(rows_of_three())
    engines = [make_engine("torch", new_body(), StepSettings(), torch.device(name)) for name in ("cpu", device)]
    for engine in engines:
        engine.begin_epoch(1, 0.1)
    expected, found = (engine.train_chunk(x, y, 4) for engine in engines)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    assert {tensor.device.type for tensor in engines[1].state_dict().values()} == {"cpu"}


# Validation.


@pytest.mark.parametrize("engine", ENGINES)
def test_the_validation_loss_is_summed_over_rows(engine: EngineName) -> None:
    x, y = tensors(rows_of_three())
    trained = new_engine(engine)
    state = trained.state_dict()
    error = x @ state["weight"].T + state["bias"] - y
    loss = trained.validation_loss(x, y)
    assert type(loss) is float
    assert loss == pytest.approx(float((error**2).sum()), rel=1e-12)


@pytest.mark.parametrize(
    ("engine", "settings"), [("numpy", LINEAR), ("autograd", LINEAR), ("torch", LINEAR), ("torch", DROPOUT_MLP)]
)
def test_validation_changes_neither_the_state_nor_the_training_after_it(engine: EngineName, settings: ModelSettings) -> None:
    x, y = tensors(rows_of_three())
    optimizer = OptimizerSettings(lr=0.01)
    watched, left_alone = (new_engine(engine, settings, optimizer=optimizer) for _ in range(2))
    random_state = torch.get_rng_state()
    for _ in range(3):
        assert torch.equal(watched.train_chunk(x, y, 4), left_alone.train_chunk(x, y, 4))
        state = watched.state_dict()
        watched.validation_loss(x, y)
        assert same_bits(watched.state_dict(), state)
    assert same_bits(watched.state_dict(), left_alone.state_dict())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_dropout_is_off_in_validation_and_on_in_training() -> None:
    x, y = tensors(rows_of_three())
    engine = new_engine("torch", DROPOUT_MLP, lr=1e-300)  # steps too short to move anything
    body = new_body(DROPOUT_MLP).eval()
    with torch.no_grad():
        expected = float(((body(x) - y) ** 2).sum())
    assert engine.validation_loss(x, y) == pytest.approx(expected, rel=1e-12)
    assert engine.validation_loss(x, y) == engine.validation_loss(x, y)
    first, second = (float(engine.train_chunk(x, y, len(x))) for _ in range(2))
    assert expected != pytest.approx(first, rel=1e-3)
    assert first != pytest.approx(second, rel=1e-3)


def test_dropouts_masks_are_those_of_the_epoch_whatever_came_before() -> None:
    x, y = tensors(rows_of_three())
    fresh, used = (new_engine("torch", DROPOUT_MLP, lr=1e-300) for _ in range(2))
    used.train_chunk(x, y, 4)
    for engine in (fresh, used):
        engine.begin_epoch(2, 1e-300)
    assert torch.equal(fresh.train_chunk(x, y, 4), used.train_chunk(x, y, 4))


def test_validation_builds_no_graph() -> None:
    seen: list[bool] = []
    body = new_body()
    body.register_forward_hook(lambda _module, _inputs, output: seen.append(output.requires_grad))
    engine = make_engine("torch", body, StepSettings(), CPU)
    engine.validation_loss(*tensors(rows_of_three()))
    assert seen == [False]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(("name", "expected"), [("mse", 2.5), ("l1", 2.0), ("huber", 1.125)])
def test_losses_have_their_textbook_values(name: str, expected: float, reduction: str) -> None:
    # Errors 0.5 and 1.5: mse (0.25 + 2.25); l1 (0.5 + 1.5); huber, quadratic up to 1, (0.125 + 1). Summed over rows.
    x = torch.zeros(2, 3, dtype=torch.float64)
    engine = new_engine("torch", loss=LossSettings(name=name, reduction=reduction))  # type: ignore[arg-type]
    bias = engine.state_dict()["bias"]
    y = bias + torch.tensor([[0.5], [1.5]], dtype=torch.float64)
    assert engine.validation_loss(x, y) == pytest.approx(expected, rel=1e-12)
    assert float(engine.train_chunk(x, y, 2)) == pytest.approx(expected, rel=1e-12)


# make_train_step.


def tiny_step(lr: float = 0.1, clip_norm: float | None = None) -> tuple[nn.Linear, Any]:
    """Return the model y = 2x + 0 and its step with SGD."""
    model = nn.Linear(1, 1, dtype=torch.float64)
    with torch.no_grad():
        model.weight.fill_(2.0)
        model.bias.zero_()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return model, make_train_step(model, nn.MSELoss(reduction="sum"), optimizer, clip_norm=clip_norm)


def line(model: nn.Linear) -> list[float]:
    """Return weight and bias."""
    return [model.weight.item(), model.bias.item()]


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None]


def test_train_step_takes_the_step_worked_out_by_hand() -> None:
    # Predictions 2 and 4, errors -1 and -1: dL/dw = 2 · mean(-1, -2) = -3, dL/db = 2 · mean(-1, -1) = -2.
    model, step = tiny_step(lr=0.1)
    step(column(1, 2), column(3, 5))
    assert line(model) == pytest.approx([2.3, 0.2], rel=1e-15)


def test_train_step_returns_the_summed_loss_before_the_step_without_a_graph() -> None:
    _, step = tiny_step()
    loss = step(column(1, 2), column(3, 5))
    assert float(loss) == 2.0
    assert loss.shape == ()
    assert not loss.requires_grad
    assert float(step(column(1, 2), column(3, 5))) < 2.0


def test_train_step_leaves_nothing_of_one_gradient_to_the_next() -> None:
    model, step = tiny_step(lr=0.1)
    step(column(1, 2), column(3, 5))
    # Now w = 2.3, b = 0.2, predictions 2.5 and 4.8, errors -0.5 and -0.2: dL/dw = -0.9, dL/db = -0.7.
    step(column(1, 2), column(3, 5))
    assert line(model) == pytest.approx([2.39, 0.27], rel=1e-14)


def test_clip_norm_shortens_a_long_gradient_and_keeps_its_direction() -> None:
    model, step = tiny_step(lr=1.0, clip_norm=0.5)
    step(column(1, 2), column(3, 5))  # gradient (-3, -2), length √13
    moved = torch.cat([model.weight[0] - 2, model.bias]).detach()
    assert float(moved.norm()) == pytest.approx(0.5, rel=1e-5)
    assert float(moved[0] / moved[1]) == pytest.approx(1.5, rel=1e-12)


def test_clip_norm_leaves_a_short_gradient_as_it_is() -> None:
    model, step = tiny_step(lr=0.1, clip_norm=4.0)
    step(column(1, 2), column(3, 5))
    assert line(model) == pytest.approx([2.3, 0.2], rel=1e-15)


def test_the_engine_clips_at_the_norm_it_was_given() -> None:
    x, y = tensors(rows_of_three() * 1000)
    engine = new_engine(clip_norm=0.25, lr=1.0)
    before = engine.state_dict()
    engine.train_chunk(x, y, len(x))
    after = engine.state_dict()
    moved = torch.cat([(after[name] - before[name]).flatten() for name in before])
    assert float(moved.norm()) == pytest.approx(0.25, rel=1e-5)


# Optimizers.


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "sgd"},
        {"name": "sgd", "momentum": 0.9},
        {"name": "sgd", "momentum": 0.9, "nesterov": True},
        {"name": "sgd", "weight_decay": 0.1},
        {"name": "sgd", "momentum": 0.5, "nesterov": True, "weight_decay": 0.1},
        {"name": "adam"},
        {"name": "adam", "weight_decay": 0.1},
        {"name": "adamw"},
        {"name": "adamw", "weight_decay": 0.1},
    ],
    ids=str,
)
def test_optimizers_step_to_the_bit_as_torch_optims_own(settings: dict[str, Any]) -> None:
    x, y = tensors(rows_of_three())
    plain_mlp = DROPOUT_MLP.model_copy(update={"dropout": 0.0})
    direct = new_body(plain_mlp)
    classes: dict[str, Any] = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    options: dict[str, Any] = {key: value for key, value in settings.items() if key not in ("name", "weight_decay")}
    # adamw's decay is 0 where the settings say nothing, unlike torch's default of 0.01; biases never have one.
    decays = {"weight": settings.get("weight_decay", 0.0), "bias": 0.0}
    groups = [{"params": [value], "weight_decay": decays[name.split(".")[-1]]} for name, value in direct.named_parameters()]
    optimizer = classes[settings["name"]](groups, lr=0.02, **options)
    engine = new_engine(settings=plain_mlp, optimizer=OptimizerSettings.model_validate(settings | {"lr": 0.02}), lr=0.02)
    engine.train_chunk(x, y, 4)
    for features, target in zip(x.split(4), y.split(4), strict=True):
        optimizer.zero_grad()
        nn.functional.mse_loss(direct(features), target).backward()
        optimizer.step()
    assert same_bits(engine.state_dict(), dict(direct.state_dict()))


def test_the_optimizers_settings_lead_to_different_places() -> None:
    x, y = tensors(rows_of_three())
    settings: list[dict[str, Any]] = [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "nesterov": True},
        {"weight_decay": 0.1},
        {"name": "adam"},
        {"name": "adam", "weight_decay": 0.1},
        {"name": "adamw", "weight_decay": 0.1},
    ]
    ends = set()
    for one in settings:
        engine = new_engine(optimizer=OptimizerSettings.model_validate(one), lr=0.02)
        engine.train_chunk(x, y, 4)
        ends.add(tuple(engine.state_dict()["weight"][0].tolist()))
    assert len(ends) == len(settings)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_weight_decay_moves_weights_and_leaves_biases_alone(name: str) -> None:
    # Where every prediction is right the gradient is zero, so that what moves is moved by the decay.
    x = torch.zeros(8, 3, dtype=torch.float64)
    decay = OptimizerSettings.model_validate({"name": name, "lr": 0.01, "weight_decay": 0.5})
    engine = new_engine(optimizer=decay, lr=0.01)
    before = engine.state_dict()
    engine.train_chunk(x, before["bias"].expand(8, 1), 4)
    after = engine.state_dict()
    assert torch.equal(after["bias"], before["bias"])
    assert bool((after["weight"].abs() < before["weight"].abs()).all())
