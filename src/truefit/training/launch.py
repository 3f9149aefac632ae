"""What the processes of a training have in common: the parent starts ranks, which end when it does.

A rank is this program with torchrun's environment. The parent's own part is in `supervision`, which a rank does not import.
"""

import os
import signal
import threading
import time

LAUNCHED = "TRUEFIT_LAUNCHED"  # in a rank's environment: the id of the process of ours that started it
LOST = 70  # exit status of a rank that another one, or the link to it, left alone


def end_with_parent(every: float = 0.5) -> None:
    """Let this process, a rank, and its own children end when the process that started it has ended, whatever ended that.

    Nothing tells a process of its parent's SIGKILL on all systems, so a thread looks every so many seconds.
    """
    parent = int(os.environ.get(LAUNCHED, os.getppid()))

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(every)
        if os.getpgrp() == os.getpid():  # torch's launcher gives each rank a session of its own
            os.killpg(0, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="end with parent").start()
