"""The MLflow model of a run: loaded or served, it gives the numbers that `truefit predict` gives, from its own files alone."""

import csv
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pytest
import torch
from helpers_data import numbered_csv, prepare
from helpers_model import download_model, model_of
from helpers_server import serving_model
from helpers_stages import Stages
from helpers_torture import TORTURE
from helpers_training import SCALED, save_untrained
from mlflow.entities import Run
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema, TensorSpec
from mlflow.types.schema import AnyType
from numpy.typing import NDArray
from workspace import Workspace

from truefit.data.table import Dtype, read_table
from truefit.model import serving as serving_module
from truefit.model.files import open_model
from truefit.model.models import ModelSettings
from truefit.model.serving import MODEL_ROWS, PACKAGES, ROOMS, ServedModel, predictions
from truefit.tracking.mlflow_model import pack_model

# One clone and its server for all tests of them.
shared = pytest.mark.xdist_group("served")

FEATURES = ["age", "größe, cm", "x 3"]
ROWS = 5_000_000 if TORTURE else 2 * MODEL_ROWS + 100  # to be predicted
ASKED = 100 * MODEL_ROWS  # rows of a request, at most
TABLE, RESULTS = "data/prepared", "results"
MLP = {"train__model__name": "mlp", "train__model__hidden": [16, 16], "train__scale__features": "none"}

Array = NDArray[Any]


def rows(count: int, seed: int) -> pd.DataFrame:
    """Return rows of the features and a target, with every digit of a float64."""
    values = np.random.default_rng(seed).normal(0, 1, (count, len(FEATURES)))
    return pd.DataFrame(values, columns=FEATURES).assign(target=values @ [1.0, -2.0, 0.5])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, stages: Stages) -> tuple[Workspace, dict[Dtype, Run]]:
    """A clone with a run of a linear model in float64, one of an mlp in float32, and one that logs no MLflow model."""
    workspace = Workspace(tmp_path_factory.mktemp("clone"))
    rows(200, seed=0).to_csv(workspace.path / "data/own.csv", index=False)
    pyarrow.csv.write_csv(pa.Table.from_pandas(rows(ROWS, seed=1)), workspace.path / "new.csv")  # faster than pandas
    workspace.set_params(prepare__csv="data/own.csv", train__epochs=5)
    dtypes: list[tuple[Dtype, dict[str, Any]]] = [("float64", {}), ("float32", MLP), ("float32", {"track__log_model": False})]
    for dtype, changed in dtypes:
        workspace.set_params(prepare__dtype=dtype, **changed)
        for stage, *arguments in [("prepare", TABLE), ("train", TABLE, RESULTS)]:
            done = stages.run(workspace.path, stage, *arguments)
            assert done.status == 0, done.line
    without, mlp, linear = workspace.runs()
    assert [run.data.params["track.log_model"] for run in (linear, mlp, without)] == ["true", "true", "false"]
    return workspace, {"float64": linear, "float32": mlp}


@pytest.fixture(scope="module")
def expected(runs: tuple[Workspace, dict[Dtype, Run]], stages: Stages) -> dict[Dtype, Array]:
    """What `truefit predict` writes for the rows of new.csv."""
    workspace, by_dtype = runs
    predicted: dict[Dtype, Array] = {}
    for dtype, run in by_dtype.items():
        done = stages.run(workspace.path, "truefit", "predict", "new.csv", "out.csv", "--run", run.info.run_id)
        assert done == (0, "")
        with (workspace.path / "out.csv").open() as file:
            predicted[dtype] = np.array([float(row["prediction"]) for row in csv.DictReader(file)], dtype)
        assert len(predicted[dtype]) == ROWS
    return predicted


@pytest.fixture(scope="module")
def ask(runs: tuple[Workspace, dict[Dtype, Run]]) -> Iterator[Callable[[Any], tuple[int, Any]]]:
    """The function that asks a server of the model in float32; one in float64 is asked in test_serving_kinds.py."""
    workspace, by_dtype = runs
    with serving_model(workspace, by_dtype["float32"]) as ask:
        yield ask


@shared
def test_a_served_model_answers_with_the_bits_of_predict(
    ask: Callable[[Any], tuple[int, Any]], expected: dict[Dtype, Array]
) -> None:
    frame, predicted = rows(ROWS, seed=1)[[*reversed(FEATURES)]], expected["float32"].astype(np.float64)
    for first in range(0, ROWS, ASKED):
        part = slice(first, first + ASKED)
        status, answer = ask({"dataframe_split": frame[part].to_dict("split", index=False)})
        assert status == 200
        assert np.array_equal(np.array(answer["predictions"], np.float64), predicted[part])
    # A row alone, with whole numbers and with a column that the model does not know.
    status, answer = ask({"dataframe_records": [frame.iloc[0].to_dict() | {"other": "a"}]})
    assert (status, answer) == (200, {"predictions": [float(predicted[0])]})
    status, answer = ask({"dataframe_records": [dict.fromkeys(FEATURES, 2)]})
    assert (status, answer) == ask({"dataframe_records": [dict.fromkeys(FEATURES, 2.0)]})
    assert status == 200


@shared
@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"x 3": None}, "row 0, column 'x 3': found a missing value, allowed: a number"),
        ({"x 3": 1e39}, "row 0, column 'x 3': found 1e+39, allowed: a finite float32"),
        ({"x 3": 2.0**24 + 1}, "row 0, column 'x 3': found 16777217.0, allowed: a number that float32 holds"),
        ({"x 3": 1e-50}, "row 0, column 'x 3': found 1e-50, allowed: a number that float32 holds"),
        ({"x 3": "a"}, "row 0, column 'x 3': found 'a', allowed: a number"),
    ],
)
def test_a_served_model_refuses_what_is_no_number(
    changed: dict[str, Any], reason: str, ask: Callable[[Any], tuple[int, Any]]
) -> None:
    status, answer = ask({"dataframe_records": [dict.fromkeys(FEATURES, 1.0) | changed]})
    assert status == 400
    assert reason in json.dumps(answer)


@shared
def test_a_model_of_a_run_or_of_the_registry_is_loaded_from_its_own_files_with_the_bits_of_predict(
    runs: tuple[Workspace, dict[Dtype, Run]], expected: dict[Dtype, Array], tmp_path: Path
) -> None:
    workspace, by_dtype = runs
    # Each in a process of its own, since both have a package called truefit.
    script = f"""
import os, sys, mlflow.pyfunc, numpy as np, pandas as pd, torch
def load(dtype, uri):
    model = mlflow.pyfunc.load_model(uri, dst_path=f"{tmp_path}/{{dtype}}")
    own = [module.__file__ for name, module in sys.modules.items() if name.partition(".")[0] == "truefit"]
    assert own and all(file.startswith(f"{tmp_path}/{{dtype}}/") for file in own), own
    np.save(f"{{dtype}}.npy", model.predict(pd.read_csv("new.csv")))
version = mlflow.register_model("runs:/{by_dtype["float32"].info.run_id}/model", "prices")
mlflow.MlflowClient().set_registered_model_alias("prices", "champion", version.version)
for dtype, uri in [("float64", "runs:/{by_dtype["float64"].info.run_id}/model"), ("float32", "models:/prices@champion")]:
    if (child := os.fork()) == 0:
        load(dtype, uri)
        sys.exit()
    assert os.waitpid(child, 0)[1] == 0
"""
    for dtype in by_dtype:
        (tmp_path / dtype).mkdir()
    workspace.run(sys.executable, "-c", script)
    for dtype in by_dtype:
        loaded = np.load(workspace.path / f"{dtype}.npy")
        assert loaded.dtype == dtype
        assert np.array_equal(loaded, expected[dtype])


@shared
def test_a_run_holds_an_mlflow_model_with_signature_example_and_pinned_requirements(
    runs: tuple[Workspace, dict[Dtype, Run]], ask: Callable[[Any], tuple[int, Any]], tmp_path: Path
) -> None:
    workspace, by_dtype = runs
    folder = download_model(workspace.client, by_dtype["float32"], tmp_path)
    info = mlflow.models.get_model_info(str(folder))
    columns = Schema([ColSpec(AnyType(), name) for name in FEATURES])  # type: ignore[no-untyped-call]
    assert info.signature == ModelSignature(columns, Schema([TensorSpec(np.dtype("float32"), (-1,))]))
    required = (folder / "requirements.txt").read_text().split()
    assert required == [f"{name}=={version(name).partition('+')[0]}" for name in PACKAGES]
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} == {"", ".json", ".pt", ".py", ".txt", ".yaml"}
    status, answer = ask(json.loads((folder / "serving_input_example.json").read_text()))
    assert status == 200
    assert len(answer["predictions"]) == 3
    assert model_of(workspace.client, by_dtype["float32"]).status == "READY"


@shared
def test_log_model_false_leaves_the_mlflow_model_out(runs: tuple[Workspace, dict[Dtype, Run]]) -> None:
    workspace, by_dtype = runs
    without = workspace.runs()[0]
    kept, left_out = (len(run.outputs.model_outputs) if run.outputs else 0 for run in (by_dtype["float32"], without))
    assert (kept, left_out) == (1, 0)


def test_the_code_that_goes_with_a_model_is_all_that_it_imports() -> None:
    script = """
import sys
before = set(sys.modules)
import truefit.model.serving
print(*sorted(set(sys.modules) - before))
"""
    printed = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2] / "src"
    )
    imported = printed.stdout.split()
    assert {name.split(".")[1] for name in imported if name.startswith("truefit.")} == set(ROOMS)


def trained(dtype: Dtype, features: int = 2) -> tuple[Any, ServedModel]:
    """Return a model that nobody trained, for x1 … xF, and the same as it is served."""
    table = prepare(Path(), numbered_csv(20, features), dtype=dtype)
    save_untrained(Path(), table, scale=SCALED, seed=3)
    model, description = open_model(Path())
    return model, ServedModel(model, description)


@pytest.mark.filterwarnings("ignore")  # mlflow's own, of its types and of pandas
def test_a_model_packed_again_for_the_same_run_has_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trained("float32")
    table = read_table(Path("prepared"))
    files = {name: Path(name).read_bytes() for name in ("model.pt", "model.json")}
    first, again = (pack_model(serving_module, files, table, "a" * 32, 1_700_000_000_000) for _ in range(2))
    assert first == again
    assert b"2023-11-14 22:13:20" in first["model/MLmodel"]


def test_threads_change_no_bit_of_a_prediction_and_are_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # With 16 threads a plain call gives a quarter of these rows other bits, on a CPU with AVX-512.
    table = prepare(Path(), numbered_csv(20, 5), dtype="float64")
    settings = ModelSettings(name="mlp", hidden=(256, 256))
    save_untrained(Path(), table, settings, SCALED, seed=3)
    model, description = open_model(Path())
    values = np.random.default_rng(3).normal(0, 1, (MODEL_ROWS, 5))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = np.concatenate([*predictions(model, [values])])
        torch.set_num_threads(16)
        served = ServedModel(model, description).predict(pd.DataFrame(values, columns=table.features))
        assert torch.get_num_threads() == 16
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(served, alone)


def test_no_rows_have_no_predictions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _, served = trained("float32")
    predicted = served.predict(pd.DataFrame({"x1": [], "x2": []}))
    assert predicted.shape == (0,)
    assert predicted.dtype == np.float32


def test_a_prediction_that_is_not_finite_is_refused_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, served = trained("float32")
    model.body.weight.data[:] = 1e30
    frame = pd.DataFrame({"x1": [10.0, 1e38], "x2": [10.0, 1e38]}, index=["a", "b"])
    with pytest.raises(ValueError, match=r"^row b: found features whose prediction is inf, allowed: a finite float32$"):
        served.predict(frame)


@pytest.mark.parametrize("cut", [1, 7, MODEL_ROWS, MODEL_ROWS + 1])
def test_predictions_do_not_depend_on_how_the_rows_are_handed_over(
    cut: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model, _ = trained("float64")
    values = np.random.default_rng(2).normal(0, 1, (MODEL_ROWS + 50, 2))
    whole = np.concatenate([*predictions(model, [values])])
    parts = np.concatenate([*predictions(model, [values[:cut], values[cut:cut], values[cut:]])])
    assert len(whole) == len(values)
    assert np.array_equal(whole, parts)
