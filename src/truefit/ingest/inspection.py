"""A CSV met for the first time: its format, its rows counted, and what each column is."""

from collections import Counter
from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

import pyarrow as pa
from tqdm import tqdm

from truefit.core.errors import TableError
from truefit.ingest.column_kinds import Column, judge, sentinels, texts_for_missing, units
from truefit.ingest.column_statistics import ColumnStatistics, Missing, frequent, most_distinct
from truefit.ingest.csv_arrow import arrow_cells
from truefit.ingest.csv_check import missing_column, read_header, require_usable
from truefit.ingest.csv_file import CsvFile, OnBytes
from truefit.ingest.csv_format import MISSING, FormatSettings
from truefit.ingest.sniff import sniff

BATCH_CELLS = 1 << 18  # of the rows that Python's reader gives at a time
MOST_PASSES = 4  # over the file: one, and another where it finds another encoding, or more texts for missing values

Batches = Generator[list[pa.Array], None, None]


@dataclass
class Inspection:
    """What was found in a CSV; `why` has the reasons by the keys of `prepare.format`, and of `missing` and `target`.

    `roles` are the columns that are in use for something else than features, and for what.
    """

    path: Path
    form: FormatSettings
    missing: list[str]
    why: dict[str, str]
    rows: int
    columns: list[Column]
    target: Column
    roles: dict[str, str]

    @property
    def features(self) -> list[Column]:
        """The columns that are to be features."""
        return [column for column in self.columns if column is not self.target and column.left_out is None]


def inspect(path: Path, target: str | None = None, roles: dict[str, str] | None = None) -> Inspection:
    """Return what is found in a CSV, whose target is the last column with a name by default.

    `roles` says of columns by their names what else they are used for than as features.

    Memory is bounded. Raises TableError for a file that is no table, and for a target that is not there or no number.
    """
    missing, not_in, why_missing = list(MISSING), list[str](), ""
    for passes in count(1):
        form, why = sniff(path, not_in)
        with CsvFile(path, form) as source:
            read_header(source)
            chosen = _target(source, target)
            try:
                statistics = _count(source, missing, chosen)
            except UnicodeError:
                not_in.append(form.encoding)
                continue
        columns = [Column(name, found) for name, found in zip(source.header, statistics, strict=True)]
        used = [column for column in columns if column.name]
        more = texts_for_missing(used) or sentinels(used)
        if not more.keys() - set(missing) or passes >= MOST_PASSES:
            break
        missing += more
        why_missing = "; ".join([*filter(None, [why_missing]), *(f"{text!r} {reason}" for text, reason in more.items())])
    place, named = source.header.index(chosen), Counter(source.header)
    _require_number(source, columns[place], target is None)
    for column in columns:
        judge(column, columns[place], named[column.name], (roles or {}).get(column.name))
    why |= {"missing": why_missing or "as by default", "target": "the last column" if target is None else "as asked for"}
    found = Inspection(path, form, missing, why, statistics[place].rows, columns, columns[place], roles or {})
    if not found.features:
        reasons = "; ".join(f"{column.name!r}: {column.left_out}" for column in columns if column.left_out)
        raise TableError(f"{path}: found no column for a feature ({reasons}), allowed: at least one")
    return found


def _target(source: CsvFile, target: str | None) -> str:
    if target is not None and target not in {*source.header} - {""}:
        raise missing_column(source, target, "--target")
    names = [name for name in source.header if name]
    if len(names) < 2:
        found = f"found {len(names) or 'no'} column with a name" + source.other_separator(source.header)
        raise TableError(f"{source.path}: line {source.header_line}: {found}, allowed: a target and at least one feature")
    require_usable(source, {target or names[-1]})
    return target or names[-1]


def _count(source: CsvFile, missing: list[str], target: str) -> list[ColumnStatistics]:
    """Return the statistics of all columns; raises UnicodeError for bytes that are not in the format's encoding."""
    place, most = source.header.index(target), most_distinct(len(source.header))
    for read in (_fast_cells, _slow_cells):
        columns = [ColumnStatistics(source.format, Missing(missing, source.format), most) for _ in source.header]
        with tqdm(total=source.size, desc="inspect", unit="B", unit_scale=True, disable=None) as bar:
            batches = read(source, lambda content: bar.update(len(content)))
            try:
                with closing(batches):
                    _add_all(columns, batches, place)
            except pa.ArrowInvalid:
                if read is _slow_cells:
                    raise
                continue
        break
    if not columns[place].rows:
        raise TableError(f"{source.path}: line {source.header_line}: found no rows below the header, allowed: at least one")
    return columns


def _add_all(columns: list[ColumnStatistics], batches: Iterable[list[pa.Array]], target: int) -> None:
    for cells in batches:
        goal = columns[target].add(cells[target])
        for number, column in enumerate(columns):
            column.moments.add(goal if number == target else column.add(cells[number]), goal)


def _fast_cells(source: CsvFile, on_bytes: OnBytes) -> Batches:
    """Yield the cells of each column [columns][B], batch by batch; raises pa.ArrowInvalid where it takes Python's reader."""
    yield from arrow_cells(source, dict.fromkeys(range(len(source.header)), pa.string()), [], on_bytes)


def _slow_cells(source: CsvFile, on_bytes: OnBytes) -> Batches:
    rows = source.data_rows(on_bytes)
    width = len(source.header)
    while batch := list(islice(rows, max(1, BATCH_CELLS // width))):
        for line, row in batch:
            if len(row) != width:
                found = f"found {len(row)} cells, allowed: {width}, as in the first row{source.other_separator(row)}"
                raise TableError(f"{source.path}: line {line}: {found}")
        yield [pa.array(cells, pa.string()) for cells in zip(*(row for _, row in batch), strict=True)]


def _require_number(source: CsvFile, column: Column, by_default: bool) -> None:
    """Raise TableError for a target that is no number."""
    statistics = column.statistics
    if statistics.texts or not statistics.numbers:
        texts = ", ".join(repr(text) for text, _ in frequent(statistics.text_values, 3))
        signs = units(statistics.text_values.counts)
        what = f"numbers with {signs}" if signs else "text"
        found = f"found {what}, such as {texts}, in {statistics.texts} rows" if texts else "found no value"
        default = " (the last, which is the target by default)" if by_default else ""
        where = f"{source.path}: column {column.name!r}{default}"
        raise TableError(f"{where}: {found}, allowed: numbers, or another column by --target NAME")
