"""A CSV met for the first time: its format, its rows counted, and what each column is."""

import re
from collections import Counter
from collections.abc import Collection, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from tqdm import tqdm

from truefit.core.errors import TableError
from truefit.ingest.column_statistics import ColumnStatistics, Missing, frequent, least_and_greatest, most_distinct
from truefit.ingest.csv_batches import _Feed, _record_batches
from truefit.ingest.csv_check import missing_column, read_header, require_usable
from truefit.ingest.csv_file import CsvFile, OnBytes
from truefit.ingest.csv_format import FormatSettings
from truefit.ingest.sniff import MISSING, MORE_MISSING, sniff

BATCH_CELLS = 1 << 18  # of the rows that Python's reader gives at a time
MOST_PASSES = 4  # over the file: one, and another where it finds another encoding, or more texts for missing values
MOSTLY = 0.9  # the share of numbers from which on a column is one of numbers …
MOST_OTHERS = 3  # … where so many texts at most are among them, which then stand for missing values
NEARLY_TARGET = 0.999  # correlation
SKEWED = 2.0
FEW = 5  # texts that make a category however few the rows are
SENTINEL_SHARE, SENTINEL_TIMES = 0.01, 3

_WORDS = ({"true", "false"}, {"yes", "no"})  # of which one alone tells a boolean
_BOOLEANS = (*_WORDS, {"t", "f"}, {"y", "n"})
_AFFIXES = re.compile(r"([€$£¥]?)\s*[+-]?\d[\d.,' ]*(?:[eE][+-]?\d+)?\s*(%|[^\W\d_][\w/²³°.]{0,9})?")
_ID_NAME = re.compile(r"(?i)(?:.*[_ .-])?(?:id|no|nr|num|number|index|idx|row|rownames|obs|key|sno)|.*[a-z]Id|unnamed.*|#")


Batches = Generator[list[pa.Array], None, None]


@dataclass
class Column:
    """What is known of a column, what is to become of it, and what is remarked.

    `setting` is its kind at `prepare.columns`, where that is no number; `left_out` says why it is to be no feature.
    """

    name: str
    statistics: ColumnStatistics
    kind: str = "number"
    setting: Any = None
    left_out: str | None = None
    remarks: list[str] = field(default_factory=list)

    @property
    def distinct(self) -> int:
        """The number of values, up to a bound."""
        return len(self.statistics.number_values.counts) + len(self.statistics.text_values.counts)

    @property
    def more_distinct(self) -> bool:
        """Whether there are more than that."""
        return self.statistics.number_values.more or self.statistics.text_values.more

    @property
    def present(self) -> int:
        """The number of cells that are not missing."""
        return self.statistics.numbers + self.statistics.texts


@dataclass
class Inspection:
    """What was found in a CSV; `why` has the reasons by the keys of `prepare.format`, and of `missing` and `target`."""

    path: Path
    form: FormatSettings
    missing: list[str]
    why: dict[str, str]
    rows: int
    columns: list[Column]
    target: Column

    @property
    def features(self) -> list[Column]:
        """The columns that are to be features."""
        return [column for column in self.columns if column is not self.target and column.left_out is None]


def inspect(path: Path, target: str | None = None) -> Inspection:
    """Return what is found in a CSV, whose target is the last column with a name by default.

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
        more = _more_missing(used) or _sentinels(used)
        if not more.keys() - set(missing) or passes >= MOST_PASSES:
            break
        missing += more
        why_missing = "; ".join([*filter(None, [why_missing]), *(f"{text!r} {reason}" for text, reason in more.items())])
    place, named = source.header.index(chosen), Counter(source.header)
    _require_number(source, columns[place], target is None)
    for column in columns:
        _judge(column, columns[place], named[column.name])
    why |= {"missing": why_missing or "as by default", "target": "the last column" if target is None else "as asked for"}
    found = Inspection(path, form, missing, why, statistics[place].rows, columns, columns[place])
    if not found.features:
        reasons = "; ".join(f"{column.name!r}: {column.left_out}" for column in columns if column.left_out)
        raise TableError(f"{path}: found no column for a feature ({reasons}), allowed: at least one")
    return found


def shown(names: list[str], most: int = 3) -> str:
    """Return the first names as text."""
    return ", ".join(names[:most]) + ", …" * (len(names) > most)


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
    """Give the cells of each column [columns][B], batch by batch; raises pa.ArrowInvalid where it takes Python's reader."""
    types = {str(place): pa.string() for place in range(len(source.header))}
    with source.content(on_bytes) as stream:
        for batch in _record_batches(_Feed(source.blocks(stream)), source, types):
            if batch.num_rows:
                yield batch.columns


def _slow_cells(source: CsvFile, on_bytes: OnBytes) -> Batches:
    rows = source.data_rows(on_bytes)
    width = len(source.header)
    while batch := list(islice(rows, max(1, BATCH_CELLS // width))):
        for line, row in batch:
            if len(row) != width:
                found = f"found {len(row)} cells, allowed: {width}, as in the first row{source.other_separator(row)}"
                raise TableError(f"{source.path}: line {line}: {found}")
        yield [pa.array(cells, pa.string()) for cells in zip(*(row for _, row in batch), strict=True)]


def _more_missing(columns: Iterable[Column]) -> dict[str, str]:
    """Return texts among numbers that must stand for missing values, each with the reason."""
    found = dict[str, str]()
    for column in columns:
        texts, share = column.statistics.text_values.counts, column.statistics.numbers / max(1, column.present)
        known = share >= 0.5 and texts.keys() <= set(MORE_MISSING)
        few = share >= MOSTLY and len(texts) <= MOST_OTHERS and not any(re.search(r"\d", text) for text in texts)
        if texts and (known or few):
            found |= {text: f"is among the numbers of {column.name!r}, {count} times" for text, count in texts.items()}
    return found


def _sentinels(columns: list[Column]) -> dict[str, str]:
    """Return numbers that must stand for missing values: far outside the rest, whole and repeated; none that others hold."""
    numeric = [column for column in columns if column.statistics.numbers]
    ranges = [least_and_greatest(column.statistics) for column in numeric]
    found = dict[str, str]()
    for column, (least, greatest) in zip(numeric, ranges, strict=True):
        statistics = column.statistics
        for end, other in ((statistics.lowest, greatest), (statistics.highest, least)):
            value, *rest = end
            far = rest and abs(value - rest[0]) > abs(rest[0] - other) and len(statistics.number_values.counts) > FEW
            if not far or not _looks_made_up(value) or any(low < value < high for low, high in ranges):
                continue
            # In other columns it may be less far off.
            times = {one.name: one.statistics.lowest.get(value) or one.statistics.highest.get(value, 0) for one in numeric}
            total = sum(times.values())
            if total >= SENTINEL_TIMES or (total > 1 and total >= SENTINEL_SHARE * statistics.rows):
                names = [repr(name) for name, count in times.items() if count]
                found[f"{value:.0f}"] = f"is far outside the rest of {shown(names)}, {total} times"
    return found


def _looks_made_up(value: float) -> bool:
    return value.is_integer() and (value < -1 or set(f"{value:.0f}") == {"9"})


def _require_number(source: CsvFile, column: Column, by_default: bool) -> None:
    """Raise TableError for a target that is no number."""
    statistics = column.statistics
    if statistics.texts or not statistics.numbers:
        texts = ", ".join(repr(text) for text, _ in frequent(statistics.text_values, 3))
        units = _units(statistics.text_values.counts)
        what = f"numbers with {units}" if units else "text"
        found = f"found {what}, such as {texts}, in {statistics.texts} rows" if texts else "found no value"
        default = " (the last, which is the target by default)" if by_default else ""
        where = f"{source.path}: column {column.name!r}{default}"
        raise TableError(f"{where}: {found}, allowed: numbers, or another column by --target NAME")


def _judge(column: Column, target: Column, named: int) -> None:
    """Find the column's kind, whether it is to be a feature, and remarks."""
    statistics, present = column.statistics, column.present
    if statistics.texts:
        _judge_texts(column)
    if column is target:
        column.remarks.append("the target")
    elif not column.name:
        column.left_out = "no name"
    elif named > 1:
        column.left_out = f"the name of {named} columns"
    elif not present:
        column.kind, column.left_out = "empty", "no value"
    elif column.distinct == 1 and not statistics.missing:
        column.left_out = "constant"
    elif statistics.consecutive and statistics.rows > 2:
        strong = abs(statistics.moments.correlation) > 0.5
        if _ID_NAME.fullmatch(column.name) or (statistics.rows >= 100 and not strong):
            column.left_out = "a row number: each is 1 more than the one before"
        else:
            column.remarks.append("each number is 1 more than the one before: exclude it if it is a row number")
    elif (
        statistics.integers and _ID_NAME.fullmatch(column.name) and (column.more_distinct or column.distinct == column.present)
    ):
        column.remarks.append("an id by its name: exclude it if it is one")
    if column.kind == "number":
        _remark_numbers(column, column is target)


def _remark_numbers(column: Column, is_target: bool) -> None:
    moments = column.statistics.moments
    if not is_target and abs(moments.correlation) > NEARLY_TARGET:
        column.remarks.append(
            f"nearly the target itself, correlation {moments.correlation:.4f}: exclude it if it is not known beforehand"
        )
    if abs(moments.skewness) > SKEWED:
        column.remarks.append(f"skewed, skewness {moments.skewness:.1f}")
    if is_target and moments.skewness > SKEWED and least_and_greatest(column.statistics)[0] > 0:
        column.remarks.append("train.scale.target: log is worth a try")


def _units(texts: Collection[str]) -> str:
    """Return what stands before or behind the numbers that most of the texts are, or an empty string."""
    parts = [[part for part in found.groups() if part] for text in texts if (found := _AFFIXES.fullmatch(text.strip()))]
    signs = Counter(part for found in parts for part in found)
    return shown([repr(sign) for sign, _ in signs.most_common()]) if 2 * sum(map(bool, parts)) > len(texts) else ""


def _judge_texts(column: Column) -> None:
    statistics = column.statistics
    values, texts = statistics.text_values, statistics.text_values.counts
    folded = {text.casefold() for text in texts}
    if not statistics.numbers and any(folded <= pair and (len(folded) > 1 or pair in _WORDS) for pair in _BOOLEANS):
        column.kind = column.setting = "boolean"
    elif not statistics.numbers and statistics.dates:
        column.kind, column.setting = "date", statistics.dates[0].setting
        if others := [date.format for date in statistics.dates[1:]]:
            column.remarks.append(f"no date tells its format from {', '.join(map(str, others))}")
    else:
        column.kind = column.setting = "category"
        if units := _units(texts):
            column.remarks.append(f"numbers with {units}: without that text it would be a number")
        elif statistics.numbers:
            column.remarks.append(f"{statistics.numbers} cells are numbers, {statistics.texts} text")
        # Until there were too many, nearly each row had another value; or so in all rows.
        rows = values.rows if values.more else column.present
        if column.distinct > max(FEW, rows / 2):
            column.left_out = "nearly each row has another text"
        elif column.more_distinct or column.distinct > 100:
            column.remarks.append("of its texts the 100 most frequent are told apart")
