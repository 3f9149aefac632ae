"""A process that reads parts of a table for another: `python -m truefit.ingest.part_reader`.

With each task comes an empty file, to which it writes the part's rows. It answers with `PartRows`.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from truefit.core.errors import TruefitError
from truefit.core.workers import work
from truefit.ingest.cells import Batch, Wanted
from truefit.ingest.parquet_file import ParquetFile
from truefit.ingest.split import key_column
from truefit.ingest.staging import Reading, Staged
from truefit.ingest.table_source import Part, open_part, read_part


class PartRows(NamedTuple):
    """What is known of a part's rows, which are in a file: of each batch in turn the values, then the keys.

    `batches` has the numbers of their rows, and the types of their keys, if they have any. `met` and `keys_met` decide the
    numbers there are for texts.
    """

    sha256: str
    batches: list[tuple[int, str]]
    lowest: list[float]
    highest: list[float]
    met: list[list[str]]
    keys_met: list[str]

    def read(self, file: IO[bytes], dtype: str) -> Iterator[Batch]:
        """Give the batches again, those that `write_part` wrote into the file, with values of the dtype."""
        lowest, highest = np.array(self.lowest), np.array(self.highest)
        file.seek(0)
        for rows, keys in self.batches:
            values = np.fromfile(file, dtype, rows * len(lowest)).reshape(rows, -1)
            yield Batch(values, np.fromfile(file, keys or "u1", rows if keys else 0), lowest, highest)


def task_of(part: Part, reading: Reading) -> dict[str, Any]:
    """Return what says which part is to be read, and how."""
    return {"path": str(part.path), "parquet": isinstance(part, ParquetFile), "reading": reading.model_dump()}


def write_part(task: dict[str, Any], file: IO[bytes]) -> PartRows:
    """Read the task's part, and write its rows to the file."""
    reading = Reading.model_validate(task["reading"])
    staged, key = Staged(file, reading), key_column(reading.split, reading.format)
    width, batches = staged.places[-1], list[tuple[int, str]]()
    lowest, highest = np.full(width, np.inf), np.full(width, -np.inf)
    with open_part(Path(task["path"]), reading.format, task["parquet"]) as part:
        part.may_be_empty = True
        for batch in read_part(part, Wanted(staged.cells, reading.dtype, key), ""):
            batches.append((len(batch.values), batch.keys.dtype.str if len(batch.keys) else ""))
            file.write(batch.values.data)
            file.write(batch.keys.data)
            np.minimum(lowest, batch.lowest, out=lowest)
            np.maximum(highest, batch.highest, out=highest)
    return PartRows(part.sha256, batches, lowest.tolist(), highest.tolist(), staged.met, key.met if key else [])


def _answer(task: dict[str, Any], descriptor: int) -> PartRows | None:
    try:
        with os.fdopen(descriptor, "wb") as file:
            return write_part(task, file)
    except (TruefitError, OSError, MemoryError):
        # Whoever asked reads the part itself then, when those before it are read, and tells what is wrong.
        return None


if __name__ == "__main__":
    work(_answer)
