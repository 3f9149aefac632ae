"""What a column is by its statistics: its kind, whether it is left out, what is odd, and what stands for missing values."""

import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from truefit.data.columns.date import Date
from truefit.ingest.column_statistics import ColumnStatistics, frequent, least_and_greatest
from truefit.ingest.csv_numbers import LARGEST
from truefit.ingest.sniff import MORE_MISSING

MOSTLY = 0.9  # the share of numbers from which on a column is one of numbers …
MOST_OTHERS = 3  # … where so many texts at most are among them, which then stand for missing values
NEARLY_TARGET = 0.999  # correlation
SKEWED = 2.0
ONE_HOT = 100  # values of a category that are told apart
FEW = 5  # texts that make a category however few the rows are
LARGE_INTEGERS = "integers beyond 2^53, such as ids; as texts they could be a category"
SENTINEL_SHARE, SENTINEL_TIMES = 0.01, 3

_WORDS = ({"true", "false"}, {"yes", "no"})  # of which one alone tells a boolean
_BOOLEANS = (*_WORDS, {"t", "f"}, {"y", "n"})
_AFFIXES = re.compile(r"([€$£¥]?)\s*[+-]?\d[\d.,' ]*(?:[eE][+-]?\d+)?\s*(%|[^\W\d_][\w/²³°.]{0,9})?")
_ID_NAME = re.compile(r"(?i)(?:.*[_ .-])?(?:id|no|nr|num|number|index|idx|row|rownames|obs|key|sno)|.*[a-z]Id|unnamed.*|#")


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


def shown(names: list[str], most: int = 3) -> str:
    """Return the first names as text."""
    return ", ".join(names[:most]) + ", …" * (len(names) > most)


def texts_for_missing(columns: Iterable[Column]) -> dict[str, str]:
    """Return texts among numbers that must stand for missing values, each with the reason."""
    found = dict[str, str]()
    for column in columns:
        texts, share = column.statistics.text_values.counts, column.statistics.numbers / max(1, column.present)
        known = share >= 0.5 and texts.keys() <= set(MORE_MISSING)
        few = share >= MOSTLY and len(texts) <= MOST_OTHERS and not any(re.search(r"\d", text) for text in texts)
        if texts and (known or few):
            found |= {text: f"is among the numbers of {column.name!r}, {count} times" for text, count in texts.items()}
    return found


def sentinels(columns: list[Column]) -> dict[str, str]:
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


def judge(column: Column, target: Column, named: int, role: str | None) -> None:
    """Find the column's kind, whether it is to be a feature, and remarks."""
    statistics, present = column.statistics, column.present
    if statistics.texts:
        _judge_texts(column)
    if column is target:
        column.remarks.append("the target")
    elif role:
        column.left_out = role
    elif not column.name:
        column.left_out = "no name"
    elif named > 1:
        column.left_out = f"the name of {named} columns"
    elif not present:
        column.kind, column.left_out = "empty", "no value"
    elif statistics.large_integers:
        column.left_out = LARGE_INTEGERS
    elif not statistics.texts and _size(statistics) > LARGEST:
        column.left_out = f"numbers beyond {LARGEST:g}, which stage prepare refuses"
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


def _size(statistics: ColumnStatistics) -> float:
    least, greatest = least_and_greatest(statistics)
    return max(-least, greatest)


def _remark_numbers(column: Column, is_target: bool) -> None:
    moments = column.statistics.moments
    if not is_target and abs(moments.correlation) > NEARLY_TARGET:
        column.remarks.append(
            f"nearly the target itself, correlation {moments.correlation:.4f}: exclude it if it is not known beforehand"
        )
    if abs(moments.skewness) > SKEWED:
        column.remarks.append(f"skewed, skewness {moments.skewness:.1f}")
    if not is_target and column.statistics.integers and _are_days(column.statistics.number_values.counts):
        column.remarks.append("dates written without separators? {kind: date, format: '%Y%m%d'} at prepare.columns reads them")
    if is_target and moments.skewness > SKEWED and least_and_greatest(column.statistics)[0] > 0:
        column.remarks.append("train.scale.target: log is worth a try")


def _are_days(numbers: Collection[float]) -> bool:
    """Say whether numbers, of which there are several, are days written as 20240131."""
    texts = [f"{number:.0f}" for number in numbers]
    if len(texts) <= FEW or any(len(text) != 8 or not "1900" <= text[:4] < "2100" for text in texts):
        return False
    return not Date(name="", format="%Y%m%d").parse(pa.array(texts, pa.string()))[1].any()


def units(texts: Collection[str]) -> str:
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
        if signs := units(texts):
            column.remarks.append(f"numbers with {signs}: without that text it would be a number")
        elif statistics.numbers:
            column.remarks.append(f"{statistics.numbers} cells are numbers, {statistics.texts} text")
        # Until there were too many, nearly each row had another value; or so in all rows.
        rows = values.rows if values.more else column.present
        many = column.more_distinct or column.distinct > ONE_HOT
        if many and statistics.numbers > statistics.texts:
            column.left_out = "text among numbers, such as " + shown([repr(text) for text, _ in frequent(values, 3)])
        elif column.distinct > max(FEW, rows / 2):
            column.left_out = "nearly each row has another text"
        elif many:
            column.remarks.append(f"of its texts the {ONE_HOT} most frequent are told apart")
