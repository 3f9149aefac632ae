"""Names of kinds of things, one-hot: a feature for each name that the training rows have, and one for all others."""

from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute
from pydantic import Field

from truefit.data.columns.base import Array, Column, Learner, Parsed, to_numpy
from truefit.data.number_text import NumberText
from truefit.data.numbering import Numbering

MOST_NAMES = 100  # that have a feature of their own: those in the most training rows
# Of which memory holds the texts while a CSV is read. A column with more is no category, but a key or a free text.
MOST_TEXTS = 1_000_000


class Category(Column):
    """One of `names`, which are the stored 0, 1, …, or another text, which is the number behind them.

    Another is also what takes the place of a missing value, where the training rows had none; where they had, it is none.
    """

    kind: Literal["category"] = "category"
    names: list[str] = Field([])
    allowed: ClassVar[str] = "text"
    takes_any: ClassVar[bool] = True

    def example(self, mean: float, std: float) -> list[str]:
        """Return the most frequent names."""
        return (self.names * 3)[:3]

    @property
    def values(self) -> list[str]:
        """The column and a name, for each name."""
        return [f"{self.name}={name}" for name in (*self.names, self.apart("other"))]

    def apart(self, what: str) -> str:
        """Return what a feature is called after that is none of the names."""
        called = super().apart(what)
        while called in self.names:  # a name may be "(other)" itself: then others are "((other))"
            called = f"({called})"
        return called

    def parse(self, texts: pa.Array) -> Parsed:
        """Return the place of each text among the names, or the one behind them for another."""
        places = pyarrow.compute.index_in(texts, value_set=pa.array(self.names, pa.string()))
        numbers = to_numpy(places.fill_null(len(self.names))).astype(np.float64)
        numbers[to_numpy(texts.is_null())] = np.nan
        return numbers[:, None], np.zeros(len(texts), bool)

    def text(self, value: Any) -> str:
        """Return the name for a number or a truth value, however it is written in the CSV, or a text that is no name."""
        plain = super().text(value)
        if isinstance(value, bool | np.bool_):
            alike = [name for name in self.names if name.lower() == plain.lower()]
        else:
            alike = [name for name in self.names if NumberText().number(name) == value]
        return plain if plain in self.names or not alike else alike[0]

    def unseen(self, stored: Array) -> int:
        """Return how many are none of the names."""
        return int(np.count_nonzero(stored[:, 0] == len(self.names)))

    def learner(self, fills: bool) -> Learner:
        """Return what learns the names."""
        return _Names(self, fills)

    def encode_values(self, stored: Array, out: Array) -> None:
        """Write a 1 at the name."""
        rows = np.flatnonzero(stored[:, 0] >= 0)
        out[rows, stored[rows, 0].astype(np.intp)] = 1


class _Names(Learner):
    """Numbers the texts as they come, and then by how many training rows have them."""

    numbering: Numbering

    def __init__(self, column: Column, fills: bool) -> None:
        super().__init__(column, fills)
        self.learns = True
        self.numbering = Numbering(MOST_TEXTS)
        self._counts = np.zeros(0, np.int64)
        self._places: Array = np.zeros(0)

    def parse(self, texts: pa.Array) -> Parsed:
        """Return the texts' numbers; raises ValueError for more texts than a category can have."""
        coded = texts.dictionary_encode()
        own = self.numbering.of(coded.dictionary.to_pylist())
        places = to_numpy(coded.indices.fill_null(len(own)))
        return np.array([*own, np.nan])[places][:, None], np.zeros(len(texts), bool)

    def add(self, parsed: Array, every: int = 1) -> None:
        """Count the texts of training rows."""
        missing = np.isnan(parsed[:, 0])
        self._gaps = self._gaps or bool(missing.any())
        counts = np.bincount(parsed[~missing, 0].astype(np.int64), minlength=len(self.numbering))
        self._counts = counts if not len(self._counts) else self._counts + counts

    def learned(self) -> dict[str, Any]:
        """Return the names, the most frequent first, and by the alphabet among those that are equally frequent."""
        texts = self.numbering.texts
        known = [number for number in range(len(texts)) if self._counts[number]]
        if not known:
            raise ValueError("no value in the training rows")
        chosen = sorted(known, key=lambda number: (-self._counts[number], texts[number]))[:MOST_NAMES]
        self._places = np.full(len(texts), float(len(chosen)))
        self._places[chosen] = np.arange(len(chosen))
        fill = [-1.0 if self._gaps else float(len(chosen))] if self._fills else None
        return {"names": [texts[number] for number in chosen], "fill": fill, "gaps": self._gaps}

    def stored(self, parsed: Array) -> Array:
        """Return the places among the names in the place of the texts' numbers."""
        missing = np.isnan(parsed)
        return np.where(missing, np.nan, self._places[np.where(missing, 0, parsed).astype(np.intp)]).astype(parsed.dtype)
