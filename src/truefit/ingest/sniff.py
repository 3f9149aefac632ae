"""How a CSV is written, found on its first part: encoding, comments, separator, signs in numbers, header or none."""

import codecs
import csv
import io
import re
from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import chain, takewhile
from pathlib import Path
from typing import NamedTuple, get_args

from truefit.core.errors import TableError
from truefit.ingest.csv_file import COMMENTS, CsvFile
from truefit.ingest.csv_format import MISSING, FormatSettings, Separator
from truefit.ingest.csv_lines import RowLines

HEAD_BYTES = 1 << 20  # by which a format is found …
HEAD_ROWS = 1000  # … or by so many rows, where these are fewer bytes
BLANKS = " \t"  # around a cell, which are no part of it
WITHIN_CELLS = 0.7  # of its score is left to the separator " ", since blanks are found in cells as well
# Texts for a missing value: those that are taken for one in any column, and those that are where the rest are numbers.
MORE_MISSING = ("-", "--", "---", ".", "*", "#N/A", "#NA", "n/a", "na", "None", "none", "NONE", "Null", "missing", "unknown")

_ENCODINGS = ("utf-8", "cp1252", "latin-1")  # the last takes any bytes
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)

# What a cell looks like, if the separator is right: a number, a date, or text without blanks and separators …
_NUMBER = r"[+-]?[€$£]?(?:\d{1,3}(?:[ ',.]\d{3})+|\d+)?(?:[.,]\d*)?(?:[eE][+-]?\d+)?%?"
_DATE = r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}(?:[T ]\d{1,2}:\d\d\S*)?"
_CELL = re.compile(rf"\s*(?:{_NUMBER}|{_DATE}|[^\s,;|]+)\s*")
_WORDS = re.compile(r"\s*[^\W\d][^,;|\t]*")  # … or else words, which tell less
# Decimal and thousands signs, the likelier first.
_SIGNS = ((".", None), (",", None), (".", ","), (",", "."), (".", " "), (",", " "), (".", "'"), (",", "'"))
_YEARS = re.compile(r"(?:1[89]|20)\d\d")

_LINE_BREAK = re.compile(r"\r\n|\n|\r")  # what ends a line for the readers, of all that Unicode has
LONGEST_SHOWN = 60  # characters of a row in an error

Rows = list[list[str]]


class Sniffed(NamedTuple):
    """How a CSV is written, and why that is thought: a remark for each key of `prepare.format`."""

    form: FormatSettings
    why: dict[str, str]


def sniff(path: Path, not_in: Sequence[str] = ()) -> Sniffed:
    """Return the format of a CSV by its first part; `not_in` are encodings in which a later part turned out not to be.

    Raises TableError for a file that cannot be read, or is no CSV.
    """
    content, whole = _head(path)
    encoding, why_encoding = _encoding(content, whole, not_in)
    decoder = codecs.getincrementaldecoder("utf-8-sig" if encoding == "utf-8" else encoding)(errors="replace")
    text = decoder.decode(content, final=whole)
    comment = next((sign for sign in COMMENTS if text.lstrip("\r\n").startswith(sign)), None)
    form, rows, why_separator = _separated(text, whole, comment, encoding)
    header, why_header = _header(rows)
    why_comment = "no line at the top begins with # or %"
    if comment:
        lines = _commented(path, text, whole, form, rows, header)
        why_comment = f"lines above the first row that begin with it: {lines}"
        if not lines:
            form, rows, why_separator = _separated(text, whole, None, encoding)
            header, why_header = _header(rows)
            why_comment = f"rows of the table begin with {comment}"
    decimal, thousands, why_signs = _signs(form, rows[1:] if header else rows)
    found = {"decimal": decimal, "thousands": thousands, "header": header}
    form = FormatSettings.model_validate(form.model_dump() | found)
    why = {"separator": why_separator, "decimal": why_signs, "thousands": why_signs, "encoding": why_encoding}
    return Sniffed(form, why | {"header": why_header, "comment": why_comment})


def _head(path: Path) -> tuple[bytes, bool]:
    """Return the first bytes of the content, and whether they are all."""
    with CsvFile(path).content() as stream:
        content = b""
        for block in iter(partial(stream.read, HEAD_BYTES), b""):
            content += block
            if len(content) > HEAD_BYTES:
                return content[:HEAD_BYTES], False
    return content, True


def _encoding(content: bytes, whole: bool, not_in: Sequence[str]) -> tuple[str, str]:
    if content.startswith(_UTF16_MARKS):
        return "utf-16", "its mark is at the start"
    for encoding in _ENCODINGS:
        try:
            codecs.getincrementaldecoder(encoding)().decode(content, final=whole)
        except UnicodeDecodeError:
            continue
        if encoding not in not_in:
            if encoding == "utf-8":
                return encoding, "all bytes are"
            return encoding, "there are bytes that are no utf-8; another 8-bit encoding would give other letters"
    return _ENCODINGS[-1], "there are bytes that are neither utf-8 nor cp1252"


def _commented(path: Path, text: str, whole: bool, form: FormatSettings, rows: Rows, header: bool) -> int:
    """Return how many lines above the first row are comments, or 0 where the first is the header, and there are none.

    Raises TableError for comments above rows that begin with the same sign: those would be left out with them.
    """
    sign, width = form.comment or "", len(rows[0])
    lines = [line for line in _LINE_BREAK.split(text)[: None if whole else -1] if line]
    above = [*takewhile(lambda line: line.startswith(sign), lines)]
    below = [line for line in lines[len(above) :] if line.startswith(sign)]
    plain = form.model_copy(update={"comment": None})
    is_row = [len(row) == width > 1 for row in _rows("\n".join(below), True, plain)]
    named = len(above) == 1 and [len(row) for row in _rows(above[0], True, plain)] == [width]
    if any(is_row) and not named:
        found = f"found {sum(is_row)} rows that begin with {sign!r}, as do the comments above the first row"
        row = below[is_row.index(True)][:LONGEST_SHOWN]
        raise TableError(f"{path}: {found}, such as {row!r}, allowed: comments that begin with something else, or none")
    is_header = named and (any(is_row) or not header)
    return 0 if is_header or len(above) == len(lines) else len(above)


def _separated(
    text: str, whole: bool, comment: str | None, encoding: str, among: Sequence[Separator] = get_args(Separator)
) -> tuple[FormatSettings, Rows, str]:
    """Return the format and its rows of the likeliest separator: most rows of the same length, most cells of a known look."""
    best = 0.0
    form = FormatSettings(encoding=encoding, comment=comment, separator=among[0], decimal=".")
    rows, why = _alike(_rows(text, whole, form)), "found one column"
    sound = False  # whether all rows are of the same length by one of them
    for separator in among:
        candidate = form.model_copy(update={"separator": separator})
        found = _rows(text, whole, candidate)
        # Texts may all have as many words, unlike the header.
        if not found or (separator == " " and sound and len(found[0]) != len(_alike(found)[0])):
            continue
        alike = _alike(found)
        length, count = len(alike[0]), len(alike)
        sound = sound or count == len(found) > 1 < length
        known = sum(map(_likely, chain.from_iterable(alike))) / (count * length)
        # Powers, since a file is refused for a single row of another length, and a wrong separator makes many odd cells.
        score = (1 - 1 / length) * (count / len(found)) ** 8 * (known**3 + 0.001)
        score *= WITHIN_CELLS if separator == " " else 1
        if score > best:
            best, form, rows = score, candidate, alike
            why = f"{length} cells in {count} of the first {len(found)} rows"
    return form, rows or [[""]], why


def _alike(rows: Rows) -> Rows:
    """Return the rows of the length that most have."""
    length = Counter(map(len, rows)).most_common(1)
    return [row for row in rows if len(row) == length[0][0]]


def _likely(cell: str) -> float:
    return 1.0 if _CELL.fullmatch(cell) else 0.5 if _WORDS.fullmatch(cell) else 0.0


def _rows(text: str, whole: bool, form: FormatSettings) -> Rows:
    """Return the first rows, without the last where the text goes on behind it; none where it is no CSV of this format."""
    lines, rows = RowLines(io.StringIO(text, newline=""), form), []
    try:
        for row in csv.reader(lines, delimiter=form.separator):
            lines.within = False
            rows += [row] if row else []
            if len(rows) == HEAD_ROWS:
                return rows
    except csv.Error:
        return []
    return rows if whole else rows[:-1]


def _signs(form: FormatSettings, rows: Rows) -> tuple[str, str | None, str]:
    """Return the decimal and the thousands sign that make the most columns numbers, then the most cells of others."""
    best = -1, -1
    found: tuple[str, str | None, str] = ".", None, "the numbers of the first rows are plain"
    columns = [
        [cell.strip(BLANKS) for cell in column if cell.strip(BLANKS) not in MISSING] for column in zip(*rows, strict=True)
    ]
    for decimal, thousands in _SIGNS:
        if decimal == form.separator:
            continue
        number = re.compile(_number(decimal, thousands))
        counts = [sum(number.fullmatch(cell) is not None for cell in column) for column in columns]
        whole = sum(count == len(column) > 0 for count, column in zip(counts, columns, strict=True))
        most = sum(count for count, column in zip(counts, columns, strict=True) if 2 * count > len(column))
        if (whole, most) > best:
            if best != (-1, -1):
                signs = f"decimal {decimal!r}" + (f" and thousands {thousands!r}" if thousands else "")
                found = decimal, thousands, f"with {signs}, {whole} columns are numbers, and {most} cells"
            best, found = (whole, most), (decimal, thousands, found[2])
    return found


def _header(rows: Rows) -> tuple[bool, str]:
    """Say whether the first row holds names, which it does not where it looks as the rows below in every column."""
    first, below = [cell.strip(BLANKS) for cell in rows[0]], rows[1:]
    number = re.compile("|".join(f"(?:{_number(*signs)})" for signs in _SIGNS))
    named = [cell for cell in first if cell]
    if named and all(number.fullmatch(cell) for cell in named):
        return False, "the first row is numbers alone"
    above_numbers, new = list[str](), ""  # cells of the first row; new to their column of text
    for cell, column in zip(first, zip(*below, strict=True), strict=False):
        values = [value.strip(BLANKS) for value in column if value.strip(BLANKS) not in MISSING]
        if cell in MISSING:
            continue
        if values and all(number.fullmatch(value) for value in values):
            if not number.fullmatch(cell):
                return True, f"{cell!r} is above numbers"
            above_numbers.append(cell)
        elif re.fullmatch(_DATE, cell) and all(re.fullmatch(_DATE, value) for value in values):
            return False, f"{cell!r} is a date above dates"
        elif cell not in values and 2 * len(set(values)) < len(values):
            new = cell
    if plain := [cell for cell in above_numbers if not cell.isdecimal()]:
        return False, f"{plain[0]!r} is above numbers, and no name"
    if new:
        return True, f"{new!r} is not among the values below it"
    years = [int(cell) for cell in named if _YEARS.fullmatch(cell)]
    if len(years) > 1 and sorted(set(years)) == years:
        return True, f"the first row has the years {years[0]} to {years[-1]}"
    if above_numbers:
        return False, "the first row looks as those below it in every column"
    return True, "nothing tells the first row from those below it, and names are usual"


def _number(decimal: str, thousands: str | None) -> str:
    separator = "\t"  # which is none of them
    return FormatSettings.model_validate({"separator": separator, "decimal": decimal, "thousands": thousands}).number
