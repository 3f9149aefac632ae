"""How many rows, or which groups, each part of a table gets."""

import numpy as np
from numpy.typing import NDArray

NUMPYS_LIMIT = 10**9  # rows from which on its draw of sizes fails
ROUNDING = 1e-9  # of a number of rows that should be whole


def largest_remainder(shares: NDArray[np.float64], total: int) -> NDArray[np.int64]:
    """Return whole numbers [P] that add up to `total`, each next to its share; of equal remainders the first is rounded up.

    >>> largest_remainder(np.array([0.8, 0.1, 0.1]) * 18, 18)
    array([14,  2,  2])
    """
    sizes = np.floor(shares + ROUNDING).astype(np.int64)
    for index in np.argsort(sizes - shares, kind="stable")[: total - sizes.sum()]:
        sizes[index] += 1
    return sizes


def draw_codes(generator: np.random.Generator, left: NDArray[np.int64], count: int) -> NDArray[np.unsignedinteger]:
    """Return the parts of the next `count` rows, or of the last [C], where so many rows are `left` for each part [P].

    How many go to each part is a draw without replacement from what is left (multivariate hypergeometric), and which rows
    they are is a permutation. Where NumPy's draw of the first fails, the rows' places among what is left are drawn instead.
    """
    total = int(left.sum())
    count = min(count, total)
    parts = np.arange(len(left), dtype=np.min_scalar_type(len(left) - 1))
    if total < NUMPYS_LIMIT:
        taken = generator.multivariate_hypergeometric(left, count, method="marginals")
        return generator.permutation(np.repeat(parts, taken))
    places = generator.choice(total, count, replace=False)
    return parts[np.searchsorted(left.cumsum(), places, side="right")]


def whole_groups(rows: NDArray[np.int64], shares: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.uint16]:
    """Return the parts [G] of groups that have so many `rows` [G], so that each part has about its share of the rows [P].

    There must be a group for each part. A part's rows differ from its share by fewer than the largest group has, unless that
    would leave a part without any; mostly by fewer than a small group has. The largest groups are placed first, at random
    where they fit, with the chance that the room gives, so that groups of each size are likely to be in every part. One that
    fits nowhere goes where the most room is.
    """
    room = shares.astype(np.float64)
    parts = np.empty(len(rows), np.uint16)
    largest_first = np.argsort(-rows, kind="stable")
    sizes, counts = np.unique(-rows, return_counts=True)
    for size, members in zip(-sizes, np.split(largest_first, counts.cumsum()[:-1]), strict=True):
        places = np.maximum(np.floor(room / size + ROUNDING), 0).astype(np.int64)
        for _ in range(len(members) - int(places.sum())):
            places[np.argmax(room - places * size)] += 1
        parts[members] = draw_codes(generator, places, len(members))
        room -= size * np.bincount(parts[members], minlength=len(room))
    for empty in np.flatnonzero(np.bincount(parts, minlength=len(room)) == 0):
        spare = np.flatnonzero(np.bincount(parts)[parts] > 1)
        parts[spare[np.argmin(rows[spare])]] = empty
    return parts
