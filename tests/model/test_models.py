"""The models' initial parameters, and their values. How they scale: test_scaling.py."""

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_training import (
    CPU,
    SCALED,
    UNSCALED,
    State,
    global_streams,
    normal_line,
    same_bits,
    tensors,
    untrained,
    write_scaled,
)
from torch import Tensor, nn

from truefit.model.layers import Dropout
from truefit.model.models import ModelSettings

LINEAR = ModelSettings()
SMALL_MLP = ModelSettings(name="mlp", hidden=(5, 4))


def state_of(model: nn.Module) -> State:
    return dict(model.state_dict())


# Initial parameters.


@pytest.mark.parametrize("settings", [LINEAR, SMALL_MLP])
def test_initial_parameters_depend_on_the_seed_alone(tmp_path: Path, settings: ModelSettings) -> None:
    table = write_scaled(tmp_path)
    torch.manual_seed(1)
    first = state_of(untrained(table, settings))
    torch.manual_seed(2)
    assert same_bits(state_of(untrained(table, settings)), first)
    other = state_of(untrained(table, settings, seed=8))
    assert all(not torch.equal(other[name], first[name]) for name in first)


def test_building_a_model_draws_nothing_from_the_global_streams(tmp_path: Path) -> None:
    table = write_scaled(tmp_path)
    before = global_streams()
    untrained(table, SMALL_MLP.model_copy(update={"dropout": 0.5}), SCALED)
    assert global_streams() == before


@pytest.mark.parametrize("settings", [LINEAR, SMALL_MLP])
def test_float32_starts_from_float64s_parameters_rounded(tmp_path: Path, settings: ModelSettings) -> None:
    exact = state_of(untrained(write_scaled(tmp_path / "a"), settings))
    rounded = state_of(untrained(write_scaled(tmp_path / "b", dtype="float32"), settings))
    assert {tensor.dtype for tensor in exact.values()} == {torch.float64}
    assert same_bits(rounded, {name: tensor.to(torch.float32) for name, tensor in exact.items()})
    assert any(not torch.equal(rounded[name].double(), exact[name]) for name in exact)


def test_scaling_does_not_shift_the_initial_parameters(tmp_path: Path) -> None:
    table = write_scaled(tmp_path)
    plain, scaled = (state_of(untrained(table, SMALL_MLP, scale)) for scale in (UNSCALED, SCALED))
    assert same_bits({name: scaled[name] for name in plain}, plain)


def test_initial_parameters_fill_the_range_that_the_inputs_give(tmp_path: Path) -> None:
    settings = ModelSettings(name="mlp", hidden=(100, 300))
    state = state_of(untrained(write_scaled(tmp_path, features=16), settings))
    for layer, inputs in (("body.0", 16), ("body.2", 100), ("body.4", 300)):
        bound = 1 / math.sqrt(inputs)
        values = torch.cat([state[f"{layer}.weight"].flatten(), state[f"{layer}.bias"]])
        assert -bound <= float(values.min()) < -0.97 * bound
        assert 0.97 * bound < float(values.max()) <= bound
        # The mean of n uniform values is normal with standard deviation bound / √(3n).
        assert abs(float(values.mean())) < 4 * bound / math.sqrt(3 * len(values))


def test_parameters_can_be_trained(tmp_path: Path) -> None:
    model = untrained(write_scaled(tmp_path), SMALL_MLP, SCALED)
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == {
        f"body.{number}.{name}" for number in (0, 2, 4) for name in ("weight", "bias")
    }


# The linear model.


def test_the_linear_model_is_its_bias_plus_features_times_weight(tmp_path: Path) -> None:
    model = untrained(write_scaled(tmp_path))
    with torch.no_grad():
        model.get_parameter("body.weight").copy_(torch.tensor([[2.0, -1.0]]))
        model.get_parameter("body.bias").fill_(0.5)
        prediction = model(torch.tensor([[1.0, 1.0], [3.0, 2.0]], dtype=torch.float64))
    assert prediction.tolist() == [[1.5], [4.5]]
    assert model.line() == (0.5, [2.0, -1.0])


# The multi-layer perceptron.


@pytest.mark.parametrize(("activation", "kind"), [("relu", nn.ReLU), ("tanh", nn.Tanh), ("gelu", nn.GELU)])
def test_an_mlp_has_an_activation_and_a_dropout_after_each_layer_but_the_last(
    tmp_path: Path, activation: str, kind: type[nn.Module]
) -> None:
    settings = ModelSettings.model_validate({"name": "mlp", "hidden": [5, 4], "activation": activation, "dropout": 0.25})
    model = untrained(write_scaled(tmp_path, features=3), settings)
    layers = list(model.body.children())
    assert model.line() is None
    assert [type(layer) for layer in layers] == [nn.Linear, kind, Dropout, nn.Linear, kind, Dropout, nn.Linear]
    sizes = [(layer.in_features, layer.out_features) for layer in layers if isinstance(layer, nn.Linear)]
    assert sizes == [(3, 5), (5, 4), (4, 1)]
    assert [(layer.p, layer.seed, layer.layer) for layer in layers if isinstance(layer, Dropout)] == [
        (0.25, 7, 0),
        (0.25, 7, 1),
    ]


def test_an_mlp_without_dropout_has_no_dropout_layers(tmp_path: Path) -> None:
    model = untrained(write_scaled(tmp_path), SMALL_MLP)
    assert not any(isinstance(module, Dropout) for module in model.modules())


def test_an_mlp_has_the_parameters_that_its_sizes_give(tmp_path: Path) -> None:
    model = untrained(write_scaled(tmp_path, features=10), ModelSettings(name="mlp", hidden=(64, 32)))
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == (10 + 1) * 64 + (64 + 1) * 32 + (32 + 1)


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu"])
def test_an_mlps_prediction_is_that_of_its_formula(tmp_path: Path, activation: str) -> None:
    settings = SMALL_MLP.model_copy(update={"activation": activation})
    rows = normal_line(20, [1.0, 1.0])
    model = untrained(write_scaled(tmp_path, rows=rows), settings)
    formulas: dict[str, Any] = {
        "relu": lambda z: np.maximum(z, 0),
        "tanh": np.tanh,
        "gelu": lambda z: z * np.vectorize(lambda value: 0.5 * (1 + math.erf(value / math.sqrt(2))))(z),
    }
    values = rows[:, :-1]
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    for layer in (0, 2):
        values = formulas[activation](values @ state[f"body.{layer}.weight"].T + state[f"body.{layer}.bias"])
    expected = values @ state["body.4.weight"].T + state["body.4.bias"]
    with torch.no_grad():
        np.testing.assert_allclose(model(tensors(rows)[0]).numpy(), expected, rtol=1e-12, atol=1e-14)


# Dropout.


def masked(p: float = 0.3, seed: int = 1, layer: int = 0, epoch: int = 1) -> Tensor:
    """Return what a dropout layer makes of ones [400, 250] at the start of an epoch."""
    dropout = Dropout(p, seed, layer)
    dropout.begin_epoch(epoch, CPU)
    return dropout(torch.ones(400, 250))  # type: ignore[no-any-return]


@pytest.mark.parametrize("p", [0.1, 0.3, 0.8])
def test_dropout_zeroes_a_share_p_and_scales_the_rest(p: float) -> None:
    values = masked(p)
    kept = values[values != 0]
    # The share of 100,000 values has a standard deviation below 0.0016.
    assert 1 - len(kept) / values.numel() == pytest.approx(p, abs=0.007)
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - p)))


def test_dropout_spreads_its_zeros_over_rows_and_columns() -> None:
    zeros = masked(0.5) == 0
    for axis, count in ((0, 400), (1, 250)):
        share = zeros.double().mean(dim=axis)
        assert float((share - 0.5).abs().max()) < 5 * 0.5 / math.sqrt(count)


def test_dropout_does_nothing_in_eval() -> None:
    values = torch.ones(4, 5)
    assert torch.equal(Dropout(0.5, 1, 0).eval()(values), values)


def test_dropouts_masks_repeat_for_the_same_seed_layer_and_epoch() -> None:
    torch.manual_seed(1)
    first = masked()
    torch.manual_seed(2)
    assert torch.equal(masked(), first)


@pytest.mark.parametrize("change", [{"seed": 2}, {"layer": 1}, {"epoch": 2}])
def test_dropouts_masks_differ_between_seeds_layers_and_epochs(change: dict[str, int]) -> None:
    assert not torch.equal(masked(**change), masked())


def test_dropouts_masks_differ_between_the_batches_of_an_epoch() -> None:
    dropout = Dropout(0.5, 1, 0)
    assert not torch.equal(dropout(torch.ones(10, 10)), dropout(torch.ones(10, 10)))


def test_dropout_draws_nothing_from_the_global_stream() -> None:
    before = torch.get_rng_state()
    masked()
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_passes_the_gradient_of_what_it_kept() -> None:
    values = torch.ones(10, 10, requires_grad=True)
    output = Dropout(0.5, 1, 0)(values)
    output.sum().backward()
    assert values.grad is not None
    assert torch.equal(values.grad, output.detach())


def test_building_a_model_imports_neither_torchs_compiler_nor_sympy(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from helpers_training import SCALED, normal_line, untrained, write_prepared
from truefit.model.models import ModelSettings
table = write_prepared(Path(sys.argv[1]), normal_line(16), normal_line(16))
untrained(table, ModelSettings(name="mlp", hidden=(4,)), SCALED)
assert not sys.modules.keys() & {"torch._dynamo", "sympy"}
"""
    tests = Path(__file__).parents[1]
    path = os.pathsep.join(map(str, (tests, tests.parent / "src")))
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, env={"PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
