"""Keeps the tests of an xdist group on one worker, so that what they share is made once; and SIGINT as a terminal has it.

pytest-xdist 3.8 names the group in the test's `_nodeid`, which pytest 9.2 does not read: there, it keeps no group together.
"""

import signal

import pytest
from _pytest.nodeid import coerce_node_id


def pytest_configure() -> None:
    # A shell's background ignores it, and so would each process that a test starts in order to interrupt it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        mark = item.get_closest_marker("xdist_group")
        if mark and getattr(config.option, "loadgroup", False) and "@" not in item.nodeid.rpartition("]")[2]:
            item._id = coerce_node_id(f"{item.nodeid}@{mark.args[0]}")
