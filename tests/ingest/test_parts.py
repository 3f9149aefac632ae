"""Several parts: the table that their rows give in one file, and parts that do not go together."""

import gzip
import hashlib
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from helpers_data import numbered_csv, prepare

from truefit.core.errors import TableError
from truefit.data.table import Table
from truefit.ingest import csv_batches, table_source
from truefit.ingest.part_files import data_digest
from truefit.ingest.prepare import PrepareSettings, write_table

HEADER, *LINES = numbered_csv(60).splitlines(keepends=True)
PARTS = Path("parts")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    PARTS.mkdir()


def write(name: str, lines: list[str], header: str = HEADER) -> None:
    content = (header + "".join(lines)).encode()
    Path(PARTS, name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)


def three_parts() -> None:
    write("a.csv", LINES[:10])
    write("b.csv.gz", LINES[10:35])
    write("c.csv", LINES[35:])


def parquet(name: str, rows: range, **columns: Any) -> None:
    numbers = np.array(rows, np.float64)
    table = pa.table({"x1": numbers, "y": numbers + 0.25, **columns})
    pyarrow.parquet.write_table(table, PARTS / name)


def prepared(**settings: Any) -> Table:
    return write_table(PrepareSettings.model_validate({"csv": str(PARTS), **settings}), Path("prepared")).table


def refusal(**settings: Any) -> str:
    with pytest.raises(TableError) as caught:
        prepared(**settings)
    return str(caught.value)


def same(table: Table, other: Table) -> bool:
    ours, theirs = (one.model_dump(exclude={"csv"}) for one in (table, other))
    return ours == theirs


def test_parts_give_the_table_of_one_file_with_their_rows_in_the_order_of_their_names() -> None:
    three_parts()
    assert same(prepared(), prepare(Path(), "".join([HEADER, *LINES])))


def test_parts_may_be_parquet() -> None:
    for name, rows in [("1", range(10)), ("2", range(10, 10)), ("3", range(10, 60))]:
        parquet(name, rows)
    assert same(prepared(), prepare(Path(), "".join([HEADER, *LINES])))


def test_the_digest_is_that_of_what_sha256sum_prints_for_the_parts() -> None:
    three_parts()
    listed = subprocess.run("sha256sum *", shell=True, cwd=PARTS, check=True, capture_output=True).stdout
    assert prepared().csv.sha256 == hashlib.sha256(listed).hexdigest() == data_digest(PARTS, "*")
    Path(PARTS, "a.csv").rename(PARTS / "z.csv")
    assert data_digest(PARTS, "*") != hashlib.sha256(listed).hexdigest()


def test_one_part_in_a_folder_counts_with_its_name() -> None:
    write("a.csv", LINES)
    line = hashlib.sha256(Path(PARTS, "a.csv").read_bytes()).hexdigest() + "  a.csv\n"
    assert prepared().csv.sha256 == hashlib.sha256(line.encode()).hexdigest()


def test_hidden_files_and_marks_are_no_parts() -> None:
    three_parts()
    for name in ("_SUCCESS", ".a.csv.crc", "_metadata"):
        Path(PARTS, name).write_text("no table")
    Path(PARTS, ".git").mkdir()
    assert sum(prepared().rows.values()) == 60


def test_names_choose_among_the_files() -> None:
    three_parts()
    Path(PARTS, "README.txt").write_text("what this is")
    assert sum(prepared(parts="*.csv").rows.values()) == 35
    assert sum(prepared(parts="[ab].csv*").rows.values()) == 35
    assert refusal(parts="*.parquet").startswith(
        "parts: found no part like '*.parquet' (prepare.parts), allowed: at least one"
    )


def test_a_folder_without_parts_is_refused() -> None:
    Path(PARTS, "_SUCCESS").touch()
    assert refusal() == "parts: found no part, allowed: at least one file that is neither hidden nor begins with _"


def test_a_pattern_is_refused_with_the_folder() -> None:
    assert refusal(csv="parts/*.csv.gz") == (
        "parts/*.csv.gz: found a pattern, allowed: the folder, which is what DVC can watch: prepare.csv: parts and "
        "prepare.parts: '*.csv.gz'"
    )


def test_names_beside_a_file_have_no_effect_and_are_refused() -> None:
    three_parts()
    allowed = "allowed: a folder, or '*' for a file"
    assert (
        refusal(csv="parts/a.csv", parts="*.csv") == f"parts/a.csv: found no folder beside prepare.parts: '*.csv', {allowed}"
    )


def test_a_folder_among_the_parts_is_refused() -> None:
    three_parts()
    Path(PARTS, "b").mkdir()
    assert refusal() == "parts/b: found a folder among the parts, allowed: files alone, in one folder"


@pytest.mark.parametrize(
    ("header", "fault"),
    [
        ("y,x1\n", ", column 1: found 'y', allowed: 'x1', as in parts/a.csv"),
        ("x1,Y\n", ", column 2: found 'Y', allowed: 'y', as in parts/a.csv"),
        ("x1,y,z\n", ": found 3 columns, allowed: 2, as in parts/a.csv"),
        ("x1,\n", ", column 2: found an empty cell, allowed: 'y', as in parts/a.csv"),
    ],
)
def test_a_part_with_other_columns_is_refused_by_the_first_that_differs(header: str, fault: str) -> None:
    write("a.csv", LINES)
    write("b.csv", LINES, header)
    assert refusal() == f"parts/b.csv: line 1{fault}"


def test_a_part_of_the_other_kind_is_refused() -> None:
    three_parts()
    parquet("b2.csv", range(60))
    assert refusal() == "parts/b2.csv: found Parquet, allowed: a CSV, as parts/a.csv is"
    parquet("a.csv", range(60))
    assert refusal() == "parts/b.csv.gz: found a CSV, allowed: Parquet, as parts/a.csv is"


def test_a_part_whose_column_is_of_another_kind_is_refused_where_it_is_used() -> None:
    parquet("a", range(30), z=[True] * 30)
    parquet("b", range(30, 60), z=list(range(30)))
    assert refusal(target="y") == "parts/b: column 'z': found the kind number, allowed: boolean, as in parts/a"
    assert sum(prepared(features=["x1"], target="y").rows.values()) == 60


def test_a_fault_is_told_by_the_part_and_its_line() -> None:
    three_parts()
    write("b.csv", ["1,2\n", "3,four\n"])
    assert refusal() == "parts/b.csv: line 3, column 'y': found 'four', allowed: a number"


def test_a_column_that_float32_does_not_tell_apart_is_told_by_the_part() -> None:
    write("a.csv", ["1.00000001,1\n"] * 20)
    write("b.csv", ["1.00000002,2\n"] * 20)
    assert refusal().startswith("parts/b.csv: line 2, column 'x1': found '1.00000002', which float32 does not tell from the ")


def test_a_part_without_rows_is_left_to_the_others() -> None:
    three_parts()
    write("0.csv", [])
    assert sum(prepared().rows.values()) == 60
    for path in PARTS.iterdir():
        path.unlink()
    write("0.csv", [])
    write("1.csv", [])
    assert refusal() == "parts: found no rows in 2 parts, allowed: at least one"


def test_a_part_that_comes_meanwhile_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    three_parts()
    read = csv_batches.read_batches

    def read_and_add(*arguments: Any) -> Any:
        yield from read(*arguments)
        write("d.csv", LINES)

    monkeypatch.setattr(table_source, "read_batches", read_and_add)
    assert refusal() == "parts: found other parts than before; run again"
