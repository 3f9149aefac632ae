import bz2
import gzip
import hashlib
import io
import json
import lzma
import math
import os
import subprocess
import sys
import weakref
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from helpers_data import numbered_csv, prepare, read_splits
from helpers_memory import peak_memory
from workspace import ROOT

from truefit.core.config import Params
from truefit.core.errors import TableError
from truefit.core.files import sha256
from truefit.data.generating import GenerateSettings
from truefit.data.table import SPLITS, read_table
from truefit.ingest import csv_arrow, csv_batches
from truefit.ingest import split as split_module
from truefit.ingest.csv_format import FormatSettings
from truefit.ingest.prepare import PrepareSettings, write_table
from truefit.ingest.synthetic import draw_chunk, write_csv

NUMBERED = numbered_csv(20)


def gzip_in_two_members(content: bytes) -> bytes:
    half = len(content) // 2
    return gzip.compress(content[:half], mtime=0) + gzip.compress(content[half:], mtime=0)


def zstd(content: bytes) -> bytes:
    return bytes(pa.compress(content, "zstd", asbytes=True))


def bz2_in_two_members(content: bytes) -> bytes:
    return bz2.compress(content[:50]) + bz2.compress(content[50:])


def xz_in_two_members(content: bytes) -> bytes:
    return lzma.compress(content[:50]) + lzma.compress(content[50:])


def zipped(*contents: bytes, names: tuple[str, ...] = ("folder/", "folder/data.csv", "more.csv")) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in zip(names, (b"", *contents), strict=False):
            archive.writestr(name, content)
    return file.getvalue()


compressed = pytest.mark.parametrize("compress", [gzip_in_two_members, zstd, bz2_in_two_members, xz_in_two_members, zipped])


pytestmark = pytest.mark.usefixtures("_in_an_empty_folder")


def refusal(content: str | bytes, **settings: Any) -> str:
    """Return the text of the error that preparing this CSV raises."""
    with pytest.raises(TableError) as caught:
        prepare(Path(), content, **settings)
    return str(caught.value)


# --- CSVs that are refused


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("row", "line"),
    [
        ("20,abc", "line 22, column 'y': found 'abc', allowed: a number"),
        ("20,1_000", "line 22, column 'y': found '1_000', allowed: a number"),
        ("true,1", "line 22, column 'x1': found 'true', allowed: a number"),
        ("20,\u0663", "line 22, column 'y': found '\u0663', allowed: a number"),
        ("20,3\u00a0", "line 22, column 'y': found '3\\xa0', allowed: a number"),
        ('20,"3\n"', "line 22, column 'y': found '3\\n', allowed: a number"),
        ("-nan,20", "line 22, column 'x1': found '-nan', allowed: a finite number"),
        ("20,inf", "line 22, column 'y': found 'inf', allowed: a finite number"),
        ("20,-inf", "line 22, column 'y': found '-inf', allowed: a finite number"),
        ("20", "line 22: found 1 cells, allowed: 2, as in the header"),
        ("20,1,2", "line 22: found 3 cells, allowed: 2, as in the header"),
        ('20,"1', "line 22, column 'y': found a quote that is not closed, allowed: a closing quote"),
    ],
)
def test_a_wrong_row_is_refused_with_file_line_and_column(row: str, line: str, dtype: str) -> None:
    assert refusal(f"{NUMBERED}{row}\n21,1\n", dtype=dtype) == f"data.csv: {line}"


@pytest.mark.parametrize("above", [0, 60_000], ids=["first block", "later block"])
@pytest.mark.parametrize(
    ("dtype", "cell", "allowed"),
    [
        ("float32", "-1e39", "a number within float32's range, or prepare.dtype: float64"),
        (
            "float32",
            "1700000001",
            "an integer that float32 holds, such as each up to 2^24 (16777216), or prepare.dtype: float64",
        ),
        ("float32", "1e-50", "0, or a number that float32 tells from it, or prepare.dtype: float64"),
        ("float32", "1E-400", "0, or a number that float64 tells from it"),
        ("float64", "1e-400", "0, or a number that float64 tells from it"),
        ("float64", "0." + "0" * 350 + "1", "0, or a number that float64 tells from it"),
        ("float64", "1e200", "a number between -1e+150 and 1e+150"),
        ("float64", "1e309", "a number between -1e+150 and 1e+150"),
    ],
)
def test_a_number_that_is_not_kept_is_refused(dtype: str, cell: str, allowed: str, above: int) -> None:
    assert refusal(NUMBERED + "0.5,20.25\n" * above + f"20,{cell}\n", dtype=dtype) == (
        f"data.csv: line {22 + above}, column 'y': found '{cell[:40]}', allowed: {allowed}"
    )


def test_small_numbers_in_columns_that_are_not_used_are_no_fault() -> None:
    prepare(Path(), "note,x,y\n" + "".join(f"1e-400 the-100,{row},0\n" for row in range(20)), features=["x"])

    assert sum(len(rows) for rows in read_splits(Path()).values()) == 20


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_number_too_small_for_float64_is_found_across_two_reads(cut: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_arrow, "BLOCK_BYTES", 100)
    lines = "x,y\n" + "1,2\n" * 30

    assert "found '1e-400'" in refusal(
        lines + "0" * (100 - cut - len(lines) % 100) + ".5,1e-400\n" + "1,2\n" * 30, dtype="float64"
    )


@pytest.mark.parametrize("reader", ["fast", "slow"])
def test_a_column_that_varies_does_not_become_constant(reader: str) -> None:
    last = "9007199254740992" if reader == "slow" else "1"
    rows = "".join(f"{cell},1\n" for cell in ["1.0000001"] * 3 + ["1.00000012", "1.00000011"] * 5)
    content = f"x,y\n{rows}1.0000001,{last}\n"

    assert refusal(content) == (
        "data.csv: line 5, column 'x': found '1.00000012', which float32 does not tell from the '1.0000001' before it, "
        "allowed: numbers that float32 tells apart, or prepare.dtype: float64"
    )
    prepare(Path(), content, dtype="float64")


@pytest.mark.parametrize(
    ("offset", "step", "kept"),
    [("1700000000", 1.5, False), ("16000000", 0.3, False), ("2000", 0.01, True), ("16000000", 1, True)],
)
def test_a_column_whose_fractions_float32_rounds_coarsely_is_refused(offset: str, step: float, kept: bool) -> None:
    content = "x,y\n" + "".join(f"{int(offset) + row * step},{row}\n" for row in range(20))

    if kept:
        prepare(Path(), content)
    else:
        assert "column 'x': found" in (text := refusal(content))
        assert "or prepare.dtype: float64" in text or text.endswith("allowed: prepare.dtype: float64")
    prepare(Path(), content, dtype="float64")


def test_the_line_of_a_fault_far_down_is_right() -> None:
    content = "note,x,y\n" + '"two\nlines",1,2\n' * 100_000 + "a,1,z\n"

    assert refusal(content, features=["x"]) == "data.csv: line 200002, column 'y': found 'z', allowed: a number"


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("", "line 1: found an empty file, allowed: a header with column names, then rows"),
        ("\n\n", "line 1: found an empty file, allowed: a header with column names, then rows"),
        ("x,y", "line 1: found no rows below the header, allowed: at least one"),
        ("x,y\n", "line 1: found no rows below the header, allowed: at least one"),
        ("x,y\r\n\r\n", "line 1: found no rows below the header, allowed: at least one"),
        ("\ufeffx,y\n", "line 1: found no rows below the header, allowed: at least one"),
        ("x,x\n1,2\n", "line 1, column 2: found 'x' again, allowed: each name once, of columns that are used"),
        ("x,\n1,2\n", "line 1: found the columns 'x', allowed: a target and at least one feature"),
        (",\n1,2\n", "line 1: found the columns without names, allowed: a target and at least one feature"),
        ("y,x,x,y\n1,2,3,4\n", "line 1, column 3: found 'x' again, allowed: each name once, of columns that are used"),
        ("x, x ,y\n1,2,3\n", "line 1, column 2: found 'x' again, allowed: each name once, of columns that are used"),
        (
            b"\xff\xfe" + "x,y\n".encode("utf-16-le"),
            "line 1, column 1: found b'\\xff\\xfex\\x00', allowed: text in utf-8, or another prepare.format.encoding",
        ),
        (
            "\nx,y\n".encode("utf-16-le"),
            "line 2, column 1: found '\\x00x\\x00', allowed: text in utf-8, or another prepare.format.encoding",
        ),
        (
            "größe,y\n1,2\n".encode("latin-1"),
            "line 1, column 1: found b'gr\\xf6\\xdfe', allowed: text in utf-8, or another prepare.format.encoding",
        ),
        ("y\n1\n2\n", "line 1: found the columns 'y', allowed: a target and at least one feature"),
        ('\n"two\nlines",y\n\n', "line 2: found no rows below the header, allowed: at least one"),
        (
            "x;y\n1;2\n",
            "line 1: found the columns 'x;y', allowed: a target and at least one feature (is prepare.format.separator ';'?)",
        ),
        ('"two\nlines"\n1\n', "line 1: found the columns 'two\\nlines', allowed: a target and at least one feature"),
    ],
)
def test_a_csv_without_header_or_rows_is_refused(content: str | bytes, line: str) -> None:
    assert refusal(content) == f"data.csv: {line}"


def test_a_missing_csv_is_refused() -> None:
    with pytest.raises(TableError) as caught:
        write_table(PrepareSettings(csv="nowhere/own.csv"), Path("prepared"))

    assert str(caught.value) == "nowhere/own.csv: cannot be read: No such file or directory"


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"features": ["x1", "z"]}, "line 1: found no column 'z' (prepare.features), allowed: 'x1', 'y'"),
        ({"target": "z"}, "line 1: found no column 'z' (prepare.target), allowed: 'x1', 'y'"),
        ({"split": {"column": "z"}}, "line 1: found no column 'z' (prepare.split.column), allowed: 'x1', 'y'"),
        (
            {"features": ["x1", "y"]},
            "line 1: found the last column 'y', the target by default, among prepare.features, "
            "allowed: prepare.target set to another column",
        ),
        ({"split": {"column": "x1"}}, "line 1: found the columns 'x1', 'y', allowed: a target and at least one feature"),
    ],
)
def test_columns_that_cannot_be_had_are_refused(settings: dict[str, Any], line: str) -> None:
    assert refusal(NUMBERED, **settings) == f"data.csv: {line}"


@pytest.mark.parametrize(
    ("header", "remark"),
    [("x1;y", "'x1;y' (is prepare.format.separator ';'?)"), ("x1;y, a b,", "'x1;y', 'a b'"), ("x1", "'x1'")],
)
def test_another_separator_is_named_where_a_column_is_not_found(header: str, remark: str) -> None:
    assert refusal(f"{header}\n1;2\n", features=["z"]) == (
        f"data.csv: line 1: found no column 'z' (prepare.features), allowed: {remark}"
    )


@pytest.mark.parametrize(
    ("cell", "found"), [("val", "'val'"), ("Train", "'Train'"), (" test", "' test'"), ("", "an empty cell")]
)
def test_an_unknown_split_is_refused(cell: str, found: str) -> None:
    content = f"x,s,y\n1,train,2\n1,validation,2\n1,test,2\n1,{cell},2\n"

    assert refusal(content, split={"column": "s"}) == (
        f"data.csv: line 5, column 's': found {found}, allowed: train, validation, test"
    )


@pytest.mark.parametrize("empty", SPLITS)
def test_a_split_column_that_leaves_a_split_empty_is_refused(empty: str) -> None:
    content = "x,s,y\n" + "".join(f"1,{split},2\n" for split in SPLITS * 3 if split != empty)

    assert refusal(content, split={"column": "s"}) == (
        f"data.csv: column 's': found no row with '{empty}', allowed: at least one row in each split"
    )


@pytest.mark.parametrize(
    ("rows", "split", "empty"),
    [
        (1, {}, "validation"),
        (3, {}, "validation"),
        (4, {}, "test"),
        (5, {}, "test"),
        (3, {"train": 0.1, "validation": 0.45, "test": 0.45}, "train"),
    ],
)
def test_fractions_that_leave_a_split_empty_are_refused(rows: int, split: dict[str, float], empty: str) -> None:
    assert refusal(numbered_csv(rows), split=split) == (
        f"data.csv: prepare.split: found too few rows, {rows}, for '{empty}', allowed: at least one row in each split"
    )


def test_a_refused_csv_leaves_the_table_that_was_there() -> None:
    prepare(Path(), NUMBERED)
    before = {path.name: path.read_bytes() for path in Path("prepared").iterdir()}

    refusal(NUMBERED + "20,z\n")

    assert {path.name: path.read_bytes() for path in Path("prepared").iterdir()} == before


@pytest.mark.parametrize("row", ["100000;1,5", '100000;"1,5"'])
def test_a_decimal_comma_is_named(row: str) -> None:
    assert refusal("x;y\n" + "1;2\n" * 30_000 + f"{row}\n", format={"separator": ";"}) == (
        "data.csv: line 30002, column 'y': found '1,5', allowed: a number with a point, without a comma"
    )


@pytest.mark.parametrize("cell", ["9007199254740993", "-9007199254740993", "123456789012345678901234567890"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_integer_that_float64_does_not_hold_is_refused(cell: str, dtype: str) -> None:
    assert refusal(f"{NUMBERED}20,{cell}\n", dtype=dtype) == (
        f"data.csv: line 22, column 'y': found '{cell}', allowed: an integer up to 2^53 (9007199254740992), "
        "beyond which float64 does not hold each, or a number such as 1e20"
    )


@pytest.mark.parametrize("rows", ["20,t,1\n", "20,t,1\n" * 5000])
@pytest.mark.parametrize("last", ['21,"t,1', '21,t,"1', '21,t,1,"', '21,"'])
def test_a_quote_that_is_not_closed_swallows_no_rows(last: str, rows: str) -> None:
    line = refusal(f"x,note,y\n{rows}{last}\n{rows}", features=["x"])

    assert line.startswith(f"data.csv: line {rows.count(chr(10)) + 2}, column ")
    assert line.endswith("found a quote that is not closed, allowed: a closing quote")


@pytest.mark.parametrize(
    ("behind", "found"),
    [
        ("", "a quote that is not closed, allowed: a closing quote"),
        ('22,1,"t"\n', "text after a closing quote, allowed: ',' or the end of the row there"),
    ],
)
def test_a_quote_in_the_last_column_that_is_not_used_swallows_no_rows(behind: str, found: str) -> None:
    assert refusal(f'x,y,note\n20,1,t\n21,1,"t\n21,2,u\n{behind}', features=["x"], target="y") == (
        f"data.csv: line 3, column 'note': found {found}"
    )


def test_a_quote_that_is_closed_too_late_is_found_in_the_first_of_several_blocks() -> None:
    content = '21,1,"t"u\n' + "20,1,t\n" * 300_000

    assert refusal(f"x,y,note\n{content}", features=["x"], target="y") == (
        "data.csv: line 2, column 'note': found text after a closing quote, allowed: ',' or the end of the row there"
    )


@compressed
def test_the_line_of_a_fault_in_a_compressed_csv_is_that_of_the_text(compress: Callable[[bytes], bytes]) -> None:
    assert refusal(compress(("x,y\n" + "1,2\n" * 100_000 + "1,z\n").encode())) == (
        "data.csv: line 100002, column 'y': found 'z', allowed: a number"
    )


@pytest.mark.parametrize(
    ("stored", "found"),
    [
        (gzip.compress(NUMBERED.encode(), mtime=0)[:-1], "damaged gzip data (Truncated compressed stream)"),
        (gzip.compress(NUMBERED.encode(), mtime=0)[:5], "damaged gzip data (Truncated compressed stream)"),
        (b"\x1f\x8b" + NUMBERED.encode(), "damaged gzip data (zlib inflate failed: unknown compression method)"),
        (
            gzip.compress(numbered_csv(100_000).encode(), mtime=0)[:-8] + bytes(8),
            "damaged gzip data (zlib inflate failed: incorrect data check)",
        ),
        (zstd(NUMBERED.encode())[:-1], "damaged zstd data (Truncated compressed stream)"),
        (zstd(numbered_csv(100_000).encode())[:-1], "damaged zstd data (Truncated compressed stream)"),
        (zstd(NUMBERED.encode()) + b"more", "damaged zstd data (ZSTD decompress failed: Unknown frame descriptor)"),
    ],
)
def test_a_damaged_compressed_csv_is_refused(stored: bytes, found: str) -> None:
    assert refusal(stored) == f"data.csv: found {found}, allowed: a whole {found.split()[1]} file"


@pytest.mark.parametrize("cut", [-1, 20])
@pytest.mark.parametrize("compress", [bz2_in_two_members, xz_in_two_members, zipped])
def test_a_container_that_is_cut_off_is_refused(compress: Callable[[bytes], bytes], cut: int) -> None:
    assert refusal(compress(NUMBERED.encode())[:cut]).startswith("data.csv: found damaged ")


def test_damage_inside_a_zip_is_refused() -> None:
    stored = bytearray(zipped(numbered_csv(1000).encode()))
    stored[len(stored) // 2] ^= 1

    assert refusal(bytes(stored)).startswith("data.csv: found damaged zip data (")


def encrypted(stored: bytes) -> bytes:
    """Return a zip whose members are said to be encrypted, in its directory."""
    at, content = 0, bytearray(stored)
    while (at := stored.find(b"PK\x01\x02", at + 1)) > 0:
        content[at + 8] |= 1
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (
            zipped(b"x,y\n", b"x,y\n"),
            "a zip of 2 files ('folder/data.csv', 'more.csv'), allowed: a zip of one, or one CSV out of it",
        ),
        (zipped(names=()), "a zip of 0 files, allowed: a zip of one, or one CSV out of it"),
        (
            encrypted(zipped(NUMBERED.encode())),
            "a zip with a password, allowed: a zip without one, or the CSV without the zip",
        ),
        (
            zipped(b"", names=("[Content_Types].xml", "xl/workbook.xml")),
            "an Excel workbook, allowed: a CSV, to which it has to be converted",
        ),
        (
            bytes.fromhex("d0cf11e0a1b11ae1") + bytes(500),
            "an Excel workbook, allowed: a CSV, to which it has to be converted",
        ),
        (b"\n<!DOCTYPE HTML>\n<html>", "a web page (HTML), allowed: a CSV, to which it has to be converted"),
        (b"\xef\xbb\xbf<html lang='en'>", "a web page (HTML), allowed: a CSV, to which it has to be converted"),
    ],
)
def test_what_is_no_csv_is_called_by_what_it_is(content: bytes, found: str) -> None:
    assert refusal(content) == f"data.csv: found {found}"


@pytest.mark.parametrize("name", ["PAR1", "PK", "BZh9", "BZh91AY", "<htm"])
def test_a_name_that_begins_like_a_container_is_a_name(name: str) -> None:
    assert prepare(Path(), NUMBERED.replace("x1", name)).features == [name]


def append(path: Path) -> None:
    with path.open("a") as file:
        file.write("20,20.25\n")


def overwrite(path: Path) -> None:
    with path.open("r+") as file:
        file.write("x2")


def replace(path: Path) -> None:
    status = path.stat()
    other = path.with_name("other.csv")
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)


def remove(path: Path) -> None:
    path.unlink(missing_ok=True)


@pytest.mark.parametrize("change", [append, overwrite, replace, remove])
@pytest.mark.parametrize(
    ("reader", "row"),
    [("_typed_batches", "1"), ("_typed_batches", "1e20"), ("_arrow_blocks", "z"), ("_python_blocks", "1,")],
    ids=["fast", "between", "text", "fault"],
)
def test_a_csv_that_changes_while_it_is_read_is_refused(
    reader: str, row: str, change: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = getattr(csv_batches, reader)

    def read_and_change(*arguments: Any, **named: Any) -> Iterator[Any]:
        try:
            yield from read(*arguments, **named)
        finally:
            change(Path("data.csv"))

    prepare(Path(), NUMBERED)
    before = {path.name: path.read_bytes() for path in Path("prepared").iterdir()}
    Path("data.csv").write_text(f"{NUMBERED}20,{row}\n")
    os.utime("data.csv", (0, 0))  # two changes within a tick of the clock have the same time
    monkeypatch.setattr(csv_batches, reader, read_and_change)

    with pytest.raises(TableError) as caught:
        write_table(PrepareSettings(csv="data.csv"), Path("prepared"))

    assert str(caught.value) == "data.csv: changed while it was read; run again"
    assert {path.name: path.read_bytes() for path in Path("prepared").iterdir()} == before


def test_no_thread_has_anything_of_pythons_when_a_csv_was_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    handles: list[weakref.ref[Any]] = []

    class Noted(csv_arrow._Handle):
        def __init__(self, read: Callable[[int], bytes]) -> None:
            super().__init__(read)
            handles.append(weakref.ref(self))

    monkeypatch.setattr(csv_arrow, "_Handle", Noted)
    content = "a,b,c,d\n" + "x,1,y,z\n" * 150
    for _ in range(100):
        refusal(content)
        assert [handle() for handle in handles] == [None, None]  # one for each of pyarrow's passes
        handles.clear()


# --- CSVs that are accepted


@pytest.mark.parametrize(
    "content",
    [
        "\ufeff" + NUMBERED,
        NUMBERED.replace("\n", "\r\n"),
        NUMBERED.replace("\n", "\r"),
        NUMBERED.replace("\n", "\n\n"),
        "\n\n" + NUMBERED + "\n\n",
        NUMBERED.removesuffix("\n"),
        NUMBERED.replace(",", " , ").replace(" , y", ",y").replace("x1 ", "x1"),
        NUMBERED.replace("x1,y", '"x1","y"').replace("\n0,0.25\n", '\n"0","2.5e-1"\n'),
    ],
    ids=["bom", "crlf", "cr", "blank-between", "blank-around", "no-last-newline", "spaces", "quotes"],
)
def test_other_ways_to_write_the_same_csv_give_the_same_table(content: str, tmp_path: Path) -> None:
    plain = prepare(tmp_path, NUMBERED)

    assert prepare(tmp_path, content).sha256 == plain.sha256


def test_text_in_columns_that_are_not_chosen_is_ignored(tmp_path: Path) -> None:
    lines = NUMBERED.splitlines()
    cells = ["name", "", "NA", '"a\nb"', '"a, ""b"""', "nan", *["x"] * 15]
    content = "\n".join(f"{line},{cell}" for line, cell in zip(lines, cells, strict=True))

    plain, wide = prepare(tmp_path, NUMBERED), prepare(tmp_path, content, features=["x1"], target="y")

    assert wide.sha256 == plain.sha256
    assert wide.features == ["x1"]


def test_text_that_is_not_utf8_in_columns_that_are_not_chosen_is_ignored(tmp_path: Path) -> None:
    content = "\n".join([NUMBERED.splitlines()[0] + ",ort", *(f"{line},Köln" for line in NUMBERED.splitlines()[1:])])

    plain = prepare(tmp_path, NUMBERED)
    wide = prepare(tmp_path, content.encode("latin-1"), features=["x1"], target="y")

    assert wide.sha256 == plain.sha256


def test_columns_that_are_not_chosen_may_change_in_a_large_csv(tmp_path: Path) -> None:
    # Over 3 MB, which the reader takes in blocks of 1 MB: numbers, then text with line breaks, then nothing.
    notes = ["1"] * 100_000 + ['"' + "line\n" * 200 + '"'] * 2_000 + [""] * 100_000
    content = "note,x,y\n" + "".join(f"{note},{row},{2 * row}\n" for row, note in enumerate(notes))

    table = prepare(tmp_path, content, features=["x"])

    rows = np.concatenate(list(read_splits(tmp_path).values()))
    assert sum(table.rows.values()) == 202_000
    assert np.array_equal(np.sort(rows[:, 0]), np.arange(202_000))


@pytest.mark.parametrize("separator", [";", "\t", "|", " "])
def test_other_separators_give_the_same_table(separator: str, tmp_path: Path) -> None:
    plain = prepare(tmp_path, NUMBERED)

    assert prepare(tmp_path, NUMBERED.replace(",", separator), format={"separator": separator}).sha256 == plain.sha256


@pytest.mark.parametrize("last", ["1e20", "9007199254740992"], ids=["text", "slow"])
def test_numbers_that_are_looked_at_twice_are_the_csvs(last: str, tmp_path: Path) -> None:
    cells = ["1e20", "-1e100", "+1.5e17", " -9007199254740993.0\t", ".5e30", "-0", "1.", *["1"] * 60_000, last]
    prepare(tmp_path, "x,y\n" + "".join(f"{row},{cell}\n" for row, cell in enumerate(cells)), dtype="float64")

    rows = np.concatenate(list(read_splits(tmp_path).values()))
    assert rows[np.argsort(rows[:, 0]), 1].tolist() == [float(cell) for cell in cells]


@pytest.mark.parametrize("last", ["1e20", "9007199254740992"], ids=["text", "slow"])
def test_a_slower_reader_goes_on_where_a_faster_one_ended(last: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_arrow, "BLOCK_BYTES", 200)
    monkeypatch.setattr(csv_batches, "SLOW_ROWS", 7)
    cells = [*map(str, range(300)), last]
    splits = [SPLITS[row * row % 3] if row > 2 else SPLITS[row] for row in range(301)]
    content = "x,y,s\n" + "".join(f"{row},{cell},{splits[row]}\n" for row, cell in enumerate(cells))

    table = prepare(tmp_path, content, dtype="float64", split={"column": "s"})

    assert table.csv.sha256 == hashlib.sha256(content.encode()).hexdigest()
    for split, rows in read_splits(tmp_path).items():
        assert rows.tolist() == [[row, float(cell)] for row, cell in enumerate(cells) if splits[row] == split]


def test_a_row_longer_than_a_block_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = prepare(tmp_path, NUMBERED)
    monkeypatch.setattr(csv_arrow, "BLOCK_BYTES", 8)

    assert prepare(tmp_path, NUMBERED.replace("\n1,", "\n1.000000000000,")).sha256 == plain.sha256


@compressed
@pytest.mark.parametrize("start", ["", "\ufeff", "\r\n"], ids=["plain", "bom", "blank"])
def test_a_compressed_csv_gives_the_same_table_with_the_digest_of_the_file(
    start: str, compress: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    content = start + numbered_csv(60_000) + '"1","2"\n'
    plain, stored = prepare(tmp_path, content), compress(content.encode())

    table = prepare(tmp_path, stored)

    assert table.sha256 == plain.sha256
    assert table.csv.sha256 == hashlib.sha256(stored).hexdigest()


@compressed
def test_the_digest_of_a_csv_that_is_read_slowly_is_that_of_the_file(
    compress: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    stored = compress((NUMBERED + "9007199254740992,2\n" + "1,2\n" * 60_000).encode())

    assert prepare(tmp_path, stored).csv.sha256 == hashlib.sha256(stored).hexdigest()


# --- which columns


def test_by_default_the_last_column_is_the_target_and_all_others_are_features(tmp_path: Path) -> None:
    table = prepare(tmp_path, numbered_csv(20, features=3))

    assert (table.features, table.target) == (["x1", "x2", "x3"], "y")


def test_a_table_of_ten_thousand_named_columns_is_prepared(tmp_path: Path) -> None:
    names = [f"x{number}" for number in range(10_000)]
    content = "\n".join([",".join([*names, "y"]), *(",".join(["0.5"] * 10_000 + [str(row)]) for row in range(10))])
    Path("params.yaml").write_text(f"prepare: {{csv: data.csv, target: y, features: [{', '.join(names)}]}}\n")

    assert (
        prepare(tmp_path, content, **Params().section("prepare", PrepareSettings).model_dump(exclude={"csv"})).features
        == names
    )


def test_the_split_column_is_neither_target_nor_feature(tmp_path: Path) -> None:
    content = "a,b,s\n" + "".join(f"{row},{row + 0.5},{split}\n" for row, split in enumerate(SPLITS))
    table = prepare(tmp_path, content, split={"column": "s"})

    assert (table.features, table.target) == (["a"], "b")
    assert read_splits(tmp_path)["test"].tolist() == [[2.0, 2.5]]


def test_with_a_target_all_other_columns_are_features(tmp_path: Path) -> None:
    table = prepare(tmp_path, numbered_csv(20, features=3), target="x2")

    assert (table.features, table.target) == (["x1", "x3", "y"], "x2")


def test_features_are_stored_in_the_order_of_the_settings_and_the_target_last(tmp_path: Path) -> None:
    table = prepare(tmp_path, numbered_csv(20, features=3), features=["y", "x1"], target="x3")

    rows = read_splits(tmp_path)["train"]
    assert table.names == ["y", "x1", "x3"]
    assert np.array_equal(rows - rows[:, 1:2], np.tile([0.75, 0, 0.5], (16, 1)))


@pytest.mark.parametrize(
    ("header", "row", "settings", "columns"),
    [
        (",x,y", "r,1,2", {}, ["x", "y"]),
        ("x,y,,", "1,2,,", {}, ["x", "y"]),
        (" x , y,\u00a0", "1,2,n", {"target": "x"}, ["y", "x"]),
        ("id,x,note,y", "?,1,?,2", {"exclude": ["note", "id"]}, ["x", "y"]),
        ("n,n,x,y", "?,?,1,2", {"exclude": ["n"]}, ["x", "y"]),
        ("n,x,n,y,,", "?,1,?,2,?,", {"features": ["x"], "target": "y"}, ["x", "y"]),
        ("x,y,note", "1,2,t", {"exclude": ["note"]}, ["x", "y"]),
        ("x,f\udcfcr,y,\udcfc", "1,\udcfc,2,", {"features": ["x"], "target": "y"}, ["x", "y"]),
    ],
)
@pytest.mark.parametrize("last", ["", '"9007199254740992"'], ids=["fast", "slow"])
def test_columns_without_a_name_and_those_that_are_excluded_are_no_features(
    header: str, row: str, settings: dict[str, Any], columns: list[str], last: str
) -> None:
    rows = [row] * 20 + ([row.replace("1", last)] if last else [])
    content = "\n".join([header, *rows]).encode(errors="surrogateescape")

    table = prepare(Path(), content, **settings)

    assert table.names == columns
    train = read_splits(Path())["train"][:, [columns.index("x"), columns.index("y")]]
    assert [row.tolist() for row in train if row[0] < 3] == [[1, 2]] * (
        len(train) if not last else len(train) - (train[:, 0] > 3).sum()
    )


@pytest.mark.parametrize(
    ("header", "said"),
    [("x,y", ""), (",x,y", "; left out: 1 column without a name"), (",x,y,", "; left out: 2 columns without a name")],
)
def test_the_stage_says_how_many_columns_without_a_name_it_left_out(header: str, said: str) -> None:
    rows = "\n".join([header, *[header.replace("x", "1").replace("y", "2")] * 20])
    Path("data.csv").write_text(rows)
    Path("params.yaml").write_text("prepare: {csv: data.csv}\n")

    command = [sys.executable, str(ROOT / "src/prepare.py"), "prepared"]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True, check=True
    )

    assert done.stdout == f"data.csv: 1 features, target 'y'; rows: 16 train, 2 validation, 2 test{said}\n"


def test_a_cell_of_any_length_is_taken_in_a_column_that_is_not_used() -> None:
    for cell in ("a" * 200_000, '"' + "a\n" * 1_000_000 + '"'):
        assert prepare(Path(), f"n,x,y\n{cell},1,2\n" + "b,1,2\n" * 19, exclude=["n"]).features == ["x"]


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"exclude": ["z"]}, "found no column 'z' (prepare.exclude), allowed: 'x', 'y'"),
        ({"target": ""}, "found no column '' (prepare.target), allowed: 'x', 'y'"),
        ({"features": ["x", ""]}, "found no column '' (prepare.features), allowed: 'x', 'y'"),
    ],
)
def test_a_column_that_is_asked_for_must_have_its_name(settings: dict[str, Any], line: str) -> None:
    assert refusal(",x,y\n1,2,3\n", **settings) == f"data.csv: line 1: {line}"


# --- which rows


@pytest.mark.parametrize("chunk", [65_536, 7])
@pytest.mark.parametrize(
    ("rows", "fractions", "sizes"),
    [
        (1000, (0.8, 0.1, 0.1), (800, 100, 100)),
        (442, (0.8, 0.1, 0.1), (354, 44, 44)),  # 353.6, 44.2, 44.2
        (11, (0.8, 0.1, 0.1), (9, 1, 1)),  # 8.8, 1.1, 1.1
        (14, (0.8, 0.1, 0.1), (11, 2, 1)),  # 11.2, 1.4, 1.4: the first of equal remainders
        (9, (0.8, 0.1, 0.1), (7, 1, 1)),  # 7.2, 0.9, 0.9
        (10, (0.7, 0.2, 0.1), (7, 2, 1)),  # whole numbers, but for rounding
        (7, (0.3, 0.3, 0.4), (2, 2, 3)),  # 2.1, 2.1, 2.8
        (100, (1 / 3, 1 / 3, 1 / 3), (34, 33, 33)),
        (3, (1 / 3, 1 / 3, 1 / 3), (1, 1, 1)),
    ],
)
def test_sizes_are_exact_fractions_by_largest_remainder(
    rows: int,
    fractions: tuple[float, ...],
    sizes: tuple[int, ...],
    chunk: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(split_module, "SPLIT_CHUNK_ROWS", chunk)
    table = prepare(tmp_path, numbered_csv(rows), split=dict(zip(SPLITS, fractions, strict=True)))

    assert tuple(table.rows.values()) == sizes
    assert tuple(len(array) for array in read_splits(tmp_path).values()) == sizes


@pytest.mark.parametrize("chunk", [65_536, 7])
def test_every_row_is_in_one_split_and_each_split_keeps_the_csvs_order(
    chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(split_module, "SPLIT_CHUNK_ROWS", chunk)
    prepare(tmp_path, numbered_csv(100, features=2))
    splits = read_splits(tmp_path)

    assert sorted(np.concatenate([rows[:, 0] for rows in splits.values()]).tolist()) == list(range(100))
    for rows in splits.values():
        assert (np.diff(rows[:, 0]) > 0).all()
        assert np.array_equal(rows - rows[:, :1], np.tile([0, 0.25, 0.5], (len(rows), 1)))


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    first = prepare(tmp_path, NUMBERED, split={"seed": 3})
    content = {path.name: path.read_bytes() for path in (tmp_path / "prepared").iterdir()}

    assert prepare(tmp_path, NUMBERED, split={"seed": 3}) == first
    assert {path.name: path.read_bytes() for path in (tmp_path / "prepared").iterdir()} == content


def test_another_seed_gives_another_split(tmp_path: Path) -> None:
    content = numbered_csv(200)

    assert len({prepare(tmp_path, content, split={"seed": seed}).sha256["test"] for seed in range(5)}) == 5


def test_the_split_depends_on_the_number_of_rows_and_not_on_their_values(tmp_path: Path) -> None:
    prepare(tmp_path, numbered_csv(200))
    before = read_splits(tmp_path)
    prepare(tmp_path, "x,note,y\n" + "".join(f"{row},a{row},{row * 7}\n" for row in range(200)), features=["x"])

    for split, rows in read_splits(tmp_path).items():
        assert rows[:, 0].tolist() == before[split][:, 0].tolist()


@pytest.mark.parametrize("chunk", [65_536, 5])
def test_every_row_is_equally_likely_in_each_split(chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split_module, "SPLIT_CHUNK_ROWS", chunk)
    seeds, rows = 120, 20
    chosen = {split: np.zeros((seeds, rows)) for split in SPLITS}
    for seed in range(seeds):
        prepare(tmp_path, NUMBERED, split={"train": 0.4, "validation": 0.3, "test": 0.3, "seed": seed})
        for split, array in read_splits(tmp_path).items():
            chosen[split][seed, array[:, 0].astype(int)] = 1

    for taken, share in zip(chosen.values(), (0.4, 0.3, 0.3), strict=True):
        # Each row's count is binomial; the number among the first five rows is hypergeometric.
        counts, among_five = taken.sum(axis=0), taken[:, :5].sum(axis=1)
        assert np.abs(counts - seeds * share).max() < 4.5 * math.sqrt(seeds * share * (1 - share))
        variance = 5 * share * (1 - share) * 15 / 19
        assert 0.5 * variance < among_five.var() < 2 * variance


@pytest.mark.parametrize("chunk", [65_536, 7])
def test_a_split_column_decides_where_each_row_goes(chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split_module, "SPLIT_CHUNK_ROWS", chunk)
    names = [SPLITS[row * row % 3 if row % 4 else 2] for row in range(100)]
    content = "s,x,y\n" + "".join(f'"{name}",{row},{row + 0.25}\n' for row, name in enumerate(names))

    table = prepare(tmp_path, content, split={"column": "s"})

    for split, rows in read_splits(tmp_path).items():
        expected = [row for row, name in enumerate(names) if name == split]
        assert rows.tolist() == [[row, row + 0.25] for row in expected]
        assert table.rows[split] == len(expected)


def test_a_table_of_several_real_chunks_is_complete_and_in_order(tmp_path: Path) -> None:
    rows = 2 * split_module.SPLIT_CHUNK_ROWS + 1000
    prepare(tmp_path, "x,y\n" + "".join(f"{row},{2 * row}\n" for row in range(rows)), dtype="float64")
    splits = read_splits(tmp_path)

    assert [len(array) for array in splits.values()] == [105_658, 13_207, 13_207]
    assert np.array_equal(np.sort(np.concatenate([array[:, 0] for array in splits.values()])), np.arange(rows))
    for array in splits.values():
        assert (np.diff(array[:, 0]) > 0).all()
        assert np.array_equal(array[:, 1], 2 * array[:, 0])


def test_a_split_column_decides_also_where_the_csv_is_read_cell_by_cell(tmp_path: Path) -> None:
    content = "s,x,y\n" + "".join(f"{name},{row},9007199254740992\n" for row, name in enumerate(SPLITS * 3000))

    prepare(tmp_path, content, split={"column": "s"})

    for first, rows in enumerate(read_splits(tmp_path).values()):
        assert rows[:, 0].tolist() == list(range(first, 9000, 3))


# --- which values


def test_float64_holds_the_csvs_numbers_exactly(tmp_path: Path) -> None:
    settings = GenerateSettings(rows=1000, coefficients=(2.0, -1.0))
    write_csv(settings, tmp_path / "drawn.csv")
    prepare(tmp_path, (tmp_path / "drawn.csv").read_bytes(), dtype="float64")

    rows = np.concatenate(list(read_splits(tmp_path).values()))
    drawn = np.column_stack(draw_chunk(settings, 0))
    assert np.array_equal(rows[np.argsort(rows[:, 0])], drawn[np.argsort(drawn[:, 0])])


def test_float32_holds_the_nearest_number(tmp_path: Path) -> None:
    cells = ["0.1", "16777217.5", "1e-45", "3.4028235e38", "-0.30000001"] * 4
    prepare(tmp_path, "x,y\n" + "".join(f"{row},{cell}\n" for row, cell in enumerate(cells)))

    rows = np.concatenate(list(read_splits(tmp_path).values()))
    assert rows.dtype == np.float32
    assert rows[np.argsort(rows[:, 0]), 1].tolist() == [np.float32(float(cell)) for cell in cells]


@pytest.mark.parametrize(("offset", "dtype"), [(0.0, "float32"), (1e5, "float32"), (0.0, "float64"), (1e8, "float64")])
def test_mean_and_std_are_those_of_the_training_rows(
    offset: float, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(split_module, "SPLIT_CHUNK_ROWS", 100)
    values = np.random.default_rng(1).normal(offset, (100.0, 1000.0, 50.0), (2000, 3))
    content = "a,b,y\n" + "".join(f"{a!r},{b!r},{y!r}\n" for a, b, y in values.tolist())

    table = prepare(tmp_path, content, dtype=dtype)

    train = read_splits(tmp_path)["train"].astype(np.float64)
    np.testing.assert_allclose(table.mean, train.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(table.std, train.std(axis=0), rtol=1e-9)


@pytest.mark.usefixtures("_small_chunks")
def test_a_constant_column_has_no_deviation(tmp_path: Path) -> None:
    table = prepare(tmp_path, "x,c,y\n" + "".join(f"{row},0.1,{row}\n" for row in range(50)), dtype="float64")

    assert table.mean[1] == 0.1
    assert table.std[1] == 0.0


@pytest.mark.usefixtures("_small_chunks")
def test_a_chunk_without_training_rows_changes_no_moment(tmp_path: Path) -> None:
    names = ["train"] * 3 + ["test"] * 20 + ["validation"] * 5 + ["train"] * 2
    content = "s,x,y\n" + "".join(f"{name},{row},{row**2}\n" for row, name in enumerate(names))

    table = prepare(tmp_path, content, split={"column": "s"}, dtype="float64")

    train = np.array([0.0, 1.0, 2.0, 28.0, 29.0])
    np.testing.assert_allclose(table.mean, [train.mean(), (train**2).mean()], rtol=1e-14)
    np.testing.assert_allclose(table.std, [train.std(), (train**2).std()], rtol=1e-14)


@pytest.mark.parametrize("split", SPLITS)
def test_the_largest_numbers_have_a_deviation(split: str) -> None:
    content = (
        "x,y,s\n"
        + "".join(f"{row},{row},{name}\n" for row, name in enumerate(SPLITS * 2))
        + f"4,1e150,{split}\n4,-1e150,{split}\n"
    )

    assert np.isfinite(prepare(Path(), content, dtype="float64", split={"column": "s"}).std).all()


# --- what is written


def test_table_json_describes_the_csv_the_columns_and_the_arrays(tmp_path: Path) -> None:
    table = prepare(Path(), NUMBERED, dtype="float64")

    content = json.loads(Path("prepared/table.json").read_text())
    train = np.load("prepared/train.npy")
    assert content == {
        "csv": {
            "path": "data.csv",
            "sha256": hashlib.sha256(NUMBERED.encode()).hexdigest(),
            "format": FormatSettings().model_dump(),
        },
        "columns": [{"kind": "number", "name": "x1", "fill": None, "gaps": False}],
        "target": "y",
        "weight": None,
        "dtype": "float64",
        "rows": {"train": 16, "validation": 2, "test": 2},
        "mean": pytest.approx(train.mean(axis=0).tolist()),
        "std": pytest.approx(train.std(axis=0).tolist()),
        "sha256": {split: sha256(Path(f"prepared/{split}.npy")) for split in SPLITS},
    }
    assert read_table(Path("prepared")) == table


def test_the_digest_is_that_of_all_the_csvs_bytes() -> None:
    content = "\ufeff\r\n" + numbered_csv(200_000).replace("\n", "\r\n") + "\n\n\n"

    table = prepare(Path(), content)

    assert table.csv.sha256 == hashlib.sha256(content.encode()).hexdigest()


def test_nothing_else_is_left_in_the_folder() -> None:
    prepare(Path(), NUMBERED)

    assert {path.name for path in Path("prepared").iterdir()} == {"table.json", *(f"{split}.npy" for split in SPLITS)}


def test_no_progress_bar_is_written_where_stderr_is_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    prepare(Path(), NUMBERED)

    assert capfd.readouterr() == ("", "")


PREPARE = """
from truefit.ingest.prepare import PrepareSettings, write_table
write_table(PrepareSettings(csv="data.csv", dtype="float64"), Path("prepared"))
"""


def test_memory_does_not_grow_with_the_rows() -> None:
    def peak(rows: int) -> int:
        Path("data.csv").write_bytes(b"a,b,c,d,y\n" + b"1,2,3,4,5\n" * rows)
        return peak_memory(PREPARE, Path())

    # Between the two, the arrays grow by 120 MB and the CSV by 30 MB.
    assert peak(4_000_000) - peak(1_000_000) < 60
