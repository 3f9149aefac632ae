"""Parts of a table, with columns of all kinds, and what is prepared from them."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from truefit.core.launch import LaunchSettings
from truefit.ingest.prepare import ALONE, Prepared, PrepareSettings, write_table

ROWS = 300  # of a part
COLUMNS = {"c": "category", "b": "boolean", "d": "date"}


def part(number: int, gaps: bool = False) -> pa.Table:
    """Return a table of columns of all kinds, in which each part has texts that no other has."""
    draw = np.random.default_rng(number)
    days = np.datetime64("2024-01-31") + draw.integers(0, 1000, ROWS)
    columns: dict[str, Any] = {
        "x": draw.normal(size=ROWS),
        "c": [f"name {value}" for value in draw.integers(number, number + 5, ROWS)],
        "b": draw.choice(["yes", "no"], ROWS),
        "d": [str(day) for day in days],
        "g": [f"group {value}" for value in draw.integers(number * 3, number * 3 + 9, ROWS)],
        "o": draw.permutation(ROWS) + (0.5 if number == 2 else 0),
        "s": draw.choice(["train", "validation", "test"], ROWS),
        "w": draw.integers(0, 3, ROWS).astype(float),
        "y": draw.normal(size=ROWS),
    }
    missing = {name: draw.random(ROWS) < 0.1 if gaps and name in "xcbd" else None for name in columns}
    return pa.table({name: pa.array(values, mask=missing[name]) for name, values in columns.items()})


def write_csv(number: int, gaps: bool) -> None:
    pyarrow.csv.write_csv(part(number, gaps), f"parts/{number}.csv")


def write_parquet(number: int, gaps: bool) -> None:
    pyarrow.parquet.write_table(part(number, gaps), f"parts/{number}.parquet")


def prepared(folder: str, launch: LaunchSettings = ALONE, **settings: Any) -> tuple[Prepared, dict[str, bytes]]:
    """Return what is said of a table, and its files."""
    used = {settings.get("weight"), *settings.get("split", {}).values()}
    given = {"csv": "parts", "columns": COLUMNS, "target": "y", "exclude": sorted({*"gosw"} - used)} | settings
    done = write_table(PrepareSettings.model_validate(given), Path(folder), launch)
    return done, {path.name: path.read_bytes() for path in Path(folder).iterdir()}
