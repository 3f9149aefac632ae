"""Why the ranks of a host ended, and which of several reasons is the one that the others follow from."""

import re
import signal
from collections.abc import Container, Mapping
from enum import IntEnum
from typing import Any, Self

from pydantic import BaseModel
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from truefit.core.beginning import STOPPING
from truefit.core.text import one_line
from truefit.training.launch import LOST

LONGEST = 500  # characters of a rank's own text


class Weight(IntEnum):
    """How near a reason is to the root: the highest of several is told."""

    LOST = 0  # another rank, or the link to it, went away
    ENDED = 1  # as it was asked to, or by the launcher, since it did not end with the others
    STATUS = 2
    ERROR = 3  # with a text of its own
    KILLED = 4


class Cause(BaseModel, frozen=True, strict=True, extra="forbid"):
    """A rank's end. `told`: rank 0 has printed why; `final`: the same inputs would end it again, or a signal asked for it.

    Where that was a signal, `how` says what was saved, and `host` where the signal came.
    """

    rank: int
    host: str
    how: str
    weight: Weight
    status: int = 2
    told: bool = False
    final: bool = False

    def line(self, hosts: int) -> str:
        """Return it as the line of an error."""
        if self.number:
            return f"stopped by {_signal_name(self.number)}{f' on host {self.host}' if hosts > 1 else ''}{self.how}"
        return f"rank {self.rank}{f' on {self.host}' if hosts > 1 else ''}{self.how}"

    @property
    def number(self) -> int | None:
        """The signal that asked the training to stop, where one did."""
        return number if (number := self.status - 128) in STOPPING else None

    @classmethod
    def of(cls, failures: Mapping[int, ProcessFailure], host: str, killed: Container[int]) -> Self:
        """Return the root of the failures, by rank; the parent has `killed` some processes, which did not end in time."""
        causes = [cls._of_rank(rank, failure, host, failure.pid in killed) for rank, failure in failures.items()]
        return max(causes, key=cls.depth)

    def depth(self) -> tuple[Weight, bool]:
        """Return what the root has most of: what rank 0 has told comes before what others say of it."""
        return self.weight, self.told

    @classmethod
    def _of_rank(cls, rank: int, failure: ProcessFailure, host: str, killed: bool) -> Self:
        status, text = failure.exitcode, _text(failure.error_file_data)
        if killed and status == -signal.SIGKILL:
            return cls(rank=rank, host=host, how=" did not end with the others, and was killed", weight=Weight.ENDED)
        if status == LOST:
            return cls(rank=rank, host=host, how=f": {text or 'lost another process'}", weight=Weight.LOST)
        if status < 0:
            hint = " (is the memory enough?)" if status == -signal.SIGKILL else ""
            how = f" was killed by {_signal_name(-status)}{hint}"
            return cls(rank=rank, host=host, how=how, weight=Weight.KILLED)
        if status - 128 in STOPPING and (rank == 0 or text):  # a StoppedError, or a signal to rank 0 before it trained
            how = text.removeprefix(f"stopped by {_signal_name(status - 128)}")
            return cls(rank=rank, host=host, how=how, weight=Weight.ERROR, status=status, told=rank == 0, final=True)
        if rank == 0 and status == 2:
            how = " ended with an error, which it has told there"
            return cls(rank=rank, host=host, how=how, weight=Weight.ERROR, told=True, final=True)
        if text:
            return cls(rank=rank, host=host, how=f": {text}", weight=Weight.ERROR, final=status == 2)
        return cls(rank=rank, host=host, how=f" ended with status {status}", weight=Weight.STATUS)


def _text(error_file: Mapping[str, Any]) -> str:
    """Return the text that a rank has put in its error file, as torch's `ErrorHandler` does, or none."""
    message = error_file.get("message")
    text = message.get("message") if isinstance(message, dict) else None
    if not text:
        return ""
    text = re.sub(r"^\[\S+:\d+\] ", "", str(text))  # gloo's texts begin with a line of its source, and end with jokes
    return one_line(" ".join(text.partition(". This is typically")[0].split()), LONGEST)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
