"""The engine `compiled` takes the same steps as `torch`, in graphs of many batches, and says what it cannot do without."""

import importlib.util
import io
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from helpers_training import CPU, UNSCALED, normal_line, same_bits, tensors, train_with, untrained, write_prepared

from truefit.core.errors import TruefitError
from truefit.model.files import read_tensors
from truefit.training.engines import COMPILING_PAYS, EngineName, choose_engine, make_engine
from truefit.training.engines.base import Engine, StepSettings
from truefit.training.engines.compiled_engine import CompileSettings, Graph, unmet_need
from truefit.training.losses import LossSettings
from truefit.training.optimizers import OptimizerSettings
from truefit.training.settings import TrainSettings

CUDA = torch.device("cuda")
with_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

# Making a graph takes seconds, so each of these tests many settings at once.
SETTINGS: dict[str, dict[str, Any]] = {
    "float64": {"optimizer": {"lr": 0.05, "weight_decay": 0.1}, "scale": UNSCALED.model_dump(), "shuffle": "block"},
    "nesterov": {"optimizer": {"lr": 0.02, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}},
    "clipping": {
        "optimizer": {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.01},
        "schedule": {"name": "step", "step_size": 1, "gamma": 0.9},
        "clip_norm": 0.5,
    },
    "adam": {
        "optimizer": {"name": "adam", "lr": 0.05, "weight_decay": 0.1},
        "schedule": {"name": "cosine", "min_lr": 0.001},
        "compile": {"batches": 2, "cpp_wrapper": False},
    },
    "mlp": {
        "model": {"name": "mlp", "hidden": [5, 4], "dropout": 0.3, "activation": "gelu"},
        "loss": {"name": "huber", "reduction": "sum"},
        "optimizer": {"name": "adamw", "lr": 0.02, "weight_decay": 0.1},
        "scale": {"features": "standard", "target": "none"},
    },
}


def settings_of(name: str) -> dict[str, Any]:
    return {"batch_size": 7, "epochs": 3, "compile": {"batches": 2}} | SETTINGS[name]


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.xdist_group("compiled")  # the first in a process also imports the compiler
def test_it_follows_the_loss_curve_of_torch_and_repeats_its_own_bits(tmp_path: Path, name: str) -> None:
    # 13 whole batches and a short one: six graphs of two batches, and two single steps.
    rows, others = normal_line(96, (2.0, -1.0)), normal_line(30, (2.0, -1.0), seed=1)
    dtype, tolerance = ("float64", 1e-10) if name == "float64" else ("float32", 1e-5)
    write_prepared(tmp_path, rows, others, dtype=dtype)  # type: ignore[arg-type]
    settings = settings_of(name)
    compiled, again = (train_with(tmp_path, engine="compiled", **settings) for _ in range(2))
    eager = train_with(tmp_path, **{key: value for key, value in settings.items() if key != "compile"})
    np.testing.assert_allclose(compiled.history().to_numpy(), eager.history().to_numpy(), rtol=tolerance, atol=0)
    for key, tensor in eager.final_state.items():
        torch.testing.assert_close(compiled.final_state[key], tensor, rtol=10 * tolerance, atol=tolerance)
    assert same_bits(compiled.final_state, again.final_state)


@pytest.mark.parametrize(
    ("rows", "batch_size", "row_bytes", "batches"),
    [
        (1000, 10, 8, 16),
        (159, 10, 8, 15),
        (9, 10, 8, 1),
        (10, 10, 8, 1),
        (1_000_000, 4096, 8, 16),
        (1_000_000, 30_000, 8, 2),
        (10**6, 10**6, 8, 1),
        (1_000_000, 100, 40_004, 4),
    ],
)
def test_a_graph_is_no_longer_than_an_epoch_and_no_larger_than_a_chunk(
    rows: int, batch_size: int, row_bytes: int, batches: int
) -> None:
    assert CompileSettings().graph(rows, batch_size, row_bytes) == Graph(batches, batch_size, True)


def test_without_a_compiler_the_error_names_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_prepared(tmp_path, normal_line(20), normal_line(9, seed=1))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(TruefitError) as caught:
        train_with(tmp_path, engine="compiled")
    assert str(caught.value) == (
        "train.engine: compiled needs a C++ compiler: found no no-such-compiler (Debian: apt-get install g++); "
        "or take the engine torch"
    )
    assert choose_engine(COMPILING_PAYS, CPU, StepSettings(), CompileSettings()) == (
        "torch",
        "compiled needs a C++ compiler: found no no-such-compiler (Debian: apt-get install g++)",
    )


def test_without_pythons_headers_the_reason_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    assert (
        unmet_need(CPU, StepSettings(), cpp_wrapper=True)
        == "Python's headers: found no Python.h (Debian: apt-get install python3-dev)"
    )


@pytest.fixture
def _cuda_without_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch for CUDA with triton, and a toolkit's folder without headers."""
    (tmp_path / "toolkit/include").mkdir(parents=True)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr("torch.version.cuda", "13.0")
    monkeypatch.setattr("torch.utils.cpp_extension.CUDA_HOME", str(tmp_path / "toolkit"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: find_spec("torch" if name == "triton" else name))


NO_HEADERS = "CUDA's headers: found no cuda.h (set CUDA_HOME to a CUDA toolkit's folder), or train.compile.cpp_wrapper: false"


@pytest.mark.usefixtures("_cuda_without_headers")
@pytest.mark.skipif(Path("/usr/include/cuda.h").exists(), reason="the compiler finds cuda.h by itself")
def test_cudas_headers_are_asked_for_by_the_wrapper_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert unmet_need(CUDA, StepSettings(), cpp_wrapper=True) == NO_HEADERS
    assert unmet_need(CUDA, StepSettings(), cpp_wrapper=False) is None
    assert unmet_need(CPU, StepSettings(), cpp_wrapper=True) is None
    monkeypatch.setattr("torch.utils.cpp_extension.CUDA_HOME", None)
    assert unmet_need(CUDA, StepSettings(), cpp_wrapper=True) == NO_HEADERS
    (tmp_path / "toolkit/include/cuda.h").touch()
    monkeypatch.setattr("torch.utils.cpp_extension.CUDA_HOME", str(tmp_path / "toolkit"))
    assert unmet_need(CUDA, StepSettings(), cpp_wrapper=True) is None


@pytest.mark.usefixtures("_cuda_without_headers")
@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_adam_on_cuda_is_compiled_only_where_its_steps_are_right(name: Literal["adam", "adamw"]) -> None:
    step = StepSettings(optimizer=OptimizerSettings(name=name))
    reason = f"compiled needs train.compile.cpp_wrapper: false with {name} on cuda, where the other takes wrong steps"
    assert choose_engine(COMPILING_PAYS, CUDA, step, CompileSettings()) == ("torch", reason)
    assert choose_engine(COMPILING_PAYS, CUDA, step, CompileSettings(cpp_wrapper=False))[0] == "compiled"
    assert unmet_need(CPU, step, cpp_wrapper=True) is None
    with pytest.raises(TruefitError, match=f"train.engine: {reason}; or take the engine torch"):
        make_engine("compiled", torch.nn.Linear(1, 1), step, CUDA, Graph(2, 7, True))


def test_auto_compiles_where_the_steps_are_many_enough() -> None:
    assert choose_engine(COMPILING_PAYS, CPU, StepSettings(), CompileSettings()) == (
        "compiled",
        "for 100,000 steps compiling pays",
    )
    assert choose_engine(COMPILING_PAYS - 1, CPU, StepSettings(), CompileSettings()) == (
        "torch",
        "for 99,999 steps compiling does not pay; it does from 100,000 on",
    )
    assert choose_engine(COMPILING_PAYS, torch.device("mps"), StepSettings(), CompileSettings()) == (
        "torch",
        "compiled does not run on mps",
    )


@pytest.mark.parametrize(("batch_size", "steps"), [(16, 63 * 50), (1, 50_000), ("all", 50), (2000, 50)])
def test_the_steps_of_a_training_are_counted_with_the_short_batches(batch_size: int | str, steps: int) -> None:
    assert TrainSettings.model_validate({"batch_size": batch_size}).steps(1000) == steps


def test_a_batch_larger_than_the_table_makes_a_graph_of_the_table(tmp_path: Path) -> None:
    write_prepared(tmp_path, normal_line(20), normal_line(9, seed=1))
    # Room for the rows that the settings name would be more memory than there is.
    settings: dict[str, Any] = {"engine": "compiled", "epochs": 20, "optimizer": {"lr": 0.2}}
    large, whole = (train_with(tmp_path, batch_size=size, **settings) for size in (10**12, "all"))
    assert same_bits(large.final_state, whole.final_state)


@with_cuda
@pytest.mark.parametrize(("optimizer", "cpp_wrapper"), [("sgd", True), ("adam", False)])
@pytest.mark.xdist_group("compiled")
def test_on_cuda_a_graph_takes_the_steps_of_torch_and_goes_on_with_its_own_bits(
    tmp_path: Path, optimizer: Literal["sgd", "adam"], cpp_wrapper: bool
) -> None:
    table = write_prepared(tmp_path, normal_line(70, (2.0, -1.0)), normal_line(9, (2.0, -1.0), seed=1))
    x, y = tensors(normal_line(70, (2.0, -1.0)))
    step = StepSettings(optimizer=OptimizerSettings(name=optimizer, lr=0.05))

    def engine_on(device: torch.device, name: EngineName = "torch") -> Engine:
        engine = make_engine(name, untrained(table).body, step, device, Graph(2, 7, cpp_wrapper))
        engine.begin_epoch(1, 0.05)
        return engine

    one, other, eager = engine_on(CUDA, "compiled"), engine_on(CUDA, "compiled"), engine_on(CPU)
    for _ in range(5):  # each time four graphs and a single step
        np.testing.assert_allclose(one.train_chunk(x[:63], y[:63], 7), eager.train_chunk(x[:63], y[:63], 7), rtol=1e-9)
    buffer = io.BytesIO()
    torch.save(one.training_state(), buffer)
    other.load_training_state(read_tensors(buffer.getvalue()))
    assert torch.equal(other.train_chunk(x, y, 7), one.train_chunk(x, y, 7))
    assert same_bits(other.state_dict(), one.state_dict())


def test_engines_beside_each_other_keep_to_their_own_graphs(tmp_path: Path) -> None:
    table = write_prepared(tmp_path, normal_line(20), normal_line(9, seed=1))
    features, target = tensors(normal_line(20))

    def engine(name: EngineName, loss: Literal["mse", "l1"]) -> Engine:
        step = StepSettings(LossSettings(name=loss), OptimizerSettings(lr=0.1))
        made = make_engine(name, untrained(table).body, step, CPU, Graph(2, 5, True))
        made.begin_epoch(1, 0.1)
        return made

    compiled, eager = ([engine(name, loss) for loss in ("mse", "l1")] for name in ("compiled", "torch"))
    for _ in range(2):
        for one, other in zip(compiled, eager, strict=True):
            torch.testing.assert_close(one.train_chunk(features, target, 5), other.train_chunk(features, target, 5))
