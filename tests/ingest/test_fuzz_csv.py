"""CSVs damaged at random: what prepare makes of each must be what Python's csv module and float() make of it, or an error.

With TRUEFIT_TORTURE=1 in the environment: more examples, other ones each time.
"""

import bz2
import csv
import gzip
import hashlib
import io
import lzma
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from helpers_data import numbered_csv, prepare, read_splits
from helpers_torture import fuzz
from hypothesis import assume, given
from hypothesis import strategies as st

from truefit.core.errors import TableError
from truefit.data.table import SPLITS
from truefit.ingest import csv_arrow, csv_batches

profile = fuzz(examples=150)

# Numbers in unusual clothes, and what only looks like one; written into cells.
ODD_NUMBERS = [
    *(
        "+5",
        " 1 ",
        "\t1",
        "1 ",
        "1e-400",
        "1e-320",
        "1.",
        ".5",
        "-.5e-3",
        "1E+05",
        "00",
        "-0",
        "-0.0",
        "0.1",
        "16777217",
        "1e20",
    ),
    *(
        "9007199254740991",
        "9007199254740992",
        "-9007199254740992",
        "9007199254740993.0",
        "9007199254740993e0",
        "1e015",
        "3.4e38",
    ),
    *(
        "3.4028235677973365e38",
        "0" * 400 + "7",
        "0" * 5000 + "1",
        "0." + "0" * 400 + "1",
        "123456789012345.678901234567890",
        "-1e300",
        "1.7976931348623157e308",
    ),
]
MISSING = ["", "NA", "N/A", "NaN", "nan", "null", "NULL", "?"]
ODD_TEXTS = [
    *(
        "1_000",
        "1e1_0",
        "0x10",
        "\u0663",
        "\uff11",
        ".",
        "1e",
        "e5",
        "--1",
        "+-1",
        "1-",
        "1+",
        "1d5",
        "1f",
        "1e5.",
        "(1)",
        "$1",
        "1%",
    ),
    *("nan", "-nan", "NaN(1)", "inf", "+Infinity", "None", "NA", "True", "", " ", "\t", "1 2", "1,5", "1.234,5", "1;5", "1|5"),
    *(
        "9007199254740993",
        "-9007199254740993",
        " 9007199254740993 ",
        "0" * 5000 + "9007199254740993",
        "1" * 39,
        "1" * 400,
        "1" * 5000,
        "1e400",
        "-1e39",
    ),
    *(
        "3.4028235677973366e38",
        "1.7976931348623159e308",
        "1\u00a0",
        "\u20091",
        "1\v",
        "1\f",
        "\x1c1",
        "1\u2028",
        "1\x85",
        "1\0",
    ),
    *("?", "null", " N/A ", "nan ", "-NaN", *MISSING),
    *("1\r", "1\n", "1\r\n", '1"', '"1"', '"', "train", "Train", "test ", "validation\n"),
]
# Written anywhere.
PIECES = [
    *(
        b'"',
        b'""',
        b'"""',
        b',"',
        b'",',
        b'"\n',
        b'\n"',
        b",",
        b",,",
        b";",
        b"\t",
        b"|",
        b" ",
        b"\n",
        b"\r",
        b"\r\n",
        b"\n\n",
        b"\n\r",
    ),
    *(
        b"\0",
        b"\xef\xbb\xbf",
        b"\xef\xbb",
        b"\xff",
        b"\xc3",
        b"\xe2\x80\xa8",
        b"\x1a",
        b"\x0b",
        b"\x0c",
        b"\xc2\x85",
        b"\\",
        b"'",
    ),
    *(b"#", b"_", b"-", b"+", b".", b"e", b"1", b"0", b"x", b"nan"),
]
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
CONTAINERS = ["gzip", "zstd", "bz2", "xz", "zip"]
SEPARATORS = [",", ";", "\t", "|", " "]


@dataclass
class Case:
    """A CSV and how it is to be read."""

    content: bytes
    separator: str = ","
    dtype: str = "float32"
    split_column: bool = False
    named: bool = True
    block: int = 1 << 20
    compression: str | None = None

    @property
    def settings(self) -> dict[str, Any]:
        columns = {"features": ["x"], "target": "y"} if self.named else {}
        split = {"column": "s" if self.split_column else None}
        return {"format": {"separator": self.separator}, "dtype": self.dtype, "split": split, **columns}


@dataclass
class Verdict:
    """What the CSV holds, or what is wrong with it.

    `early` is a fault that ends the reading: its place and, if known, what was found. Others are the lines and lengths of rows
    of another length than the header's, and by column the lines and texts of bad cells and of missing values.
    """

    early: tuple[str, str] | None = None
    ragged: list[tuple[int, int]] = field(default_factory=list)
    bad: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    missing: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    rows: list[list[float]] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        return not (self.early or self.ragged or self.bad or self.missing)


def shown(cell: str) -> str:
    if not cell.strip():
        return "an empty cell"
    raw = cell.encode(errors="surrogateescape")
    return repr(cell[:40]) if raw == cell.encode(errors="replace") else repr(raw[:40])


def takes(cell: str, dtype: str) -> bool:
    """Return whether the cell must be taken as a number. float() takes more: what is refused in spite of that is listed."""
    if "_" in cell or not cell.isascii() or set(cell) & set("\n\r\v\f\x1c\x1d\x1e\x1f"):
        return False  # digits of other scripts, and the white space that is none in a CSV's number
    try:
        value = float(cell)
    except ValueError:
        return False
    with np.errstate(over="ignore"):
        stored = float(np.dtype(dtype).type(value))
    if not np.isfinite(stored) or abs(value) > 1e150:
        return False
    if not stored and set(cell.lower().partition("e")[0]) & set("123456789"):
        return False
    if value.is_integer() and abs(value) < 2**53 and stored != value:
        return False
    # float64 does not hold every integer beyond this.
    return bool(set(cell.lower()) & set(".e")) or not Decimal(cell).copy_abs() > 2**53


def place_of_wrong_quote(text: str, separator: str) -> int:
    """Return the number of the column in which the first row of `text` goes wrong."""

    def read(part: str, strict: bool) -> list[str]:
        return next(csv.reader(io.StringIO(part, newline=""), delimiter=separator, strict=strict))

    for end in range(1, len(text) + 1):
        try:
            read(text[:end], strict=True)
        except csv.Error as error:
            if "unexpected end" not in str(error):
                return len(read(text[:end], strict=False))
    return len(read(text, strict=False))


def with_single_blanks(text: str) -> str:
    """Return the text with one space for blanks between cells, and none around lines, by one character after another."""
    # Whether a quoted cell is open, was closed by the character before, or would be opened by a quote.
    done, quoted, closed, at_cell = "", False, False, True
    for character in text:
        if quoted or character not in " \t\r\n":
            turns = character == '"' and (quoted or closed or at_cell)
            closed = turns and quoted
            quoted ^= turns
            done, at_cell = done + character, False
        else:
            if character in "\r\n":
                done = done.removesuffix(" ") + character
            elif done and not done.endswith((" ", "\r", "\n")):
                done += " "
            closed, at_cell = False, True
    return done if quoted else done.removesuffix(" ")


def judge(case: Case) -> Verdict:
    """Return what Python's csv module and float() make of the case's bytes."""
    if case.content in (b"\xef", b"\xef\xbb"):  # a BOM that is cut off, and nothing else, is nothing to Python's decoder
        return Verdict(("line 1", "an empty file"))
    text = case.content.decode("utf-8-sig", "surrogateescape")
    if case.separator == " ":
        text = with_single_blanks(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=case.separator, strict=True)
    rows, begin, wrong = [], 1, 0
    try:
        for row in reader:
            if row:
                rows.append((begin, row))
            begin = reader.line_num + 1
    except csv.Error:
        wrong = place_of_wrong_quote("".join(list(io.StringIO(text, newline=""))[begin - 1 :]), case.separator)

    if not rows:
        return Verdict((f"line {begin}, column {wrong}" if wrong else "line 1", ""))
    line, header = rows[0]
    header = [name.strip() for name in header]
    if all(not name or NUMBER.fullmatch(name) for name in header) and any(header):
        return Verdict((f"line {line}", "numbers alone"))
    named = ["x", "y"] if case.named else []
    split = "s" if case.split_column else None
    columns = named or [name for name in header if name and name != split]
    if {*named, split or ""} - {*header, ""}:
        return Verdict((f"line {line}", ""))
    for number, name in enumerate(header, 1):
        broken = name.encode(errors="replace") != name.encode(errors="surrogateescape") or "\0" in name
        if name in {*columns, split} and (broken or name in header[: number - 1]):
            return Verdict((f"line {line}, column {number}", ""))
    if len(columns) < 2:
        return Verdict((f"line {line}", ""))
    if wrong:
        where = repr(header[wrong - 1]) if wrong <= len(header) and header[wrong - 1] else str(wrong)
        return Verdict((f"line {begin}, column {where}", ""))
    if not rows[1:]:
        return Verdict((f"line {line}", ""))

    verdict = Verdict()
    for line, row in rows[1:]:
        if len(row) != len(header):
            verdict.ragged.append((line, len(row)))
            continue
        for name, cell in zip(header, row, strict=True):
            if name in columns and cell.strip(" \t") in MISSING:
                verdict.missing.setdefault(name, []).append((line, shown(cell)))
            elif (name in columns and not takes(cell, case.dtype)) or (name == split and cell not in SPLITS):
                verdict.bad.setdefault(name, []).append((line, shown(cell)))
        if verdict.is_good:
            cells = dict(zip(header, row, strict=True))
            verdict.rows.append([float(cells[name]) for name in columns])
            verdict.splits.append(cells[split] if split else "")
    return verdict


def compress(content: bytes, compression: str | None) -> bytes:
    if compression == "gzip":  # in two members, as `cat a.gz b.gz` leaves them
        return gzip.compress(content[:20], mtime=0) + gzip.compress(content[20:], mtime=0)
    if compression == "bz2":
        return bz2.compress(content)
    if compression == "xz":
        return lzma.compress(content)
    if compression == "zip":
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("data.csv", content)
        return file.getvalue()
    return pa.compress(content, "zstd", asbytes=True) if compression else content


@cache
def drawn_rows(folder: Path, count: int) -> dict[str, list[int]]:
    """Return which of so many rows are drawn for each split, from a CSV without fault in which each row has its number."""
    prepare(folder / "numbered", numbered_csv(count), dtype="float64")
    return {split: array[:, 0].astype(int).tolist() for split, array in read_splits(folder / "numbered").items()}


def check(case: Case, folder: Path) -> None:
    """Prepare the case in `folder` and compare with the verdict."""
    verdict = judge(case)
    stored = compress(case.content, case.compression)
    for leftover in (folder / "prepared").glob("*"):
        leftover.unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csv_arrow, "BLOCK_BYTES", case.block)
        try:
            table = prepare(folder, stored, **case.settings)
        except TableError as error:
            assert list((folder / "prepared").glob("*")) == []
            check_error([line.removeprefix(f"{folder / 'data.csv'}: ") for line in error.args], case, verdict)
            return
    assert verdict.is_good
    if case.split_column:
        places = {split: [row for row, name in enumerate(verdict.splits) if name == split] for split in SPLITS}
    else:
        places = drawn_rows(folder, len(verdict.rows))
    expected = np.array(verdict.rows, case.dtype)
    for split, array in read_splits(folder).items():
        assert array.tobytes() == expected[places[split]].tobytes()
    assert table.csv.sha256 == hashlib.sha256(stored).hexdigest()


def check_error(lines: list[str], case: Case, verdict: Verdict) -> None:
    assert all(line.isprintable() for line in lines)
    line = lines[0]
    if verdict.early:
        place, found = map(re.escape, verdict.early)
        assert re.fullmatch(rf"{place}: found {found}.*, allowed: .+", "\n".join(lines))
    elif verdict.is_good:
        rows = np.array(verdict.rows)
        stored = rows.astype(case.dtype)
        if ((stored == stored[0]).all(axis=0) & (rows != rows[0]).any(axis=0)).any():
            assert f"which {case.dtype} does not tell from" in line
            return
        where = "column 's': found no row with" if case.split_column else "prepare.split: found too few rows"
        assert line.startswith(where)
        assert len(verdict.rows) < 6 or len(set(verdict.splits)) < 3
    else:
        check_faults(lines, verdict)


def check_faults(lines: list[str], verdict: Verdict) -> None:
    if verdict.ragged:
        line, cells = verdict.ragged[0]
        more = rf" \({len(verdict.ragged)} such rows\)" if len(verdict.ragged) > 1 else ""
        assert re.fullmatch(rf"line {line}: found {cells} cells, allowed: [^(]+(\(is [^)]+\))?{more}", lines.pop(0))
    assert len(lines) == len({*verdict.bad, *verdict.missing})
    for name in {*verdict.bad, *verdict.missing}:
        bad, missing = verdict.bad.get(name, []), verdict.missing.get(name, [])
        line, found = min(bad + missing)
        (told,) = [told for told in lines if told.startswith(f"line {line}, column {name!r}: found {found}, allowed: ")]
        counted = re.findall(r"\b(\d+) (?:values? (?:is|are) missing|bad cells in the column)", told)
        assert counted == [*([str(len(missing))] if missing else []), *([str(len(bad))] if len(bad) > 1 else [])]


def quoted(cell: str) -> str:
    return '"' + cell.replace('"', '""') + '"'


NOTES = ["", "a", "1", 'say "b"', "two\nlines", "two\r\nlines", "x,y", "größe", "nan"]
places = st.integers(0, 10**6)
Mutation = Callable[[bytes], bytes]


@st.composite
def mutations(draw: st.DrawFn) -> Mutation:
    """Draw one damage to a file's bytes."""
    place, length, byte = draw(places), draw(st.integers(1, 20)), draw(st.integers(1, 255))
    piece = draw(st.sampled_from(PIECES))
    old, new = (separator.encode() for separator in draw(st.permutations(SEPARATORS))[:2])

    def insert(content: bytes) -> bytes:
        at = place % (len(content) + 1)
        return content[:at] + piece + content[at:]

    def delete(content: bytes) -> bytes:
        at = place % (len(content) + 1)
        return content[:at] + content[at + length :]

    def flip(content: bytes) -> bytes:
        at = place % max(1, len(content))
        return content[:at] + bytes([byte ^ value for value in content[at : at + 1]]) + content[at + 1 :]

    def repeat_lines(content: bytes) -> bytes:
        lines = content.splitlines(keepends=True)
        at = place % max(1, len(lines))
        return b"".join(lines[:at] + lines[at : at + 1] * length + lines[at:])

    def cut(content: bytes) -> bytes:
        return content[: place % (len(content) + 1)]

    def separate_otherwise(content: bytes) -> bytes:
        return content.replace(old, new)

    def in_latin_1(content: bytes) -> bytes:
        return content.decode(errors="replace").encode("latin-1", errors="ignore")

    kinds = [insert] * 5 + [delete, flip] * 2 + [repeat_lines, cut, separate_otherwise, in_latin_1]
    return draw(st.sampled_from(kinds))


def good_rows(seed: int, columns: list[str], split_column: bool) -> list[list[str]]:
    generator = np.random.default_rng(seed)

    def cell(column: str, row: int) -> str:
        if column == "note":
            return str(generator.choice(NOTES))
        if column == "s" and split_column:
            return SPLITS[row] if row < len(SPLITS) else str(generator.choice(SPLITS))
        return repr(generator.normal(0, 1e3)) if generator.random() < 0.5 else str(generator.integers(-1000, 1000))

    return [[cell(column, row) for column in columns] for row in range(generator.integers(8, 15))]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw a good CSV, write some odd cells into it, and damage its bytes."""
    named, separator = draw(st.booleans()), draw(st.sampled_from([",", ",", *SEPARATORS]))
    case = Case(
        content=b"",
        separator=separator,
        dtype=draw(st.sampled_from(["float32", "float64"])),
        split_column=draw(st.booleans()),
        named=named,
        block=draw(st.sampled_from([1 << 20, 64, 16, 1000])),
        compression=draw(st.sampled_from([None] * 5 + CONTAINERS)),
    )
    columns = ["x", "note", "s", "y"] if named else ["a", "s", "b"]
    rows = good_rows(draw(st.integers(0, 10**6)), columns, case.split_column)
    odd = st.tuples(places, places, st.sampled_from(ODD_NUMBERS * 4 + ODD_TEXTS))
    for row, column, cell in draw(st.lists(odd, max_size=3)):
        rows[row % len(rows)][column % len(columns)] = cell
    # 0: no quotes, 1: where needed, 2: everywhere, 3: here and there
    style, ending = draw(st.integers(0, 3)), draw(st.sampled_from(["\n", "\r\n", "\r"]))
    needed = set('"\r\n' + separator)
    lines = [
        separator.join(
            quoted(cell)
            if style == 2 or (style and set(cell) & needed) or (style == 3 and (index * 7 + len(cell)) % 3 == 0)
            else cell
            for index, cell in enumerate(row)
        )
        for row in [columns, *rows]
    ]
    text = (
        draw(st.sampled_from(["", "", "\ufeff", ending]))
        + ending.join(lines)
        + draw(st.sampled_from(["", ending, ending * 2]))
    )
    case.content = text.encode()
    for damage in draw(st.lists(mutations(), max_size=2)):
        case.content = damage(case.content)
    return case


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fuzz")
    (path / "numbered").mkdir()
    return path


@given(case=cases())
@profile
def test_a_damaged_csv_is_read_as_python_reads_it_or_its_faults_are_named(case: Case, folder: Path) -> None:
    assume(not case.content.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd")))
    check(case, folder)


@given(compression=st.sampled_from(CONTAINERS), place=places)
@profile
def test_a_compressed_csv_that_is_cut_off_anywhere_is_refused(compression: str, place: int, folder: Path) -> None:
    stored = compress(numbered_csv(50).encode(), compression)

    with pytest.raises(TableError) as caught:
        prepare(folder, stored[: place % len(stored)])

    assert str(caught.value).startswith(f"{folder / 'data.csv'}: ")


def outcome(content: bytes, folder: Path, form: dict[str, Any]) -> Any:
    """Return the table prepared from a CSV of this format, or the text of the error."""
    try:
        prepare(folder, content, format=form, features=["x"], target="y")
    except TableError as error:
        return str(error)
    return {split: array.tobytes() for split, array in read_splits(folder).items()}


def refuse(*_: Any, **__: Any) -> Any:
    raise pa.ArrowInvalid


@given(
    form=st.fixed_dictionaries(
        {
            "separator": st.sampled_from([" ", ";"]),
            "decimal": st.sampled_from([".", ","]),
            "thousands": st.sampled_from([None, " ", "'"]),
            "encoding": st.sampled_from(["utf-8", "latin-1", "utf-16", "cp1252"]),
            "comment": st.sampled_from([None, "#", "//"]),
        }
    ),
    seed=places,
    odd=st.lists(
        st.tuples(
            places, st.sampled_from(['"', '""', "#", "\n#", "\n//", " ", "\t", "\n \n", "'000", "1'", ",5", "\r", '"\n#"'])
        ),
        max_size=6,
    ),
    block=st.sampled_from([1 << 20, 16, 40]),
)
@profile
def test_pyarrow_gets_the_rows_that_python_reads_whatever_the_format(
    form: dict[str, Any], seed: int, odd: list[tuple[int, str]], block: int, folder: Path
) -> None:
    rows = good_rows(seed, ["x", "n", "y"], split_column=False)
    text = "\n".join(form["separator"].join(row) for row in [["x", "n", "y"], *rows]).replace(".", form["decimal"])
    for place, piece in odd:
        at = place % (len(text) + 1)
        text = text[:at] + piece + text[at:]
    content = text.encode(form["encoding"])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csv_arrow, "BLOCK_BYTES", block)
        fast = outcome(content, folder, form)
        patch.setattr(csv_batches, "_typed_batches", refuse)
        assert outcome(content, folder, form) == fast
        patch.setattr(csv_batches, "_arrow_blocks", refuse)
        assert outcome(content, folder, form) == fast
