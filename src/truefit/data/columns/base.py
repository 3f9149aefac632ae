"""What every kind of column follows: a cell's text -> stored numbers -> features, with what the training rows taught it.

Legend for shapes: B rows, S stored numbers a cell, K features it becomes. A stored nan is a missing value.
"""

from abc import abstractmethod
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, model_validator
from pydantic_core import PydanticCustomError

from truefit.data.numbering import Numbering

Array = NDArray[Any]
Parsed = tuple[NDArray[np.float64], NDArray[np.bool_]]  # the numbers [B, S] of cells, and which are none of the kind [B]


class Column(BaseModel, extra="forbid", frozen=True, strict=True, allow_inf_nan=False):
    """A column of a user's table whose cells become features; all but its kind and name is learned from the training rows.

    `fill` holds the numbers [S] that take the place of a missing value; without it such a value is refused. `gaps` says that
    training rows had some, and so there is a feature that is 1 where the value is missing and 0 elsewhere.
    """

    kind: str
    name: str
    fill: list[float] | None = None
    gaps: bool = False

    stored: ClassVar[int] = 1  # numbers a cell
    options: ClassVar[tuple[str, ...]] = ()  # the fields that prepare.columns may set
    allowed: ClassVar[str]  # what a cell holds, in words
    mlflow_type: ClassVar[str] = "string"
    takes_any: ClassVar[bool] = False  # also values that the training rows did not have, as others, which `unseen` counts

    @model_validator(mode="after")
    def _is_filled_whole(self) -> Self:
        if self.fill is not None and len(self.fill) != self.stored:
            raise PydanticCustomError("fill", "fill must have {stored} numbers", {"stored": self.stored})
        return self

    def parse(self, texts: pa.Array) -> Parsed:
        """Return what the texts [B] say; they have no blanks around them, and null is a missing value."""
        raise NotImplementedError

    def text(self, value: Any) -> str:
        """Return the text that a CSV has for a value that is none, such as True, or 3.0, which may have been a 3."""
        return text_of(value)

    @property
    def of_datetimes(self) -> "Column":
        """The column that parses the ISO 8601 of a datetime, which `text` gives."""
        return self

    def learner(self, fills: bool) -> "Learner":
        """Return what learns the column from training rows, for one that `fills` missing values or refuses them."""
        return Learner(self, fills)

    def unseen(self, stored: Array) -> int:
        """Return how many of the stored numbers [B, S] are values that count as others, of which most kinds have none."""
        return 0

    @abstractmethod
    def example(self, mean: float, std: float) -> list[Any]:
        """Return three cells as an example, of which none need be in a row, by the first feature's mean and deviation."""

    @property
    @abstractmethod
    def values(self) -> list[str]:
        """The names of the features that tell the value."""

    @property
    def features(self) -> list[str]:
        """The names of all features [K]."""
        return [*self.values, f"{self.name}={self.apart('missing')}"] if self.gaps else self.values

    def apart(self, what: str) -> str:
        """Return what a feature is called after that is none of the column's own values."""
        return f"({what})"

    def encode(self, stored: Array, out: Array) -> None:
        """Write the features of stored numbers [B, S] into `out` [B, K], which holds zeros."""
        if self.fill is not None:
            missing = np.isnan(stored[:, :1])
            if self.gaps:
                out[:, -1:] = missing
            stored = np.where(missing, np.array(self.fill, stored.dtype), stored)
        self.encode_values(stored, out)

    @abstractmethod
    def encode_values(self, stored: Array, out: Array) -> None:
        """Write what tells the values of stored numbers [B, S], of which none is missing, to the left in `out` [B, K]."""


class Learner:
    """Reads a column's cells for stage prepare, and learns from the training rows, chunk by chunk.

    What is filled in for a missing value is the median of those that are there.
    """

    def __init__(self, column: Column, fills: bool) -> None:
        self.column = column
        self.learns = fills  # whether it has to see the training rows
        self.numbering: Numbering | None = None  # of the texts, where a text's number depends on those before it
        self._fills = fills
        self._rows = 0
        self._gaps = False
        self._sample: list[Array] = []

    def parse(self, texts: pa.Array) -> Parsed:
        """Return what the texts [B] say; they have no blanks around them, and null is a missing value."""
        return self.column.parse(texts)

    def add(self, parsed: Array, every: int = 1) -> None:
        """Take the numbers [B, S] of training rows, as they were parsed, and keep those of `every` such row for the median."""
        if self._fills:
            self._gaps = self._gaps or bool(np.isnan(parsed[:, 0]).any())
            self._sample.append(parsed[-self._rows % every :: every].astype(np.float64))
            self._rows += len(parsed)

    def fitted(self) -> Column:
        """Return the column with all that was learned; raises ValueError, saying what was found, where that is too little."""
        return self.column.model_copy(update=self.learned())

    def learned(self) -> dict[str, Any]:
        """Return the column's fields that were learned."""
        if not self._fills:
            return {}
        sample = np.concatenate(self._sample)
        known = sample[~np.isnan(sample[:, 0])]
        if not len(known):
            raise ValueError("no value in the training rows")
        return {"fill": self.typical(known), "gaps": self._gaps}

    def typical(self, known: Array) -> list[float]:
        """Return what takes the place of a missing value [S], by those that are known [N, S]."""
        middle: list[float] = np.median(known, axis=0).tolist()
        return middle

    def stored(self, parsed: Array) -> Array:
        """Return what is stored of numbers [B, S] as they were parsed, when all has been learned."""
        return parsed


def text_of(value: Any) -> str:
    """Return a value's text: Python's, but for a whole float, which is written as an integer up to 2^53.

    pandas makes a 3.0 of a 3 where a value is missing.
    """
    return str(int(value) if isinstance(value, float) and value.is_integer() and abs(value) <= 2**53 else value)


def to_numpy(array: pa.Array) -> Array:
    """Return an Arrow array of numbers or truth values, without nulls, as NumPy's; its own way imports pandas."""
    if pa.types.is_boolean(array.type):
        truths: Array = np.from_dlpack(array.cast(pa.uint8())).astype(bool)
        return truths
    return np.from_dlpack(array)
