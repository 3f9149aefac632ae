"""What comes piece by piece, made ahead in a thread."""

from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def read_ahead(source: Iterable[T]) -> Generator[T, None, None]:
    """Give what the source gives, each made by a thread while the one before it is in use.

    Reading, NumPy and torch leave Python's lock free, so the user goes on meanwhile, where there is a second core.

    >>> list(read_ahead(["first", "second"]))
    ['first', 'second']
    """
    with ThreadPoolExecutor(1, "read_ahead") as reader:
        chunks = iter(source)
        ahead = reader.submit(next, chunks, None)
        while (chunk := ahead.result()) is not None:
            ahead = reader.submit(next, chunks, None)
            yield chunk
