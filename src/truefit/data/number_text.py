"""How a number is written in a text: with which decimal sign, and perhaps with one for thousands."""

import re
from collections.abc import Iterable
from functools import cached_property


class NumberText:
    """The texts that are numbers, by the signs of a CSV's format.

    >>> NumberText(",", ".").number("1.234,5"), NumberText(",", ".").number("1,234.5")
    (1234.5, None)
    """

    def __init__(self, decimal: str = ".", thousands: str | None = None) -> None:
        self._decimal, self._thousands = decimal, thousands

    @cached_property
    def pattern(self) -> str:
        """The regular expression of a number, also with blanks around it; its group 1 holds the digits."""
        point, digits = re.escape(self._decimal), "[0-9]+"
        if self._thousands:
            digits = f"(?:[0-9]{{1,3}}(?:{re.escape(self._thousands)}[0-9]{{3}})+|[0-9]+)"
        return rf"[ \t]*[+-]?({digits}(?:{point}[0-9]*)?|{point}[0-9]+)(?:[eE][+-]?[0-9]+)?[ \t]*"

    def plain(self, number: str) -> str:
        """Return a number's text as Python and pyarrow write it, with a point and without a sign for thousands."""
        return (number.replace(self._thousands, "") if self._thousands else number).replace(self._decimal, ".")

    def among(self, texts: Iterable[str]) -> list[float]:
        """Return the numbers among some texts."""
        return [number for text in texts if (number := self.number(text)) is not None]

    def number(self, text: str) -> float | None:
        """Return the number that a text says, or None for another text."""
        return float(self.plain(text)) if re.fullmatch(self.pattern, text) else None
