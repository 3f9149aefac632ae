"""What is wrong with a CSV's cells, by column: how many, the first and its place, what they look like, and the way out."""

import re
import unicodedata
from collections.abc import Callable
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from truefit.core.errors import TableError
from truefit.data.columns import KINDS
from truefit.ingest.source import SourceFile

MOST_COLUMNS = 10  # that an error names
MOST_TEXTS = 100  # different ones, of a column's bad cells, by which it is told what they are
MOSTLY = 0.5  # of a column's cells: as many bad ones are no slips

Rows = Callable[[int], int]  # the row, or line, of a cell, by its place in some rows

_FORMATS = [
    ("thousands", "a sign for thousands", r"[+-]?(\d+|\d{1,3}(,\d{3})+(\.\d*)?)"),
    ("decimal", "a decimal comma", r"[+-]?\d+(,\d+)?"),
]
_PERCENT = re.compile(r"[+-]?[\d.,]+ ?%")
_UNIT = re.compile(r"([^\d\s.,+-]*) ?[+-]?\d[\d.,]* ?([^\d\s.,]*)")


class CellTexts(NamedTuple):
    """The texts of a column's cells in some rows: as Arrow's, one by one, and the places of those that could not be decoded.

    Of those, Arrow's are empty.
    """

    texts: pa.Array
    text: Callable[[int], str]
    undecoded: list[int]


class Faults:
    """The faults of a CSV, column by column, at their places, or, if `by_row`, at rows that are counted from 0."""

    def __init__(self, source: SourceFile) -> None:
        self.by_row = False
        self._source = source
        self._columns: dict[str, _ColumnFaults] = {}
        self._ragged: list[tuple[int, list[str]]] = []  # the first row of another length than the header
        self._ragged_count = 0

    def __bool__(self) -> bool:
        return bool(self._columns or self._ragged)

    def add_row(self, line: int, row: list[str]) -> None:
        """Take a row that has more or fewer cells than the header."""
        self._ragged = self._ragged or [(line, row)]
        self._ragged_count += 1

    def add(
        self,
        name: str,
        cells: CellTexts,
        places: NDArray[Any],
        row: Rows,
        allowed: Callable[[str], str | None],
        has_kind: bool = False,
    ) -> None:
        """Take a column's bad cells, at `places` of some rows.

        `allowed` says what a text should have been; `has_kind`, that the column may be given another kind.
        """
        if len(places):
            faults = self._of(name, cells, places, row, allowed)
            faults.has_kind = has_kind
            faults.count += len(places)
            faults.undecoded = faults.undecoded or bool(cells.undecoded)
            if len(faults.texts) <= MOST_TEXTS:
                # A null is an empty cell, of Parquet.
                bad = pyarrow.compute.ascii_trim(cells.texts.take(pa.array(places)).fill_null(""), characters=" \t")
                faults.texts.update(bad.unique()[: MOST_TEXTS + 1].to_pylist())

    def add_missing(self, name: str, cells: CellTexts, places: NDArray[Any], row: Rows, allowed: str, way_out: str) -> None:
        """Take a column's missing values, likewise, where such are refused."""
        if len(places):
            faults = self._of(name, cells, places, row, lambda _: allowed)
            faults.missing, faults.way_out = faults.missing + len(places), way_out

    def error(self, rows: int) -> TableError:
        """Return the error that tells all of them, of so many rows: a line for rows, then one for each column."""
        source = self._source
        order = {name: place for place, name in enumerate(source.header)}
        shown = sorted(self._columns.items(), key=lambda named: order[named[0]])[:MOST_COLUMNS]
        found = []
        for line, row in self._ragged:
            like = "in the header" if source.format.header else f"in line {source.header_line}"
            more = f" ({self._ragged_count} such rows)" if self._ragged_count > 1 else ""
            allowed = f"{len(source.header)}, as {like}{source.other_separator(row)}"
            found.append(f"line {line}: found {len(row)} cells, allowed: {allowed}{more}")
        lines = {faults.row: faults.row for _, faults in shown}
        if self.by_row:
            lines = source.places(lines)
        for name, faults in shown:
            found.append(f"{source.unit} {lines[faults.row]}, column {name!r}: {faults.told(source, name, rows)}")
        if others := len(self._columns) - len(shown):
            found.append(f"and {others} more {'column' if others == 1 else 'columns'}")
        return TableError(*(f"{source.path}: {fault}" for fault in found))

    def _of(
        self, name: str, cells: CellTexts, places: NDArray[Any], row: Rows, allowed: Callable[[str], str | None]
    ) -> "_ColumnFaults":
        first = int(places[0])
        at, text = row(first), cells.text(first)
        faults = self._columns.get(name)
        if faults is None:
            faults = self._columns[name] = _ColumnFaults(at, text, allowed(text) or "")
        elif at < faults.row:
            faults.row, faults.text, faults.allowed = at, text, allowed(text) or ""
        return faults


class _ColumnFaults:
    """Those of one column: the first one's row and text, what should have been there, how many, and some different texts."""

    def __init__(self, row: int, text: str, allowed: str) -> None:
        self.row, self.text, self.allowed = row, text, allowed
        self.count = 0
        self.missing, self.way_out = 0, ""
        self.has_kind = False
        self.undecoded = False  # whether some could not be decoded
        self.texts: set[str] = set()

    def told(self, source: SourceFile, name: str, rows: int) -> str:
        """Return what was found and what is allowed, in words."""
        remarks = []
        if self.missing:
            found = "1 value is missing" if self.missing == 1 else f"{self.missing} values are missing"
            remarks.append(f"{found}; {self.way_out}")
        if self.count > 1:
            remarks.append(f"{self.count} bad cells in the column")
        if looks := self._looks(source, name, rows):
            remarks.append(looks)
        return f"found {cell_text(self.text)}, allowed: {self.allowed}" + (f" ({'; '.join(remarks)})" if remarks else "")

    def _looks(self, source: SourceFile, name: str, rows: int) -> str:
        """Return what the bad cells look like, and the setting that takes them, where they are no slips."""
        if self.count < MOSTLY * rows or self.count < 2:
            return ""
        if self.undecoded:
            return f"bytes that are no {source.format.encoding}: {source.advice.encoding}"
        has_kind = self.has_kind and source.advice.kind
        texts = pa.array(sorted(self.texts), pa.string())
        for kind in ("boolean", "date") if has_kind else ():
            if not KINDS[kind](kind=kind, name=name).parse(texts)[1].any():
                return f"{'truth values' if kind == 'boolean' else 'dates'}: {source.advice.kind}: {{{name}: {kind}}}"
        if all(_PERCENT.fullmatch(text) for text in self.texts):
            return "percentages, which have to be written as numbers"
        units = {match.groups() for text in self.texts if (match := _UNIT.fullmatch(text)) and any(match.groups())}
        if len(units) == 1 and all(map(_UNIT.fullmatch, self.texts)) and all(map(_is_unit, filter(None, *units))):
            return f"numbers with the unit {''.join(units.pop())!r}, which has to go"
        for key, what, pattern in _FORMATS if source.advice.format else []:
            if all(re.fullmatch(pattern, text) for text in self.texts) and any("," in text for text in self.texts):
                cannot = key == "decimal" and source.format.separator == ","
                advice = (
                    ", which has to be a point beside the separator ','" if cannot else f": {source.advice.format}.{key}: ','"
                )
                return f"numbers with {what}{advice}"
        number = re.compile(source.format.number)
        if not has_kind or all(map(number.fullmatch, self.texts)):
            return ""
        many = f"more than {MOST_TEXTS}" if len(self.texts) > MOST_TEXTS else str(len(self.texts))
        values = "value" if len(self.texts) == 1 else "different values"
        return (
            f"text of {many} {values}: {source.advice.kind}: {{{name}: category}}, or leave the column out by prepare.exclude"
        )


def _is_unit(text: str) -> bool:
    """Return whether a text may be a unit: it has a letter or a currency sign, and nothing that is not shown."""
    return text.isprintable() and any(sign.isalpha() or unicodedata.category(sign) == "Sc" for sign in text)


def cell_text(cell: str, most: int = 40) -> str:
    """Return a cell as an error shows it: quoted, no longer than `most`, and as bytes where it is no text."""
    if not cell.strip():
        return "an empty cell"
    return repr(cell[:most] if is_decoded(cell) else cell.encode(errors="surrogateescape")[:most])


def is_decoded(text: str) -> bool:
    """Return whether the file's bytes were text in its encoding; those that were not stand in the text as surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
