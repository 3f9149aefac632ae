"""What an error says that bad cells look like, and the setting that lets them in: where they are no slips."""

from pathlib import Path
from typing import Any

import pytest
from helpers_data import READERS, prepare, read_only_by

from truefit.core.errors import TableError

CATEGORY = "prepare.columns: {x: category}, or leave the column out by prepare.exclude"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refusal(cells: list[str], encoding: str = "utf-8", **settings: Any) -> str:
    """Return the text of the error for a CSV with these cells in column x."""
    separator = settings.get("format", {}).get("separator", ",")
    rows = [f"{cell}{separator}{row}" for row, cell in enumerate(cells)]
    with pytest.raises(TableError) as caught:
        prepare(Path(), "\n".join([f"x{separator}y", *rows]).encode(encoding), **settings)
    return str(caught.value)


@pytest.mark.parametrize("reader", ["texts", "Python"])
@pytest.mark.parametrize(
    ("cells", "looks"),
    [
        (["yes", "No", "yes"], "truth values: prepare.columns: {x: boolean}"),
        ([" T", "F ", "T"], "truth values: prepare.columns: {x: boolean}"),
        (["2026-01-31", "2026-01-31 12:00", "2026-02-01"], "dates: prepare.columns: {x: date}"),
        (["2026-01-31", "2026-06-31", "2026-02-01"], f"text of 3 different values: {CATEGORY}"),
        (["10%", "1.5 %", "-3%"], "percentages, which have to be written as numbers"),
        (["10 kms", "1.5 kms", "-3kms"], "numbers with the unit 'kms', which has to go"),
        (["$10", "$1", "$ 3"], "numbers with the unit '$', which has to go"),
        (["10 m²", "1.5m²", "-3 m²"], "numbers with the unit 'm²', which has to go"),
        (["1\0", "2\0", "3\0"], f"text of 3 different values: {CATEGORY}"),
        (["1\0kg", "2\0kg", "3\0kg"], f"text of 3 different values: {CATEGORY}"),
        (["*1", "*2", "*3"], f"text of 3 different values: {CATEGORY}"),
        (["10 kg", "1.5 g", "-3kg"], f"text of 3 different values: {CATEGORY}"),
        (['"1,234"', '"12,345.5"', '"-1,234,567"'], "numbers with a sign for thousands: prepare.format.thousands: ','"),
        (["north", "south", "north"], f"text of 2 different values: {CATEGORY}"),
        (["north", "north", "north"], f"text of 1 value: {CATEGORY}"),
        (["north", "7", "south"], f"text of 2 different values: {CATEGORY}"),
    ],
)
def test_most_of_a_columns_cells_are_told_as_what_they_look_like(
    cells: list[str], looks: str, reader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_only_by(reader, monkeypatch)
    count = len([cell for cell in cells if cell != "7"])

    assert refusal(cells).endswith(f" ({count} bad cells in the column; {looks})")


def test_a_decimal_comma_is_told_where_it_can_be_set() -> None:
    found = refusal(["1,5", "-2", "3,25", "0,5"], format={"separator": ";"})

    assert found.endswith(" (3 bad cells in the column; numbers with a decimal comma: prepare.format.decimal: ',')")


def test_no_setting_is_told_that_cannot_be() -> None:
    found = refusal(['"1,5"', '"-2,75"', '"3,25"', '"1,5"'])

    assert found.endswith(
        " (4 bad cells in the column; numbers with a decimal comma, which has to be a point beside the separator ',')"
    )


@pytest.mark.parametrize("cells", [["north", "1", "2"], ["1", "2", "3", "north"]])
def test_slips_are_not_told_as_anything(cells: list[str]) -> None:
    assert refusal(cells) == f"data.csv: line {cells.index('north') + 2}, column 'x': found 'north', allowed: a number"


@pytest.mark.parametrize(("different", "told"), [(100, "100 different values"), (101, "more than 100 different values")])
@pytest.mark.parametrize("reader", ["texts", "Python"])
def test_different_texts_are_counted_up_to_a_hundred_however_they_lie(
    different: int, told: str, reader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_only_by(reader, monkeypatch)
    cells = [*["same"] * 6000, *(f"text {number}" for number in range(different - 1))]

    assert f"text of {told}: " in refusal(cells)


@pytest.mark.parametrize("kind", ["number", "boolean", "category", "date"])
@pytest.mark.parametrize("cells", [["Köln", "Mainz", "Köln"], ["Mainz", "Köln", "Köln"], ["Köln", "Köln", "Köln"]])
def test_text_in_another_encoding_is_told_as_such(cells: list[str], kind: str) -> None:
    found = refusal(cells, "latin-1", columns={"x": kind})

    assert "another prepare.format.encoding" in found
    assert refusal(cells, columns={"x": "boolean"}).startswith("data.csv: line 2, column 'x': found '")


@pytest.mark.parametrize("cell", ["?", "z"])
def test_a_cell_of_a_feature_by_which_rows_are_ordered_is_one_fault(cell: str) -> None:
    remark = " (1 value is missing; prepare.missing: {features: fill} or {features: drop})" if cell == "?" else ""

    assert refusal([*map(str, range(20)), cell], features=["x"], target="y", split={"order": "x"}) == (
        f"data.csv: line 22, column 'x': found '{cell}', allowed: a number{remark}"
    )


def test_each_column_has_a_line_in_the_order_of_the_header() -> None:
    with pytest.raises(TableError) as caught:
        prepare(Path(), "b,a,y\n1,no,1\n1,yes,1\nx,no,z\n")

    assert str(caught.value).splitlines() == [
        "data.csv: line 4, column 'b': found 'x', allowed: a number",
        "data.csv: line 2, column 'a': found 'no', allowed: a number "
        "(3 bad cells in the column; truth values: prepare.columns: {a: boolean})",
        "data.csv: line 4, column 'y': found 'z', allowed: a number",
    ]


@pytest.mark.parametrize("reader", READERS)
def test_a_fault_of_a_kind_has_its_line_and_what_the_kind_allows(reader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if reader != "numbers":
        read_only_by(reader, monkeypatch)
    content = (
        'n,b,d,t,y\n"two\nlines",yes,2026-01-31,31.01.2026,1\n\n,maybe,2026-06-31,31.06.2026,2\n,no,2026-01-01,1.1.2026,3\n'
    )

    with pytest.raises(TableError) as caught:
        prepare(
            Path(), content, exclude=["n"], columns={"b": "boolean", "d": "date", "t": {"kind": "date", "format": "%d.%m.%Y"}}
        )

    assert str(caught.value).splitlines() == [
        "data.csv: line 5, column 'b': found 'maybe', allowed: true or false, yes or no, t or f, y or n, 1 or 0",
        "data.csv: line 5, column 'd': found '2026-06-31', allowed: a date such as 2026-01-31 or 2026-01-31 23:59:00",
        "data.csv: line 5, column 't': found '31.06.2026', allowed: a date like %d.%m.%Y",
    ]


def test_a_column_of_more_texts_than_a_category_can_have_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("truefit.data.columns.category.MOST_TEXTS", 5)

    assert refusal([f"a{row}" for row in range(20)], columns={"x": "category"}) == (
        "data.csv: column 'x': found more than 5 different texts, allowed: fewer, or the column left out by prepare.exclude"
    )


def test_a_comment_above_the_header_is_taken_for_one_in_the_advice() -> None:
    with pytest.raises(TableError) as caught:
        prepare(Path(), "# made by hand\nx,y\n1,2\n3,4\n")
    assert str(caught.value) == (
        "data.csv: line 1: found the columns '# made by hand', allowed: a target and at least one feature "
        "(is prepare.format.comment '#'?)"
    )


def test_numbers_that_a_dtype_does_not_hold_are_not_called_text() -> None:
    cells = [str(100_000_001 + 2 * row) for row in range(20)]
    assert refusal(cells).endswith("or prepare.dtype: float64 (20 bad cells in the column)")
