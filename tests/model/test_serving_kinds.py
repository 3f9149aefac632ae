"""A model of columns of all kinds with gaps: loaded by MLflow, or served, it gives the numbers of `truefit predict`."""

import csv
import json
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from helpers_data import prepare
from helpers_model import download_model
from helpers_server import serving_model
from helpers_stages import Stages
from helpers_training import save_untrained
from mlflow.entities import Run
from mlflow.types.schema import AnyType
from numpy.typing import NDArray
from workspace import Workspace

from truefit.cli.prediction import predict
from truefit.data.columns.base import Column
from truefit.data.columns.boolean import Boolean
from truefit.data.columns.category import Category
from truefit.data.columns.date import Date
from truefit.data.columns.number import Number
from truefit.model.cells import CellReader
from truefit.model.files import open_model
from truefit.model.serving import ServedModel

# One clone and its server for all tests of them.
shared = pytest.mark.xdist_group("served kinds")

Array = NDArray[Any]

FILLED = ["size", "rooms", "zone", "region", "smoker", "sold_at", "built"]
KINDS = {
    "zone": "category",
    "region": "category",
    "smoker": "boolean",
    "sold_at": "date",
    "built": {"kind": "date", "format": "%d/%m/%Y"},
}
TABLE, RESULTS = "data/prepared", "results"


def raw_rows(count: int, seed: int) -> list[dict[str, str]]:
    """Return rows of all kinds as a CSV holds them; a tenth of their cells are empty, and some names are seldom."""
    generator = np.random.default_rng(seed)
    rows = []
    for days in generator.integers(0, 2000, count).tolist():
        day = datetime(2020, 1, 1, 12 * (days % 2), tzinfo=UTC) + pd.Timedelta(days=days)
        row = {
            "size": repr(generator.normal(100, 30)),
            "rooms": str(generator.integers(1, 9)),
            "zone": str(generator.integers(1, 5)),
            "region": str(generator.choice(["north", "south", f"r{generator.integers(100)}"])),
            "smoker": str(generator.choice(["yes", "no"])),
            "sold_at": f"{day:%Y-%m-%d %H:%M:%S}",
            "built": f"{day:%d/%m/%Y}",
        }
        row = {name: cell if generator.random() < 0.9 else "" for name, cell in row.items()}
        rows.append(row | {"y": repr(generator.normal(days, 1))})
    return rows


def write(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0]])
        writer.writeheader()
        writer.writerows(rows)


def frames(path: Path) -> dict[str, pd.DataFrame]:
    """Return the rows of a CSV as different people have them in pandas."""
    texts = pd.read_csv(path, dtype=str, keep_default_na=False)
    guessed = pd.read_csv(path)
    truths = guessed["smoker"].map({"yes": True, "no": False})
    days = pd.to_datetime(guessed["sold_at"])
    return {
        "texts": texts,
        "objects": texts.astype(object).where(texts != "", None),
        "guessed": guessed,
        "typed": guessed.assign(
            rooms=guessed["rooms"].astype("Int64"),
            zone=guessed["zone"].astype("Int64").astype("category"),
            region=guessed["region"].astype("category"),
            smoker=truths.astype(object).where(truths.notna(), None),
            sold_at=days,
            built=pd.to_datetime(guessed["built"], format="%d/%m/%Y"),
        ),
        "zoned": guessed.assign(
            smoker=truths.astype("boolean"), sold_at=days.dt.tz_localize("UTC").dt.tz_convert("Asia/Tokyo")
        ),
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, stages: Stages) -> tuple[Workspace, Run]:
    """A clone with a run of an mlp in float64 on columns of all kinds, whose gaps are filled."""
    workspace = Workspace(tmp_path_factory.mktemp("kinds"))
    write(workspace.path / "data/own.csv", raw_rows(500, seed=0))
    write(workspace.path / "new.csv", raw_rows(3000, seed=1))
    mlp = {"train__model__name": "mlp", "train__model__hidden": [16]}
    workspace.set_params(prepare__csv="data/own.csv", prepare__columns=KINDS, prepare__missing__features="fill", **mlp)
    workspace.set_params(prepare__dtype="float64", train__epochs=3)
    for stage, *arguments in [("prepare", TABLE), ("train", TABLE, RESULTS)]:
        done = stages.run(workspace.path, stage, *arguments)
        assert done.status == 0, done.line
    return workspace, workspace.runs()[0]


@pytest.fixture(scope="module")
def expected(run: tuple[Workspace, Run], stages: Stages) -> Array:
    """What `truefit predict` writes for the rows of new.csv."""
    workspace, of = run
    done = stages.run(workspace.path, "truefit", "predict", "new.csv", "out.csv", "--run", of.info.run_id)
    assert done.status == 0
    assert done.line.startswith("new.csv: found values that the model does not know, and takes for '(other)', in 'region' ")
    with (workspace.path / "out.csv").open() as file:
        predicted = np.array([float(row["prediction"]) for row in csv.DictReader(file)])
    assert len(np.unique(predicted)) > 2900
    return predicted


@pytest.fixture(scope="module")
def ask(run: tuple[Workspace, Run]) -> Iterator[Callable[[Any], tuple[int, Any]]]:
    """The function that asks a server of the run's model."""
    with serving_model(*run) as ask:
        yield ask


# --- loaded and served


@shared
def test_a_loaded_model_takes_raw_columns_of_any_dtype_with_the_bits_of_predict(
    run: tuple[Workspace, Run], expected: Array
) -> None:
    workspace, of = run
    for name, frame in frames(workspace.path / "new.csv").items():
        frame.to_pickle(workspace.path / f"{name}.pkl")
    # In a process of its own, which loads the modules that lie with the model.
    script = f"""
import pathlib, sys, mlflow.pyfunc, numpy as np, pandas as pd
model = mlflow.pyfunc.load_model("runs:/{of.info.run_id}/model")
for path in pathlib.Path().glob("*.pkl"):
    np.save(path.with_suffix(".npy"), model.predict(pd.read_pickle(path)))
assert "/model/code/truefit/" in sys.modules["truefit.model.cells"].__file__
"""
    workspace.run(sys.executable, "-c", script)
    loaded = {path.stem: np.load(path) for path in workspace.path.glob("*.npy")}
    assert {*loaded} == {"texts", "objects", "guessed", "typed", "zoned"}
    for name, predicted in loaded.items():
        assert predicted.dtype == np.float64, name
        assert np.array_equal(predicted, expected), name


def as_json(value: Any) -> Any:
    """Return a cell as it stands in JSON, where a missing one is null."""
    if pd.isna(value):
        return None
    return value.isoformat() if isinstance(value, date) else value


@shared
@pytest.mark.parametrize("name", ["texts", "guessed", "typed"])
def test_a_served_model_answers_raw_columns_with_the_bits_of_predict(
    name: str, ask: Callable[[Any], tuple[int, Any]], run: tuple[Workspace, Run], expected: Array
) -> None:
    frame = frames(run[0].path / "new.csv")[name].drop(columns="y")
    if name == "typed":
        frame["built"] = frame["built"].dt.strftime("%d/%m/%Y")
    split = {"columns": [*frame], "data": [[*map(as_json, row)] for row in frame.astype(object).to_numpy().tolist()]}
    status, answer = ask({"dataframe_split": split})
    assert status == 200, answer
    assert np.array_equal(np.array(answer["predictions"]), expected)


@shared
def test_a_column_that_is_filled_may_be_left_out_or_hold_nothing(ask: Callable[[Any], tuple[int, Any]]) -> None:
    row = {"size": 90.5, "rooms": 3, "smoker": False, "zone": 2}
    status, without = ask({"dataframe_records": [row]})
    assert status == 200
    assert ask({"dataframe_records": [row | dict.fromkeys(FILLED[3:4] + FILLED[5:])]}) == (200, without)
    assert ask({"dataframe_records": [row | {"smoker": "no", "zone": "2"}]}) == (200, without)
    # Neither of them is False, as MLflow would have it.
    for other in (True, None):
        status, answer = ask({"dataframe_records": [row | {"smoker": other}]})
        assert status == 200
        assert answer != without


@shared
@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"size": "a"}, "row 1, column 'size': found 'a', allowed: a number"),
        ({"size": True}, "row 1, column 'size': found True, allowed: a number"),
        ({"rooms": 2**53 + 1}, "row 1, column 'rooms': found 9007199254740993, allowed: an integer up to 2^53"),
        ({"smoker": "maybe"}, "row 1, column 'smoker': found 'maybe', allowed: true or false, yes or no"),
        ({"sold_at": 20260131}, "row 1, column 'sold_at': found 20260131, allowed: a date such as 2026-01-31"),
        ({"built": "2026-01-31"}, "row 1, column 'built': found '2026-01-31', allowed: a date like %d/%m/%Y"),
    ],
)
def test_a_served_model_names_the_cell_that_it_refuses(
    changed: dict[str, Any], reason: str, ask: Callable[[Any], tuple[int, Any]]
) -> None:
    row = {"size": 1.5, "rooms": 2, "sold_at": "2026-01-01"}
    status, answer = ask({"dataframe_records": [row, row | changed]})
    assert status == 400
    assert reason in json.dumps(answer)


@shared
def test_the_signature_has_the_columns_which_are_optional_where_gaps_are_filled_and_the_example_passes(
    run: tuple[Workspace, Run], ask: Callable[[Any], tuple[int, Any]], tmp_path: Path
) -> None:
    workspace, of = run
    folder = download_model(workspace.client, of, tmp_path)
    info = mlflow.models.get_model_info(str(folder))
    assert (
        [(spec.name, spec.type, spec.required) for spec in info.signature.inputs]
        == [
            (name, AnyType(), False)  # type: ignore[no-untyped-call]
            for name in [*raw_rows(1, 0)[0]][:-1]
        ]
    )
    assert info.metadata == {
        "types": {
            "size": "double",
            "rooms": "double",
            "zone": "string",
            "region": "string",
            "smoker": "boolean",
            "sold_at": "datetime",
            "built": "datetime",
        }
    }
    example = json.loads((folder / "serving_input_example.json").read_text())
    status, answer = ask(example)
    assert status == 200, answer
    assert len(answer["predictions"]) == 3
    built = [row[example["dataframe_split"]["columns"].index("built")] for row in example["dataframe_split"]["data"]]
    assert all(datetime.strptime(day, "%d/%m/%Y") for day in built)


# --- cells


def stored(column: Column, values: Any, **form: Any) -> list[Any]:
    """Return the numbers that are stored for cells, each alone or as a pair."""
    rows = CellReader(form).stored(column, pd.Series(values)).tolist()
    return [row[0] if len(row) == 1 else tuple(row) for row in rows]


def refused(column: Column, values: Any, **form: Any) -> str:
    with pytest.raises(ValueError, match=f"column '{column.name}'") as caught:
        stored(column, values, **form)
    return str(caught.value)


X, B = Number(name="x"), Boolean(name="b")
DAY, GERMAN = Date(name="d", times=True), Date(name="d", format="%d.%m.%Y")


@pytest.mark.parametrize(
    ("values", "form", "expected"),
    [
        ([1, 2], {}, [1, 2]),
        (np.array([1, 2], np.uint8), {}, [1, 2]),
        ([1.5, -9.0], {"missing": ["-9.00"]}, [1.5, None]),
        ([1, -9], {"missing": ["-9.00"]}, [1, None]),
        (["1e3", " -1.5\t", "?", None], {"missing": ["?"]}, [1000, -1.5, None, None]),
        (["1.234,5", 2], {"decimal": ",", "thousands": "."}, [1234.5, 2]),
        ([Decimal("1.5"), 3, np.float32(0.5), pd.NA], {}, [1.5, 3, 0.5, None]),
        (pd.array([1, None], "Int64"), {}, [1, None]),
    ],
)
def test_values_of_many_types_are_numbers(values: Any, form: dict[str, Any], expected: list[float | None]) -> None:
    assert [None if np.isnan(number) else number for number in stored(X, values, **form)] == expected


@pytest.mark.parametrize(
    ("values", "form", "fault"),
    [
        ([1, "1,5"], {}, "row 1, column 'x': found '1,5', allowed: a number"),
        (["1.234,50"], {"decimal": ",", "thousands": "'"}, "row 0, column 'x': found '1.234,50', allowed: a number"),
        ([False, True], {}, "row 0, column 'x': found False, allowed: a number"),
        (["nan"], {}, "row 0, column 'x': found 'nan', allowed: a number"),
        (["1_000"], {}, "row 0, column 'x': found '1_000', allowed: a number"),
        ([date(2026, 1, 1)], {}, "row 0, column 'x': found 2026-01-01, allowed: a number"),
        ([0, 2**53 + 1], {}, "row 1, column 'x': found 9007199254740993, allowed: an integer up to 2^53 (9007199254740992)"),
        (["9007199254740993"], {}, "row 0, column 'x': found '9007199254740993', allowed: an integer up to 2^53 "
         "(9007199254740992)"),
        (["1e-400"], {}, "row 0, column 'x': found '1e-400', allowed: 0, or a number that float64 tells from it"),
        ([[1]], {}, "row 0, column 'x': found [1], allowed: a number"),
    ],
)  # fmt: skip
def test_what_is_no_number_is_refused(values: Any, form: dict[str, Any], fault: str) -> None:
    assert refused(X, values, **form) == fault


@pytest.mark.parametrize("values", [[True, False], ["YES", "f"], [1, 0], [1.0, 0.0], [np.True_, "0"]])
def test_truth_values_are_taken_in_any_dtype(values: Any) -> None:
    assert stored(B, values) == [1, 0]


@pytest.mark.parametrize("values", [["true", 2], [[], True], [0.5, 1]])
def test_what_is_no_truth_value_is_refused(values: Any) -> None:
    assert "allowed: true or false" in refused(B, values)


@pytest.mark.parametrize(
    ("names", "values", "expected"),
    [
        (["a", "1", "2.50"], ["1", " a ", "b"], [1, 0, 3]),
        (["a", "1", "2.50"], [1, 2.5, 1.0, 7], [1, 2, 1, 3]),
        (["01", "1"], [1, "01"], [1, 0]),  # as it would be written, rather than another way to write it
        (["01", "02"], [1, 2.0], [0, 1]),
        (["TRUE", "no"], [True, False], [0, 2]),
        (["a"], [["a"], {}, "a"], [1, 1, 0]),
    ],
)
def test_a_name_is_found_for_a_number_or_a_truth_value_however_the_csv_writes_it(
    names: list[str], values: Any, expected: list[float]
) -> None:
    assert stored(Category(name="c", names=names), values) == expected


DAYS = (datetime(2026, 1, 31, tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)).days


@pytest.mark.parametrize(
    ("column", "values", "expected"),
    [
        (DAY, pd.to_datetime(pd.Series(["2026-01-31 12:00:00.5", None])), (DAYS, 43200.5)),
        (DAY, [datetime(2026, 1, 31, 12, 0, 0, 500_000), "?"], (DAYS, 43200.5)),
        (DAY, ["2026-01-31T13:00:00.5+01:00", None], (DAYS, 43200.5)),
        (DAY, pd.to_datetime(pd.Series(["2026-01-31 21:00:00.5+09:00", None])), (DAYS, 43200.5)),
        (DAY, [date(2026, 1, 31), None], (DAYS, 0)),
        (GERMAN, ["31.01.2026", "?"], (DAYS, 0)),
        (GERMAN, [date(2026, 1, 31), "?"], (DAYS, 0)),
        (GERMAN, pd.to_datetime(pd.Series(["2026-01-31", None])), (DAYS, 0)),
        (Date(name="d", format="%Y%m%d"), [20260131, None], (DAYS, 0)),
    ],
)
def test_dates_are_taken_as_texts_and_as_datetimes(column: Date, values: Any, expected: tuple[float, float]) -> None:
    there, missing = stored(column, values, missing=["?"])
    assert there == expected
    assert all(np.isnan(missing))


def test_no_rows_and_no_values_are_taken() -> None:
    for column in (X, B, DAY, Category(name="c", names=["a"])):
        assert stored(column, pd.Series([], dtype=object)) == []
        assert np.isnan(np.array(stored(column, [None, np.nan]))).all()


# --- the model itself


def served(content: str, **settings: Any) -> ServedModel:
    save_untrained(Path("model"), prepare(Path(), content, **settings))
    return ServedModel(*open_model(Path("model")))


def test_a_missing_value_or_column_that_is_not_filled_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = served("a,x,y\n" + "p,1,1\nq,2,2\n" * 100, columns={"a": "category"})
    frames: list[tuple[dict[str, list[Any]], str]] = [
        ({"a": ["p", None], "x": [1, 2]}, "row 1, column 'a': found a missing value, allowed: text"),
        ({"a": ["p"], "x": [np.nan]}, "row 0, column 'x': found a missing value, allowed: a number"),
        ({"a": ["p"]}, "found no column 'x', allowed: one that holds a number"),
    ]
    for frame, fault in frames:
        with pytest.raises(ValueError, match=f"^{fault}$"):
            model.predict(pd.DataFrame(frame))
    filled = served("x,y\n" + "1,1\n2,2\n,3\n" * 100, missing={"features": "fill"})
    with pytest.raises(ValueError, match=r"^found no column 'x', allowed: one that holds a number$"):
        filled.predict(pd.DataFrame({"z": [1]}))
    twice = pd.DataFrame([["p", 1, 2]], columns=["a", "x", "x"])
    with pytest.raises(ValueError, match=r"^found 2 columns 'x', allowed: one that holds a number$"):
        model.predict(twice)


def test_a_sentinel_is_missing_for_both_however_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    form = {"missing": ["-200", ""]}
    model = served("x,y\n" + "-200,1\n5,2\n7,3\n" * 100, format=form, missing={"features": "fill"})
    Path("in.csv").write_text("x\n-200.0\n7\n-2e2\n")
    predict(*open_model(Path("model")), Path("in.csv"), Path("out.csv"))
    with Path("out.csv").open() as file:
        expected = np.array([float(row["prediction"]) for row in csv.DictReader(file)], np.float32).tolist()
    assert expected[0] == expected[2] != expected[1]
    for values in ([-200.0, 7.0, -200.0], [-200, 7, -200], ["-200.00", "7", None]):
        assert model.predict(pd.DataFrame({"x": values})).tolist() == expected
