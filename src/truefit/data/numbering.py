"""Texts as numbers from 0, in the order in which they first appear."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


class Numbering:
    """The texts that were met; it takes `most` of them at most, where that is given.

    >>> numbering = Numbering()
    >>> numbering.of(["b", "a", "b"]), numbering.of(["c", "a"]), numbering.texts
    (array([0, 1, 0]), array([2, 1]), ['b', 'a', 'c'])
    """

    def __init__(self, most: int | None = None) -> None:
        self._most = most
        self._numbers: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def texts(self) -> list[str]:
        """The texts, in the order of their numbers."""
        return list(self._numbers)

    def of(self, texts: Iterable[str]) -> NDArray[np.int64]:
        """Return the numbers of texts; raises ValueError where there are too many now."""
        numbers = np.array([self._numbers.setdefault(text, len(self._numbers)) for text in texts], np.int64)
        if self._most is not None and len(self._numbers) > self._most:
            raise ValueError(f"more than {self._most} different texts")
        return numbers

    def join(self, texts: list[str]) -> NDArray[np.int64]:
        """Return the numbers of texts that another numbered; raises ValueError, and takes none, where there are too many."""
        if self._most is not None and len(self) + sum(text not in self._numbers for text in texts) > self._most:
            raise ValueError(f"more than {self._most} different texts")
        return self.of(texts)
