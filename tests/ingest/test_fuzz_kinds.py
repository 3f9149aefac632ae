"""CSVs of all kinds in many formats: prepare must make of each what pandas and Python make of it, or name the first fault.

pandas finds the cells, Python says what they are, and features are worked out anew. With TRUEFIT_TORTURE=1 in the environment:
more examples, other ones each time.
"""

import io
import math
import re
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers_data import Array, prepare
from helpers_torture import fuzz
from hypothesis import given
from hypothesis import strategies as st

from truefit.core.errors import TableError
from truefit.data.dataset import TableDataset
from truefit.data.table import SPLITS
from truefit.ingest import csv_arrow, csv_batches

GAP, BAD = "gap", "bad"
FORMAT = "%d/%m/%y %H:%M"
KINDS = {"n": "number", "m": "number", "b": "boolean", "c": "category", "d": "date", "t": {"kind": "date", "format": FORMAT}}
WORDS = dict.fromkeys(("true", "yes", "t", "y", "1"), 1) | dict.fromkeys(("false", "no", "f", "n", "0"), 0)
ISO = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d{1,6})?)?(Z|[+-]\d\d:?\d\d)?)?", re.ASCII)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MISSING = [["", "NA", "N/A", "NaN", "nan", "null", "NULL", "?"], [""], ["-", "NA"], ["NA", "-999", "north"], []]
ODD = [
    "z",
    "1_0",
    "maybe",
    "2026-02-30",
    "31/02/26 10:00",
    "nan",
    "inf",
    "NA",
    "-",
    "1e400",
    "1,5",
    "1.5.2",
    "tru",
    "ｙes",
    "2026-1-1",
]

Cells = list[tuple[int, dict[str, str]]]  # of each row, the line it begins on and its texts


@dataclass
class Case:
    """A CSV of some of the KINDS, and how it is to be read."""

    names: list[str]
    rows: list[list[str]]
    form: dict[str, Any]
    policy: dict[str, str]
    dtype: str
    block: int
    quote_all: bool
    blanks: int
    content: bytes = b""
    lines: list[int] = field(default_factory=list)  # on which rows begin

    def __post_init__(self) -> None:
        separator, comment = self.form["separator"], self.form["comment"]
        text = ""
        for index, row in enumerate([self.names, *self.rows] if self.form["header"] else self.rows):
            if comment and index % 3 == 1:
                text += f"{comment} 1{separator}2\n"
            if index % 5 == 4:
                text += "\n"
            self.lines.append(text.count("\n") + 1)
            needed = set(f'"\r\n{separator}') | ({" ", "\t"} if separator == " " else set())
            cells = [quoted(cell) if self.quote_all or not cell or set(cell) & needed else cell for cell in row]
            between = separator * (1 + self.blanks) if separator == " " else separator
            text += between.join(cells) + "\n"
        self.content = text.encode(self.form["encoding"])

    def cells(self) -> Cells:
        """Return the cells as pandas finds them."""
        text = self.content.decode(self.form["encoding"])
        if comment := self.form["comment"]:  # for pandas, one begins anywhere in a line
            text = "".join(line for line in text.splitlines(keepends=True) if not line.startswith(comment))
        frame = pd.read_csv(
            io.StringIO(text),
            sep=r"\s+" if self.form["separator"] == " " else self.form["separator"],
            header=0 if self.form["header"] else None,
            names=None if self.form["header"] else self.names,
            dtype=str,
            na_filter=False,
        )
        assert list(frame.columns) == self.names
        first = int(self.form["header"])
        return [(line, dict(row)) for line, (_, row) in zip(self.lines[first:], frame.iterrows(), strict=True)]


def quoted(cell: str) -> str:
    return '"' + cell.replace('"', '""') + '"'


def number(text: str, form: dict[str, Any]) -> Any:
    point, sign = re.escape(form["decimal"]), form["thousands"]
    whole = rf"(\d{{1,3}}({re.escape(sign)}\d{{3}})+|\d+)" if sign else r"\d+"
    if not re.fullmatch(rf"[+-]?({whole}({point}\d*)?|{point}\d+)([eE][+-]?\d+)?", text, re.ASCII):
        return BAD
    value = float((text.replace(sign, "") if sign else text).replace(form["decimal"], "."))
    return value if math.isfinite(value) else BAD


def moment(text: str, form: str | None) -> Any:
    """Return the days and the seconds since 1970-01-01."""
    try:
        if form is None and not ISO.fullmatch(text):
            return BAD
        found = datetime.fromisoformat(text) if form is None else datetime.strptime(text, form)
    except ValueError:
        return BAD
    since = (found if found.tzinfo else found.replace(tzinfo=UTC)) - EPOCH
    return since.days, since.seconds + since.microseconds / 1e6


def value(name: str, text: str, case: Case) -> Any:
    """Return what a cell says: a number, a text, a moment, GAP or BAD."""
    text, missing = text.strip(" \t"), case.form["missing"]
    if text in missing:
        return GAP
    if name == "c":
        return text
    if name == "b":
        return WORDS.get(text.lower() if text.isascii() else "", BAD)
    if name in ("d", "t"):
        return moment(text, FORMAT if name == "t" else None)
    read = number(text, case.form)
    return GAP if read in [number(other, case.form) for other in missing] and read is not BAD else read


def features(name: str, kind: str, values: list[Any], train: list[Any], dtype: str) -> tuple[list[str], Array]:
    """Return the names of a column's features, and the features [N, K] of its values, by the training rows' values."""
    known, gaps = [one for one in train if one is not GAP], GAP in train
    flag = [one is GAP for one in values]
    if kind == "category":
        counts = Counter(known)
        names = sorted(counts, key=lambda text: (-counts[text], text))[:100]
        made = np.array([[one == text for text in names] + [one is not GAP and one not in names] for one in values], float)
        made[flag, -1] = not gaps
        told = [f"{name}={text}" for text in (*names, "(other)")]
    elif kind == "date":
        fill = sorted(known)[(len(known) - 1) // 2]
        pairs = [fill if one is GAP else one for one in values]
        first, times = min(day for day, _ in known), any(second > 0 for _, second in known)
        days = [EPOCH + pd.Timedelta(days=math.floor(day)) for day, _ in pairs]
        parts = [[day.year, day.month, day.day, day.weekday(), day.timetuple().tm_yday] for day in days]
        hours: list[list[Any]] = [[second // 3600] if times else [] for _, second in pairs]
        made = np.array(
            [
                [*part, *hour, day - first + second / 86400]
                for part, hour, (day, second) in zip(parts, hours, pairs, strict=True)
            ]
        )
        told = [f"{name}.{part}" for part in ("year", "month", "day", "weekday", "day_of_year", *["hour"] * times, "days")]
    else:
        stored = np.array(known, dtype).astype(float)
        middle = float(stored.mean() >= 0.5) if kind == "boolean" else float(np.median(stored))
        made, told = np.array([[middle if one is GAP else one] for one in values], float), [name]
    if gaps:
        made, told = np.column_stack([made, flag]), [*told, f"{name}=(missing)"]
    return told, made


def faults(case: Case, read: list[tuple[int, dict[str, Any]]], cells: Cells) -> dict[str, tuple[int, str, int, int]]:
    """Return each bad column's first fault, its line and text, and how many cells are bad, and how many are missing."""
    found = {}
    for name in case.names:
        refused = case.policy["target" if name == "y" else "features"] == "refuse"
        bad = [row[name] is BAD or (row[name] is GAP and refused) for _, row in read]
        if any(bad):
            line, row = cells[bad.index(True)]
            missing = sum(row[name] is GAP for _, row in read) if refused else 0
            found[name] = line, row[name], sum(row[name] is BAD for _, row in read), missing
    return found


def check_error(lines: list[str], expected: dict[str, tuple[int, str, int, int]]) -> None:
    assert len(lines) == len(expected)
    for line, (name, (place, text, bad, missing)) in zip(lines, expected.items(), strict=True):
        shown = repr(text[:40]) if text.strip() else "an empty cell"
        assert line.startswith(f"line {place}, column {name!r}: found {shown}, allowed: ")
        assert re.findall(r"\b(\d+) values? (?:is|are) missing", line) == ([str(missing)] if missing else [])
        assert re.findall(r"\b(\d+) bad cells", line) == ([str(bad)] if bad > 1 else [])


def check(case: Case, folder: Path) -> None:
    """Prepare the case in `folder` and compare with what is worked out here."""
    cells = case.cells()
    used = [name for name in case.names if name not in ("s", "note")]
    read = [(line, {name: value(name, row[name], case) for name in used} | {"s": row["s"], "note": ""}) for line, row in cells]
    expected = faults(case, read, cells)
    kinds = {name: kind for name, kind in KINDS.items() if name in used}
    settings = {"columns": kinds, "target": "y", "split": {"column": "s"}, "exclude": ["note"], "missing": case.policy}
    kept = [
        (line, row)
        for line, row in read
        if not (row["y"] is GAP or (case.policy["features"] == "drop" and any(row[name] is GAP for name in used)))
    ]
    names = {name: f"column{place}" if not case.form["header"] else name for place, name in enumerate(case.names, 1)}
    settings = renamed(settings, names)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csv_arrow, "BLOCK_BYTES", case.block)
        patch.setattr(csv_batches, "SLOW_ROWS", 5)
        try:
            table = prepare(folder, case.content, format=case.form, dtype=case.dtype, **settings)
        except TableError as error:
            told = [line.removeprefix(f"{folder / 'data.csv'}: ") for line in error.args]
            if expected:
                check_error(told, {names[name]: fault for name, fault in expected.items()})
            else:
                training = [row for _, row in kept if row["s"] == "train"]
                empty = [split for split in SPLITS if not any(row["s"] == split for _, row in kept)]
                lacking = [name for name in kinds if all(row[name] is GAP for row in training)]
                assert empty or lacking, told
            return
    assert not expected
    columns = [name for name in used if name != "y"]
    for split in SPLITS:
        values = [[row[name] for _, row in kept if row["s"] == split] for name in [*columns, "y"]]
        train = [[row[name] for _, row in kept if row["s"] == "train"] for name in columns]
        parts: list[tuple[list[str], Array]] = []
        for name, own, taught in zip(columns, values, train, strict=False):
            kind = kinds[name] if isinstance(kinds[name], str) else "date"
            parts.append(features(names[name], kind, own, taught, case.dtype))  # type: ignore[arg-type]
        assert table.features == [*chain.from_iterable(told for told, _ in parts)]
        made, target = TableDataset(folder / "prepared", split)[:]  # type: ignore[arg-type]
        whole = np.column_stack([made for _, made in parts]).astype(case.dtype)
        # Days and fractions of them are rounded once more in float32.
        exact = [not told.endswith(".days") for told in table.features]
        np.testing.assert_array_equal(made.numpy()[:, exact], whole[:, exact])
        np.testing.assert_allclose(made.numpy(), whole, rtol=1e-5, atol=1e-5)
        assert target.numpy()[:, 0].tolist() == np.array(values[-1], case.dtype).tolist()


def renamed(settings: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    return {
        "columns": {names[name]: kind for name, kind in settings["columns"].items()},
        "target": names[settings["target"]],
        "split": {"column": names["s"]},
        "exclude": [names[name] for name in settings["exclude"] if name in names],
        "missing": settings["missing"],
    }


def good(name: str, form: dict[str, Any], generator: np.random.Generator) -> str:
    """Return the text of a cell."""
    if name in ("n", "m", "y"):
        size = generator.choice([1, 1e3, 1e6])
        number = float(generator.normal(0, size)) if generator.random() < 0.6 else float(generator.integers(-3, 3))
        text = str(generator.choice([f"{number:.2f}", f"{number:.3e}", f"{number:+.0f}", f"{number:,.1f}"]))
        text = text.replace(",", (form["thousands"] and "\0") or "").replace(".", form["decimal"])
        return text.replace("\0", form["thousands"] or "")
    if name == "b":
        return str(generator.choice(["yes", "No", "TRUE", "f", "1", "0", "Y"]))
    if name == "c":
        return str(generator.choice(["north", "south", "ä", 'a "b"', "x,y", "two words", "1", "1.0", "-999"]))
    if name == "s":
        return str(generator.choice(SPLITS, p=[0.6, 0.2, 0.2]))
    at = pd.Timestamp("1965-01-01") + pd.Timedelta(seconds=int(generator.integers(0, 3_000_000_000)))
    if name == "t":
        return at.strftime(FORMAT)
    forms = ["%Y-%m-%d", "%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S.5Z", "%Y-%m-%d %H:%M:%S+0130"]
    return at.strftime(str(generator.choice(forms)))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw some columns, a format and rows, then some gaps and odd cells."""
    separator, decimal = draw(st.sampled_from([(",", "."), (";", ","), (";", "."), ("\t", ","), ("|", "."), (" ", ".")]))
    form: dict[str, Any] = {
        "separator": separator,
        "decimal": decimal,
        "thousands": draw(st.sampled_from([None, None, "'", "." if decimal == "," else ","])),
        "encoding": draw(st.sampled_from(["utf-8", "utf-8", "latin-1", "utf-16"])),
        "header": draw(st.booleans()),
        "comment": draw(st.sampled_from([None, None, "#"])),
        "missing": draw(st.sampled_from(MISSING)),
    }
    generator = np.random.default_rng(draw(st.integers(0, 10**6)))
    some = draw(st.lists(st.sampled_from(list(KINDS)), min_size=1, max_size=4, unique=True))
    names = draw(st.permutations([*some, "y", "s", "note"]))
    count = int(generator.integers(8, 25))
    notes = ["", "a", "two\nlines", "x;y"]
    rows = [
        [str(generator.choice(notes)) if name == "note" else good(name, form, generator) for name in names]
        for _ in range(count)
    ]
    for row, split in zip(rows, SPLITS, strict=False):
        row[names.index("s")] = split
    allowed = [place for place, name in enumerate(names) if name not in ("s", "note")]
    texts = [
        *form["missing"],
        *(f" {text} " for text in form["missing"]),
        *(["-999.0", "-9.99e2"] if "-999" in form["missing"] else []),
    ]
    gaps, slips = draw(st.integers(0, 4)) if texts else 0, draw(st.sampled_from([0, 0, 0, 1, 3]))
    for choice in [texts] * gaps + [ODD] * slips:
        cell = str(choice[generator.integers(len(choice))]).replace("ｙ", "y" if form["encoding"] == "latin-1" else "ｙ")
        rows[generator.integers(count)][allowed[generator.integers(len(allowed))]] = cell
    features, target = (
        draw(st.sampled_from(["refuse", "fill", "fill", "drop"])),
        draw(st.sampled_from(["refuse", "drop", "drop"])),
    )
    block = draw(st.sampled_from([1 << 20, 100, 30]))
    policy = {"features": features, "target": target}
    return Case(
        names,
        rows,
        form,
        policy,
        draw(st.sampled_from(["float32", "float64"])),
        block,
        draw(st.booleans()),
        draw(st.integers(0, 2)),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kinds")


@given(case=cases())
@fuzz(examples=50)
def test_a_csv_of_all_kinds_is_read_as_pandas_and_python_read_it_or_its_faults_are_named(case: Case, folder: Path) -> None:
    check(case, folder)
