"""A process as one of several that torch's launcher, torchrun, has started: how it begins, and how it ends."""

import json
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from truefit.core.errors import LostError, TruefitError, leave
from truefit.core.terminal import say
from truefit.core.text import printable
from truefit.training.launch import LAUNCHED, LOST, end_with_parent

_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"  # where torch's launcher looks for it


def is_rank() -> bool:
    """Say whether torch's launcher started this process as one of several, or as the only one."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def begin_rank() -> None:
    """Let this process end with its launcher, where that is ours; leave signals to the first; and compute undisturbed."""
    if LAUNCHED in os.environ:
        end_with_parent()
    if int(os.environ["RANK"]):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # the first takes them, and ends the others
    _compute_undisturbed()


def _compute_undisturbed() -> None:
    """Let a thread of this process that wakes up not take the core from one that computes, where the system knows of that.

    Each exchange wakes several of gloo's threads in each process. With Linux's usual policy they and the processes drive each
    other from core to core, and a step on two cores takes up to twice as long: see the lab notebook.
    """
    if sys.platform == "linux" and os.sched_getscheduler(0) == os.SCHED_OTHER:
        with suppress(PermissionError):  # of a container, where it is as slow as before
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def end_with(error: TruefitError) -> NoReturn:
    """End this process with the error: told by the launcher where that is ours, or else here."""
    line = printable(str(error))
    if path := os.environ.get(_ERROR_FILE):
        # As torch.distributed.elastic writes it, which reads it.
        content = {"message": {"message": line, "extraInfo": {"timestamp": str(int(time.time()))}}}
        Path(path).write_text(json.dumps(content), encoding="utf-8")
    if LAUNCHED not in os.environ:
        say(f"error: {line}", error=True)
    leave(LOST if isinstance(error, LostError) else error.status)
