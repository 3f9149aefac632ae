"""What a process does first: a signal that asks it to stop while it still imports ends it with one line, as a later one does.

Imports no more than it needs, since before that Python's own handlers are there.
"""

import os
import signal
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def end_at_signals() -> None:
    """Let the signals that ask to stop end this process at once, until another handler takes them.

    To be called before the imports that take seconds. A signal that is ignored stays so, and one that was
    kept waiting by what started this process is taken now.
    """
    for number in STOPPING:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _end)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)


def interruptible() -> None:
    """Let SIGINT be a KeyboardInterrupt again, which lets what has begun clean up."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(number: int, _: FrameType | None) -> None:
    if os.environ.get("RANK", "0") == "0":  # the first rank tells it for all
        os.write(2, f"error: stopped by {signal.Signals(number).name}\n".encode())
    os._exit(128 + number)
