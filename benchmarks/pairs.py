"""How the benchmarks report: two things that took turns, and the ratio of each pair."""

import numpy as np


def print_pairs(first: str, second: str, seconds: list[tuple[float, float]]) -> None:
    """Print medians and quartiles of the seconds of `first` and `second`, and of first over second.

    The first pair only warms up and is left out.
    """
    one, other = np.array(seconds[1:]).T
    for name, values in [(f"{first}, s", one), (f"{second}, s", other), ("ratio", one / other)]:
        low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
        print(f"{name:18} median {median:.3f}, quartiles {low:.3f} to {high:.3f}, {len(one)} pairs")
