"""The cells of Arrow's columns: as numbers, or as the texts that the kinds of columns take for such values."""

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from truefit.data.columns.base import text_of

ALLOWED_TYPES = "integers, floats, decimals, booleans, strings, dates and times of a date"

_STRINGS = pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view
_NUMBERS = pa.types.is_integer, pa.types.is_floating, pa.types.is_null
_DATES = pa.types.is_date, pa.types.is_timestamp


def kind_of(kind: pa.DataType) -> str | None:
    """Return the kind of column that a type is, or None for one that none can be; text and null may be any."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_boolean(kind):
        return "boolean"
    if is_date(kind):
        return "date"
    known = is_number(kind) or pa.types.is_decimal(kind) or any(check(kind) for check in _STRINGS)
    return "number" if known else None


def is_date(kind: pa.DataType) -> bool:
    """Return whether a type is that of dates, with or without a time."""
    return any(check(kind) for check in _DATES)


def is_number(kind: pa.DataType) -> bool:
    """Return whether numbers of a type are float64 without a look at their texts, but for integers that are too large."""
    return any(check(kind) for check in _NUMBERS)


def as_numbers(column: pa.Array) -> pa.Array:
    """Return the numbers [B] as float64, nan for null."""
    numbers = column.cast(pa.float64(), safe=False)
    return numbers.fill_null(np.nan) if numbers.null_count else numbers


def as_texts(column: pa.Array) -> pa.Array:
    """Return the texts [B] of cells, null for nan, as `text_of` has them: times in UTC and to the microsecond."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    if pa.types.is_floating(kind):
        return _float_texts(column)
    if pa.types.is_boolean(kind):
        return pyarrow.compute.if_else(column, "True", "False")
    if pa.types.is_timestamp(kind):
        return _time_texts(column)
    # A date64 is a date32 in milliseconds.
    return (column.cast(pa.date32()) if pa.types.is_date64(kind) else column).cast(pa.string())


def value_reader(kind: pa.DataType) -> Callable[[str], Any] | None:
    """Return what makes the value of a text that `as_texts` gave for a number or a truth value, or None for another type."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    readers: list[tuple[Callable[[pa.DataType], bool], Callable[[str], Any]]] = [
        (pa.types.is_boolean, lambda text: text == "True"),
        (pa.types.is_integer, int),
        (pa.types.is_floating, float),
        (pa.types.is_decimal, Decimal),
    ]
    return next((read for check, read in readers if check(kind)), None)


def _float_texts(column: pa.Array) -> pa.Array:
    coded = column.cast(pa.float64()).dictionary_encode()
    texts = [None if number is None or number != number else text_of(number) for number in coded.dictionary.to_pylist()]
    return pa.array(texts, pa.string()).take(coded.indices)


def _time_texts(column: pa.Array) -> pa.Array:
    zone = None if column.type.tz is None else "UTC"
    texts = column.cast(pa.timestamp("us", zone), safe=False).cast(pa.string())
    texts = pyarrow.compute.replace_substring(texts, ".000000", "")
    return pyarrow.compute.replace_substring(texts, "Z", "+00:00") if zone else texts
