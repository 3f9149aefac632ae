"""What is found in the columns of a CSV, and the settings that follow."""

import random
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest

from truefit.core.errors import TableError, TruefitError
from truefit.ingest import csv_arrow, inspection
from truefit.ingest.column_kinds import Column
from truefit.ingest.column_statistics import ColumnStatistics, Missing, least_and_greatest
from truefit.ingest.csv_format import FormatSettings
from truefit.ingest.inspection import Inspection, inspect
from truefit.ingest.recommend import recommend


def inspected(folder: Path, content: str | bytes, target: str | None = None) -> Inspection:
    path = folder / "data.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return inspect(path, target)


def column_of(folder: Path, values: list[str], name: str = "x") -> Column:
    """Return what is found in a column of these values, beside another feature and a target."""
    rows = [f"{value};{(3 * row) % 7}.5;{(5 * row) % 11}.25" for row, value in enumerate(values)]
    return inspected(folder, "\n".join([f"{name};other;y", *rows])).columns[0]


def settings(found: Inspection) -> dict[str, Any]:
    return {key: value for key, value, _ in recommend(found, "data.csv")}


def random_table(rows: int) -> pd.DataFrame:
    draw = np.random.default_rng(3)
    x = draw.gamma(0.5, 100, rows).round(3)
    return pd.DataFrame(
        {
            "skewed": x,
            "whole": draw.integers(-5, 6, rows),
            "gaps": np.where(draw.random(rows) < 0.2, np.nan, draw.normal(1e6, 1, rows)),
            "city": draw.choice(["Rome", "Oslo", "Bonn"], rows),
            "y": 2 * x + draw.normal(0, 50, rows),
        }
    )


@pytest.mark.parametrize("reader", ["fast", "slow"])
def test_statistics_are_those_of_pandas(tmp_path: Path, reader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    table = random_table(3000)
    monkeypatch.setattr(csv_arrow, "BLOCK_BYTES", 20_000)
    monkeypatch.setattr(inspection, "BATCH_CELLS", 1000)
    if reader == "slow":
        monkeypatch.setattr(inspection, "_fast_cells", inspection._slow_cells)
    found = inspected(tmp_path, table.to_csv(index=False))
    assert found.rows == 3000
    for column in found.columns:
        values, statistics = table[column.name], column.statistics
        assert statistics.missing == values.isna().sum()
        assert column.distinct == min(values.nunique(), 1000)
        assert column.more_distinct == (values.nunique() > 1000)
        if column.name == "city":
            assert statistics.text_values.counts == values.value_counts().to_dict()
            continue
        assert least_and_greatest(statistics) == (values.min(), values.max())
        deviations = values - values.mean()
        # The sums are taken in another order.
        assert statistics.moments.skewness == pytest.approx((deviations**3).mean() / (deviations**2).mean() ** 1.5, abs=1e-8)
        assert statistics.moments.correlation == pytest.approx(values.corr(table["y"]), abs=1e-9)


@pytest.mark.parametrize(
    ("values", "kind", "setting"),
    [
        (["1", "2.5", "-3e2", "+4", ".5"], "number", None),
        (["Yes", "no", "YES", "no", "no"], "boolean", "boolean"),
        (["t", "F", "t", "f", "T"], "boolean", "boolean"),
        (["true", "", "true", "", "true"], "boolean", "boolean"),
        (["0", "1", "0", "1", "1"], "number", None),
        (["a", "b", "a", "b", "b"], "category", "category"),
        (["f", "", "f", "", "f"], "category", "category"),
        (["2024-01-31", "2024-02-01", "NA", "2024-02-03", "2024-02-04"], "date", "date"),
        (["2024-01-31T08:00:00Z", "2024-02-01 09:30", "2024-02-01", "2024-02-02", "2024-02-03"], "date", "date"),
        (["31/01/2024", "1/2/2024", "2/2/2024", "3/2/2024", "4/2/2024"], "date", {"kind": "date", "format": "%d/%m/%Y"}),
        (["1/31/2024", "1/2/2024", "2/2/2024", "3/2/2024", "4/2/2024"], "date", {"kind": "date", "format": "%m/%d/%Y"}),
        (["31.01.24 07:05"] * 4 + ["1.2.24 23:59"], "date", {"kind": "date", "format": "%d.%m.%y %H:%M"}),
        (["31/31/2024", "1/2/2024", "2/2/2024", "2/2/2024", "1/2/2024"], "category", "category"),
        (["31/06/2024", "1/2/2024", "2/2/2024", "2/2/2024", "1/2/2024"], "category", "category"),
        (["2024-02-30", "2024-02-01", "2024-02-02", "2024-02-02", "2024-02-01"], "category", "category"),
        (["0000-01-01", "2024-02-01", "2024-02-02", "2024-02-02", "2024-02-01"], "category", "category"),
        (["2024-02-01 08:00:00.000000123"] * 2 + ["2024-02-01 08:00:00.5"] * 2, "category", "category"),
        (["2024-02-01 08:00:00.000123", "2024-02-01", "2024-02-02", "2024-02-02"], "date", "date"),
        ([" 1", "2\t", " 3 ", "4"], "number", None),
        (["\xa01", "2", "2", "\xa01"], "category", "category"),
    ],
)
def test_a_columns_kind_follows_from_its_texts(tmp_path: Path, values: list[str], kind: str, setting: Any) -> None:
    column = column_of(tmp_path, values)
    assert (column.kind, column.setting, column.left_out) == (kind, setting, None)


def test_a_date_that_may_be_read_in_two_ways_is_remarked(tmp_path: Path) -> None:
    column = column_of(tmp_path, ["1/2/2024", "3/4/2024"] * 3)
    assert column.setting == {"kind": "date", "format": "%d/%m/%Y"}
    assert column.remarks == ["no date tells its format from %m/%d/%Y"]


@pytest.mark.parametrize(
    ("name", "values", "reason"),
    [
        ("", ["1", "4", "9", "16"], "no name"),
        ("other", ["1", "4", "9", "16"], "the name of 2 columns"),
        ("x", ["", "NA", "", ""], "no value"),
        ("x", ["7", "7", "7.0", "7"], "constant"),
        ("x", ["7", "", "7.0", "7"], None),
        ("x", ["a", "a", "a", "a"], "constant"),
        ("person_id", ["100", "101", "102", "103"], "a row number: each is 1 more than the one before"),
        ("person_id", ["100", "101", "103", "102"], None),
        ("step", ["1", "2", "3", "4"], None),
        ("step", [str(row) for row in range(200)], "a row number: each is 1 more than the one before"),
        ("x", [f"name {row}" for row in range(200)], "nearly each row has another text"),
        ("x", [f"name {row % 50}" for row in range(200)], None),
        ("x", ["a", "b", "c", "d"], None),
        (
            "x",
            [f"{row}.5" if row % 20 else f"{row} km" for row in range(200)],
            "text among numbers, such as '0 km', '20 km', '40 km'",
        ),
        ("x", ["1e150", "-1e150", "2e149", "1e100"], None),
        ("x", ["1e200", "-3e200", "2e200", "1e300"], "numbers beyond 1e+150, which stage prepare refuses"),
        ("x", ["1", "2", "5", "-1.1e150"], "numbers beyond 1e+150, which stage prepare refuses"),
        (
            "x",
            ["9007199254740993", "1", "9007199254740993", "4"],
            "integers beyond 2^53, such as ids; as texts they could be a category",
        ),
        ("x", ["9007199254740992", "1", "90071992547409920.0", "1e20"], None),
        ("price", [f"${row},000" for row in range(10, 30)], "nearly each row has another text"),
    ],
)
def test_a_column_that_tells_nothing_is_left_out_with_the_reason(
    tmp_path: Path, name: str, values: list[str], reason: str | None
) -> None:
    rows = [f"{value};{(3 * row) % 7}.5;{(3 * row) % 5};{(5 * row) % 11}.25" for row, value in enumerate(values)]
    assert inspected(tmp_path, "\n".join([f"{name};other;used;y", *rows])).columns[0].left_out == reason


@pytest.mark.parametrize(
    ("name", "values", "remark"),
    [
        ("step", ["1", "2", "3", "4"], "each number is 1 more than the one before: exclude it if it is a row number"),
        ("houseId", ["7", "1", "3", "4"], "an id by its name: exclude it if it is one"),
        ("x", ["1"] * 30 + ["9"], "skewed, skewness 5.3"),
        (
            "x",
            [f"202401{day:02}" for day in (9, 3, 17, 11, 5, 23, 30)],
            "dates written without separators? {kind: date, format: '%Y%m%d'} at prepare.columns reads them",
        ),
        ("x", ["10%", "20%", "15%"], "numbers with '%': without that text it would be a number"),
        ("x", ["22,000 km", "45,000", "3 km", "3 km"], "numbers with 'km': without that text it would be a number"),
        ("x", ["5", "a", "b", "5"], "2 cells are numbers, 2 text"),
        ("x", [f"place {row % 150}" for row in range(600)], "of its texts the 100 most frequent are told apart"),
        ("x", [f"{(5 * row) % 11}.2500{row % 2}" for row in range(40)], "nearly the target itself"),
    ],
)
def test_what_is_odd_is_remarked(tmp_path: Path, name: str, values: list[str], remark: str) -> None:
    column = column_of(tmp_path, values, name)
    assert column.left_out is None
    assert [found for found in column.remarks if found.startswith(remark)]


def test_a_target_that_is_positive_and_skewed_is_remarked(tmp_path: Path) -> None:
    found = inspected(tmp_path, "x,y\n" + "1,2\n2,3\n" * 20 + "3,90\n")
    assert found.target.remarks == ["the target", "skewed, skewness 6.2", "train.scale.target: log is worth a try"]


def with_sentinel(value: str, every: int, rows: int = 100) -> list[str]:
    return [value if row % every == 0 else f"{20 + (7 * row) % 13}.5" for row in range(rows)]


@pytest.mark.parametrize(
    ("values", "sentinels"),
    [
        (with_sentinel("-200", 10), ["-200"]),
        (with_sentinel("-200.0", 10), ["-200"]),
        (with_sentinel("9999", 10), ["9999"]),
        (with_sentinel("-200", 100), []),  # once
        (with_sentinel("5000", 10), []),  # may be one, and may be true
        (with_sentinel("0", 10), []),
        (with_sentinel("-200.5", 10), []),
        (with_sentinel("18", 10), []),  # within the range of the rest
        (["-5"] * 5 + ["1", "2"] * 20, []),  # too few others to tell what is far
        (with_sentinel("-", 10), ["-"]),
        (with_sentinel("none yet", 50), ["none yet"]),
        (with_sentinel("none yet", 5), []),
        (with_sentinel("12 km", 50), []),
    ],
)
def test_numbers_and_texts_that_stand_for_missing_values_are_found(
    tmp_path: Path, values: list[str], sentinels: list[str]
) -> None:
    rows = [f"{value};{(3 * row) % 7}.5;{(5 * row) % 11}.25" for row, value in enumerate(values)]
    found = inspected(tmp_path, "\n".join(["x;other;y", *rows]))
    assert found.missing[8:] == sentinels
    assert found.columns[0].statistics.missing == (values.count(values[0]) if sentinels else 0)
    if sentinels:
        assert least_and_greatest(found.columns[0].statistics) == (20.5, 32.5)
        assert repr(sentinels[0]) in found.why["missing"]


def test_a_number_that_another_column_holds_among_others_is_no_sentinel(tmp_path: Path) -> None:
    rows = [f"{value};{-300 + 10 * row};{(5 * row) % 11}.25" for row, value in enumerate(with_sentinel("-200", 10))]
    assert inspected(tmp_path, "\n".join(["x;profit;y", *rows])).missing[8:] == []


def test_a_sentinel_of_several_columns_may_be_rare_in_each(tmp_path: Path) -> None:
    one, other = with_sentinel("-200", 20, 20), with_sentinel("-200", 20, 20)[::-1]
    rows = [f"{a};{b};{(5 * row) % 11}.25" for row, (a, b) in enumerate(zip(one, other, strict=True))]
    found = inspected(tmp_path, "\n".join(["a;b;y", *rows]))
    assert found.missing[8:] == ["-200"]
    assert found.why["missing"] == "'-200' is far outside the rest of 'a', 'b', 2 times"


def test_bytes_that_are_no_utf8_behind_the_first_part_give_another_encoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = ("city,y\n" + "Rome,1\nOslo,2\n" * 50 + "Köln,3\n").encode("cp1252")
    monkeypatch.setattr("truefit.ingest.sniff.HEAD_BYTES", 100)
    found = inspected(tmp_path, content)
    assert found.form.encoding == "cp1252"
    assert found.columns[0].statistics.text_values.counts["Köln"] == 1


def test_memory_for_distinct_values_is_bounded(tmp_path: Path) -> None:
    rows = [f"{row}.5,text {row},{row % 3}" for row in range(3000)]
    first, second, _ = inspected(tmp_path, "\n".join(["x,t,y", *rows])).columns
    assert len(first.statistics.number_values.counts) == len(second.statistics.text_values.counts) == 1000
    assert first.more_distinct
    assert second.left_out == "nearly each row has another text"


@pytest.mark.parametrize(
    ("content", "target", "error"),
    [
        (
            "x,city\n1,Rome\n2,Oslo\n",
            None,
            "column 'city' (the last, which is the target by default): found text, such as 'Rome', 'Oslo', in 2 rows",
        ),
        (
            "x,price\n1,$8\n2,$9\n",
            "price",
            "column 'price': found numbers with '$', such as '$8', '$9', in 2 rows, allowed: numbers, or another",
        ),
        ("x,y\n1,\n2,NA\n", None, "found no value, allowed: numbers"),
        (
            "x,y\n1,9007199254740993\n2,1\n",
            "y",
            "column 'y': found integers beyond 2^53, such as '9007199254740993', in 1 rows",
        ),
        ("x,y\n1,1e151\n2,1\n", "y", "column 'y': found the numbers 1 to 1e+151, allowed: up to 1e+150 in size"),
        ("x,y\n1,2\n2,3\n", "z", "found no column 'z' (--target), allowed: 'x', 'y'"),
        ("y,x,y\n1,2,3\n", None, "line 1, column 3: found 'y' again"),
        ("x,y\n", None, "found no rows below the header"),
        ("", None, "found an empty file"),
        ("x\n1\n", None, "allowed: a target and at least one feature"),
        ("x,y\n1,2\n1\n2,3,4\n3,5\n3,5\n", None, "line 3: found 1 cells, allowed: 2, as in the first row"),
        ("x,y\n7,2\n7,3\n", None, "found no column for a feature ('x': constant)"),
    ],
)
def test_what_cannot_be_used_is_refused_by_its_place(tmp_path: Path, content: str, target: str | None, error: str) -> None:
    with pytest.raises(TableError) as caught:
        inspected(tmp_path, content, target)
    assert error in str(caught.value)


def test_settings_follow_from_what_was_found(tmp_path: Path) -> None:
    rows = [f"{row % 9 or ''};{'yes' if row % 2 else 'no'};R{row % 4};{row};{row % 5 or 'NA'},5" for row in range(300)]
    found = settings(inspected(tmp_path, "\n".join(["rooms;garden;region;no;price", *rows]).replace("NA,5", "NA")))
    assert (found["prepare.format.separator"], found["prepare.format.decimal"]) == (";", ",")
    assert found["prepare.exclude"] == ["no"]
    assert found["prepare.target"] == "price"
    assert found["prepare.columns"] == {"garden": "boolean", "region": "category"}
    assert (found["prepare.missing.features"], found["prepare.missing.target"]) == ("fill", "drop")
    assert found["train.model.name"] == "mlp"
    assert "prepare.dtype" not in found


def test_few_rows_are_given_a_line(tmp_path: Path) -> None:
    found = settings(inspected(tmp_path, "x,y\n1,2\n3,3\n"))
    assert (found["train.model.name"], found["train.model.hidden"], found["train.optimizer.name"]) == ("linear", [], "adam")
    assert (found["prepare.missing.features"], found["prepare.missing.target"]) == ("refuse", "refuse")


@pytest.mark.parametrize("values", ["16777217,5,7", "1e-50,2,1", "1e39,2,3", "1000000.1,1000000.2,1000000.3"])
def test_numbers_that_float32_does_not_keep_are_given_float64(tmp_path: Path, values: str) -> None:
    rows = [f"{value},{row}.5" for row, value in enumerate(values.split(","))]
    assert settings(inspected(tmp_path, "\n".join(["x,y", *rows])))["prepare.dtype"] == "float64"


def test_a_sentinel_beside_empty_cells_is_counted_once(tmp_path: Path) -> None:
    column = column_of(tmp_path, ["", *with_sentinel("-200", 10)])
    assert column.statistics.missing == 11


@pytest.mark.parametrize(("later", "consecutive"), [(["3", "4"], True), (["1", "2"], False), (["4", "5"], False)])
def test_a_row_number_is_followed_from_batch_to_batch(later: list[str], consecutive: bool) -> None:
    form = FormatSettings()
    statistics = ColumnStatistics(form, Missing([], form), 1000)
    for cells in (["1", "2"], later):
        statistics.add(pa.array(cells))
    assert statistics.consecutive == consecutive


def test_parquet_is_inspected_by_its_own_types_and_a_folder_as_one_table(tmp_path: Path) -> None:
    rows = range(60)
    table = pa.table(
        {
            "sold": pa.array([date(2024, 1, 1) + timedelta(days=row) for row in rows]),
            "open": [row % 2 == 0 for row in rows],
            "where": [["a", "b", None][row % 3] for row in rows],
            "tags": [[row] for row in rows],
            "y": [row * 0.5 for row in rows],
        }
    )
    parquet, folder = tmp_path / "table.parquet", tmp_path / "parts"
    pyarrow.parquet.write_table(table, parquet)
    folder.mkdir()
    for part in range(2):
        pyarrow.parquet.write_table(table.slice(30 * part, 30), folder / f"{part}.parquet")

    for path in (parquet, folder):
        found = inspect(path, "y")
        kinds = {column.name: column.kind for column in found.columns if column.left_out is None}
        assert (found.rows, kinds) == (60, {"sold": "date", "open": "boolean", "where": "category", "y": "number"})
        assert found.columns[3].left_out == "no kind is of its type list<element: int64>"
        assert settings(found)["prepare.exclude"] == ["tags"]
        assert settings(found)["prepare.missing.features"] == "fill"


@pytest.mark.parametrize(
    "content",
    [
        "price\n1\n2\n3,5\n4\n",
        '{\n  "rows": [\n    {"x": 1, "y": 2},\n    {"x": 2, "y": 3}\n  ]\n}\n',
        "Prices of houses\nby hand\n\nx,y\n1,2\n2,3\n",
        " # by hand\n",
        "# by hand\n",
        bytes(range(256)),
    ],
)
def test_what_is_no_table_is_an_error_of_one_line(tmp_path: Path, content: str | bytes) -> None:
    with pytest.raises(TableError) as caught:
        inspected(tmp_path, content)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("seed", range(6))
def test_any_text_is_inspected_or_refused(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(50):
        signs = draw.choice(["xy1,\n", 'ab12.,;|\t "\n\r#%', "12,.\n-/:e+ ", "".join(map(chr, range(1, 300)))])
        content = draw.choice(["", "x,y\n1,2\n", "# z\n"]) + "".join(draw.choices(signs, k=draw.randint(0, 60)))
        try:
            assert inspected(tmp_path, content).features
        except TruefitError as error:
            assert str(error)


def test_the_index_of_pandas_is_no_feature_and_no_target_by_default(tmp_path: Path) -> None:
    frame = pd.DataFrame({"x": [3.0, 1.0, 2.5, 7.0], "y": [1.0, 0.5, 2.0, 3.5]}, index=pd.Index([7, 1, 4, 2], name="house"))
    path = tmp_path / "table.parquet"
    frame.to_parquet(path)
    found = inspect(path)
    assert (found.target.name, [column.name for column in found.features]) == ("y", ["x"])
    assert found.columns[-1].left_out == "the index, by pandas"
    assert settings(found)["prepare.exclude"] == ["house"]
    assert inspect(path, "house").target.name == "house"


def test_a_feature_that_is_missing_is_told_with_what_would_make_it_one(tmp_path: Path) -> None:
    rows = "".join(f"{row}.5%,{row % 7}\n" for row in range(20))
    with pytest.raises(TableError, match="nearly each row has another text, numbers with '%': without that text"):
        inspected(tmp_path, f"share,y\n{rows}")


def test_ids_beyond_2_53_are_told_apart(tmp_path: Path) -> None:
    first = 2**60
    column = column_of(tmp_path, [str(first + row) for row in range(40)])
    assert (column.distinct, column.statistics.large_integers) == (40, 40)
    frame = pd.DataFrame({"id": [first + row % 20 for row in range(40)], "x": np.arange(40) % 7, "y": np.arange(40) % 5})
    frame.to_parquet(tmp_path / "ids.parquet")
    assert inspect(tmp_path / "ids.parquet").columns[0].distinct == 20
