"""Where the hosts of a training meet: a store of texts at the first host, by which they begin and end each round of ranks.

torch's own meeting place, the c10d rendezvous, unpickles what anyone puts into its store, and listens on all interfaces.
"""

import json
import socket
import time
from datetime import timedelta

from torch._C._distributed_c10d import PrefixStore
from torch.distributed.elastic.rendezvous import RendezvousInfo, RendezvousStoreInfo

from truefit.core.addresses import Address, listener, wait_for_listener
from truefit.core.errors import TruefitError
from truefit.core.launch import LaunchSettings
from truefit.core.terminal import say
from truefit.core.text import as_yaml
from truefit.training.board import FIRST_ANSWER_SECONDS, Board, serve
from truefit.training.causes import Cause, Weight
from truefit.training.place import MeetingPlace
from truefit.training.seats import SILENT_SECONDS, Seats

GREETING = "truefit launch 2"  # key of the first host's settings, and the version of what is told by the other keys
SETTLING_SECONDS = 3.0  # for all hosts to tell why their ranks ended
READING_SECONDS = 6.0  # for them to end their ranks, and to read why those of the first host have ended
LOOPBACK = Address("127.0.0.1", 0)


class Meeting(MeetingPlace):
    """One host's side of it: the first one's where it listens, or that of one that joins.

    `reached_at` is the first host's IP address as seen from here, `heard` when it last answered, `met` whether all hosts were
    there. Where it or the link to it went away, methods raise RuntimeError or block: whoever calls them watches `heard`.
    """

    def __init__(self, settings: LaunchSettings, joins: Address | None) -> None:
        self._settings = settings
        self.joins = joins
        self.name = socket.gethostname()
        self.round = 0
        self.met = self.again = False
        self._silent = 0
        self._away = False  # the first host
        self._over = -1  # the last round of which the first host's ranks have ended
        if joins is None:
            self._listen(settings.address or LOOPBACK)

    def _listen(self, address: Address) -> None:
        where = listener(address)
        bound, port = where.getsockname()[:2]
        self.reached_at = bound
        self.address = Address(address.host if port == address.port else bound, port)
        self._use(Board(serve(where, self._settings.timeout)))
        self._seats.tell_name()
        self._board.set(GREETING, _agreed(self._settings))

    def _use(self, board: Board) -> None:
        self._board = board
        self._seats = Seats(board, self._settings.hosts, self._settings.timeout)

    @property
    def heard(self) -> float:
        """When the first host last answered, once it has."""
        return self._board.heard

    def count_silence_anew(self) -> None:
        """Let the first host's silence begin now."""
        self._board.heard = time.monotonic()

    def reach(self, address: Address) -> None:
        """Wait without end until something listens there; raises TruefitError for a name that nobody knows."""
        self.reached_at = wait_for_listener(address)

    def greet(self, address: Address) -> None:
        """Turn to the training that listens there; raises TruefitError where it is another one."""
        self._use(Board.at(self.reached_at, address))
        if not self._board.until(lambda: self._board.has(GREETING), FIRST_ANSWER_SECONDS):  # it listens before it greets
            raise TruefitError(f"{address}: what listens there is no training of this version that waits for hosts")
        self._board.store.set_timeout(timedelta(seconds=self._settings.timeout))
        theirs, ours = json.loads(self._board.get(GREETING)), json.loads(_agreed(self._settings))
        for key, value in ours.items():
            if theirs.get(key) != value:
                allowed = f"{as_yaml(theirs.get(key))}, as on the first host"
                raise TruefitError(f"params.yaml: launch.{key}: found {as_yaml(value)}, allowed: {allowed}")

    def watch(self) -> None:
        """Show the first host that this one is there, for as long as it answers, and see whether its ranks have ended."""
        board = self._board.another()
        try:
            while True:
                board.count(self._seats.beat)
                self._board.heard = board.heard
                over = self.round
                if board.has(f"{over}/again"):
                    self._over = over
                time.sleep(1)
        except RuntimeError:
            self._away = True

    def is_over(self) -> bool:
        """Say whether ranks that run here have nothing to do: those of the first host have ended, or that went away."""
        return self._away or self._over == self.round

    def take_seat(self) -> None:
        """Become one of the hosts, also in the place of one that is gone; raises TruefitError where the training has all."""
        if self._seats.take():
            return
        hosts, patience = self._settings.hosts, self._settings.timeout
        if not self._begun():
            say(f"{self.joins}: has its {hosts} hosts; waiting {patience:g} s for the place of one that is gone", error=True)
            self._board.until(lambda: self._seats.take() or self._begun(), patience + SILENT_SECONDS)
        if not self._seats.host:
            raise TruefitError(f"{self.joins}: the training there has its {hosts} hosts already")

    def leave(self) -> None:
        """Give the seat of a host that waits no longer to another."""
        if self._seats.host:
            self._seats.leave()

    def next_rendezvous(self) -> RendezvousInfo:
        """Wait for all hosts, the first time without end; raises TruefitError where one does not come back after that."""
        port = self._gather() if self.joins is None else self._follow()
        self.met = True
        here = RendezvousStoreInfo(self.reached_at, port)
        return RendezvousInfo(
            PrefixStore(f"agents/{self.round}", self._board.store), self._seats.host, self._settings.hosts, here
        )

    def _gather(self) -> int:
        """Wait for the others; return the port of a new store for the ranks: those before have left their keys in the old."""
        said = None

        def missing() -> list[int]:
            nonlocal said
            if self.round:
                others = range(1, self._settings.hosts)
                return [host for host in others if not self._board.has(f"{self.round}/here/{host}")]
            away = self._seats.missing()
            if away and len(away) != said:
                said = len(away)
                say(
                    f"waiting for {said} more {'host' if said == 1 else 'hosts'}: truefit join {self.address} there",
                    error=True,
                )
            return away

        patience = self._settings.timeout if self.round else None
        if not self._board.until(lambda: not missing() and (self.round > 0 or self._seats.are_awake()), patience):
            names = ", ".join(map(self._seats.name, missing()))
            raise TruefitError(
                f"{names}: not back within {patience:g} s (launch.timeout); `dvc repro` goes on from the last checkpoint"
            )
        self._ranks_store = serve(listener(Address(self.reached_at, 0)), self._settings.timeout)
        self._board.set(f"{self.round}/port", str(self._ranks_store.port))
        return self._ranks_store.port

    def _follow(self) -> int:
        port, patience = f"{self.round}/port", self._settings.timeout
        if not self.round:
            self._board.until(lambda: self._seats.is_lost() or self._begun(), None)
            if self._seats.is_lost():
                lost = f"lost its place there, since it was silent for {patience:g} s (launch.timeout)"
                raise TruefitError(f"{self.joins}: this host {lost}; `truefit join` takes another")
        else:
            self._board.set(f"{self.round}/here/{self._seats.host}", self.name)
            if not self._board.until(lambda: self._board.has(port), patience):
                raise TruefitError(f"{self.joins}: the first host did not start again within {patience:g} s (launch.timeout)")
        return int(self._board.get(port))

    def _begun(self) -> bool:
        return self._board.has("0/port")

    def settle(self, own: Cause | None, may_restart: bool) -> Cause | None:
        """Tell the others how this host's ranks ended (None: well), and return the end of all; None: well, or once more.

        The first host decides. `again` says afterwards whether the ranks are to start once more.
        """
        self.again = False
        if own is not None:
            self._board.set(f"{self.round}/cause/{self._seats.host}", own.model_dump_json())
        if self.joins is not None:
            return self._await_decision()
        cause = own and self._root(own)
        self.again = cause is not None and may_restart and not cause.final
        self._board.set(f"{self.round}/end", cause.model_dump_json() if cause else "well")
        self._board.set(f"{self.round}/again", str(self.again))
        if self.again:
            self.round += 1
        else:  # the store goes with this process
            readers = self._settings.hosts - 1 - self._silent
            self._board.until(lambda: self._board.store.add("read", 0) >= readers, READING_SECONDS)
        return cause

    def _root(self, own: Cause) -> Cause:
        others = range(1, self._settings.hosts)
        keys = [f"{self.round}/cause/{host}" for host in others]
        if own.weight <= Weight.ENDED:
            self._board.until(lambda: all(map(self._board.has, keys)), SETTLING_SECONDS)
        causes = [own, *(_parse_cause(self._board.get(key)) for key in keys if self._board.has(key))]
        silent = [self._seats.name(host) for host, key in zip(others, keys, strict=True) if not self._board.has(key)]
        root = max(causes, key=Cause.depth)
        self._silent = len(silent) if own.weight <= Weight.ENDED else 0  # others were not waited for
        if root.weight is Weight.LOST and silent:
            how = f"{root.how}; no word from {', '.join(silent)}, which is gone, or the link to it"
            return root.model_copy(update={"how": how})
        return root

    def _await_decision(self) -> Cause | None:
        self._board.until(lambda: self._board.has(f"{self.round}/again"), None)
        end, again = self._board.get(f"{self.round}/end"), self._board.get(f"{self.round}/again")
        self.again = again == "True"
        if self.again:
            self.round += 1
        else:
            self._board.store.add("read", 1)
        return None if end == "well" else _parse_cause(end)

    def ask_to_stop(self, number: int) -> None:
        """Ask the first host to hand rank 0 this signal."""
        self._board.set("stop", f"{number} {self.name}")

    def asked_to_stop(self) -> tuple[int, str] | None:
        """Return, at the first host, the signal that another one wants rank 0 to have, and that one's name."""
        if self._settings.hosts == 1 or self.joins is not None or not self._board.has("stop"):
            return None
        number, _, name = self._board.get("stop").partition(" ")
        return int(number), name


def _agreed(settings: LaunchSettings) -> str:
    """Return the settings that all hosts must have alike."""
    return json.dumps(settings.model_dump(include={"processes", "hosts", "timeout", "restarts"}))


def _parse_cause(text: str) -> Cause:
    return Cause.model_validate_json(text)
