"""The settings that synthetic data is drawn by, and so the true line that a model of it can be held against."""

import math
from typing import Annotated, Self

from pydantic import Field, model_validator

from truefit.core.config import Settings, invalid_value

TARGET = "y"


class GenerateSettings(Settings):
    """Section `generate`: the line that the data is drawn around, and the noise."""

    rows: int = Field(1000, ge=1)
    seed: int = Field(42, ge=0)
    intercept: float = 1.0
    coefficients: Annotated[tuple[float, ...], Field(strict=False, min_length=1)] = (2.0,)
    low: float = 0.0
    high: float = 1.0
    noise_std: float = Field(0.1, ge=0)

    @model_validator(mode="after")
    def _range_is_not_empty(self) -> Self:
        if not self.low < self.high:
            raise invalid_value("high", self.high, f"more than generate.low, {self.low}")
        if not math.isfinite(self.high - self.low):
            raise invalid_value("high", self.high, f"a number whose distance from generate.low, {self.low}, is finite")
        return self

    @property
    def features(self) -> list[str]:
        """The feature columns' names, one for each coefficient."""
        return [f"x{number}" for number in range(1, len(self.coefficients) + 1)]
