"""Numbers, which are a feature as they are. How a number is written is a matter of the file, and so of ingest."""

from typing import ClassVar, Literal

from truefit.data.columns.base import Array, Column


class Number(Column):
    """A finite number."""

    kind: Literal["number"] = "number"
    allowed: ClassVar[str] = "a number"
    mlflow_type: ClassVar[str] = "double"

    def example(self, mean: float, std: float) -> list[float]:
        """Return the mean, and a standard deviation to either side."""
        return [mean - std, mean, mean + std]

    @property
    def values(self) -> list[str]:
        """The column itself."""
        return [self.name]

    def encode_values(self, stored: Array, out: Array) -> None:
        """Write the numbers themselves."""
        out[:, :1] = stored
