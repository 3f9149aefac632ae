"""Truth values, in the words that people write for them; a feature that is 0 or 1."""

from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute

from truefit.data.columns.base import Array, Column, Learner, Parsed, to_numpy

TRUE, FALSE = ("true", "yes", "t", "y", "1"), ("false", "no", "f", "n", "0")


class Boolean(Column):
    """One of two words of a pair, whatever the case: true/false, yes/no, t/f, y/n, 1/0."""

    kind: Literal["boolean"] = "boolean"
    allowed: ClassVar[str] = "true or false, yes or no, t or f, y or n, 1 or 0"
    mlflow_type: ClassVar[str] = "boolean"

    def parse(self, texts: pa.Array) -> Parsed:
        """Return 1 or 0 for each text."""
        words = pyarrow.compute.index_in(pyarrow.compute.ascii_lower(texts), value_set=pa.array([*TRUE, *FALSE]))
        places = to_numpy(words.fill_null(-1))
        bad = (places < 0) & ~to_numpy(texts.is_null())
        return np.where(places < 0, np.nan, places < len(TRUE))[:, None], bad

    def learner(self, fills: bool) -> Learner:
        """Return what learns the more frequent of the two."""
        return _Majority(self, fills)

    def example(self, mean: float, std: float) -> list[bool]:
        """Return both values."""
        return [False, True, True]

    @property
    def values(self) -> list[str]:
        """The column itself."""
        return [self.name]

    def encode_values(self, stored: Array, out: Array) -> None:
        """Write 1 for true and 0 for false."""
        out[:, :1] = stored


class _Majority(Learner):
    def typical(self, known: Array) -> list[float]:
        return [float(known.mean() >= 0.5)]
