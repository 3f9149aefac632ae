"""The parts of a table read by several processes, one part each at a time: the rows that one process gives, in its order.

What depends on the parts before, and what is wrong with a part, is settled in this process, in the parts' order.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from tempfile import TemporaryFile
from typing import IO

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from truefit.core.cores import usable_cores
from truefit.core.errors import TruefitError
from truefit.core.workers import EndedError, Worker
from truefit.ingest.cells import Batch, Batches, Wanted
from truefit.ingest.part_reader import PartRows, task_of
from truefit.ingest.split_keys import KeyColumn
from truefit.ingest.staging import Reading, Staged
from truefit.ingest.table_source import Part, ReadPart, TableSource, read_part

PROCESS_BYTES = 1 << 27  # of the parts for each process: with less it would not be worth its start
AHEAD = 2  # parts for each process that are being read, or wait on the disk for those before them
MODULE = "truefit.ingest.part_reader"

Numbers = NDArray[np.int64]


@contextmanager
def part_readers(source: TableSource, reading: Reading, staged: Staged, folder: Path) -> Iterator[ReadPart]:
    """Give what reads the parts in their order: this process, or several where there are cores, and much to read.

    The rows that wait for those before them are in files in `folder` that have no name. Raises TruefitError for a process that
    was killed.
    """
    count = min(usable_cores(), len(source.parts), sum(part.size for part in source.parts) // PROCESS_BYTES)
    if count < 2:
        yield read_part
        return
    with ExitStack() as stack:
        yield _Readers(source.parts, reading, staged, folder, count, stack).read


class _Readers:
    """The processes, which begin with the parts in their order, and what they have read."""

    def __init__(
        self, parts: list[Part], reading: Reading, staged: Staged, folder: Path, count: int, stack: ExitStack
    ) -> None:
        self._reading, self._staged, self._folder = reading, staged, folder
        self._left = deque(parts)
        self._files = dict[Path, IO[bytes]]()  # of the parts that were begun with, until their rows have been given
        self._known = dict[Path, PartRows | None]()  # of those that were read; none of one that cannot be used
        self._most = AHEAD * count
        stack.callback(lambda: [file.close() for file in self._files.values()])
        size = sum(part.size for part in parts)
        self._bar = stack.enter_context(tqdm(total=size, desc="prepare", unit="B", unit_scale=True, disable=None))
        self._selector = stack.enter_context(DefaultSelector())
        # With one thread of Arrow's each, since there is a core for each.
        self._idle = [Worker(stack, 1, MODULE) for _ in range(count)]
        self._begun = dict[Worker, Part]()

    def read(self, part: Part, wanted: Wanted, title: str) -> Batches:
        """Give the rows of the next part, as `read_part` does."""
        while part.path not in self._known:
            self._go_on(timeout=None)
        rows = self._known.pop(part.path)
        numbers = self._joined(rows, wanted.key) if rows else None
        if rows is None or numbers is None:
            yield from read_part(part, wanted, title)
        else:
            part.sha256 = rows.sha256
            for batch in rows.read(self._files[part.path], wanted.dtype):
                yield _renumbered(batch, *numbers)
                self._go_on(timeout=0)
        self._files.pop(part.path).close()

    def _joined(self, rows: PartRows, key: KeyColumn | None) -> tuple[list[tuple[int, Numbers]], Numbers | None] | None:
        """Return the numbers, of columns and of the key, that become others behind the parts before, or None for bad rows."""
        try:
            return self._staged.join(rows.met), key.join(rows.keys_met) if key else None
        except ValueError:
            return None

    def _go_on(self, timeout: float | None) -> None:
        """Give work to the processes that have none, and take what others have done, for which it waits up to `timeout`."""
        while self._idle and self._left and len(self._files) < self._most:
            part = self._left.popleft()
            file = self._files[part.path] = TemporaryFile(dir=self._folder)  # noqa: SIM115 (closed when its rows were given)
            worker = self._idle.pop()
            worker.begin(task_of(part, self._reading), file)
            self._begun[worker] = part
            self._selector.register(worker, EVENT_READ, worker)
        for key, _ in self._selector.select(timeout):
            worker = key.data
            self._selector.unregister(worker)
            part = self._begun.pop(worker)
            self._known[part.path] = _answer(worker, part)
            self._bar.update(part.size)
            self._idle.append(worker)


def _answer(worker: Worker, part: Part) -> PartRows | None:
    """Return what is known of a part, or None where it cannot be used; raises TruefitError where the worker has ended."""
    try:
        known = worker.answer()
    except EndedError as error:
        advice = "run again; if memory was short, on fewer cores: `taskset -c 0 dvc repro`"
        raise TruefitError(f"{part.path}: the process that read it was ended {error}; {advice}") from None
    return None if known is None else PartRows(*known)


def _renumbered(batch: Batch, columns: list[tuple[int, Numbers]], keys: Numbers | None) -> Batch:
    """Return the batch with other numbers at the places of columns, and for keys."""
    for place, numbers in columns:
        values = batch.values[:, place]
        known = ~np.isnan(values)
        values[known] = numbers[values[known].astype(np.intp)]
    return batch if keys is None else batch._replace(keys=keys[batch.keys].astype(batch.keys.dtype))
