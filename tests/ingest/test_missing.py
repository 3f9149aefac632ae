"""Missing values: what stands for one, what refuses, fills and drops them, and what is said of it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_data import prepare, read_only_by, read_splits
from workspace import ROOT

from truefit.core.errors import TableError
from truefit.data.dataset import TableDataset
from truefit.data.table import SPLITS, Table
from truefit.ingest.prepare import PrepareSettings, write_table

FILL, DROP = {"features": "fill"}, {"features": "drop"}
WAY_OUT = "prepare.missing: {features: fill} or {features: drop}"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def table(train: list[str], validation: str = "1,1", test: str = "2,2", header: str = "x,y", **settings: Any) -> Table:
    """Prepare the table of these rows, with a column that says their split."""
    rows = [*(f"{row},train" for row in train), f"{validation},validation", f"{test},test"]
    return prepare(Path(), "\n".join([f"{header},s", *rows]), split={"column": "s"}, **settings)


def refusal(train: list[str], **settings: Any) -> str:
    with pytest.raises(TableError) as caught:
        table(train, **settings)
    return str(caught.value)


def features(split: str = "train") -> list[list[float]]:
    made: list[list[float]] = TableDataset(Path("prepared"), split)[:][0].tolist()  # type: ignore[arg-type]
    return made


# --- what stands for one


@pytest.mark.parametrize(
    "cell", ["", "NA", "N/A", "NaN", "nan", "null", "NULL", "?", '""', '"NA"', " NA ", "\t?", '" nan "', "   "]
)
@pytest.mark.parametrize("reader", ["numbers", "texts", "Python"])
def test_a_missing_text_is_a_missing_value_however_the_csv_is_read(
    cell: str, reader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reader != "numbers" or cell.strip('"') == cell.strip('" \t'):  # blanks around one take a look at texts
        read_only_by(reader, monkeypatch)

    table(["1,2", f"{cell},2", "5,2"], missing=FILL)

    assert [row[1] for row in features()] == [0, 1, 0]


@pytest.mark.parametrize("policy", ["refuse", "fill", "drop"])
@pytest.mark.parametrize("cell", ["nan", "NaN", "-nan", "inf"])
@pytest.mark.parametrize("gaps", [[], ["-,1"]], ids=["no gaps", "gaps"])
def test_what_is_no_number_is_none_where_no_text_says_that_it_is_missing(cell: str, policy: str, gaps: list[str]) -> None:
    found = refusal(["1,2", f"{cell},2", *gaps], missing={"features": policy}, format={"missing": ["", "-"]})

    remark = f" (1 value is missing; {WAY_OUT})" if gaps and policy == "refuse" else ""
    assert found == f"data.csv: line 3, column 'x': found '{cell}', allowed: a finite number{remark}"


@pytest.mark.parametrize("cell", ["-200", "-200.0", "-2e2", " -200 ", '"-200.00"', "-0200."])
@pytest.mark.parametrize("missing", [["-200"], ["-200.0", ""], ["", "-2e2"]])
@pytest.mark.parametrize("other", ["4", "1e20"], ids=["numbers", "texts"])
def test_a_number_that_stands_for_a_missing_value_does_so_however_it_is_written(
    cell: str, missing: list[str], other: str
) -> None:
    table(["1,2", f"{cell},2", f"{other},2"], missing=FILL, format={"missing": missing})

    assert [row[1] for row in features()] == [0, 1, 0]
    assert refusal(["1,2", f"{cell},2", f"{other},2"], format={"missing": missing}) == (
        f"data.csv: line 3, column 'x': found {cell.strip(chr(34))!r}, allowed: a number (1 value is missing; {WAY_OUT})"
    )


def test_such_a_number_is_written_in_the_csvs_format() -> None:
    form = {"separator": ";", "decimal": ",", "thousands": ".", "missing": ["-1.200,5"]}
    rows = "x;y;s\n1,5;1;train\n-1200,50;1;train\n1;1;validation\n-1.200,5;1;test\n"

    prepare(Path(), rows, split={"column": "s"}, format=form, missing=FILL)

    assert (features(), features("test")) == ([[1.5, 0], [1.5, 1]], [[1.5, 1]])


# --- refused


def test_a_missing_value_is_refused_with_its_place_their_number_and_the_ways_out() -> None:
    assert refusal(["1,2", "?,2", ",", ",3"]) == (
        f"data.csv: line 3, column 'x': found '?', allowed: a number (3 values are missing; {WAY_OUT})\n"
        "data.csv: line 4, column 'y': found an empty cell, allowed: a number "
        "(1 value is missing; prepare.missing: {target: drop})"
    )


@pytest.mark.parametrize("kind", ["boolean", "category", "date"])
def test_a_missing_value_of_another_kind_is_refused_too(kind: str) -> None:
    cell = {"boolean": "yes", "category": "a", "date": "2026-01-31"}[kind]
    found = refusal([f"{cell},2", "null,2"], validation=f"{cell},1", test=f"{cell},1", columns={"x": kind})

    assert found.startswith("data.csv: line 3, column 'x': found 'null', allowed: ")
    assert found.endswith(f" (1 value is missing; {WAY_OUT})")


# --- filled in


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("train", [[3, 1, 2], [4, 1, 2, 9], [0.1, 0.2], [16777217.5, 3, 1e10]])
def test_a_number_is_filled_by_the_training_rows_median(train: list[float], dtype: str) -> None:
    described = table([*(f"{x!r},1" for x in train), ",1"], validation=",1", test="1000,1", dtype=dtype, missing=FILL)
    median = float(np.median(np.array(train, dtype).astype(np.float64)))

    assert described.columns[0].fill == [median]
    assert features()[-1] == features("validation")[0] == [np.dtype(dtype).type(median), 1]
    assert features("test")[0] == [1000, 0]


def test_only_where_training_rows_had_gaps_there_is_a_feature_that_tells() -> None:
    described = table(["1,?,1", "2,5,2"], validation=",,1", test="3,3,3", header="a,b,y", missing=FILL)

    assert described.features == ["a", "b", "b=(missing)"]
    assert features("validation") == [[1.5, 5, 1]]


def test_what_is_stored_is_the_gap() -> None:
    table(["1,1", ",2", "3,3"], missing=FILL)

    assert np.isnan(read_splits(Path())["train"][1, 0])


def test_mean_and_deviation_are_those_of_the_features() -> None:
    described = table(["1,1", ",2", "6,3", "2,4"], missing=FILL)
    made = np.array([[1, 0, 1], [2, 1, 2], [6, 0, 3], [2, 0, 4]])

    np.testing.assert_allclose(described.mean, made.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(described.std, made.std(axis=0), rtol=1e-12)


def test_a_column_without_a_value_in_the_training_rows_is_refused() -> None:
    assert refusal([",1", "?,2"], missing=FILL) == (
        "data.csv: column 'x': found no value in the training rows, "
        "allowed: at least one, or the column left out by prepare.exclude"
    )


def test_a_missing_target_is_never_filled() -> None:
    assert refusal(["1,1", "2,"], missing=FILL) == (
        "data.csv: line 3, column 'y': found an empty cell, allowed: a number "
        "(1 value is missing; prepare.missing: {target: drop})"
    )
    table(["1,1", "2,", "3,3"], missing={**FILL, "target": "drop"})
    assert read_splits(Path())["train"].tolist() == [[1, 1], [3, 3]]


# --- dropped


@pytest.mark.parametrize("last", ["5,5,5", "5,5,1e20"], ids=["numbers", "texts"])
@pytest.mark.parametrize(
    ("missing", "kept", "dropped", "counts"),
    [
        ({"features": "drop", "target": "drop"}, [1, 5], 3, {"a": 1, "b": 2, "y": 1}),
        ({"features": "drop"}, None, 0, {}),
        ({"features": "fill", "target": "drop"}, [1, 2, 3, 5], 1, {"y": 1}),
        ({"target": "drop"}, None, 0, {}),
    ],
)
def test_rows_are_dropped_and_counted_by_column(
    missing: dict[str, str], kept: list[int] | None, dropped: int, counts: dict[str, int], last: str
) -> None:
    rows = ["a,b,y,s", *(f"{row},train" for row in ["1,1,1", "2,?,2", ",3,3", "4,,", last]), "6,6,6,validation", "7,7,7,test"]
    if missing.get("features") == "fill":
        rows = [row.replace(",3,3", "3,3,3") for row in rows]
    Path("data.csv").write_text("\n".join(rows))
    settings = PrepareSettings.model_validate({"csv": "data.csv", "split": {"column": "s"}, "missing": missing})

    if kept is None:
        with pytest.raises(TableError, match=r"values? (is|are) missing; prepare\.missing"):
            write_table(settings, Path("prepared"))
    else:
        prepared = write_table(settings, Path("prepared"))
        assert (prepared.dropped, prepared.missing) == (dropped, counts)
        assert read_splits(Path())["train"][:, 0].tolist() == kept


def test_dropped_rows_take_no_part_in_the_draw() -> None:
    rows = [f"{row},{row}" if row % 3 else f"{row}," for row in range(60)]
    prepare(Path(), "\n".join(["x,y", *rows]), missing={"target": "drop"})
    with_gaps = read_splits(Path())
    prepare(Path(), "\n".join(["x,y", *(row for row in rows if row[-1] != ",")]))

    for split, array in read_splits(Path()).items():
        assert array.tobytes() == with_gaps[split].tobytes()


def test_a_table_of_gaps_alone_is_refused() -> None:
    with pytest.raises(TableError) as caught:
        prepare(Path(), "x,y\n1,\n,2\n?,?\n", missing={"features": "drop", "target": "drop"})

    assert str(caught.value) == "data.csv: found a missing value in each row, allowed: rows that can be kept"


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ({}, ""),
        ({3: ",3"}, "; left out: 1 row with missing values (1 in 'x')"),
        ({3: ",3", 4: ",", 9: "9,?"}, "; left out: 3 rows with missing values (2 in 'x', 2 in 'y')"),
    ],
)
def test_the_stage_says_how_many_rows_it_left_out(cells: dict[int, str], said: str) -> None:
    rows = [cells.get(row, f"{row},{row}") for row in range(20 + len(cells))]
    Path("data.csv").write_text("\n".join(["x,y", *rows]))
    Path("params.yaml").write_text("prepare: {csv: data.csv, missing: {features: drop, target: drop}}\n")

    command = [sys.executable, str(ROOT / "src/prepare.py"), "prepared"]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True, check=True
    )

    assert done.stdout == f"data.csv: 1 features, target 'y'; rows: 16 train, 2 validation, 2 test{said}\n"


def test_a_split_that_is_left_without_rows_is_refused() -> None:
    for split in SPLITS[1:]:
        cells = {"validation": "1,1", "test": "1,1", split: ",1"}
        assert refusal(["1,1", "2,2"], **cells, missing=DROP) == (
            f"data.csv: column 's': found no row with '{split}', allowed: at least one row in each split"
        )
