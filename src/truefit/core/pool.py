"""Workers of this host, and those that other hosts lend: each does one task at a time, and whichever is free the next."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from typing import IO, Any, NamedTuple

from truefit.core.channel import BEAT_SECONDS
from truefit.core.hosts import HostLostError, Hosts, HostWorker
from truefit.core.terminal import say
from truefit.core.workers import EndedError, Worker


class Task(NamedTuple):
    """What a worker is to do; `folder` is where a file that it needs for that may be."""

    key: Any
    task: Any
    folder: Path | None = None


class Answer(NamedTuple):
    """What a worker answered, or how it has ended, and what is in the task's file; `host` is None for a worker of this one."""

    key: Any
    value: Any
    file: IO[bytes] | None
    host: str | None
    ended: EndedError | None = None


class Pool:
    """So many processes of this host that run a module, as `Worker` does, and what `hosts` lend; they end with the stack.

    `size` is how many there have been. The task of a host that went away is another worker's.
    """

    def __init__(self, stack: ExitStack, size: int, threads: int, command: Sequence[str], hosts: Hosts | None) -> None:
        self.size = size
        self._selector = stack.enter_context(DefaultSelector())
        if hosts is not None:
            self._selector.register(hosts, EVENT_READ)
        self._idle: list[Worker | HostWorker] = [Worker(stack, threads, *command) for _ in range(size)]
        self._begun = dict[Worker | HostWorker, tuple[Task, IO[bytes] | None]]()
        self._lost, self._left = list[Task](), set[str]()
        stack.callback(lambda: [file.close() for _, file in self._begun.values() if file is not None])

    @property
    def is_free(self) -> bool:
        """Whether a worker has nothing to do."""
        return bool(self._idle)

    def begin(self, task: Task) -> None:
        """Have a task done by a worker that has nothing to do."""
        worker = self._idle.pop()
        file = None if task.folder is None else worker.new_file(task.folder)
        self._begun[worker] = task, file
        worker.begin(task.task, file=file)
        self._selector.register(worker, EVENT_READ)

    def answers(self, timeout: float | None) -> list[Answer]:
        """Return what has been answered, for which it waits up to so many seconds; None: until something happened."""
        found, come = [], set[Any]()
        if timeout is None and any(isinstance(worker, HostWorker) for worker in self._begun):
            timeout = BEAT_SECONDS
        for ready, _ in self._selector.select(timeout):
            come.add(ready.fileobj)
            if isinstance(ready.fileobj, Hosts):
                lent = ready.fileobj.come()
                self._idle += lent
                self.size += len(lent)
        for worker in list(self._begun):
            if worker.has_answer(readable=worker in come):
                self._selector.unregister(worker)
                found += self._answer(worker)
        while self._idle and self._lost:
            self.begin(self._lost.pop())
        return found

    def _answer(self, worker: Worker | HostWorker) -> list[Answer]:
        task, file = self._begun.pop(worker)
        try:
            value = worker.answer()
            written = None if file is None else worker.written(file)
        except (EndedError, HostLostError) as error:
            if file is not None:
                file.close()
            if isinstance(error, EndedError):
                return [Answer(task.key, None, None, None, ended=error)]
            self._lost.append(task)
            self._tell_lost(str(worker.host))
            return []
        self._idle.append(worker)
        return [Answer(task.key, value, written, worker.host)]

    def _tell_lost(self, host: str) -> None:
        if host not in self._left:
            say(f"{host}: went away, or the link to it; others do what it had to do", error=True)
        self._left.add(host)
