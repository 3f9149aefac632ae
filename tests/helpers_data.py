"""CSVs that tests make for themselves, and the tables prepared from them."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from truefit.data.table import Split, Table
from truefit.ingest import csv_batches
from truefit.ingest.prepare import PrepareSettings, write_table

Array = NDArray[Any]

# Each way in which a CSV is read, the fastest first.
READERS = {"numbers": "_typed_batches", "texts": "_arrow_blocks", "Python": "_python_blocks"}


def numbered_csv(rows: int, features: int = 1) -> str:
    """Return a CSV with the columns x1 … xF and y, in which row i holds i, i + 0.25, i + 0.5 …: every cell tells its row."""
    names = [*(f"x{number}" for number in range(1, features + 1)), "y"]
    lines = [",".join(str(row + column * 0.25) for column in range(features + 1)) for row in range(rows)]
    return "\n".join([",".join(names), *lines]) + "\n"


def prepare(folder: Path, content: str | bytes, **settings: Any) -> Table:
    """Write the CSV data.csv into `folder` and prepare its table in `folder`/prepared."""
    path = folder / "data.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return write_table(PrepareSettings.model_validate({"csv": str(path), **settings}), folder / "prepared").table


def read_splits(folder: Path) -> dict[Split, Array]:
    """Return the arrays [rows, F + 1] of the table prepared in `folder`/prepared."""
    splits: tuple[Split, ...] = ("train", "validation", "test")
    return {split: np.load(folder / "prepared" / f"{split}.npy") for split in splits}


def read_only_by(reader: str, patch: pytest.MonkeyPatch) -> None:
    """Have CSVs read by one of READERS alone."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise pa.ArrowInvalid("not by this reader")

    for name, function in READERS.items():
        if name != reader:
            patch.setattr(csv_batches, function, refuse)
