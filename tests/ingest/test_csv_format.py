"""Formats: what a CSV that is written otherwise gives, and where its faults are."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_data import READERS, numbered_csv, prepare, read_only_by, read_splits

from truefit.core.config import Params
from truefit.core.errors import SettingsError, TableError
from truefit.ingest import csv_arrow
from truefit.ingest.csv_lines import single_blanks
from truefit.ingest.prepare import PrepareSettings

NUMBERED = numbered_csv(20)


pytestmark = pytest.mark.usefixtures("_in_an_empty_folder")


def refusal(content: str | bytes, **settings: Any) -> str:
    with pytest.raises(TableError) as caught:
        prepare(Path(), content, **settings)
    return str(caught.value)


def aligned(text: str) -> str:
    return "".join(f"\t {'  '.join(line.split(','))} \t\n \n" for line in text.splitlines())


def german(text: str) -> str:
    return text.replace(",", ";").replace(".", ",")


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("form", "content"),
    [
        ({"separator": ";", "decimal": ","}, german(NUMBERED)),
        ({"separator": " "}, aligned(NUMBERED)),
        ({"separator": " "}, aligned(NUMBERED).replace("x1", '"x1"').removesuffix(" \t\n \n")),
        ({"encoding": "latin-1"}, NUMBERED),
        ({"encoding": "utf-16"}, NUMBERED),
        ({"encoding": "utf-16-le"}, "\ufeff" + NUMBERED),
        ({"comment": "#"}, '# a, "b\n' + NUMBERED.replace("\n", "\n# 1,2\n") + "# end"),
        ({"comment": "//"}, "//\n" + NUMBERED.replace("\n1,", '\n"1",').replace("\n", "\r//\r")),
        ({"thousands": ","}, NUMBERED),
        ({"thousands": "'", "comment": "#", "encoding": "utf-16", "separator": " "}, "#\n" + aligned(NUMBERED)),
    ],
)
def test_the_same_rows_in_another_format_give_the_same_table(
    form: dict[str, Any], content: str, reader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = prepare(Path(), NUMBERED)
    read_only_by(reader, monkeypatch)

    table = prepare(Path(), content.encode(form.get("encoding", "utf-8")), format=form)

    assert (table.sha256, table.names) == (plain.sha256, ["x1", "y"])
    assert table.csv.format == {**plain.csv.format, **form}


@pytest.mark.parametrize("block", range(40, 60, 2))
def test_a_row_that_a_faster_reader_broke_off_in_is_read_as_a_whole(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_arrow, "BLOCK_BYTES", block)
    rows = "".join(f"{row},{row * 1000 + 829.5}\n" for row in range(12))
    # A comment behind a quote is left to Python's reader, wherever a block ends before it.
    content = f'x,y\n{rows}"12",12829.5\n# a comment\n13,13829.5\n'

    prepare(Path(), content, format={"comment": "#"}, dtype="float64")

    read = np.concatenate(list(read_splits(Path()).values()))
    assert read[np.argsort(read[:, 0])].tolist() == [[row, row * 1000 + 829.5] for row in range(14)]


@pytest.mark.parametrize("start", ["", "\ufeff", "\n\n"])
def test_columns_without_a_header_are_numbered(start: str) -> None:
    header, _, rows = numbered_csv(20, features=2).partition("\n")
    plain = prepare(Path(), f"{header}\n{rows}")

    table = prepare(Path(), start + rows, format={"header": False})

    assert (table.sha256, table.names) == (plain.sha256, ["column1", "column2", "column3"])
    assert prepare(Path(), rows, format={"header": False}, target="column2").features == ["column1", "column3"]


@pytest.mark.parametrize("above", [0, 60_000], ids=["first block", "later block"])
@pytest.mark.parametrize(
    ("form", "cell", "number"),
    [
        ({"thousands": ","}, '"1,234,567.5"', 1234567.5),
        ({"thousands": ","}, '" -45,000e2 "', -4500000),
        ({"thousands": " "}, " 45 000 ", 45000),
        ({"thousands": "'"}, "45'000", 45000),
        ({"decimal": ",", "thousands": ".", "separator": ";"}, "1.234,5", 1234.5),
        ({"decimal": ",", "separator": ";"}, ",5e1", 5),
        ({"decimal": ",", "separator": ";"}, "100000000000000000000,5", 1e20),
        ({"thousands": "."} | {"decimal": ",", "separator": ";"}, "9.007.199.254.740.992", 2.0**53),
    ],
)
def test_a_number_is_read_by_its_decimal_sign_and_that_of_thousands(
    form: dict[str, Any], cell: str, number: float, above: int
) -> None:
    separator = form.get("separator", ",")
    rows = "".join(f"{row}{separator}{row}\n" for row in range(20 + above))

    prepare(Path(), f"x{separator}y\n{rows}20{separator}{cell}\n", format=form, dtype="float64")

    assert sum((split[:, 1] == number).sum() for split in read_splits(Path()).values()) >= 1


@pytest.mark.parametrize(
    ("form", "cell", "allowed"),
    [
        ({"thousands": ","}, '"1,23"', "a number with a point, without a comma"),
        ({"thousands": ","}, '"1234,567"', "a number with a point, without a comma"),
        ({"thousands": ","}, '"1,234.567,890"', "a number with a point, without a comma"),
        ({"thousands": " "}, "1  234", "a number"),
        ({"decimal": ",", "separator": ";"}, "1.5", "a number with a comma, without a point"),
        ({"decimal": ",", "separator": ";"}, "1.234,5", "a number with a comma, without a point"),
        ({"decimal": ",", "separator": ";"}, "1,2,3", "a number"),
        ({"decimal": ",", "separator": ";"}, "1e-400", "0, or a number that float64 tells from it"),
        ({"decimal": ",", "separator": ";"}, "0,0" + "0" * 400 + "1", "0, or a number that float64 tells from it"),
    ],
)
def test_what_is_no_number_of_the_format_is_refused(form: dict[str, Any], cell: str, allowed: str) -> None:
    separator = form.get("separator", ",")
    content = NUMBERED.replace(",", separator).replace(".", form.get("decimal", "."))

    assert refusal(f"{content}20{separator}{cell}\n", format=form) == (
        f"data.csv: line 22, column 'y': found {cell.strip(chr(34))[:40]!r}, allowed: {allowed}"
    )


@pytest.mark.parametrize(
    ("form", "content", "line"),
    [
        ({"comment": "#"}, "# a\nx,y\n# b\n1,2\n#\n3,z\n", "line 6, column 'y': found 'z', allowed: a number"),
        ({"comment": "#"}, '#\nn,x,y\n"a\n#b",1,2\n#\n"c\n#",3,z\n', "line 6, column 'y': found 'z', allowed: a number"),
        ({"comment": "#"}, '#\nx,y\n#\n1,"2\n#',
         "line 4, column 'y': found a quote that is not closed, allowed: a closing quote"),
        ({"comment": "#"}, "# a\n#", "line 1: found an empty file, allowed: a header with column names, then rows"),
        ({"header": False}, "1,2\n3,z\n", "line 2, column 'column2': found 'z', allowed: a number"),
        ({"header": False}, "\n1,2\n3\n", "line 3: found 1 cells, allowed: 2, as in line 2"),
        ({"header": False}, "", "line 1: found an empty file, allowed: rows"),
        ({"separator": " "}, ' x  y\n\n 1 2 \n3\t"z" \n', "line 4, column 'y': found 'z', allowed: a number"),
        ({"separator": " "}, 'x y\n1  "2\n', "line 2, column 'y': found a quote that is not closed, allowed: a closing quote"),
        ({"separator": " "}, "x y\n1 2 3\n", "line 2: found 3 cells, allowed: 2, as in the header"),
    ],
)  # fmt: skip
def test_lines_and_columns_in_errors_are_those_of_the_file(form: dict[str, Any], content: str, line: str) -> None:
    assert refusal(content, format=form, **({"features": ["x"]} if "n,x,y" in content else {})) == f"data.csv: {line}"


def test_bytes_that_are_not_in_the_encoding_are_refused() -> None:
    assert refusal("x,y\n1,2\n" * 3 + "3", format={"encoding": "utf-16"}).startswith(
        "data.csv: line 1: found bytes that are no utf-16"
    )
    assert "column 'y': found " in refusal("x,y\n1,2\n1,ü\n".encode("latin-1"), format={"encoding": "ascii"})


@pytest.mark.parametrize(
    ("form", "line"),
    [
        ("{decimal: ','}", "decimal: found ',', allowed: another character than format.separator"),
        (
            "{decimal: ',', thousands: ',', separator: ;}",
            "thousands: found ',', allowed: another character than format.decimal",
        ),
        ("{thousands: '.'}", "thousands: found '.', allowed: another character than format.decimal"),
        (
            "{encoding: klingon}",
            "encoding: found 'klingon', allowed: an encoding that Python knows, such as utf-8, latin-1, cp1252 or utf-16",
        ),
        (
            "{encoding: base64}",
            "encoding: found 'base64', allowed: an encoding that Python knows, such as utf-8, latin-1, cp1252 or utf-16",
        ),
        ("{comment: ''}", "comment: found '', allowed: at least 1 character"),
        ("{comment: '\"'}", "comment: found '\"', allowed: text without quotes and line breaks, such as '#'"),
        ("{header: 0}", "header: found 0, allowed: a valid boolean"),
    ],
)
def test_a_format_that_cannot_be_is_refused_with_the_keys_path(form: str, line: str) -> None:
    Path("params.yaml").write_text(f"prepare: {{format: {form}}}\n")

    with pytest.raises(SettingsError) as caught:
        Params().section("prepare", PrepareSettings)

    assert str(caught.value) == f"params.yaml: prepare.format.{line}"


@pytest.mark.parametrize(
    ("line", "inside", "expected"),
    [
        ("  a \t b  \r\n", False, ("a b\r\n", False)),
        ('a  "b  c"  d\n', False, ('a "b  c" d\n', False)),
        ('a  "b  c\n', False, ('a "b  c\n', True)),
        ('  b""  "  c\n', True, ('  b""  " c\n', False)),
        ('5"  6\n', False, ('5" 6\n', False)),
        (" \t", False, ("", False)),
    ],
)
def test_blanks_outside_quotes_become_one(line: str, inside: bool, expected: tuple[str, bool]) -> None:
    assert single_blanks(line, inside) == expected
