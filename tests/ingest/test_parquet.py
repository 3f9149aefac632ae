"""Parquet: the table that the same numbers in a CSV give, what each type becomes, and what is refused by row and column."""

import datetime
import hashlib
import io
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from helpers_data import prepare, read_splits
from helpers_memory import peak_memory

from truefit.core.errors import TableError
from truefit.data.table import Table
from truefit.ingest import parquet_batches, parquet_file
from truefit.ingest.csv_file import CsvFile
from truefit.ingest.prepare import PrepareSettings, write_table

ROWS = 40
NUMBERS = np.arange(ROWS)
TYPES = [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()]
DAY = datetime.datetime(2024, 2, 27, 22, 30)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def prepared(cells: dict[str, Any], row_group_size: int = ROWS, **settings: Any) -> Table:
    """Prepare data.parquet with these columns and, behind them, the target y."""
    table = pa.table(cells if "y" in cells else {**cells, "y": NUMBERS * 2.0})
    pyarrow.parquet.write_table(table, "data.parquet", row_group_size=row_group_size)
    settings = {"csv": "data.parquet", "target": "y", **settings}
    return write_table(PrepareSettings.model_validate(settings), Path("prepared")).table


def refusal(cells: dict[str, Any], **settings: Any) -> str:
    with pytest.raises(TableError) as caught:
        prepared(cells, **settings)
    return str(caught.value)


def as_csv(cells: dict[str, Any]) -> bytes:
    text = io.BytesIO()
    pyarrow.csv.write_csv(pa.table({**cells, "y": NUMBERS * 2.0}), text)
    return text.getvalue()


def same(table: Table, other: Table) -> bool:
    ours, theirs = (one.model_dump(exclude={"csv"}) for one in (table, other))
    return ours == theirs


def column() -> list[Any]:
    """Return the stored numbers of the first column in the order of the file, which is that of the target."""
    rows = np.concatenate(list(read_splits(Path()).values()))
    return list(rows[np.argsort(rows[:, -1]), 0])


# --- what is read


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("group", [7, ROWS])
def test_numbers_give_the_table_that_they_give_in_a_csv(group: int, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_file, "BATCH_ROWS", 9)
    columns = {f"i{place}": pa.array(NUMBERS, kind) for place, kind in enumerate(TYPES)}
    columns |= {"f": pa.array(NUMBERS / 7), "single": pa.array(NUMBERS / 8, pa.float32())}
    columns |= {"half": pa.array((NUMBERS / 4).astype(np.float16)), "gaps": pa.array([None, *NUMBERS[1:] / 3])}
    decimals = {"decimal": pa.array([Decimal(int(row)) / 4 for row in NUMBERS], pa.decimal128(9, 3))}
    settings: dict[str, Any] = {"dtype": dtype, "missing": {"features": "fill"}}

    table = prepared(columns | decimals, group, **settings)

    assert same(table, prepare(Path(), as_csv({**columns, "half": NUMBERS / 4, "decimal": NUMBERS / 4}), **settings))


def test_both_readers_give_the_same_table(monkeypatch: pytest.MonkeyPatch) -> None:
    days = [DAY + datetime.timedelta(hours=7 * int(row)) for row in NUMBERS]
    columns = {"x": pa.array(NUMBERS / 7, pa.float32()), "b": NUMBERS % 3 > 0, "t": days, "i": NUMBERS}
    columns |= {"f": pa.array([None, float("nan"), *NUMBERS[2:] * 1e-7])}
    settings: dict[str, Any] = {"dtype": "float64", "missing": {"features": "fill"}, "columns": {"i": "category"}}
    table = prepared(columns, **settings)

    monkeypatch.setattr(parquet_batches, "_numbers", refuse)

    assert same(prepared(columns, **settings), table)


def refuse(*_: Any) -> Any:
    raise pa.ArrowInvalid("not by this reader")


def test_a_file_is_parquet_by_its_content_whatever_its_name() -> None:
    table = prepared({"x": NUMBERS})
    assert same(prepare(Path(), Path("data.parquet").read_bytes()), table)


def test_a_parquet_files_digest_is_its_own() -> None:
    table = prepared({"x": NUMBERS})
    assert table.csv.sha256 == hashlib.sha256(Path("data.parquet").read_bytes()).hexdigest()


def test_booleans_and_dates_are_known_by_their_types() -> None:
    days = [DAY.date() + datetime.timedelta(int(row)) for row in NUMBERS]
    zoned = [DAY.replace(tzinfo=datetime.timezone(datetime.timedelta(hours=-2))) for _ in NUMBERS]
    columns = {"b": NUMBERS % 3 > 0, "d": days, "ms": pa.array(days, pa.date64()), "z": zoned}

    table = prepared(columns)

    assert {one.name: one.kind for one in table.columns} == {"b": "boolean", "d": "date", "ms": "date", "z": "date"}
    means = dict(zip(table.names, table.mean, strict=True))
    assert column() == [float(row % 3 > 0) for row in NUMBERS]
    # Half past ten at night, two hours behind UTC, is the next day there.
    assert (means["z.day"], means["z.hour"]) == (28, 0)
    assert "d.hour" not in means
    assert [means[f"d.{part}"] for part in ("year", "days")] == [means[f"ms.{part}"] for part in ("year", "days")]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "+05:30"])
def test_a_time_of_any_unit_is_the_same_time(unit: str, zone: str | None) -> None:
    seconds = pa.array(1_709_073_000 + NUMBERS * 86_400, pa.int64())
    times = seconds.cast(pa.timestamp("s", zone)).cast(pa.timestamp(unit, zone))
    settings: dict[str, Any] = {"features": ["t"], "split": {"order": "t"}}
    plain = prepare(Path(), as_csv({"t": seconds.cast(pa.timestamp("s"))}), columns={"t": "date"}, **settings)
    assert same(prepared({"t": times}, **settings), plain)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())])
def test_text_is_a_category_where_the_settings_say_so(kind: pa.DataType) -> None:
    words = pa.array(["b", " a", "NA", None] * (ROWS // 4)).cast(kind)
    table = prepared({"x": words}, columns={"x": "category"}, missing={"features": "fill"})
    assert sorted(table.columns[0].names) == ["a", "b"]  # type: ignore[attr-defined]
    assert table.names[2:] == ["x=(other)", "x=(missing)", "y"]
    b, a, *missing = column()[:4]
    assert {a, b} == {0, 1}
    assert np.isnan(missing).all()


@pytest.mark.parametrize(
    ("cells", "names"),
    [
        (NUMBERS % 2 > 0, ["False", "True"]),
        (NUMBERS % 2, ["0", "1"]),
        (NUMBERS % 2 / 2, ["0", "0.5"]),
        (NUMBERS % 2 * 1e300, ["0", "1e+300"]),
        ([DAY.date()] * ROWS, ["2024-02-27"]),
        ([DAY] * ROWS, ["2024-02-27 22:30:00"]),
    ],
)
def test_a_category_of_another_type_has_the_texts_of_its_values(cells: Any, names: list[str]) -> None:
    table = prepared({"x": cells}, columns={"x": "category"})
    assert sorted(table.columns[0].names) == names  # type: ignore[attr-defined]


def test_codes_that_pandas_makes_floats_for_a_gap_are_those_of_a_csv_with_integers() -> None:
    codes, flags = [None, *(NUMBERS[1:] % 12).tolist()], [*(NUMBERS[1:] % 2).tolist(), None]
    settings: dict[str, Any] = {"columns": {"code": "category", "flag": "boolean"}, "missing": {"features": "fill"}}
    plain = prepare(Path(), as_csv({"code": codes, "flag": flags}), **settings)
    floats = {"code": pa.array(codes, pa.float64()), "flag": pa.array(flags, pa.float32())}
    assert same(prepared(floats, **settings), plain)

    # Its CSV has 1.0 for 1: another name, but the same stored numbers.
    frame = pa.table({"code": floats["code"], "y": NUMBERS * 2.0}).to_pandas()
    settings["columns"] = {"code": "category"}
    written = prepare(Path(), frame.to_csv(index=False), **settings)
    frame.to_parquet("data.parquet", index=False)
    taken = write_table(PrepareSettings.model_validate({"csv": "data.parquet", "target": "y", **settings}), Path("prepared"))
    assert taken.table.sha256 == written.sha256
    assert written.features == [*(f"code={code}.0" for code in taken.table.columns[0].names), "code=(other)", "code=(missing)"]  # type: ignore[attr-defined]


def test_text_that_is_numbers_is_read_as_in_a_csv() -> None:
    texts = pa.array([str(row) for row in NUMBERS])
    assert same(prepared({"x": texts}), prepare(Path(), as_csv({"x": NUMBERS})))
    assert refusal({"x": pa.array(["1,5"] * ROWS)}).startswith(
        "data.parquet: row 1, column 'x': found '1,5', allowed: a number"
    )


def test_nulls_and_sentinels_are_missing() -> None:
    columns = {"x": pa.array([None, float("nan"), -200.0, *NUMBERS[3:]]), "none": pa.nulls(ROWS)}
    settings: dict[str, Any] = {"format": {"missing": ["-200"]}, "exclude": ["none"]}
    table = prepared(columns, missing={"features": "drop"}, **settings)
    assert sum(table.rows.values()) == ROWS - 3
    assert refusal({**columns, "y": NUMBERS}, **settings) == (
        "data.parquet: row 1, column 'x': found an empty cell, allowed: a number "
        "(3 values are missing; prepare.missing: {features: fill} or {features: drop})"
    )
    fault = refusal({"none": pa.nulls(ROWS)}, missing={"features": "fill"})
    assert fault.startswith("data.parquet: column 'none': found no value in the training rows, allowed: at least one")


def test_columns_that_are_not_used_may_be_anything() -> None:
    odd = {"list": [[1]] * ROWS, "struct": [{"a": 1}] * ROWS, "bytes": [b"\xff"] * ROWS, "time": [datetime.time(1)] * ROWS}
    table = prepared({**odd, " x ": NUMBERS}, features=["x"])
    assert table.names == ["x", "y"]


def test_a_name_with_a_point_is_no_part_of_another_column() -> None:
    prepared({"a.b": NUMBERS, "a": [{"b": 1}] * ROWS}, features=["a.b"])
    assert column() == NUMBERS.tolist()


def test_pandas_row_names_are_no_feature() -> None:
    prepared_ = prepared({"x": NUMBERS, "y": NUMBERS * 2.0, "__index_level_0__": NUMBERS})
    assert prepared_.names == ["x", "y"]


@pytest.mark.parametrize(
    ("split", "cells"),
    [
        ({"column": "k"}, ["train", "validation"] * (ROWS // 2 - 1) + ["test"] * 2),
        ({"group": "k"}, NUMBERS // 4),
        ({"group": "k"}, [DAY + datetime.timedelta(int(row)) for row in NUMBERS // 4]),
        ({"order": "k"}, NUMBERS + 2**60),
        ({"order": "k"}, [DAY + datetime.timedelta(microseconds=int(row)) for row in NUMBERS[::-1]]),
    ],
)
def test_rows_are_split_by_a_column_as_in_a_csv(split: dict[str, str], cells: Any) -> None:
    columns = {"x": NUMBERS, "k": cells}
    assert same(prepared(columns, features=["x"], split=split), prepare(Path(), as_csv(columns), features=["x"], split=split))


# --- what is refused


@pytest.mark.parametrize(
    "cells",
    [
        [True],
        [DAY],
        [DAY.date()],
        [Decimal("1.5")],
        ["x", "train"],
        pa.array(["x", "train"]).dictionary_encode(),
    ],
)
@pytest.mark.parametrize("split", ["column", "group", "order"])
def test_a_null_among_other_cells_of_the_splits_column_is_an_empty_cell(cells: Any, split: str) -> None:
    cells = pa.array(cells) if isinstance(cells, list) else cells
    column = pa.chunked_array([pa.nulls(ROWS - len(cells), cells.type), cells])
    start = "data.parquet: row 1, column 'k': found an empty cell, allowed: "
    assert refusal({"x": NUMBERS, "k": column}, features=["x"], split={split: "k"}).startswith(start)
    last = refusal({"x": NUMBERS, "k": column.take(NUMBERS[::-1])}, features=["x"], split={split: "k"})
    assert last.startswith("data.parquet: row ")


@pytest.mark.parametrize(
    ("cells", "found"),
    [
        ([[1]] * ROWS, "list<element: int64>"),
        ([{"a": 1}] * ROWS, "struct<a: int64>"),
        (pa.array([[("a", 1)]] * ROWS, pa.map_(pa.string(), pa.int64())), "map<string, int64 ('x')>"),
        ([b"1"] * ROWS, "binary"),
        ([datetime.time(1)] * ROWS, "time64[us]"),
        ([datetime.timedelta(1)] * ROWS, "duration[us]"),
    ],
)
def test_a_type_that_no_kind_is_is_refused_by_name(cells: Any, found: str) -> None:
    start = f"data.parquet: column 'x': found the type {found}, allowed: integers,"
    assert refusal({"x": cells}).startswith(start)
    assert refusal({"z": NUMBERS, "x": cells, "y": NUMBERS}, target="x").startswith(start)
    assert refusal({"z": NUMBERS, "x": cells}, features=["z"], split={"group": "x"}).startswith(start)


@pytest.mark.parametrize(
    ("cells", "found", "allowed"),
    [
        (NUMBERS + 2**53, "9007199254740993", "an integer up to 2^53"),
        (pa.array(NUMBERS.astype(np.uint64) + np.uint64(2**63), pa.uint64()), "9223372036854775808", "an integer up to 2^53"),
        (NUMBERS + 2**24, "16777217", "an integer that float32 holds"),
        (np.where(NUMBERS == 1, np.inf, NUMBERS), "inf", "a finite number"),
        (np.where(NUMBERS == 1, 1e-50, NUMBERS), "1e-50", "0, or a number that float32 tells from it"),
        (np.where(NUMBERS == 1, -1e39, NUMBERS), "-1e+39", "a number within float32's range"),
    ],
)
def test_a_number_that_is_not_kept_is_refused_by_its_row(cells: Any, found: str, allowed: str) -> None:
    row = 1 if found.startswith("9223") else 2
    assert refusal({"x": cells}).startswith(f"data.parquet: row {row}, column 'x': found '{found}', allowed: {allowed}")


def test_whole_floats_beyond_2_to_53_are_what_they_are() -> None:
    prepared({"x": (NUMBERS + 1) * 2.0**60}, dtype="float64")
    assert column() == ((NUMBERS + 1) * 2.0**60).tolist()


def test_a_column_that_float32_does_not_tell_apart_is_refused() -> None:
    cells = np.where(NUMBERS == 3, 1.00000002, 1.00000001)
    assert refusal({"x": cells}).startswith(
        "data.parquet: row 4, column 'x': found '1.00000002', which float32 does not tell from the '1.00000001' before it"
    )
    fault = refusal({"x": 1.7e9 + NUMBERS * 100.0 + 0.5})
    assert fault.startswith("data.parquet: row 1, column 'x': found '1700000000.5', which float32 rounds, in steps of 128")


def test_text_without_a_kind_is_refused_with_the_kind_that_takes_it() -> None:
    assert refusal({"x": ["a", "b"] * (ROWS // 2)}) == (
        f"data.parquet: row 1, column 'x': found 'a', allowed: a number ({ROWS} bad cells in the column; text of 2 different "
        "values: prepare.columns: {x: category}, or leave the column out by prepare.exclude)"
    )


def test_a_kind_other_than_the_types_is_refused() -> None:
    fault = refusal({"x": [DAY] * ROWS}, columns={"x": "number"})
    assert "found '2024-02-27 22:30:00', allowed: a number" in fault
    assert "dates: prepare.columns: {x: date}" in fault
    assert "found 'True', allowed: a number" in refusal({"x": NUMBERS, "b": [True] * ROWS}, target="b", features=["x"])


def test_settings_of_a_format_have_no_effect_and_are_refused() -> None:
    assert refusal({"x": NUMBERS}, format={"decimal": ",", "separator": ";"}) == (
        "data.parquet: prepare.format.separator: found ';', allowed: ',' for Parquet, whose columns say what they are"
    )


def test_a_parquet_file_that_is_damaged_or_empty_is_refused() -> None:
    prepared({"x": NUMBERS})
    content = Path("data.parquet").read_bytes()
    for damaged in (content[:-20], content[:4] + b"\x15" + bytes(60) + content[65:]):
        with pytest.raises(TableError, match=r"^data\.csv: found Parquet that cannot be read .*allowed: a whole Parquet file"):
            prepare(Path(), damaged)
    assert refusal({"x": NUMBERS[:0], "y": NUMBERS[:0]}) == "data.parquet: found no rows, allowed: at least one"


def test_whatever_byte_is_damaged_the_file_is_read_or_refused() -> None:
    prepared({"x": NUMBERS, "s": pa.array(["a", "b"] * (ROWS // 2)).dictionary_encode()}, columns={"s": "category"})
    content, refused = Path("data.parquet").read_bytes(), 0
    for place in range(5, len(content), 13):
        damaged = bytes([*content[:place], content[place] ^ 0x55, *content[place + 1 :]])
        try:
            prepare(Path(), damaged, columns={"s": "category"})
        except TableError:
            refused += 1
    assert refused > 20


def test_text_that_is_not_in_utf8_is_refused_where_it_is_used() -> None:
    texts = pa.array([b"\xff"] * ROWS).cast(pa.string(), safe=False)
    assert prepared({"x": NUMBERS, "s": texts}, exclude=["s"]).names == ["x", "y"]
    fault = refusal({"s": texts}, columns={"s": "category"})
    assert fault.startswith(
        "data.parquet: column 's': found damaged values (Invalid UTF8 sequence at string index 0), allowed: text"
    )


def test_a_reader_of_csvs_calls_parquet_so() -> None:
    prepared({"x": NUMBERS})
    with pytest.raises(
        TableError, match=r"^data\.parquet: found a Parquet file, allowed: a CSV, to which it has to be converted$"
    ):
        next(CsvFile(Path("data.parquet")).rows())


def test_a_file_that_changes_meanwhile_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    read = parquet_batches._numbers

    def read_and_change(*arguments: Any) -> Any:
        yield from read(*arguments)
        with Path("data.parquet").open("ab") as file:
            file.write(b"more")

    monkeypatch.setattr(parquet_batches, "_numbers", read_and_change)
    assert refusal({"x": NUMBERS}) == "data.parquet: changed while it was read; run again"


def test_memory_is_bounded_whatever_the_row_group(tmp_path: Path) -> None:
    work = """
from truefit.ingest.csv_file import CsvFile
from truefit.ingest.prepare import PrepareSettings, write_table
write_table(PrepareSettings(csv="data.parquet"), Path("prepared"))
"""
    peaks = []
    for rows in (100_000, 800_000):
        numbers = np.random.default_rng(1).random(rows)
        table = pa.table({f"x{place}": numbers + place for place in range(8)})
        pyarrow.parquet.write_table(table, "data.parquet", row_group_size=rows)
        peaks.append(peak_memory(work, tmp_path))
    assert peaks[1] - peaks[0] < 50  # MB, of a row group of 51
