"""The seats of a training's hosts: the first has seat 0; another takes one that is free, and keeps it while it answers."""

import socket
import time
from uuid import uuid4

from truefit.training.board import Board

SILENT_SECONDS = 5.0  # without a beat, of which there is one a second: such a host counts as missing


class Seats:
    """One host's view of them, `host` being the seat that it has.

    A host that is killed tells nobody: so each beats, and the first one gives up the seat of a host that was silent for
    `timeout` seconds.
    """

    def __init__(self, board: Board, hosts: int, timeout: float) -> None:
        self._board, self._others, self._timeout = board, range(1, hosts), timeout
        self.host = 0
        self._me = uuid4().hex  # as containers may have one name, and the same process ids
        self._beats = dict[int, tuple[str, str, float]]()  # of each host: who it is, its beat, and when that was new
        self._changed = 0.0  # when a host last took a seat

    def take(self) -> bool:
        """Take a seat, if one is free, and say so."""
        for host in self._others:
            if self._board.replace(f"seat/{host}", "", self._me):
                self.host = host
                self.tell_name()
                return True
        return False

    def tell_name(self) -> None:
        """Tell the others what this host is called."""
        self._board.set(f"name/{self.host}", socket.gethostname())

    def beat(self) -> None:
        """Show, for as long as the first host answers, that this one is there."""
        self._board.beat(lambda: f"beat/{self.host}")

    def leave(self) -> None:
        """Give the seat of a host that waits no longer to another."""
        self._board.replace(f"seat/{self.host}", self._me, "")

    def is_lost(self) -> bool:
        """Say whether the first host has given this one's seat up."""
        return self._board.get(f"seat/{self.host}") != self._me

    def missing(self) -> list[int]:
        """Return the hosts that are not there, at the first one, which gives up the seats of those that are gone."""
        return [host for host in self._others if not self._is_there(host)]

    def are_awake(self) -> bool:
        """Say, where none is missing, whether each has beaten since the last one came: one may have been killed meanwhile."""
        return all(self._beats[host][2] > self._changed for host in self._others)

    def _is_there(self, host: int) -> bool:
        seat, beat = f"seat/{host}", f"beat/{host}"
        if not (self._board.has(seat) and (holder := self._board.get(seat))):
            return False
        now, seen = time.monotonic(), self._board.get(beat) if self._board.has(beat) else ""
        known = self._beats.get(host, ("", "", 0.0))
        if holder != known[0]:
            self._changed = now
        if (holder, seen) != known[:2]:
            self._beats[host] = holder, seen, now
        silent = now - self._beats[host][2]
        if silent > self._timeout:
            self._board.replace(seat, holder, "")
        return silent <= SILENT_SECONDS

    def name(self, host: int) -> str:
        """Return what a host is called, or its number where it has not told."""
        return self._board.get(f"name/{host}") if self._board.has(f"name/{host}") else f"host {host}"
