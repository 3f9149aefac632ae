"""What a reader of tables is asked for, and what it gives: the cells of columns, in batches of rows."""

from collections.abc import Callable, Generator
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from truefit.data.columns.base import Array, Column, Learner, Parsed
from truefit.data.columns.number import Number
from truefit.data.table import Dtype
from truefit.ingest.csv_faults import CellTexts
from truefit.ingest.source import SourceFile
from truefit.ingest.split_keys import KeyColumn

NONE_BAD = np.empty((0, 0), bool)


class Cells(NamedTuple):
    """One of the CSV's columns: its cells are numbers, or what `parse` makes of their texts, each `stored` as so many."""

    name: str
    parse: Callable[[pa.Array], Parsed] | None = None
    stored: int = 1
    allowed: str = Number.allowed
    takes_missing: bool = False  # as nan; otherwise a missing value is a fault …
    way_out: str = ""  # … and this would let it in
    has_kind: bool = True  # that prepare.columns may say to be another
    least: float | None = None  # that a number may be


def cells_of(column: Column, reader: Column | Learner, takes_missing: bool, way_out: str) -> Cells:
    """Return the cells of a feature's column, whose texts the reader parses, or those of a column of numbers."""
    parse = None if isinstance(column, Number) else reader.parse
    return Cells(column.name, parse, column.stored, column.allowed, takes_missing, way_out)


class Wanted(NamedTuple):
    """The columns whose numbers are to be stored as `dtype`, and the one by which the rows are split, if there is one.

    With `blanks`, a row with bad cells is no error: it is zeros, and marked.
    """

    columns: list[Cells]
    dtype: Dtype
    key: KeyColumn | None = None
    blanks: bool = False

    @property
    def texts(self) -> set[str]:
        """The names of the columns that are read as text."""
        return {cell.name for cell in self.columns if cell.parse} | ({self.key.name} if self.key is not None else set())

    @property
    def types(self) -> dict[str, pa.DataType]:
        """The types, by name, in which a reader that knows numbers is to give the columns: float64, or string."""
        return {cell.name: pa.float64() for cell in self.columns} | dict.fromkeys(sorted(self.texts), pa.string())

    @property
    def names(self) -> list[str]:
        """The columns' names."""
        return list(self.types)


class Batch(NamedTuple):
    """Some rows: `values` [B, S], their `lowest` and `highest` in float64 [S], nan apart, and `keys` [B] or nothing.

    `bad` says which cells [B, C] of the columns made their rows blank; it is [0, 0] where there are none.
    """

    values: Array
    keys: NDArray[Any]
    lowest: NDArray[np.float64]
    highest: NDArray[np.float64]
    bad: NDArray[np.bool_] = NONE_BAD


Batches = Generator[Batch, None, None]
Source = TypeVar("Source", bound=SourceFile)
OnRead = Callable[[int], object]  # told how many bytes were read


class Block(NamedTuple):
    """The texts of some rows' wanted cells, by column; `row` gives the row of a place, or its line."""

    cells: dict[str, CellTexts]
    row: Callable[[int], int]
    rows: int
