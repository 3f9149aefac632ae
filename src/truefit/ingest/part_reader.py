"""A process that reads parts of a table for another: `python -m truefit.ingest.part_reader`.

Its standard input is a socket. For each byte that comes there, with a file, it reads the part that the file's text describes,
writes the rows over that text, and answers with a line of JSON: `PartRows` about them, or null where the part cannot be used.
When the socket is closed at the other end, as it also is when the process there is killed, this one ends at once.
"""

import gc
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import IO, NamedTuple

import numpy as np

from truefit.core.errors import GARBAGE_AFTER, TruefitError
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


def put_task(file: IO[bytes], part: Part, reading: Reading) -> None:
    """Write into an empty file which part is to be read, and how."""
    # By json, since a path need be no text, which pydantic wants.
    task = {"path": str(part.path), "parquet": isinstance(part, ParquetFile), "reading": reading.model_dump()}
    file.write(json.dumps(task).encode())
    file.flush()


def write_part(file: IO[bytes]) -> PartRows:
    """Read the part that the file describes, and write its rows in the place of the description."""
    file.seek(0)
    task = json.loads(file.read())
    file.seek(0)
    file.truncate()
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
    file.flush()
    return PartRows(part.sha256, batches, lowest.tolist(), highest.tolist(), staged.met, key.met if key else [])


def _answer(descriptor: int) -> str:
    try:
        with os.fdopen(descriptor, "r+b") as file:
            return json.dumps(write_part(file))
    except (TruefitError, OSError, MemoryError):
        # Whoever asked reads the part itself then, when those before it are read, and tells what is wrong.
        return "null"


def _receive(control: socket.socket, put: Callable[[int], object]) -> None:
    while files := socket.recv_fds(control, 1, 1)[1]:
        put(files[0])
    os._exit(0)


def main() -> None:
    """Read parts until the other process ends, or wants no more."""
    gc.set_threshold(GARBAGE_AFTER)
    control, tasks = socket.socket(fileno=0), SimpleQueue[int]()
    threading.Thread(target=_receive, args=(control, tasks.put), daemon=True).start()
    while True:
        control.sendall(_answer(tasks.get()).encode() + b"\n")


if __name__ == "__main__":
    main()
