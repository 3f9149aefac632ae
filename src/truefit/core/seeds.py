"""A generator of its own for every random choice.

It depends only on a section's seed, the name of the choice and its numbers (a chunk, an epoch): no choice shifts another.
"""

import hashlib

import numpy as np


def seed_sequence(seed: int, name: str, *numbers: int) -> np.random.SeedSequence:
    """Return the entropy for the choice called `name`, one stream for each tuple of `numbers`."""
    word = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    return np.random.SeedSequence([seed, word], spawn_key=numbers)


def numpy_generator(seed: int, name: str, *numbers: int) -> np.random.Generator:
    """Return NumPy's generator (PCG64) for the choice called `name`.

    >>> numpy_generator(42, "split", 0).permutation(5)
    array([2, 1, 4, 0, 3])
    """
    return np.random.default_rng(seed_sequence(seed, name, *numbers))


def torch_seed(seed: int, name: str, *numbers: int) -> int:
    """Return a 63-bit seed, for `torch.Generator.manual_seed`, for the choice called `name`.

    >>> torch_seed(42, "init")
    6143960342479704363
    """
    return int(seed_sequence(seed, name, *numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
