"""`truefit predict` on columns of all kinds with gaps: what the model is given, does not know, and leaves blank."""

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_data import prepare
from helpers_stages import Stages
from helpers_training import save_untrained

from truefit.cli.predicted import Predicted
from truefit.cli.prediction import predict
from truefit.core.errors import TableError
from truefit.model.files import ModelDescription, open_model
from truefit.model.serving import MODEL_ROWS

HEADER = "age,smoker,region,sold_at,y"
ROWS = [
    "20,yes,north,2026-01-01,1",
    "30,no,south,2026-01-03,2",
    "40,no,south,2026-02-01 12:00,3",
    ",,,,4",
    "50,yes,south,2027-12-31,5",
]
KINDS = {"smoker": "boolean", "region": "category", "sold_at": "date"}
# All five are training rows.
TRAINED_ON = "\n".join([f"part,{HEADER}", *(f"{part},{row}" for part in ("train", "validation", "test") for row in ROWS)])


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def model_of(weights: dict[str, float], content: str = TRAINED_ON, **settings: Any) -> tuple[Any, ModelDescription]:
    """Return the linear model that sums its features by these weights, and 100, in float64."""
    given: dict[str, Any] = {"columns": KINDS, "missing": {"features": "fill"}, "dtype": "float64"}
    if content == TRAINED_ON:
        given["split"] = {"column": "part"}
    table = prepare(Path(), content, **given | settings)
    save_untrained(Path("model"), table)
    model, description = open_model(Path("model"))
    body: Any = model.body
    with torch.no_grad():
        body.weight[:] = torch.tensor([[weights.get(name, 0.0) for name in table.features]], dtype=torch.float64)
        body.bias[:] = 100
    return model, description


def written(
    model: tuple[Any, ModelDescription], content: str | bytes, **settings: Any
) -> tuple[list[dict[str, str]], Predicted]:
    """Return the rows that are written for a CSV, and what is told of them."""
    Path("in.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    done = predict(*model, Path("in.csv"), Path("out.csv"), **settings)
    text = Path("out.csv").read_bytes().decode(errors="surrogateescape")
    return list(csv.DictReader(io.StringIO(text))), done


def predictions(rows: list[dict[str, str]]) -> list[float | None]:
    return [float(row["prediction"]) - 100 if row["prediction"] else None for row in rows]


# --- what the model is given


@pytest.mark.parametrize(
    ("feature", "values"),
    [
        # The median of 20, 30, 40, 50; the earlier of the two moments in the middle; and no, which is the more frequent.
        ("age", [20, 30, 40, 35, 50]),
        ("age=(missing)", [0, 0, 0, 1, 0]),
        ("smoker", [1, 0, 0, 1, 1]),
        ("smoker=(missing)", [0, 0, 0, 1, 0]),
        ("region=south", [0, 1, 1, 0, 1]),
        ("region=north", [1, 0, 0, 0, 0]),
        ("region=(other)", [0, 0, 0, 0, 0]),
        ("region=(missing)", [0, 0, 0, 1, 0]),
        ("sold_at.year", [2026, 2026, 2026, 2026, 2027]),
        ("sold_at.weekday", [3, 5, 6, 5, 4]),
        ("sold_at.hour", [0, 0, 12, 0, 0]),
        ("sold_at.days", [0, 2, 31.5, 2, 729]),
    ],
)
def test_raw_cells_and_gaps_become_the_features_that_training_saw(feature: str, values: list[float]) -> None:
    model = model_of({feature: 1.0})
    assert feature in model[1].encoding.names
    rows, done = written(model, "\n".join([HEADER, *ROWS]))
    assert predictions(rows) == values
    assert done == Predicted(5, 0, 0, {}, {}, {})


def test_columns_of_all_kinds_are_found_by_name_in_any_order() -> None:
    model = model_of({"age": 1.0, "region=north": 1000.0})
    rows, _ = written(model, "sold_at,note,region,smoker,age\n2026-01-01,?,north,NO,1\n")
    assert predictions(rows) == [1001]


def test_values_that_the_model_does_not_know_are_others_and_are_counted_by_column() -> None:
    content = "make,region,y\n" + "audi,north,1\nbmw,south,2\n" * 300
    model = model_of(
        {"region=(other)": 1.0, "make=(other)": 10.0}, content, columns=dict.fromkeys(("make", "region"), "category")
    )
    rows, done = written(model, "make,region\naudi,east\n,north\nfiat,west\nbmw,South\n")
    # No training row lacked a make, so that one that is missing is another one too; but it is no value.
    assert predictions(rows) == [1, 10, 11, 1]
    assert done == Predicted(4, 0, 0, {}, {"region": 3, "make": 1}, {})


@pytest.mark.parametrize("blanks", [False, True])
def test_a_column_that_lacks_is_missing_values_where_the_model_fills_them(blanks: bool) -> None:
    model = model_of({"age": 1.0, "sold_at.days": 1000.0, "region=(missing)": 0.5, "smoker": 100_000.0})
    found, done = written(model, "sold_at,smoker\n2026-01-01,yes\n,no\n", blanks=blanks)
    assert predictions(found) == [100_035.5, 2035.5]
    assert done == Predicted(2, 0, 0, {}, {}, {"age": 2, "region": 2})
    assert done.warnings() == ["found no column 'age', 'region', which the model fills as missing values in all 2 rows"]

    found, done = written(model, "sold_at,region\nnever,west\n2026-01-01,east\n", blanks=True)
    assert predictions(found) == [None, 100_035]
    assert done == Predicted(2, 1, 0, {"sold_at": 1}, {"region": 1}, {"age": 2, "smoker": 2})


def test_a_column_that_lacks_is_refused_where_the_model_does_not_fill_it() -> None:
    model = model_of({}, "age,region,y\n" + "1,north,1\n2,south,2\n" * 30, columns={"region": "category"}, missing={})
    assert refusal(model, "age\n1\n") == ("in.csv: line 1: found no column 'region' (a feature of the model), allowed: 'age'")


# --- what is refused


def refusal(model: tuple[Any, ModelDescription], content: str, **settings: Any) -> str:
    Path("out.csv").write_text("before")
    with pytest.raises(TableError) as caught:
        written(model, content, **settings)
    assert Path("out.csv").read_text() == "before"
    return str(caught.value)


def test_a_cell_that_is_none_of_its_kind_is_refused_by_line_and_column() -> None:
    found = refusal(model_of({}), f"{HEADER}\n1,yes,north,2026-01-01,\nx,maybe,,2026-13-01,\n1,2,a,,\n")
    assert found.splitlines() == [
        "in.csv: line 3, column 'age': found 'x', allowed: a number",
        "in.csv: line 3, column 'smoker': found 'maybe', allowed: true or false, yes or no, t or f, y or n, 1 or 0 "
        "(2 bad cells in the column)",
        "in.csv: line 3, column 'sold_at': found '2026-13-01', allowed: a date such as 2026-01-31 or 2026-01-31 23:59:00",
    ]


def test_a_missing_value_is_refused_where_the_model_was_trained_to_refuse_them() -> None:
    full = "\n".join([HEADER, *(row for row in ROWS * 200 if not row.startswith(","))])
    model = model_of({}, full, missing={"features": "refuse"})
    assert refusal(model, f"{HEADER}\n1,yes,NA,2026-01-01,\n") == (
        "in.csv: line 2, column 'region': found 'NA', allowed: text (1 value is missing; "
        "a model trained with prepare.missing: {features: fill})"
    )


# --- what is left blank


GOOD = "1,yes,north,2026-01-01,0"


@pytest.mark.parametrize(
    ("bad", "columns"),
    [
        (["x,yes,north,2026-01-01,0"], {"age": 1}),
        (["1,maybe,north,2026-01-01,0", "1,?,north,31.12.2026,0"], {"smoker": 1, "sold_at": 1}),
        (["1e200,2,north,then,0"], {"age": 1, "smoker": 1, "sold_at": 1}),
        (["9007199254740993,yes,north,2026-01-01,0"], {"age": 1}),
        (['1,"maybe\n",north,2026-01-01,"a\nb"'], {"smoker": 1}),
        ([b"1,yes,n\xff,2026-01-01,0"], {"region": 1}),  # that is read by Python's reader
    ],
    ids=["number", "kinds", "several", "range", "quoted", "undecoded"],
)
def test_a_bad_row_has_an_empty_prediction_and_the_others_have_theirs(bad: list[str | bytes], columns: dict[str, int]) -> None:
    lines = [line if isinstance(line, bytes) else line.encode() for line in (HEADER, GOOD, *bad, GOOD, *bad, GOOD)]
    rows, done = written(model_of({"age": 1.0}), b"\n".join(lines), blanks=True)
    first = [*[None] * len(bad)] if columns != {"smoker": 1, "sold_at": 1} else [None, None]
    assert predictions(rows) == [1, *first, 1, *first, 1]
    assert done == Predicted(3 + 2 * len(bad), 2 * len(bad), 0, {name: 2 * count for name, count in columns.items()}, {}, {})


@pytest.mark.parametrize("kind", ["number", "boolean", "category", "date"])
def test_a_missing_value_that_is_not_filled_leaves_its_row_blank(kind: str) -> None:
    cell = {"number": "1", "boolean": "yes", "category": "a", "date": "2026-01-01"}[kind]
    content = "a,x,y\n" + f"{cell},1,1\n{cell},2,2\n" * 100
    model = model_of({"x": 1.0}, content, columns={"a": kind}, missing={"features": "refuse"})
    rows, done = written(model, f"a,x\n{cell},1\n,2\nNA,3\n{cell},4\n", blanks=True)
    assert predictions(rows) == [1, None, None, 4]
    assert done == Predicted(4, 2, 0, {"a": 2}, {}, {})


def test_a_prediction_that_is_not_finite_is_left_blank_and_counted_apart() -> None:
    model = model_of({"x": 1e200}, "x,y\n" + "1,1\n2,2\n" * 100, columns={})
    rows, done = written(model, "x\n0\n1e140\nb\n0\n", blanks=True)
    assert [row["prediction"] for row in rows] == ["100", "", "", "100"]
    assert done == Predicted(4, 2, 1, {"x": 1}, {}, {})


def test_bad_rows_of_several_blocks_are_blank_at_their_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("truefit.ingest.csv_arrow.BLOCK_BYTES", 1 << 12)
    count = 2 * MODEL_ROWS + 5
    ages = ["x" if row % 7 == 3 and row > 3000 else "" if row % 5 == 0 else str(row) for row in range(count)]
    rows, done = written(
        model_of({"age": 1.0}), "\n".join([HEADER, *(f"{age},no,south,2026-01-01,0" for age in ages)]), blanks=True
    )
    assert predictions(rows) == [None if age == "x" else 35 if age == "" else int(age) for age in ages]
    assert done.bad == {"age": ages.count("x")}


@pytest.mark.parametrize(
    ("form", "content", "expected"),
    [
        ({"separator": " "}, "x z\n1 1\n2 a\n", 'x z prediction\n1 1 101\n2 a ""\n'),
        ({"separator": ";", "decimal": ","}, "x;z\n1,5;1\n2.5;1", "x;z;prediction\n1,5;1;101,5\n2.5;1;"),
        ({"header": False}, "1,1\n2,a\n", "1,1,101\n2,a,\n"),
        ({"encoding": "utf-16"}, "x,z\n1,1\n2,ä\n", "x,z,prediction\n1,1,101\n2,ä,\n"),
    ],
)
def test_an_empty_cell_is_written_in_the_csvs_own_format(form: dict[str, Any], content: str, expected: str) -> None:
    model, description = model_of({"x": 1.0}, "x,z,y\n" + "1,1,1\n2,2,2\n" * 100, columns={})
    names = ["column1", "column2"] if form.get("header") is False else ["x", "z"]
    columns = [column.model_copy(update={"name": name}) for column, name in zip(description.columns, names, strict=True)]
    encoding = form.get("encoding", "utf-8")
    Path("in.csv").write_bytes(content.encode(encoding))
    other = description.model_copy(update={"columns": columns, "format": form})
    predict(model, other, Path("in.csv"), Path("out.csv"), blanks=True)
    assert Path("out.csv").read_bytes().decode(encoding) == expected


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (f"{HEADER}\nx,yes,north,2026-01-01,0\n1,2\n", "line 3: found 2 cells, allowed: 5, as in the header"),
        (f'{HEADER}\nx,yes,north,2026-01-01,"a\n', "line 2, column 'y': found a quote that is not closed, "
         "allowed: a closing quote"),
        ("age;smoker;region;sold_at\n1;yes;north;\n", "line 1: found no column 'age' (a feature of the model), "
         "allowed: 'age;smoker;region;sold_at' (is --separator ';'?)"),
    ],
)  # fmt: skip
def test_what_is_no_table_is_refused_also_where_bad_rows_are_left_blank(content: str, fault: str) -> None:
    assert refusal(model_of({}), content, blanks=True) == f"in.csv: {fault}"


# --- the command


def test_the_command_tells_on_stderr_what_it_left_blank_and_what_it_did_not_know(stages: Stages, tmp_path: Path) -> None:
    model_of({})
    Path("in.csv").write_text(f"{HEADER}\n1,yes,west,2026-01-01,0\nx,no,east,2026-01-01,0\n1,no,east,,0\n")
    command = "truefit", "predict", "--model", "model", "in.csv", "out.csv"

    refused = stages.run(tmp_path, *command)
    assert (refused.status, refused.line) == (2, "error: in.csv: line 3, column 'age': found 'x', allowed: a number\n")

    done = stages.run(tmp_path, *command, "--errors", "blank")
    assert done.status == 0
    assert done.line.splitlines() == [
        "in.csv: found values that the model does not know, and takes for '(other)', in 'region' 2",
        "in.csv: left 1 of 3 rows without a prediction: bad cells in 'age' 1",
    ]
    assert stages.printed == "out.csv: 3 rows, 2 of them with a prediction of 'y'\n"
    with Path("out.csv").open() as file:
        assert [bool(row["prediction"]) for row in csv.DictReader(file)] == [True, False, True]

    wrong = stages.run(tmp_path, *command, "--errors", "skip")
    assert wrong.status == 2
    assert "'skip' is not one of 'refuse', 'blank'" in wrong.line


def test_ten_columns_are_named_and_the_others_counted() -> None:
    unseen = {f"c{number}": number for number in range(1, 13)}
    (line,) = Predicted(99, 0, 0, {}, unseen, {}).warnings()
    assert line.endswith("'c10' 10 and 2 more columns")
    assert np.char.count(line, "\n") == 0
