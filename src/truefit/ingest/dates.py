"""The ways to write a date that `truefit inspect` knows: ISO 8601, and others by their strptime format."""

from dataclasses import dataclass
from itertools import product

import pyarrow as pa
import pyarrow.compute

from truefit.data.columns.date import Date

_PATTERNS = {
    "%Y": "[0-9]{4}",
    "%y": "[0-9]{2}",
    "%m": "(?:0?[1-9]|1[0-2])",
    "%d": "(?:0?[1-9]|[12][0-9]|3[01])",
    "%H": "(?:[01]?[0-9]|2[0-3])",
    "%M": "[0-5][0-9]",
    "%S": "[0-5][0-9]",
}
_ZONE = r"(?:Z|[+-][0-9]{2}:?[0-9]{2})?"
_TIME = "(?:[01][0-9]|2[0-3]):[0-5][0-9]"
_ISO = rf"[0-9]{{4}}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01])(?:[T ]{_TIME}(?::[0-5][0-9](?:\.[0-9]+)?)?{_ZONE})?"
# The order is that of preference, where several fit.
_DAYS = ("%Y/%m/%d", "%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%m-%d-%Y", "%d.%m.%y", "%d/%m/%y", "%m/%d/%y")
_TIMES = ("", " %H:%M", " %H:%M:%S")


@dataclass(frozen=True)
class DateFormat:
    """A way to write a date: a strptime `format`, or none for ISO 8601, and the regular expression of such texts."""

    format: str | None
    pattern: str

    def all_are(self, texts: pa.Array) -> bool:
        """Say whether all texts are such dates, which is what the kind says; the expression tells most others sooner."""
        if not pyarrow.compute.all(pyarrow.compute.match_substring_regex(texts, f"^{self.pattern}$")).as_py():
            return False
        _, bad = Date(name="", format=self.format).parse(texts)
        return not bad.any()

    @property
    def setting(self) -> str | dict[str, str]:
        """The kind at `prepare.columns`."""
        return "date" if self.format is None else {"kind": "date", "format": self.format}


def _other(form: str) -> DateFormat:
    pattern = form.replace(".", r"\.")
    for directive, text in _PATTERNS.items():
        pattern = pattern.replace(directive, text)
    return DateFormat(form, pattern)


DATES = (DateFormat(None, _ISO), *(_other(day + time) for day, time in product(_DAYS, _TIMES)))
