"""A CSV's header, and what is wrong with whole columns."""

import re
from collections.abc import Collection, Iterator

import numpy as np

from truefit.core.errors import TableError
from truefit.ingest.csv_faults import cell_text, is_decoded
from truefit.ingest.csv_file import CsvFile
from truefit.ingest.source import SourceFile


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


def require_usable(source: SourceFile, used: Collection[str]) -> None:
    """Raise TableError for the first column among those `used` whose name is no text, or is another column's too."""
    where = source.header_place
    found, used = set[str](), {*used} - {""}
    for number, name in enumerate(source.header, 1):
        if name not in used:
            continue
        if not is_decoded(name) or "\0" in name:
            allowed = f"text in {source.format.encoding}, or {source.advice.encoding}"
            raise TableError(f"{where}, column {number}: found {cell_text(name)}, allowed: {allowed}")
        if name in found:
            raise TableError(
                f"{where}, column {number}: found {name!r} again, allowed: each name once, of columns that are used"
            )
        found.add(name)
    source.require_types(used)


def missing_column(source: SourceFile, name: str, reason: str) -> TableError:
    """Return the error for a column that the header lacks; `reason` says who wants it."""
    allowed = shown_names(source.header) + source.other_separator(source.header)
    return TableError(f"{source.header_place}: found no column {name!r} ({reason}), allowed: {allowed}")


def varying_column(numbers: Iterator[tuple[str, str, float]], name: str, wider: str) -> TableError:
    """Return the error for a column whose `numbers` differ, and are one in float32: it names the first that does.

    The numbers come with their places and texts; `wider` is where a user sets another dtype.
    """
    _, first, number = next(numbers)
    where, other, _ = next(found for found in numbers if found[2] != number)
    return TableError(
        f"{where}, column {name!r}: found {cell_text(other)}, which float32 does not tell from the "
        f"{cell_text(first)} before it, allowed: numbers that float32 tells apart, or {wider}"
    )


def require_kept(numbers: Iterator[tuple[str, str, float]], name: str, wider: str, step: float, extent: float) -> None:
    """Raise TableError for the first cell of a column that float32 rounds, where its `step` is long beside the `extent`."""
    for where, cell, number in numbers:
        if float(np.float32(number)) != number:
            raise TableError(
                f"{where}, column {name!r}: found {cell_text(cell)}, which float32 rounds, in steps "
                f"of {step:g}, in a column whose numbers lie within {extent:.4g}, allowed: {wider}"
            )


def shown_names(header: list[str]) -> str:
    """Return the names of columns, quoted, as text of one line."""
    return ", ".join(cell_text(name, len(name)) for name in header if name)
