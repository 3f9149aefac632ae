"""A CSV checked cell by cell: slowly, but naming each fault by its line of the file and its column."""

import math
import re
from collections.abc import Iterator
from itertools import islice

import numpy as np

from truefit.core.errors import TableError
from truefit.data.table import SPLITS, Dtype
from truefit.ingest.csv_file import CsvFile, OnBytes, ignore

# Up to here float64, and float32, holds every integer. Beyond, it does not tell 2^53 from 2^53 + 1.
EXACT = 2**53
EXACT_FLOAT32 = 2**24
LARGEST = 1e150  # in size, of which float64 still holds the square
MOST_FAULTS = 10  # that an error names

_NUMBER = re.compile(r"[ \t]*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?[ \t]*")
_INTEGER = re.compile(r"[ \t]*[+-]?0*([0-9]+)[ \t]*")
_NOT_FINITE = re.compile(r"[ \t]*[+-]?(nan|inf|infinity)[ \t]*", re.IGNORECASE)


def read_header(source: CsvFile) -> list[str]:
    """Return the column names, and keep them with their line in `source`; raises TableError where they cannot be used."""
    line, header = next(source.rows(), (1, []))
    where = f"{source.path}: line {line}"
    if not header:
        raise TableError(f"{where}: found an empty file, allowed: a header with column names, then rows")
    names: set[str] = set()
    for number, name in enumerate(header, 1):
        if not _is_utf8(name) or "\0" in name:
            raise TableError(f"{where}, column {number}: found {_cell_text(name)}, allowed: text in UTF-8")
        if not name.strip():
            raise TableError(f"{where}, column {number}: found no name, allowed: a name for each column")
        if name in names:
            raise TableError(f"{where}, column {number}: found {name!r} again, allowed: each name once")
        names.add(name)
    source.header, source.header_line = header, line
    return header


def missing_column(source: CsvFile, name: str, reason: str) -> TableError:
    """Return the error for a column that the header lacks; `reason` says who wants it."""
    allowed = shown_names(source.header) + source.other_separator(source.header)
    return TableError(f"{source.path}: line {source.header_line}: found no column {name!r} ({reason}), allowed: {allowed}")


def varying_column(source: CsvFile, name: str) -> TableError:
    """Return the error for a column whose numbers differ, and are one in float32: it names the first that does."""
    index = source.header.index(name)
    rows = ((line, row[index]) for line, row in islice(source.rows(), 1, None))
    _, first = next(rows)
    line, other = next((line, cell) for line, cell in rows if float(cell) != float(first))
    return TableError(
        f"{source.path}: line {line}, column {name!r}: found {_cell_text(other)}, which float32 does not tell from the "
        f"{_cell_text(first)} before it, allowed: numbers that float32 tells apart, or {source.wider}"
    )


def shown_names(header: list[str]) -> str:
    """Return the names of columns as text of one line."""
    return ", ".join(name if name.isprintable() else repr(name) for name in header)


def checked_rows(
    source: CsvFile, columns: list[str], dtype: Dtype, split_column: str | None, on_bytes: OnBytes = ignore
) -> Iterator[tuple[list[float], str]]:
    """Give each row's numbers, in the order of `columns`, and its split, empty without a split column.

    Raises TableError, at the end of the file, for what are no finite numbers of `dtype` and no splits: the first ten faults,
    and how many there are.
    """
    header = source.header
    place = {name: index for index, name in enumerate(header)}
    numeric = [place[name] for name in columns]
    split = None if split_column is None else place[split_column]
    checks = sorted(numeric if split is None else [*numeric, split])
    faults: list[str] = []
    count, empty = 0, True
    rows = source.rows(on_bytes)
    next(rows)
    for line, row in rows:
        empty = False
        if len(row) != len(header):
            found = [f": found {len(row)} cells, allowed: {len(header)}, as in the header{source.other_separator(row)}"]
        else:
            found = [
                f", column {header[index]!r}: found {_cell_text(row[index])}, allowed: {allowed}"
                for index in checks
                if (allowed := _split_fault(row[index]) if index == split else _number_fault(row[index], dtype, source.wider))
            ]
        if found:
            faults += [f"line {line}{fault}" for fault in found[: MOST_FAULTS - len(faults)]]
            count += len(found)
        else:
            yield [float(row[index]) for index in numeric], "" if split is None else row[split]
    if empty:
        raise TableError(f"{source.path}: line {source.header_line}: found no rows below the header, allowed: at least one")
    if faults:
        total = f" ({count} bad cells in all)" if count > 1 else ""
        raise TableError(f"{source.path}: {'; '.join(faults)}{total}")


def _split_fault(cell: str) -> str | None:
    return None if cell in SPLITS else ", ".join(SPLITS)


def _number_fault(cell: str, dtype: Dtype, wider: str) -> str | None:
    """Return what a cell that cannot be taken should have held, or None for a finite number that `dtype` keeps.

    `wider` is how to have float64.
    """
    if not (number := _NUMBER.fullmatch(cell)):
        if _NOT_FINITE.fullmatch(cell):
            return "a finite number"
        return "a number with a point, without a comma" if _NUMBER.fullmatch(cell.replace(",", "")) else "a number"
    size = abs(float(cell))
    if not size:
        return "0, or a number that float64 tells from it" if number[1].strip("0.") else None
    if EXACT <= size <= LARGEST and (integer := _INTEGER.fullmatch(cell)) and int(integer[1]) > EXACT:
        return f"an integer up to 2^53 ({EXACT}), beyond which float64 does not hold each, or a number such as 1e20"
    if dtype == "float32" and (fault := _float32_fault(size)):
        return f"{fault}, or {wider}" if size <= LARGEST else fault
    return None if size <= LARGEST else f"a number between -{LARGEST:g} and {LARGEST:g}"


def _float32_fault(size: float) -> str | None:
    """Return what a number of this size should have been, or None where float32 keeps it."""
    if 1e-30 < size <= EXACT_FLOAT32:  # nearly all are
        return None
    with np.errstate(over="ignore", under="ignore"):
        stored = float(np.float32(size))
    if math.isinf(stored):
        return "a number within float32's range"
    if not stored:
        return "0, or a number that float32 tells from it"
    if size < EXACT and size.is_integer() and stored != size:
        return f"an integer that float32 holds, such as each up to 2^24 ({EXACT_FLOAT32})"
    return None


def _cell_text(cell: str) -> str:
    if not cell.strip():
        return "an empty cell"
    return repr(cell[:40] if _is_utf8(cell) else cell.encode(errors="surrogateescape")[:40])


def _is_utf8(text: str) -> bool:
    """Return whether the file's bytes were UTF-8; those that were not stand in the text as surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
