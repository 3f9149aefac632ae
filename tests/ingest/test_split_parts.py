"""How a seed shares rows out: every partition of the sizes is equally likely, on either side of NumPy's limit."""

import math
from collections import Counter

import numpy as np
import pytest

from truefit.core.seeds import numpy_generator
from truefit.ingest import split_parts
from truefit.ingest.split_parts import draw_codes


def test_below_numpys_limit_a_seed_draws_the_split_that_it_always_drew() -> None:
    drawn = [draw_codes(numpy_generator(seed, "split", 0), np.array([8, 3, 2]), 9).tolist() for seed in range(3)]

    assert drawn == [[0, 1, 0, 0, 0, 1, 2, 0, 0], [0, 0, 2, 0, 2, 0, 1, 0, 0], [2, 1, 1, 0, 0, 0, 0, 0, 1]]


def test_beyond_numpys_limit_the_rows_of_a_chunk_are_shared_out_like_all() -> None:
    left = np.array([8 * 10**12, 10**12, 10**12])

    counts = np.bincount(draw_codes(numpy_generator(42, "split", 0), left, 65_536), minlength=3)

    share = left / left.sum()
    assert counts.sum() == 65_536
    assert (np.abs(counts - 65_536 * share) < 4.5 * np.sqrt(65_536 * share * (1 - share))).all()


@pytest.mark.parametrize("limit", [10**9, 0], ids=["below", "beyond"])
def test_every_partition_is_equally_likely_on_either_side_of_numpys_limit(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split_parts, "NUMPYS_LIMIT", limit)
    found: Counter[tuple[int, ...]] = Counter()
    for seed in range(2400):
        left = np.array([2, 1, 1])
        drawn: list[int] = []
        while left.sum():
            codes = draw_codes(numpy_generator(seed, "split", len(drawn)), left, 3)
            left -= np.bincount(codes, minlength=3)
            drawn += codes.tolist()
        found[tuple(drawn)] += 1

    assert len(found) == 12  # of 4! / 2!
    # Each is binomial with mean 200.
    assert max(abs(count - 200) for count in found.values()) < 4.5 * math.sqrt(200 * 11 / 12)
