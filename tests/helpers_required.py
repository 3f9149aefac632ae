"""What a test needs of the machine: where it is not there the test is skipped, or fails, as in .ci/run."""

import os
from typing import NoReturn

import pytest


def unavailable(what: str, reason: str) -> NoReturn:
    """Skip the test for the reason, or let it fail where TRUEFIT_<what> is `required`."""
    if os.environ.get(f"TRUEFIT_{what}") == "required":
        pytest.fail(reason)
    pytest.skip(reason)
