"""What the hosts of a training tell each other: texts by their keys, in a store of torch's that the first host serves."""

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Self

from torch._C._distributed_c10d import TCPStore

from truefit.core.addresses import Address

POLL_SECONDS = 0.1
FIRST_ANSWER_SECONDS = 5  # for what listens at an address to answer as such a store does


class Board:
    """One host's way to the texts; `heard` says when the first host last answered.

    Where that, or the link to it, went away, methods raise RuntimeError or block: whoever calls them watches `heard`.
    """

    def __init__(self, store: TCPStore) -> None:
        self.store = store
        self.heard = time.monotonic()

    @classmethod
    def at(cls, ip: str, address: Address) -> Self:
        """Return the way to that of the first host, which listens at the address."""
        seconds = timedelta(seconds=FIRST_ANSWER_SECONDS)
        return cls(TCPStore(ip, address.port, is_master=False, wait_for_workers=False, timeout=seconds))

    def has(self, key: str) -> bool:
        """Say whether there is such a text."""
        found: bool = self.store.check([key])
        self.heard = time.monotonic()
        return found

    def get(self, key: str) -> str:
        """Return a text; waits until it is there."""
        return self.store.get(key).decode()

    def set(self, key: str, text: str) -> None:
        """Show a text."""
        self.store.set(key, text)

    def replace(self, key: str, old: str, new: str) -> bool:
        """Show a text if there was the old one, empty also where there was none; say whether it is there now."""
        return self.store.compare_set(key, old, new).decode() == new

    def until(self, found: Callable[[], bool], seconds: float | None) -> bool:
        """Wait until the function says so, without end or for so many seconds, and say whether it did."""
        began = time.monotonic()
        while not found():
            if seconds is not None and time.monotonic() - began > seconds:
                return False
            time.sleep(POLL_SECONDS)
        return True

    def another(self) -> "Board":
        """Return a second way to the same texts, for a thread: a call that waits for its answer keeps others from asking."""
        return Board(self.store.clone())  # type: ignore[attr-defined]

    def count(self, key: str) -> None:
        """Count the number at the key up."""
        self.store.add(key, 1)
        self.heard = time.monotonic()


def serve(where: socket.socket, seconds: float) -> TCPStore:
    """Return a store that answers at the socket, which listens, and no other; whoever asks it waits for so many seconds."""
    ip, port = where.getsockname()[:2]
    patience = timedelta(seconds=seconds)
    with _hushed():
        return TCPStore(ip, port, is_master=True, wait_for_workers=False, timeout=patience, master_listen_fd=where.detach())


@contextmanager
def _hushed() -> Iterator[None]:
    """Let what torch's C++ code says on stderr go nowhere, such as that an address has no name."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 (no file that a Path would name)
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
