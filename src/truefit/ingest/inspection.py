"""A table met for the first time: a CSV's format, the rows counted, and what each column is."""

from collections import Counter
from collections.abc import Collection, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

import pyarrow as pa
from tqdm import tqdm

from truefit.core.errors import TableError
from truefit.ingest.cells import OnRead
from truefit.ingest.column_kinds import Column, judge, sentinels, texts_for_missing, units
from truefit.ingest.column_statistics import ColumnStatistics, Missing, frequent, least_and_greatest, most_distinct
from truefit.ingest.containers import is_parquet
from truefit.ingest.csv_arrow import arrow_cells
from truefit.ingest.csv_check import missing_column, require_usable
from truefit.ingest.csv_file import CsvFile
from truefit.ingest.csv_format import MISSING, FormatSettings
from truefit.ingest.csv_numbers import LARGEST
from truefit.ingest.parquet_cells import as_texts, kind_of
from truefit.ingest.parquet_file import ParquetFile
from truefit.ingest.part_files import ALL, part_paths
from truefit.ingest.sniff import sniff
from truefit.ingest.table_source import Part, TableSource

BATCH_CELLS = 1 << 18  # of the rows that Python's reader gives at a time
MOST_PASSES = 4  # over the file: one, and another where it finds another encoding, or more texts for missing values

_PARQUET = dict.fromkeys(FormatSettings.model_fields, "Parquet has none")

Batches = Generator[list[pa.Array], None, None]


@dataclass
class Inspection:
    """What was found in a table; `why` has the reasons by the keys of `prepare.format`, and of `missing` and `target`.

    `parts` are the names of those that were read of a folder. `roles` are the columns that are in use for something else
    than features, and for what.
    """

    path: Path
    parts: str
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


def inspect(path: Path, target: str | None = None, roles: dict[str, str] | None = None, names: str = ALL) -> Inspection:
    """Return what is found in a table, whose target is the last column with a name, and without another role, by default.

    `roles` says of columns by their names what else they are used for than as features. Of a folder, the parts with such
    `names` are read.

    Memory is bounded. Raises TableError for a file that is no table, and for a target that is not there or no number.
    """
    names = names if path.is_dir() else ALL
    missing, not_in, why_missing = list(MISSING), list[str](), ""
    for passes in count(1):
        first = part_paths(path, names)[0]
        form, why = (FormatSettings(), _PARQUET) if is_parquet(first) else sniff(first, not_in)
        with TableSource(path, names, form) as source:
            header = source.first.header
            used_otherwise = _index(source.first) | (roles or {})
            chosen = _target(source.first, target, used_otherwise)
            try:
                statistics = _count(source, missing, chosen)
            except UnicodeError:
                not_in.append(form.encoding)
                continue
        columns = [Column(name, found) for name, found in zip(header, statistics, strict=True)]
        used = [column for column in columns if column.name]
        more = texts_for_missing(used) or sentinels(used)
        if not more.keys() - set(missing) or passes >= MOST_PASSES:
            break
        missing += more
        why_missing = "; ".join([*filter(None, [why_missing]), *(f"{text!r} {reason}" for text, reason in more.items())])
    place, named = header.index(chosen), Counter(header)
    _require_number(path, columns[place], target is None)
    for column in columns:
        role = used_otherwise.get(column.name) or _unusable(source.first, column.name)
        judge(column, columns[place], named[column.name], role)
    why |= {"missing": why_missing or "as by default", "target": _why_target(target, used_otherwise)}
    found = Inspection(path, names, form, missing, why, statistics[place].rows, columns, columns[place], roles or {})
    if not found.features:
        left_out = [column for column in columns if column.left_out]
        reasons = "; ".join(f"{column.name!r}: {', '.join([column.left_out or '', *column.remarks])}" for column in left_out)
        raise TableError(f"{path}: found no column for a feature ({reasons}), allowed: at least one")
    return found


def _unusable(source: Part, name: str) -> str | None:
    """Return why a column's type leaves no kind to it, or None."""
    if not name or not isinstance(source, ParquetFile) or kind_of(source.type(name)) is not None:
        return None
    return f"no kind is of its type {source.type(name)}"


def _index(source: Part) -> dict[str, str]:
    """Return the columns that pandas wrote as its index, as roles."""
    return dict.fromkeys(source.index, "the index, by pandas") if isinstance(source, ParquetFile) else {}


def _why_target(target: str | None, used_otherwise: dict[str, str]) -> str:
    if target is not None:
        return "as asked for"
    return "the last column that is used for nothing else" if used_otherwise else "the last column"


def _target(source: Part, target: str | None, used_otherwise: Collection[str]) -> str:
    if target is not None and target not in {*source.header} - {""}:
        raise missing_column(source, target, "--target")
    names = [name for name in source.header if name]
    if len(names) < 2:
        found = f"found {len(names) or 'no'} column with a name" + source.other_separator(source.header)
        raise TableError(f"{source.header_place}: {found}, allowed: a target and at least one feature")
    free = [name for name in names if name not in used_otherwise]
    if target is None and not free:
        shown = ", ".join(map(repr, names))
        raise TableError(
            f"{source.header_place}: found no column for the target but {shown}, which are used for something else"
        )
    chosen = free[-1] if target is None else target
    require_usable(source, {chosen})
    return chosen


def _count(source: TableSource, missing: list[str], target: str) -> list[ColumnStatistics]:
    """Return the statistics of all columns; raises UnicodeError for bytes that are not in the format's encoding."""
    header, form = source.first.header, source.first.format
    place, most = header.index(target), most_distinct(len(header))
    for csv_cells in (_fast_cells, _slow_cells):
        columns = [ColumnStatistics(form, Missing(missing, form), most) for _ in header]
        size = sum(part.size for part in source.parts)
        with tqdm(total=size, desc="inspect", unit="B", unit_scale=True, disable=None) as bar:
            try:
                for part in source.parts:
                    read = _parquet_cells(part, bar.update) if isinstance(part, ParquetFile) else csv_cells(part, bar.update)
                    with closing(read) as batches:
                        _add_all(columns, batches, place)
            except pa.ArrowInvalid:
                if csv_cells is _slow_cells:
                    raise
                continue
        break
    if not columns[place].rows:
        raise TableError(f"{source.first.header_place}: found no rows below the header, allowed: at least one")
    return columns


def _parquet_cells(source: ParquetFile, on_read: OnRead) -> Batches:
    """Yield the cells of each column [columns][B], batch by batch; those of a type that no kind takes are missing."""
    for batch in source.batches():
        on_read(source.size * batch.num_rows // max(1, source.rows))
        nothing = pa.nulls(batch.num_rows, pa.string())
        yield [(as_texts(cells) if kind_of(cells.type) else nothing).fill_null("") for cells in batch.columns]


def _add_all(columns: list[ColumnStatistics], batches: Iterable[list[pa.Array]], target: int) -> None:
    for cells in batches:
        goal = columns[target].add(cells[target])
        for number, column in enumerate(columns):
            column.moments.add(goal if number == target else column.add(cells[number]), goal)


def _fast_cells(source: CsvFile, on_read: OnRead) -> Batches:
    """Yield the same of a CSV; raises pa.ArrowInvalid where it takes Python's reader."""
    kinds = dict.fromkeys(range(len(source.header)), pa.string())
    yield from arrow_cells(source, kinds, [], lambda content: on_read(len(content)))


def _slow_cells(source: CsvFile, on_read: OnRead) -> Batches:
    rows = source.data_rows(lambda content: on_read(len(content)))
    width = len(source.header)
    while batch := list(islice(rows, max(1, BATCH_CELLS // width))):
        for line, row in batch:
            if len(row) != width:
                found = f"found {len(row)} cells, allowed: {width}, as in the first row{source.other_separator(row)}"
                raise TableError(f"{source.path}: line {line}: {found}")
        yield [pa.array(cells, pa.string()) for cells in zip(*(row for _, row in batch), strict=True)]


def _require_number(path: Path, column: Column, by_default: bool) -> None:
    """Raise TableError for a target that is no number."""
    statistics = column.statistics
    if statistics.texts or not statistics.numbers:
        texts = ", ".join(repr(text) for text, _ in frequent(statistics.text_values, 3))
        signs = units(statistics.text_values.counts)
        what = f"numbers with {signs}" if signs else "integers beyond 2^53" if statistics.large_integers else "text"
        found = f"found {what}, such as {texts}, in {statistics.texts} rows" if texts else "found no value"
        default = " (the last, which is the target by default)" if by_default else ""
        where = f"{path}: column {column.name!r}{default}"
        raise TableError(f"{where}: {found}, allowed: numbers, or another column by --target NAME")
    least, greatest = least_and_greatest(statistics)
    if max(-least, greatest) > LARGEST:
        found = f"found the numbers {least:g} to {greatest:g}"
        raise TableError(
            f"{path}: column {column.name!r}: {found}, allowed: up to {LARGEST:g} in size, or another column by --target NAME"
        )
