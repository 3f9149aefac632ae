"""The processor cores that this process may use."""

import os


def usable_cores() -> int:
    """Return their number: of those that `taskset`, or a scheduler's cpuset, leaves to the process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
