"""The cells of a DataFrame as stored numbers: what a value says is taken as `truefit predict` takes it from a CSV."""

import re
from collections.abc import Hashable, Mapping
from datetime import date
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from truefit.data.columns.base import Array, Column
from truefit.data.columns.number import Number
from truefit.data.number_text import NumberText
from truefit.data.table import EXACT

if TYPE_CHECKING:
    import pandas as pd

_EXACT_INTEGER = f"an integer up to 2^53 ({EXACT})"


class CellReader:
    """Reads cells by the format of the CSV that a model was trained on: its texts for missing values and its numbers."""

    def __init__(self, form: Mapping[str, Any]) -> None:
        self._missing = frozenset(form.get("missing", []))
        self._number_text = NumberText(form.get("decimal", "."), form.get("thousands"))
        self._missing_numbers = self._number_text.among(self._missing)

    def stored(self, column: Column, cells: "pd.Series[Any]") -> Array:
        """Return the numbers [N, S] of a column's cells [N], nan for missing ones.

        Raises ValueError, naming the row and the column, for the first cell that is none of the kind.
        """
        if isinstance(column, Number):
            numbers = self._numbers(column, cells)
            return np.where(np.isin(numbers, self._missing_numbers), np.nan, numbers)[:, None]
        values = cells.tolist()
        known = ~cells.isna().to_numpy(bool)
        is_datetime = np.array([isinstance(value, date) for value in values], bool)
        numbers = np.full((len(values), column.stored), np.nan)
        bad = np.zeros(len(values), bool)
        for reader, rows in ((column, known & ~is_datetime), (column.of_datetimes, known & is_datetime)):
            texts = self._texts(column, values, rows)
            numbers[rows], bad[rows] = reader.parse(pa.array(texts, pa.string()))
        for row in np.flatnonzero(bad).tolist():
            raise _refusal(column, cells, row, column.allowed)
        return numbers

    def _texts(self, column: Column, values: list[Any], rows: NDArray[np.bool_]) -> list[str | None]:
        """Return the texts of the values in these rows without blanks around them, and None for missing ones."""
        known: dict[Any, str | None] = {}
        texts = []
        for row in np.flatnonzero(rows).tolist():
            value = values[row]
            key = (type(value), value if isinstance(value, Hashable) else repr(value))
            if key not in known:
                found = (value if isinstance(value, str) else column.text(value)).strip(" \t")
                known[key] = None if found in self._missing else found
            texts.append(known[key])
        return texts

    def _numbers(self, column: Column, cells: "pd.Series[Any]") -> Array:
        if isinstance(cells.dtype, np.dtype) and cells.dtype.kind in "fiu":
            given = cells.to_numpy()
            if cells.dtype.kind != "f":
                for row in np.flatnonzero((given > EXACT) | (given < -EXACT)).tolist():
                    raise _refusal(column, cells, row, _EXACT_INTEGER)
            return given.astype(np.float64)
        numbers = np.full(len(cells), np.nan)
        for row, (value, missing) in enumerate(zip(cells.tolist(), cells.isna().tolist(), strict=True)):
            if missing or (isinstance(value, str) and value.strip(" \t") in self._missing):
                continue
            try:
                numbers[row] = _number(self._said(value) if isinstance(value, str) else value)
            except ValueError as error:
                raise _refusal(column, cells, row, str(error) or column.allowed) from None
        return numbers

    def _said(self, text: str) -> int | float | None:
        """Return what a text says, or None where that is no number."""
        number = self._number_text.number(text)
        if number is None:
            return None
        plain = self._number_text.plain(text).strip(" \t")
        if number == 0 and re.search("[1-9]", re.split("[eE]", plain)[0]):
            raise ValueError("0, or a number that float64 tells from it")
        return int(plain) if plain.lstrip("+-").isdigit() else number


def _number(value: Any) -> float:
    """Return a value as a number; raises ValueError for another, with what is allowed where that is not any number."""
    is_number = isinstance(value, int | float | Decimal | np.number) and not isinstance(value, bool)
    if not is_number:
        raise ValueError
    if isinstance(value, int | np.integer) and abs(int(value)) > EXACT:
        raise ValueError(_EXACT_INTEGER)
    return float(value)


def _refusal(column: Column, cells: "pd.Series[Any]", row: int, allowed: str) -> ValueError:
    found = cells.iloc[row]
    shown = repr(found) if isinstance(found, str) else str(found)
    return ValueError(f"row {cells.index[row]}, column {column.name!r}: found {shown}, allowed: {allowed}")
