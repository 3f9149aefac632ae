"""What all tests share: the tests of an xdist group stay on one worker, and SIGINT is as a terminal has it.

pytest-xdist 3.8 names the group in the test's `_nodeid`, which pytest 9.2 does not read: there, it keeps no group together.
"""

import gc
import signal
import sys
import threading
from collections.abc import Iterator

import pytest
from _pytest.nodeid import coerce_node_id
from helpers_stages import Stages


def pytest_configure() -> None:
    gc.disable()
    # A shell's background ignores it, and so would each process that a test starts in order to interrupt it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        mark = item.get_closest_marker("xdist_group")
        if mark and getattr(config.option, "loadgroup", False) and "@" not in item.nodeid.rpartition("]")[2]:
            item._id = coerce_node_id(f"{item.nodeid}@{mark.args[0]}")


def pytest_collection_finish() -> None:
    # What was imported stays to the end: to go through it again and again takes a tenth of the tests' time.
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _own_hooks() -> Iterator[None]:
    """Give the tests' process its ways with tracebacks back, which a stage that is run in it replaces."""
    hooks = sys.excepthook, threading.excepthook
    yield
    sys.excepthook, threading.excepthook = hooks


@pytest.fixture(scope="session")
def stages() -> Iterator[Stages]:
    """One process of each worker has imported what stages need."""
    with Stages() as stages:
        yield stages
