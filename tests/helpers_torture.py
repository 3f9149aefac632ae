"""How long the tests of kills, outages and mutations run: a bounded form, or with TRUEFIT_TORTURE=1 the long one."""

import os
import time

import pytest
from hypothesis import Phase, settings

TORTURE = os.environ.get("TRUEFIT_TORTURE") == "1"
long = pytest.mark.skipif(not TORTURE, reason="another form of what a test beside it holds: `make torture`")
# Of the random moments; TRUEFIT_SEED repeats a run.
SEED = int(os.environ.get("TRUEFIT_SEED", time.time_ns() % 2**32 if TORTURE else 7))


def fuzz(examples: int) -> settings:
    """Return the profile of a fuzz test: always the same `examples`, or 2000 others each time."""
    return settings(
        max_examples=2000 if TORTURE else examples,
        derandomize=not TORTURE,
        print_blob=TORTURE,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        deadline=None,
        database=None,
    )
