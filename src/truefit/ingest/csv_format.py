"""How a CSV is written: the settings at `prepare.format`, and the numbers that they allow."""

import codecs
from functools import cached_property
from typing import Literal, Self

from pydantic import Field, model_validator

from truefit.core.config import Settings, invalid_value
from truefit.data.number_text import NumberText

MISSING = ["", "NA", "N/A", "NaN", "nan", "null", "NULL", "?"]  # by default
Separator = Literal[",", ";", "\t", "|", " "]


class FormatSettings(Settings):
    """How a CSV is written. The separator " " is any run of spaces and tabs, also around a line."""

    separator: Separator = ","
    decimal: Literal[".", ","] = "."
    thousands: Literal[",", ".", " ", "'"] | None = None
    encoding: str = "utf-8"
    header: bool = True
    comment: str | None = Field(None, min_length=1)
    missing: list[str] = Field(MISSING)

    @model_validator(mode="after")
    def _can_be_read(self) -> Self:
        # A thousands sign may be the separator, in quoted cells.
        if self.decimal == self.separator:
            raise invalid_value("decimal", self.decimal, "another character than format.separator")
        if self.decimal == self.thousands:
            raise invalid_value("thousands", self.thousands, "another character than format.decimal")
        try:
            codecs.lookup(self.encoding)
            "".encode(self.encoding)  # which base64, for one, refuses
        except (LookupError, UnicodeError):
            allowed = "an encoding that Python knows, such as utf-8, latin-1, cp1252 or utf-16"
            raise invalid_value("encoding", self.encoding, allowed) from None
        if self.comment and set(self.comment) & set('"\r\n'):
            raise invalid_value("comment", self.comment, "text without quotes and line breaks, such as '#'")
        return self

    @cached_property
    def is_utf8(self) -> bool:
        """Whether the CSV is in UTF-8 already."""
        return codecs.lookup(self.encoding).name in ("utf-8", "utf-8-sig")

    @cached_property
    def keeps_ascii(self) -> bool:
        """Whether each byte of ASCII stands for its character, so that lines and cells can be cut without decoding."""
        ascii_text = "".join(map(chr, range(128)))
        return self.is_utf8 or ascii_text.encode(self.encoding, "replace") == ascii_text.encode()

    @cached_property
    def row_encoding(self) -> str:
        """The encoding in which a row's text can be put together from pieces."""
        return "utf-8" if self.is_utf8 or not self.keeps_ascii else self.encoding

    @cached_property
    def missing_numbers(self) -> list[float]:
        """The numbers that stand for a missing value, however they are written."""
        return self.number_text.among(self.missing)

    @property
    def number(self) -> str:
        """The regular expression of a number; its group 1 holds the digits."""
        return self.number_text.pattern

    def plain(self, number: str) -> str:
        """Return a number's text as Python and pyarrow write it, with a point and without a sign for thousands.

        >>> FormatSettings(separator=";", decimal=",", thousands=".").plain("1.234,5")
        '1234.5'
        """
        return self.number_text.plain(number)

    @cached_property
    def number_text(self) -> NumberText:
        """The texts that are numbers."""
        return NumberText(self.decimal, self.thousands)

    def number_of(self, cell: str) -> float | None:
        """Return the number that a cell says, or None where it stands for a missing value."""
        if cell.strip(" \t") in self.missing:
            return None
        number = float(self.plain(cell))
        return None if number in self.missing_numbers else number
