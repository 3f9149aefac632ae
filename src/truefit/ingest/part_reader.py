"""A process that reads parts of a table for another: `python -m truefit.ingest.part_reader`.

With each task comes an empty file, or the name of one, to which it writes the part's rows. It answers with `PartRows`.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Annotated, Any, NamedTuple

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from truefit.core.errors import TruefitError
from truefit.core.workers import work
from truefit.ingest.cells import Batch, Wanted
from truefit.ingest.parquet_file import ParquetFile
from truefit.ingest.split import key_column
from truefit.ingest.staging import Reading, Staged
from truefit.ingest.table_source import Part, open_part, read_part

KEYS = r"^([<|][uif]\d)?$"  # the name of a type of numbers, or nothing


class PartRows(NamedTuple):
    """What is known of a part's rows, which are in a file: of each batch in turn the values, then the keys.

    `batches` has the numbers of their rows, and the types of their keys, if they have any. `met` and `keys_met` decide the
    numbers there are for texts.
    """

    sha256: str
    batches: list[tuple[int, Annotated[str, Field(pattern=KEYS)]]]
    lowest: list[float]
    highest: list[float]
    met: list[list[str]]
    keys_met: list[str]

    def size(self, dtype: str) -> int:
        """Return the number of bytes that the rows have in a file."""
        width = len(self.lowest) * np.dtype(dtype).itemsize
        return sum(rows * (width + (np.dtype(keys).itemsize if keys else 0)) for rows, keys in self.batches)

    def read(self, file: IO[bytes], dtype: str) -> Iterator[Batch]:
        """Give the batches again, those that `write_part` wrote into the file, with values of the dtype."""
        lowest, highest = np.array(self.lowest), np.array(self.highest)
        file.seek(0)
        for rows, keys in self.batches:
            values = np.fromfile(file, dtype, rows * len(lowest)).reshape(rows, -1)
            yield Batch(values, np.fromfile(file, keys or "u1", rows if keys else 0), lowest, highest)


_PART_ROWS = TypeAdapter(PartRows)


def known_of(answer: Any, file: IO[bytes], dtype: str) -> PartRows | None:
    """Return what was answered, or None where the part cannot be used, or the file is not what the answer says."""
    try:
        known = None if answer is None else _PART_ROWS.validate_python(answer)
    except ValidationError:
        return None
    return known if known and os.fstat(file.fileno()).st_size == known.size(dtype) else None


def task_of(part: Part, reading: Reading) -> dict[str, Any]:
    """Return what says which part is to be read, and how."""
    return {
        "path": str(part.path),
        "version": part.version,
        "parquet": isinstance(part, ParquetFile),
        "reading": reading.model_dump(),
    }


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


def _answer(task: dict[str, Any], place: int | str) -> PartRows | None:
    if isinstance(place, str) and not _is_here(task):
        sys.exit(f"{task['path']}: another file than on the host that asks, or none")
    try:
        with open(place, "r+b") as file:  # noqa: PTH123 (which may be a descriptor), not to make a file that was given up
            return write_part(task, file)
    except (TruefitError, OSError, MemoryError):
        # Whoever asked reads the part itself then, when those before it are read, and tells what is wrong.
        return None


def _is_here(task: dict[str, Any]) -> bool:
    with suppress(OSError):
        status = Path(task["path"]).stat()
        return bool(task["version"] == [status.st_size, status.st_mtime_ns])
    return False


if __name__ == "__main__":
    work(_answer)
