"""What a user can cause to go wrong, each as a line of text or, of a table, a line for each fault; with it `run` ends a stage.

The tree:

    TruefitError
    ├── SettingsError    params.yaml: a key, a value, a combination
    ├── TableError       a CSV, or the table prepared from one
    ├── TrackingError    an MLflow store, or a journal kept for one, that cannot be used
    │   ├── StoreAwayError   … for now: a server that does not answer
    │   └── DamagedError     what is in the place of a journal is none
    ├── GroupError       processes that cannot train together, or no longer
    │   └── LostError        … since one of them, or the way to it, is gone
    └── StoppedError     a signal that asked a training to stop
"""

import gc
import io
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from truefit.core.beginning import interruptible
from truefit.core.terminal import guard_tracebacks, say

LESS = "a smaller train.batch_size or train.model.hidden, fewer prepare.features, or more memory"
GARBAGE_AFTER = 100_000  # new objects between two collections of garbage in a stage; Python's own threshold is 700


class TruefitError(Exception):
    """Something that the user can put right; its text is one line that names the place, or one for each of its arguments."""

    status = 2

    def __str__(self) -> str:
        """Return the lines."""
        return "\n".join(map(str, self.args))


class SettingsError(TruefitError):
    """params.yaml holds something that cannot be used: file, key, what was found and what is allowed."""


class TableError(TruefitError):
    """A CSV or a prepared table is unusable: file, line and column, what was found and what is allowed."""


class TrackingError(TruefitError):
    """The MLflow store, or a run's journal, cannot be used: its address and reason."""


class StoreAwayError(TrackingError):
    """The MLflow server does not answer, or cannot for the moment; what it is to have waits in the journal."""


class DamagedError(TrackingError):
    """What is in the place of a journal is none, or one of another format."""


class GroupError(TruefitError):
    """The processes of a training differ in what decides its numbers, or one of them ended it."""


class LostError(GroupError):
    """Another process of the training, or the way to it, is gone."""


class StoppedError(TruefitError):
    """SIGTERM or SIGINT asked a training to stop, and it has saved where it was."""

    def __init__(self, number: int, where: str) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} {where}")
        self.status = 128 + number


def is_final(error: BaseException | None) -> bool:
    """Say whether `error`, or none, ends a training for good: one that would come again with the same inputs does."""
    return error is None or (isinstance(error, TruefitError) and not isinstance(error, StoppedError | GroupError))


def lacks_memory(error: MemoryError | RuntimeError) -> bool:
    """Say whether the error is NumPy's, pyarrow's or torch's for memory that is not there, on the CPU or a device."""
    # torch, which is not imported here, has a class for it, but only where its own allocator for a device gets none: not for
    # what CUDA needs to begin with, nor for what its libraries ask for themselves.
    texts = (
        "can't allocate memory",
        "not enough memory",
        "Storage size calculation overflowed",
        "CUDA error: out of memory",
        "_STATUS_ALLOC_FAILED",
    )
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or any(text in str(error) for text in texts)
    )


def lines_of(error: Exception) -> list[str]:
    """Return the lines that tell an error which a user can cause; raises it where it is another."""
    if isinstance(error, TruefitError):
        return list(map(str, error.args))
    if isinstance(error, OSError):
        return [f"{error.filename}: {error.strerror or 'failed'}" if error.filename else str(error)]
    if not (isinstance(error, MemoryError | RuntimeError) and lacks_memory(error)):
        raise error
    found = str(error).partition("\n")[0].rpartition("err == 0. ")[2]  # torch begins with a line of its source
    return [f"not enough memory: {found or 'found none left'}; try {LESS}"]


def run(main: Callable[[], None]) -> int:
    """Run a stage's `main` and return its exit status: 0, or another after printing what was wrong to stderr.

    It is 2 for a TruefitError, an OSError or a lack of memory; for a signal 128 and its number: 130 for Ctrl-C, 143 for
    SIGTERM.
    """
    # A stage imports a great deal that stays to the end. To go through it at Python's threshold, and once more as the process
    # ends, would take about a third of a short stage's CPU time.
    gc.set_threshold(GARBAGE_AFTER)
    interruptible()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr does, for names with letters that its encoding lacks
    guard_tracebacks()
    lines, status = [""], 0
    try:
        main()
    except KeyboardInterrupt:
        lines, status = ["stopped by SIGINT"], 128 + signal.SIGINT
    except (TruefitError, OSError, MemoryError, RuntimeError) as error:
        lines, status = lines_of(error), error.status if isinstance(error, TruefitError) else TruefitError.status
    if status:
        first, *others = (" ".join(line.splitlines()) for line in lines)
        say(f"error: {first}", *others, error=True)
    gc.freeze()
    return status


def leave(status: int) -> NoReturn:
    """End the process in this moment, with what it has printed: nothing is to happen any more that could be interrupted.

    Python would take thousands of modules apart first, for as long as a short stage takes.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(status)
