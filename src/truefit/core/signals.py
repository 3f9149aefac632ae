"""Signals that ask a process to stop: raised as an error, or made to wait until a block has ended.

Python calls handlers in the main thread alone, and only there can they be set: in another, which no signal interrupts, neither
does anything.
"""

import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

from truefit.core.beginning import STOPPING
from truefit.core.errors import StoppedError


@contextmanager
def stoppable(where: str) -> Iterator[None]:
    """Make the first SIGINT, SIGTERM or SIGHUP a StoppedError whose text ends in `where`.

    Those after it are ignored, so that nothing interrupts the cleaning up.
    """
    # A SIGHUP that is ignored already, as under nohup, stays so.
    numbers = [number for number in STOPPING if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]

    def stop(number: int, _: FrameType | None) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise StoppedError(number, where)

    former = _handle(numbers, stop)
    try:
        yield
    finally:
        _restore(former)


class Deferred:
    """Signals that wait until the block has ended, and are then raised again; `first` is the first that came.

    With `second_ends` the second is a KeyboardInterrupt at once. A block that fails ends with its own error alone.
    """

    def __init__(self, numbers: Sequence[signal.Signals] = STOPPING, second_ends: bool = False) -> None:
        self._numbers = numbers
        self._second_ends = second_ends
        self.first: int | None = None

    def __enter__(self) -> Self:
        self._former = _handle(self._numbers, self._receive)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        _restore(self._former)
        if self.first is not None and kind is None:
            signal.raise_signal(self.first)

    def _receive(self, number: int, _: FrameType | None) -> None:
        if self.first is None:
            self.first = number
        elif self._second_ends:
            raise KeyboardInterrupt


def _handle(numbers: Sequence[int], handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    in_main_thread = threading.current_thread() is threading.main_thread()
    return {number: signal.signal(number, handler) for number in numbers} if in_main_thread else {}


def _restore(former: Mapping[int, Any]) -> None:
    for number, handler in former.items():
        signal.signal(number, handler)
