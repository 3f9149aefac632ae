"""Dates and times: the calendar's parts, which carry what comes round, and the days since the first, for what goes on."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute
from pydantic import field_validator
from pydantic_core import PydanticCustomError

from truefit.data.columns.base import Array, Column, Learner, Parsed, to_numpy

DAY, STEP = 86_400_000_000, 1_000_000 // 64  # microseconds
_YEAR = r"(?:[1-9]\d{3}|0[1-9]\d\d|00[1-9]\d|000[1-9])"  # of Python's dates, which have no year 0
_ISO = rf"^{_YEAR}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d{{1,6}})?)?(Z|[+-]\d\d:?\d\d)?)?$"
_DIRECTIVES = "YymdHMSjbB"  # of `strptime`, that a format may have
_PARTS = ("year", "month", "day", "weekday", "day_of_year")


class Date(Column):
    """A date, perhaps with a time: days since 1970-01-01 and seconds of the day; with an offset from UTC, those in UTC.

    Seconds are rounded down to their 64ths, each of which float32 holds: 23:59:59.999 is not to become 24:00.

    It is written as in ISO 8601, or by a `format` of strptime's directives. `first` is the training rows' first day, and
    `times` says whether any of them had a time.
    """

    kind: Literal["date"] = "date"
    format: str | None = None
    first: float = 0.0
    times: bool = False

    stored: ClassVar[int] = 2
    options: ClassVar[tuple[str, ...]] = ("format",)
    mlflow_type: ClassVar[str] = "datetime"

    @field_validator("format")
    @classmethod
    def _is_a_format(cls, value: str | None) -> str | None:
        directives = re.findall("%(.?)", "%Y%m%d" if value is None else value, re.DOTALL)
        different = set(directives)
        if different - set(_DIRECTIVES) or not different & {"Y", "y"} or len(different) < len(directives):
            allowed = f"a format with a year, and of %{' %'.join(_DIRECTIVES)} each once at most, such as '%d/%m/%Y'"
            raise PydanticCustomError("format", "Input should be {allowed}", {"allowed": allowed})
        return value

    @property
    def allowed(self) -> str:  # type: ignore[override]
        """What a cell holds, in words."""
        return f"a date like {self.format}" if self.format else "a date such as 2026-01-31 or 2026-01-31 23:59:00"

    def example(self, mean: float, std: float) -> list[Any]:
        """Return the first day, and those a year and two later."""
        days = [datetime(1970, 1, 1) + timedelta(days=self.first + days) for days in (0, 365, 730)]
        return [day.strftime(self.format) for day in days] if self.format else days

    @property
    def values(self) -> list[str]:
        """The column and the part, for each part."""
        parts = [*_PARTS, "hour", "days"] if self.times else [*_PARTS, "days"]
        return [f"{self.name}.{part}" for part in parts]

    def parse(self, texts: pa.Array) -> Parsed:
        """Return the day and the second of each text."""
        moments = _moments(texts, self.format)
        missing = to_numpy(moments.is_null())
        micros = to_numpy(moments.fill_null(0))
        days = micros // DAY
        numbers = np.stack([days, (micros - days * DAY) // STEP / 64], axis=1).astype(np.float64)
        numbers[missing] = np.nan
        return numbers, missing & ~to_numpy(texts.is_null())

    @property
    def of_datetimes(self) -> "Date":
        """The same column, which parses ISO 8601."""
        return self.model_copy(update={"format": None})

    def learner(self, fills: bool) -> Learner:
        """Return what learns the first day, and whether there are times."""
        return _Dates(self, fills)

    def encode_values(self, stored: Array, out: Array) -> None:
        """Write the parts of the calendar, and the days since the first training row's."""
        whole = stored[:, 0].astype(np.int64)
        days = whole.astype("datetime64[D]")
        months, years = days.astype("datetime64[M]"), days.astype("datetime64[Y]")
        parts = [
            years.astype(np.int64) + 1970,
            months.astype(np.int64) % 12 + 1,
            (days - months.astype("datetime64[D]")).astype(np.int64) + 1,
            (whole + 3) % 7,  # Monday is 0, and 1970 began on a Thursday
            (days - years.astype("datetime64[D]")).astype(np.int64) + 1,
        ]
        if self.times:
            parts.append(stored[:, 1] // 3600)
        parts.append(stored[:, 0].astype(np.float64) - self.first + stored[:, 1].astype(np.float64) / 86_400)
        for place, part in enumerate(parts):
            out[:, place] = part


class _Dates(Learner):
    def __init__(self, column: Column, fills: bool) -> None:
        super().__init__(column, fills)
        self.learns = True
        self._first, self._times = np.inf, False

    def add(self, parsed: Array, every: int = 1) -> None:
        """Take training rows' days and seconds."""
        super().add(parsed, every)
        self._first = float(np.fmin.reduce(parsed[:, 0], initial=self._first))
        self._times = self._times or bool((parsed[:, 1] > 0).any())

    def learned(self) -> dict[str, Any]:
        """Return the first day, and whether there are times."""
        if self._first == np.inf:
            raise ValueError("no value in the training rows")
        return super().learned() | {"first": self._first, "times": self._times}

    def typical(self, known: Array) -> list[float]:
        """Return the day and the second of the moment in the middle, or of the earlier of two such."""
        # One of the moments: medians of days and of seconds apart may be the parts of no moment.
        middle = (len(known) - 1) // 2
        moment: list[float] = known[np.argpartition(known @ (DAY // 1_000_000, 1), middle)[middle]].tolist()
        return moment


def _moments(texts: pa.Array, form: str | None) -> pa.Array:
    """Return the microseconds since 1970 that the texts say, in UTC, and null for what is no date."""
    if form is not None:  # by Python, since C's strptime takes the 31st of June for the 1st of July
        return _one_by_one(texts, lambda text: datetime.strptime(text, form))
    shaped = pyarrow.compute.match_substring_regex(texts, _ISO)
    texts = pyarrow.compute.if_else(shaped, texts, pa.scalar(None, pa.string()))
    # With an offset for all, or with none; what has both, or holds a 31st of June, is taken one by one.
    for kind in (pa.timestamp("us"), pa.timestamp("us", "UTC")):
        try:
            return texts.cast(kind).cast(pa.int64())
        except pa.ArrowInvalid:
            continue
    return _one_by_one(texts, datetime.fromisoformat)


def _one_by_one(texts: pa.Array, read: Callable[[str], datetime]) -> pa.Array:
    coded = texts.dictionary_encode()
    moments = pa.array([None if text is None else _moment(text, read) for text in coded.dictionary.to_pylist()], pa.int64())
    return moments.take(coded.indices)


def _moment(text: str, read: Callable[[str], datetime]) -> int | None:
    try:
        moment = read(text)
    except ValueError:
        return None
    since = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - datetime(1970, 1, 1, tzinfo=UTC)
    return since // timedelta(microseconds=1)
