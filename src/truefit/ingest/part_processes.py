"""The parts of a table read by several processes, one part each at a time: the rows that one process gives, in its order.

They may be other hosts' too.

What depends on the parts before, and what is wrong with a part, is settled in this process, in the parts' order.
"""

import shutil
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from truefit.core.cores import usable_cores
from truefit.core.errors import TruefitError
from truefit.core.hosts import Hosts, hosts_for
from truefit.core.launch import LaunchSettings
from truefit.core.pool import Answer, Pool, Task
from truefit.ingest.cells import Batch, Batches, Wanted
from truefit.ingest.part_reader import PartRows, known_of, task_of
from truefit.ingest.split_keys import KeyColumn
from truefit.ingest.staging import Reading, Staged
from truefit.ingest.table_source import Part, ReadPart, TableSource, read_part

PROCESS_BYTES = 1 << 27  # of the parts for each process: with less it would not be worth its start
AHEAD = 2  # parts for each process that are being read, or wait on the disk for those before them
SHARED = ".hosts.tmp"  # a folder beside the arrays, while other hosts may help
MODULE = "truefit.ingest.part_reader"

Numbers = NDArray[np.int64]


@contextmanager
def part_readers(
    source: TableSource, reading: Reading, staged: Staged, folder: Path, launch: LaunchSettings
) -> Iterator[ReadPart]:
    """Give what reads the parts in their order: this process, or several where there are cores, and much to read.

    Other hosts help that come meanwhile, where `launch` has any. The rows that wait for those before them are in files in
    `folder`; these have names only where other hosts write them. Raises TruefitError for a process that was killed.
    """
    count = min(usable_cores(), len(source.parts), sum(part.size for part in source.parts) // PROCESS_BYTES)
    with ExitStack() as stack:
        hosts = None
        if launch.hosts > 1 and len(source.parts) > 1:
            shared = folder / SHARED
            shutil.rmtree(shared, ignore_errors=True)  # of a stage that was killed
            shared.mkdir()
            stack.callback(shutil.rmtree, shared, ignore_errors=True)
            hosts = hosts_for(stack, launch, shared, "prepare")
        if count < 2 and hosts is None:
            yield read_part
        else:
            yield _Readers(source.parts, reading, staged, folder, max(count, 1), hosts, stack).read


class _Readers:
    """The processes, which begin with the parts in their order, and what they have read."""

    def __init__(
        self,
        parts: list[Part],
        reading: Reading,
        staged: Staged,
        folder: Path,
        count: int,
        hosts: Hosts | None,
        stack: ExitStack,
    ) -> None:
        self._reading, self._staged, self._folder = reading, staged, folder
        self._left = deque(parts)
        self._read = dict[Path, Answer]()  # of the parts that were read, and whose rows have not been given
        self._begun = 0  # of those before
        stack.callback(lambda: [answer.file.close() for answer in self._read.values() if answer.file is not None])
        size = sum(part.size for part in parts)
        self._bar = stack.enter_context(tqdm(total=size, desc="prepare", unit="B", unit_scale=True, disable=None))
        # With one thread of Arrow's each, since there is a core for each.
        self._pool = Pool(stack, count, 1, [MODULE], hosts)

    def read(self, part: Part, wanted: Wanted, title: str) -> Batches:
        """Give the rows of the next part, as `read_part` does."""
        while part.path not in self._read:
            self._go_on(timeout=None)
        file = self._read[part.path].file
        assert file is not None
        rows = known_of(self._read[part.path].value, file, wanted.dtype)
        numbers = self._joined(rows, wanted.key) if rows else None
        if rows is None or numbers is None:
            yield from read_part(part, wanted, title)
        else:
            part.sha256 = rows.sha256
            for batch in rows.read(file, wanted.dtype):
                yield _renumbered(batch, *numbers)
                self._go_on(timeout=0)
        del self._read[part.path]
        file.close()
        self._begun -= 1

    def _joined(self, rows: PartRows, key: KeyColumn | None) -> tuple[list[tuple[int, Numbers]], Numbers | None] | None:
        """Return the numbers, of columns and of the key, that become others behind the parts before, or None for bad rows."""
        try:
            return self._staged.join(rows.met), key.join(rows.keys_met) if key else None
        except ValueError:
            return None

    def _go_on(self, timeout: float | None) -> None:
        """Give work to the processes that have none, and take what others have done, for which it waits up to `timeout`."""
        while self._pool.is_free and self._left and self._begun < AHEAD * self._pool.size:
            part = self._left.popleft()
            self._pool.begin(Task(part, task_of(part, self._reading), self._folder))
            self._begun += 1
        for answer in self._pool.answers(timeout):
            part = answer.key
            if answer.ended is not None:
                advice = "run again; if memory was short, on fewer cores: `taskset -c 0 dvc repro`"
                raise TruefitError(f"{part.path}: the process that read it was ended {answer.ended}; {advice}")
            self._read[part.path] = answer
            self._bar.update(part.size)


def _renumbered(batch: Batch, columns: list[tuple[int, Numbers]], keys: Numbers | None) -> Batch:
    """Return the batch with other numbers at the places of columns, and for keys."""
    for place, numbers in columns:
        values = batch.values[:, place]
        known = ~np.isnan(values)
        values[known] = numbers[values[known].astype(np.intp)]
    return batch if keys is None else batch._replace(keys=keys[batch.keys].astype(batch.keys.dtype))
