import os
from pathlib import Path

import pytest

from truefit.core.errors import TableError
from truefit.data.table import Dtype
from truefit.ingest import csv_arrow, csv_batches, csv_file
from truefit.ingest.cells import Cells, Wanted
from truefit.ingest.csv_batches import read_batches
from truefit.ingest.csv_check import read_header
from truefit.ingest.csv_file import CsvFile
from truefit.ingest.csv_format import FormatSettings, Separator
from truefit.ingest.split_keys import NameColumn


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The CSV to be checked, under a name that error texts can be compared with."""
    monkeypatch.chdir(tmp_path)
    return Path("data.csv")


def write(path: Path, content: str | bytes) -> None:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def header_of(path: Path) -> list[str]:
    return read_header(CsvFile(path))


def header_error(path: Path) -> str:
    with pytest.raises(TableError) as caught:
        header_of(path)
    return str(caught.value)


def fault(
    path: Path,
    content: str | bytes,
    columns: list[str],
    dtype: Dtype = "float32",
    split: str | None = None,
    separator: Separator = ",",
) -> str | None:
    """Return the text of the error that reading numbers from this CSV raises, if any."""
    write(path, content)
    source = CsvFile(path, FormatSettings(separator=separator))
    read_header(source)
    cells = [Cells(name, way_out="there is a way out") for name in columns]
    try:
        list(read_batches(source, Wanted(cells, dtype, NameColumn(split) if split else None), "check"))
    except TableError as error:
        return str(error)
    return None


# --- the header


@pytest.mark.parametrize(
    ("content", "header"),
    [
        ("x,y\n1,2\n", ["x", "y"]),
        ("x,y", ["x", "y"]),
        ("x,y\r\n1,2\r\n", ["x", "y"]),
        ("\ufeffx,y\n1,2\n", ["x", "y"]),
        ('\ufeff"x",y\n1,2\n', ["x", "y"]),
        ("\n\nx,y\n1,2\n", ["x", "y"]),
        ('"a, b","c ""d""",größe\n1,2,3\n', ["a, b", 'c "d"', "größe"]),
        ('"two\nlines",y\n1,2\n', ["two\nlines", "y"]),
        ("1,x\n1,2\n", ["1", "x"]),
        (" z ,,x,\u00a0,z\n1,2\n", ["z", "", "x", "", "z"]),
    ],
)
def test_the_header_is_read(content: str, header: list[str], path: Path) -> None:
    write(path, content)

    assert header_of(path) == header


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("", "line 1: found an empty file, allowed: a header with column names, then rows"),
        ("\ufeff", "line 1: found an empty file, allowed: a header with column names, then rows"),
        ("\n\n\n", "line 1: found an empty file, allowed: a header with column names, then rows"),
        (
            "\n5.1,-3e5, 5.1\n1,2,3\n",
            "line 2: found numbers alone, such as '5.1', allowed: a header with column names, "
            "or prepare.format.header: false for a CSV without one",
        ),
        ('x,"y\n1,2\n', "line 1, column 2: found a quote that is not closed, allowed: a closing quote"),
    ],
)
def test_a_wrong_header_is_refused(content: str | bytes, line: str, path: Path) -> None:
    write(path, content)

    assert header_error(path) == f"data.csv: {line}"


def test_a_missing_file_is_refused(path: Path) -> None:
    assert header_error(path) == "data.csv: cannot be read: No such file or directory"


def test_a_folder_is_refused(path: Path) -> None:
    path.mkdir()

    assert header_error(path) == "data.csv: cannot be read: Is a directory"


def test_a_pipe_is_refused_without_waiting_for_a_writer(path: Path) -> None:
    os.mkfifo(path)

    assert header_error(path) == "data.csv: found a pipe or a device, allowed: a file, which can be read twice"


def test_a_file_without_permission_is_refused(path: Path) -> None:
    write(path, "x,y\n1,2\n")
    path.chmod(0)
    user = os.geteuid()
    if user == 0:  # whom no mode keeps out
        os.seteuid(65_534)
    try:
        line = header_error(path)
    finally:
        os.seteuid(user)

    assert line == "data.csv: cannot be read: Permission denied"


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that opens and cannot be read, as Linux has")
def test_a_file_that_fails_while_it_is_read_is_refused() -> None:
    assert header_error(Path("/proc/self/mem")) == "/proc/self/mem: cannot be read: Input/output error"


def test_another_file_under_the_same_name_is_not_read(path: Path) -> None:
    write(path, "x,y\n1,2\n")
    source = CsvFile(path)
    path.rename("kept.csv")
    write(path, "x,y\n1,2\n")

    with pytest.raises(TableError) as caught:
        read_header(source)

    assert str(caught.value) == "data.csv: changed while it was read; run again"


# --- quotes


CLOSING = "allowed: a closing quote"
BEHIND = "found text after a closing quote, allowed: ',' or the end of the row there"


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ('1,t,"2\n3,t,4\n', f"line 3, column 'y': found a quote that is not closed, {CLOSING}"),
        ('1,"t,2\n3,t,4\n', f"line 3, column 'note': found a quote that is not closed, {CLOSING}"),
        ('"1,t,2\n3,t,4\n', f"line 3, column 'x': found a quote that is not closed, {CLOSING}"),
        ('1,"a\nb",2\n1,"t""","2\n"\n3,t,"4\n', f"line 7, column 'y': found a quote that is not closed, {CLOSING}"),
        ('"1","a\n""b""","2', f"line 3, column 'y': found a quote that is not closed, {CLOSING}"),
        ('1,"', f"line 3, column 'note': found a quote that is not closed, {CLOSING}"),
        ('1,t,2,"', f"line 3, column 4: found a quote that is not closed, {CLOSING}"),
        ('\r\n\r\n1,"t,2\r\n', f"line 5, column 'note': found a quote that is not closed, {CLOSING}"),
        ('1,"t,2\n3,"t",4\n', f"line 3, column 'note': {BEHIND}"),
        ('1,"t"t,2\n', f"line 3, column 'note': {BEHIND}"),
        ('1,t,"2" \n', f"line 3, column 'y': {BEHIND}"),
        ('1,"t"\0,2\n', f"line 3, column 'note': {BEHIND}"),
    ],
)
def test_a_wrong_quote_is_found_where_it_opens(rows: str, line: str, path: Path) -> None:
    assert fault(path, f"x,note,y\n1,t,2\n{rows}", ["x", "y"]) == f"data.csv: {line}"


@pytest.mark.parametrize(
    "rest", ['"2\n' + "1,2\n" * 50_000, '"' + '""' * 140_000 + '"', '"' + '""' * 140_000 + '"\n1,2\n', "2" * 140_000 + ",3\n"]
)
def test_a_cell_that_is_too_long_is_refused_where_it_begins(rest: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_file, "LONGEST_CELL", 131_072)
    assert fault(path, 'x,y\n1,2\n"' + '""' * 100_000 + '",' + rest, ["y"]) == (
        "data.csv: line 3, column 'y': found a cell of more than 131072 characters, "
        "allowed: shorter cells (is a quote left open?)"
    )


def test_a_quote_inside_a_cell_without_quotes_is_text(path: Path) -> None:
    assert fault(path, 'x,note,y\n1,6" pipe,2\n1,a"b"c,2\n', ["x", "y"]) is None


# --- the rows


WIDER = "or prepare.dtype: float64"
INTEGER = f"an integer that float32 holds, such as each up to 2^24 (16777216), {WIDER}"
EXACTLY = "an integer up to 2^53 (9007199254740992), beyond which float64 does not hold each, or a number such as 1e20"


@pytest.mark.parametrize(
    "cell",
    [
        "1",
        "-1",
        "+1",
        "1.5",
        "1.",
        ".5",
        "-.5",
        "1e5",
        "1E-5",
        "1e+5",
        "  1 ",
        "\t1",
        "00",
        "0e-400",
        "-0.00",
        "-0",
        '"1"',
        '" 1"',
        "9007199254740992",
        "-9007199254740992",
        "0" * 5000 + "1",
        "9007199254740993.0",
        "1e20",
        "9007199254740993e0",
        "16777216",
        "1700000000",
        "123456789.5",
        "1e-45",
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_number_is_no_fault(cell: str, dtype: Dtype, path: Path) -> None:
    assert fault(path, f"x,y\n1,2\n3,{cell}\n", ["x", "y"], dtype) is None


@pytest.mark.parametrize(
    ("cell", "found", "allowed"),
    [
        ("abc", "'abc'", "a number"),
        ("1_000", "'1_000'", "a number"),
        ('"1,5"', "'1,5'", "a number with a point, without a comma"),
        ('"-1.234,5e3"', "'-1.234,5e3'", "a number with a point, without a comma"),
        ('","', "','", "a number"),
        ("0x10", "'0x10'", "a number"),
        ("1e", "'1e'", "a number"),
        ("--1", "'--1'", "a number"),
        ("+", "'+'", "a number"),
        (".", "'.'", "a number"),
        ("1 2", "'1 2'", "a number"),
        ("1\0", "'1\\x00'", "a number"),
        ("true", "'true'", "a number"),
        ("2026-01-01", "'2026-01-01'", "a number"),
        ('"3\n4"', "'3\\n4'", "a number"),
        ('"3\n"', "'3\\n'", "a number"),
        ('"3\r\n"', "'3\\r\\n'", "a number"),
        ("\u00a03", "'\\xa03'", "a number"),
        ("\u0663", "'\u0663'", "a number"),  # the digit three in Arabic
        ("\uff13", "'\uff13'", "a number"),  # the digit three in full width
        ("3\u00a0", "'3\\xa0'", "a number"),
        ("3\f", "'3\\x0c'", "a number"),
        ("z" * 100, f"'{'z' * 40}'", "a number"),
        ("NAN", "'NAN'", "a finite number"),
        ("-nan", "'-nan'", "a finite number"),
        ("inf", "'inf'", "a finite number"),
        ("-inf", "'-inf'", "a finite number"),
        ("Infinity", "'Infinity'", "a finite number"),
        (" inf", "' inf'", "a finite number"),
        ("1e39", "'1e39'", f"a number within float32's range, {WIDER}"),
        ("-3.5e38", "'-3.5e38'", f"a number within float32's range, {WIDER}"),
        ("1e151", "'1e151'", "a number within float32's range"),
        ("1e999", "'1e999'", "a number within float32's range"),
        ("1e-46", "'1e-46'", f"0, or a number that float32 tells from it, {WIDER}"),
        ("-1e-310", "'-1e-310'", f"0, or a number that float32 tells from it, {WIDER}"),
        ("1e-400", "'1e-400'", "0, or a number that float64 tells from it"),
        ("-0." + "0" * 400 + "1", f"'-0.{'0' * 37}'", "0, or a number that float64 tells from it"),
        ("16777217", "'16777217'", INTEGER),
        ("-16777217.0", "'-16777217.0'", INTEGER),
        ("1700000001", "'1700000001'", INTEGER),
        ("9007199254740991", "'9007199254740991'", INTEGER),
        ("1" * 39, f"'{'1' * 39}'", f"{EXACTLY}"),
        ("9007199254740993", "'9007199254740993'", EXACTLY),
        ("0" * 5000 + "9007199254740993", f"'{'0' * 40}'", EXACTLY),
        (" -009007199254740993", "' -009007199254740993'", EXACTLY),
    ],
)
def test_a_cell_that_is_no_finite_number_is_found(cell: str, found: str, allowed: str, path: Path) -> None:
    line = fault(path, f"x,y\n1,2\n3,{cell}\n5,6\n", ["x", "y"])

    assert line == f"data.csv: line 3, column 'y': found {found}, allowed: {allowed}"


@pytest.mark.parametrize("cell", ["1e39", "-1e150", "16777217", "9007199254740991", "1e-46", "5e-324"])
def test_float64_keeps_what_float32_does_not(cell: str, path: Path) -> None:
    assert fault(path, f"x,y\n1,{cell}\n", ["x", "y"], "float64") is None


@pytest.mark.parametrize(
    ("cell", "allowed"),
    [
        ("1e151", "a number between -1e+150 and 1e+150"),
        ("-1e309", "a number between -1e+150 and 1e+150"),
        ("1" * 5000, "a number between -1e+150 and 1e+150"),
        ("1e-324", "0, or a number that float64 tells from it"),
    ],
)
def test_what_float64_does_not_keep_or_square_is_refused(cell: str, allowed: str, path: Path) -> None:
    assert fault(path, f"x,y\n1,{cell}\n", ["x", "y"], "float64") == (
        f"data.csv: line 2, column 'y': found '{cell[:40]}', allowed: {allowed}"
    )


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ("1", "line 3: found 1 cells, allowed: 2, as in the header"),
        ("1,2,3", "line 3: found 3 cells, allowed: 2, as in the header"),
        ("1,2,", "line 3: found 3 cells, allowed: 2, as in the header"),
        ("  ", "line 3: found 1 cells, allowed: 2, as in the header"),
        ("x", "line 3: found 1 cells, allowed: 2, as in the header"),
    ],
)
def test_a_ragged_row_is_found(row: str, line: str, path: Path) -> None:
    assert fault(path, f"x,y\n1,2\n{row}\n3,4\n", ["x", "y"]) == f"data.csv: {line}"


@pytest.mark.parametrize("cell", ["", "   ", '""', "NA", "N/A", "nan", "NaN", "null", "NULL", "?", " NA ", '"?"', '" nan\t"'])
def test_a_missing_value_is_found_with_its_way_out(cell: str, path: Path) -> None:
    found = repr(cell.strip('"')) if cell.strip('" ') else "an empty cell"

    assert fault(path, f"x,y\n1,2\n3,{cell}\n5,6\n", ["x", "y"]) == (
        f"data.csv: line 3, column 'y': found {found}, allowed: a number (1 value is missing; there is a way out)"
    )


def test_faults_are_told_by_the_row_and_by_the_column(path: Path) -> None:
    content = "a,b,c\n1,2,3\n?,b,\n1\n1,2,nan\n1,2\n1,2,3\n"

    assert fault(path, content, ["c", "b"]) == (
        "data.csv: line 4: found 1 cells, allowed: 3, as in the header (2 such rows)\n"
        "data.csv: line 3, column 'b': found 'b', allowed: a number\n"
        "data.csv: line 3, column 'c': found an empty cell, allowed: a number (2 values are missing; there is a way out)"
    )


@pytest.mark.parametrize("rows", [1, 60], ids=["one block", "several blocks"])
@pytest.mark.parametrize("last", ["", "1\n"], ids=["by Arrow", "by Python"])
@pytest.mark.parametrize(("first", "second"), [("bad", "NA"), ("NA", "bad"), ("NA", "NA"), ("bad", "bad")])
def test_of_a_columns_bad_and_missing_cells_the_first_is_named(
    first: str, second: str, last: str, rows: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_arrow, "BLOCK_BYTES", 100)
    monkeypatch.setattr(csv_batches, "SLOW_ROWS", 7)
    content = "x,y\n" + "1,2\n" * rows + f"1,{first}\n" + "1,2\n" * rows + f"1,{second}\n1,2\n1,2\n{last}"
    cells = [first, second]
    told = {1: "1 value is missing", 2: "2 values are missing"}
    remarks = [f"{told[cells.count('NA')]}; there is a way out"] if "NA" in cells else []
    remarks += ["2 bad cells in the column"] if cells.count("bad") == 2 else []
    remark = f" ({'; '.join(remarks)})" if remarks else ""

    *_, line = (fault(path, content, ["x", "y"]) or "").splitlines()
    assert line == f"data.csv: line {rows + 2}, column 'y': found '{first}', allowed: a number{remark}"


@pytest.mark.parametrize("last", ["", "1\n"], ids=["by Arrow", "by Python"])
def test_all_bad_cells_are_counted(last: str, path: Path) -> None:
    content = "x,y\n" + "1,z\n" * 9000 + "1,2\n" * 9001 + last

    *_, line = (fault(path, content, ["x", "y"]) or "").splitlines()
    assert line == "data.csv: line 2, column 'y': found 'z', allowed: a number (9000 bad cells in the column)"


@pytest.mark.parametrize(
    ("bad", "more"), [(9, ""), (10, ""), (11, "\ndata.csv: and 1 more column"), (13, "\ndata.csv: and 3 more columns")]
)
def test_ten_columns_are_named(bad: int, more: str, path: Path) -> None:
    names = [f"x{number}" for number in range(bad)]
    faults = [f"data.csv: line 2, column '{name}': found 'z', allowed: a number" for name in names[:10]]

    assert fault(path, f"{','.join(names)}\n{','.join(['z'] * bad)}\n", names) == "\n".join(faults) + more


@pytest.mark.parametrize(
    ("row", "separator", "remark"),
    [
        ("1;2", ",", " (is prepare.format.separator ';'?)"),
        ("1\t2", ",", " (is prepare.format.separator '\\t'?)"),
        ("1|2", ",", " (is prepare.format.separator '|'?)"),
        ("1 2", ",", " (is prepare.format.separator ' '?)"),
        ("1,2", ";", " (is prepare.format.separator ','?)"),
        ("1,5|2,5", ";", " (is prepare.format.separator '|'?)"),
        ('"1,2"', ",", ""),
    ],
)
def test_another_separator_is_named_as_the_likely_cause(row: str, separator: Separator, remark: str, path: Path) -> None:
    content = f"x{separator}y\n{row}\n"

    assert fault(path, content, ["x", "y"], separator=separator) == (
        f"data.csv: line 2: found 1 cells, allowed: 2, as in the header{remark}"
    )


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_the_line_is_that_of_the_file_whatever_the_line_ending(ending: str, path: Path) -> None:
    content = ending.join(["x,y", "1,2", "", "3,4", "", "", "5,z", ""])

    assert fault(path, content, ["x", "y"]) == "data.csv: line 7, column 'y': found 'z', allowed: a number"


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('t,y\n"a\nb",1\nc,z\n', 4),
        ('t,y\n"a\r\nb\r\nc",1\r\n"d\n",z\n', 5),
        ('"t\nt",y\na,z\n', 3),
        ('\n\nt,y\n\n"a\n\nb",1\n\n"c\nd",z\n', 9),
    ],
)
def test_line_breaks_inside_quotes_are_counted(content: str, line: int, path: Path) -> None:
    assert fault(path, content, ["y"]) == f"data.csv: line {line}, column 'y': found 'z', allowed: a number"


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_byte_order_mark_in_the_first_rows_cell_is_part_of_it(mark: str, path: Path) -> None:
    content = f"{mark}x,y\n\ufeff1,2\n1,2\n"

    assert fault(path, content, ["x", "y"]) == "data.csv: line 2, column 'x': found '\\ufeff1', allowed: a number"


def test_columns_that_are_not_asked_for_may_hold_anything(path: Path) -> None:
    content = b'x,note,y\n1,,2\n1,nan,2\n1,"a\nb",2\n1,gr\xf6\xdfe,2\n'

    assert fault(path, content, ["x", "y"]) is None


def test_the_fault_behind_text_that_is_not_utf8_is_found(path: Path) -> None:
    content = b"x,note,y\n" + b"1,gr\xf6\xdfe,2\n" * 5000 + b"1,ok,z\n"

    assert fault(path, content, ["x", "y"]) == "data.csv: line 5002, column 'y': found 'z', allowed: a number"


def test_a_number_that_is_not_utf8_is_found_at_its_line(path: Path) -> None:
    content = b"x,y\n" + b"1,2\n" * 5000 + b"1,\xb2\n"

    assert fault(path, content, ["x", "y"]) == "data.csv: line 5002, column 'y': found b'\\xb2', allowed: a number"


@pytest.mark.parametrize(
    ("cell", "found"),
    [("dev", "'dev'"), ("Train", "'Train'"), (" train", "' train'"), ("", "an empty cell"), ("0", "'0'")],
)
def test_a_split_that_is_not_known_is_found(cell: str, found: str, path: Path) -> None:
    content = f"x,s,y\n1,train,2\n1,validation,2\n1,test,2\n1,{cell},2\n"

    assert fault(path, content, ["x", "y"], split="s") == (
        f"data.csv: line 5, column 's': found {found}, allowed: train, validation, test"
    )


def test_a_file_without_fault_has_none(path: Path) -> None:
    content = '\ufeffx,note,s,y\r\n1,"a ""quoted"" one",train,2\r\n\r\n3,,test,"4"'

    assert fault(path, content, ["x", "y"], split="s") is None
