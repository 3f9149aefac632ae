"""Finds the first thing wrong in a CSV and says where it is.

Reads with Python's own reader, cell by cell, which is slow and knows every line: the header always, and the rows when
ingest.py's fast reader has met something it cannot take. Line numbers are those of the file, line breaks inside quotes
counted.
"""

import csv
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from truefit.errors import TableError
from truefit.table import SPLITS

_NUMBER = re.compile(r"[ \t]*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?[ \t]*")
_NOT_FINITE = re.compile(r"[ \t]*[+-]?(nan|inf|infinity)[ \t]*", re.IGNORECASE)


def read_header(path: Path) -> list[str]:
    """Return the column names in the first line of the CSV.

    Raises TableError when the file cannot be read, is empty, or names a column twice or not at all.
    """
    with _rows(path) as rows:
        _, header = next(rows, (1, []))
    if not header:
        raise TableError(f"{path}: line 1: found an empty file, allowed: a header with column names, then rows")
    for number, name in enumerate(header, 1):
        if not _is_utf8(name):
            raise TableError(f"{path}: line 1, column {number}: found {_shown(name)}, allowed: text in UTF-8")
        if not name.strip():
            raise TableError(f"{path}: line 1, column {number}: found no name, allowed: a name for each column")
        if header.index(name) != number - 1:
            raise TableError(f"{path}: line 1, column {number}: found {name!r} again, allowed: each name once")
    return header


def find_fault(path: Path, header: list[str], columns: list[str], dtype: str, split_column: str | None) -> str | None:
    """Return the first fault of the CSV as `file: line, column: found …, allowed: …`, or None when there is none.

    `columns` must hold finite numbers of `dtype`, `split_column` the name of a split; other columns may hold anything.
    """
    numeric = [(header.index(name), name) for name in columns]
    empty = True
    with _rows(path) as rows:
        next(rows)
        for line, row in rows:
            empty = False
            if len(row) != len(header):
                return f"{path}: line {line}: found {len(row)} cells, allowed: {len(header)}, as in the header"
            for index, name in numeric:
                if allowed := _fault_in(row[index], dtype):
                    return f"{path}: line {line}, column {name!r}: found {_shown(row[index])}, allowed: {allowed}"
            if split_column is not None and (cell := row[header.index(split_column)]) not in SPLITS:
                return f"{path}: line {line}, column {split_column!r}: found {_shown(cell)}, allowed: {', '.join(SPLITS)}"
    return f"{path}: line 2: found the end of the file, allowed: rows below the header" if empty else None


def _fault_in(cell: str, dtype: str) -> str | None:
    """Return what a cell that cannot be taken should have held, or None for a finite number of `dtype`."""
    if _NOT_FINITE.fullmatch(cell):
        return "a finite number"
    if not _NUMBER.fullmatch(cell):
        return "a number"
    with np.errstate(over="ignore"):
        if not np.isfinite(np.dtype(dtype).type(float(cell))):
            return f"a number within {dtype}'s range"
    return None


def _shown(cell: str) -> str:
    if not cell.strip():
        return "an empty cell"
    return repr(cell[:40] if _is_utf8(cell) else cell.encode(errors="surrogateescape")[:40])


def _is_utf8(text: str) -> bool:
    """Return whether the file's bytes were UTF-8; those that were not stand in the text as surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


@contextmanager
def _rows(path: Path) -> Iterator[Iterator[tuple[int, list[str]]]]:
    """Give the CSV's rows, blank lines left out, each with the line that it begins on."""
    line = 1

    def numbered(reader: Iterator[list[str]]) -> Iterator[tuple[int, list[str]]]:
        nonlocal line
        for row in reader:
            if row:
                yield line, row
            line = lines.line_num + 1

    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            lines = csv.reader(file)
            yield numbered(lines)
    except OSError as error:
        raise TableError(f"{path}: cannot be read: {error.strerror}") from None
    except csv.Error:
        found = f"a cell of more than {csv.field_size_limit()} characters"
        raise TableError(f"{path}: line {line}: found {found}, allowed: shorter cells (is a quote left open?)") from None
