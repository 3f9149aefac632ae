"""A CSV checked cell by cell: slowly, but naming each fault by its line of the file and its column."""

import math
import re
from collections.abc import Collection, Iterator
from operator import itemgetter

import numpy as np

from truefit.core.errors import TableError
from truefit.data.table import EXACT, Dtype
from truefit.ingest.csv_file import CsvFile, OnBytes, ignore
from truefit.ingest.split_keys import KeyColumn

EXACT_FLOAT32 = 2**24  # up to which float32 holds every integer
LARGEST = 1e150  # in size, of which float64 still holds the square
MOST_FAULTS = 10  # that an error names

_INTEGER = re.compile(r"[ \t]*[+-]?0*([0-9]+)[ \t]*")
_NOT_FINITE = re.compile(r"[ \t]*[+-]?(nan|inf|infinity)[ \t]*", re.IGNORECASE)


def read_header(source: CsvFile) -> list[str]:
    """Return the column names without outer blanks, and keep them with their line in `source`; some may be empty.

    Raises TableError for an empty file, and for a header that must be a row of numbers.
    """
    lines: list[str] = []
    line, header = next(source.rows(on_line=lambda text: lines.append(text) or text), (1, []))  # type: ignore[func-returns-value]
    where = f"{source.path}: line {line}"
    if not header:
        allowed = "a header with column names, then rows" if source.format.header else "rows"
        raise TableError(f"{where}: found an empty file, allowed: {allowed}")
    if source.format.header:
        header = [name.strip() for name in header]
        names = [name for name in header if name]
        if names and all(re.fullmatch(source.format.number, name) for name in names):
            allowed = f"a header with column names, or {source.advice.header} for a CSV without one"
            raise TableError(f"{where}: found numbers alone, such as {names[0]!r}, allowed: {allowed}")
    else:
        header = [f"column{number}" for number in range(1, len(header) + 1)]
    source.header, source.header_line, source.header_lines = header, line, len(lines) if source.format.header else 0
    return header


def require_usable(source: CsvFile, used: Collection[str]) -> None:
    """Raise TableError for the first column among those `used` whose name is no text, or is another column's too."""
    where = f"{source.path}: line {source.header_line}"
    found, used = set[str](), {*used} - {""}
    for number, name in enumerate(source.header, 1):
        if name not in used:
            continue
        if not _is_decoded(name) or "\0" in name:
            allowed = f"text in {source.format.encoding}, or {source.advice.encoding}"
            raise TableError(f"{where}, column {number}: found {_cell_text(name)}, allowed: {allowed}")
        if name in found:
            raise TableError(
                f"{where}, column {number}: found {name!r} again, allowed: each name once, of columns that are used"
            )
        found.add(name)


def missing_column(source: CsvFile, name: str, reason: str) -> TableError:
    """Return the error for a column that the header lacks; `reason` says who wants it."""
    allowed = shown_names(source.header) + source.other_separator(source.header)
    return TableError(f"{source.path}: line {source.header_line}: found no column {name!r} ({reason}), allowed: {allowed}")


def varying_column(source: CsvFile, name: str) -> TableError:
    """Return the error for a column whose numbers differ, and are one in float32: it names the first that does."""
    index, plain = source.header.index(name), source.format.plain
    rows = ((line, row[index]) for line, row in source.data_rows())
    _, first = next(rows)
    line, other = next((line, cell) for line, cell in rows if float(plain(cell)) != float(plain(first)))
    return TableError(
        f"{source.path}: line {line}, column {name!r}: found {_cell_text(other)}, which float32 does not tell from the "
        f"{_cell_text(first)} before it, allowed: numbers that float32 tells apart, or {source.advice.wider}"
    )


def require_kept(source: CsvFile, name: str, step: float, extent: float) -> None:
    """Raise TableError for the first cell of a column that float32 rounds, where its `step` is long beside the `extent`."""
    index, plain = source.header.index(name), source.format.plain
    for line, row in source.data_rows():
        number = float(plain(row[index]))
        if float(np.float32(number)) != number:
            raise TableError(
                f"{source.path}: line {line}, column {name!r}: found {_cell_text(row[index])}, which float32 rounds, in steps "
                f"of {step:g}, in a column whose numbers lie within {extent:.4g}, allowed: {source.advice.wider}"
            )


def shown_names(header: list[str]) -> str:
    """Return the names of columns, quoted, as text of one line."""
    return ", ".join(_cell_text(name, len(name)) for name in header if name)


def checked_rows(
    source: CsvFile, columns: list[str], dtype: Dtype, key: KeyColumn | None, on_bytes: OnBytes = ignore
) -> Iterator[tuple[list[float], str]]:
    """Give each row's numbers, in the order of `columns`, and its cell of the `key`'s column, empty without one.

    Raises TableError, at the end of the file, for what are no finite numbers of `dtype` and what the key does not read: the
    first ten faults, and how many there are.
    """
    header = source.header
    place = {name: index for index, name in enumerate(header)}
    numeric = [place[name] for name in columns]
    keyed = None if key is None else place[key.name]
    faults: list[str] = []
    count, empty = 0, True
    numbers = _Numbers(source, dtype)
    checks = [(index, numbers.fault) for index in numeric]
    if key is not None:
        checks.append((place[key.name], key.fault))
    checks.sort(key=itemgetter(0))
    like = "in the header" if source.format.header else f"in line {source.header_line}"
    for line, row in source.data_rows(on_bytes):
        empty = False
        if len(row) != len(header):
            found = [f": found {len(row)} cells, allowed: {len(header)}, as {like}{source.other_separator(row)}"]
        else:
            found = [
                f", column {header[index]!r}: found {_cell_text(row[index])}, allowed: {allowed}"
                for index, fault in checks
                if (allowed := fault(row[index]))
            ]
        if found:
            faults += [f"line {line}{text}" for text in found[: MOST_FAULTS - len(faults)]]
            count += len(found)
        else:
            yield [float(source.format.plain(row[index])) for index in numeric], "" if keyed is None else row[keyed]
    if empty:
        raise TableError(f"{source.path}: line {source.header_line}: found no rows below the header, allowed: at least one")
    if faults:
        total = f" ({count} bad cells in all)" if count > 1 else ""
        raise TableError(f"{source.path}: {'; '.join(faults)}{total}")


class _Numbers:
    """The numbers that a CSV's format and a table's dtype allow."""

    def __init__(self, source: CsvFile, dtype: Dtype) -> None:
        self._format = source.format
        self._pattern = re.compile(source.format.number)
        self._float32 = dtype == "float32"
        self._wider = source.advice.wider

    def fault(self, cell: str) -> str | None:
        """Return what a cell that cannot be taken should have held, or None for a finite number that the dtype keeps."""
        if not (number := self._pattern.fullmatch(cell)):
            return self._no_number(cell)
        plain = self._format.plain(cell)
        size = abs(float(plain))
        if not size:
            return "0, or a number that float64 tells from it" if re.search("[1-9]", number[1]) else None
        if EXACT <= size <= LARGEST and (integer := _INTEGER.fullmatch(plain)) and int(integer[1]) > EXACT:
            return f"an integer up to 2^53 ({EXACT}), beyond which float64 does not hold each, or a number such as 1e20"
        if self._float32 and (fault := _float32_fault(size)):
            return f"{fault}, or {self._wider}" if size <= LARGEST else fault
        return None if size <= LARGEST else f"a number between -{LARGEST:g} and {LARGEST:g}"

    def _no_number(self, cell: str) -> str:
        if _NOT_FINITE.fullmatch(cell):
            return "a finite number"
        if self._format.decimal == "," and "." in cell and self._pattern.fullmatch(cell.replace(".", "")):
            return "a number with a comma, without a point"
        if self._format.decimal == "." and "," in cell and self._pattern.fullmatch(cell.replace(",", "")):
            return "a number with a point, without a comma"
        return "a number"


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


def _cell_text(cell: str, most: int = 40) -> str:
    if not cell.strip():
        return "an empty cell"
    return repr(cell[:most] if _is_decoded(cell) else cell.encode(errors="surrogateescape")[:most])


def _is_decoded(text: str) -> bool:
    """Return whether the file's bytes were text in its encoding; those that were not stand in the text as surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
