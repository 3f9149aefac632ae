"""Where the hosts of a training meet: a store of texts at the first host, by which they begin and end each round of ranks.

torch's own meeting place, the c10d rendezvous, unpickles what anyone puts into its store, and listens on all interfaces.
"""

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

from torch._C._distributed_c10d import PrefixStore, TCPStore
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousStoreInfo

from truefit.core.addresses import Address, listener, wait_for_listener
from truefit.core.errors import TruefitError
from truefit.core.launch import LaunchSettings
from truefit.core.terminal import say
from truefit.training.causes import Cause, Weight

GREETING = "truefit launch 1"  # key of the first host's settings, and the version of what is told by the other keys
SETTLING_SECONDS = 3.0  # for all hosts to tell why their ranks ended
POLL_SECONDS = 0.1
LOOPBACK = Address("127.0.0.1", 0)


class Meeting(RendezvousHandler):
    """One host's side of it: the first one's where it listens, or that of one that joins.

    `reached_at` is the first host's IP address as seen from here, `heard` when it last answered, `met` whether all hosts were
    there. Where it or the link to it went away, methods raise RuntimeError or block: whoever calls them watches `heard`.
    """

    def __init__(self, settings: LaunchSettings, joins: Address | None) -> None:
        self._settings = settings
        self.joins = joins
        self.host = 0
        self.name = socket.gethostname()
        self._me = f"{self.name} {os.getpid()}"
        self.round = 0
        self.heard = time.monotonic()
        self.met = self.again = False
        self._silent = 0
        if joins is None:
            self._listen(settings.address or LOOPBACK)

    def _listen(self, address: Address) -> None:
        where = listener(address)
        bound, port = where.getsockname()[:2]
        self.reached_at = bound
        self.address = Address(address.host if port == address.port else bound, port)
        self._store = self._server(where)
        self._store.set(GREETING, _agreed(self._settings))
        self._store.set("name/0", self.name)

    def _server(self, where: socket.socket) -> TCPStore:
        port = where.getsockname()[1]
        with _hushed():
            return TCPStore(
                self.reached_at,
                port,
                is_master=True,
                wait_for_workers=False,
                timeout=self._patience,
                master_listen_fd=where.detach(),
            )

    @property
    def _patience(self) -> timedelta:
        return timedelta(seconds=self._settings.timeout)

    def reach(self, address: Address) -> None:
        """Wait without end until something listens there; raises TruefitError for a name that nobody knows."""
        self.reached_at = wait_for_listener(address)

    def greet(self, address: Address) -> None:
        """Join the training that listens there; raises TruefitError where it is another one, or has its hosts."""
        self._store = TCPStore(
            self.reached_at, address.port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=5)
        )
        if not self._has(GREETING):
            raise TruefitError(f"{address}: what listens there is no training of this version that waits for hosts")
        self._store.set_timeout(self._patience)
        theirs, ours = json.loads(self._get(GREETING)), json.loads(_agreed(self._settings))
        for key, value in ours.items():
            if theirs.get(key) != value:
                raise TruefitError(
                    f"params.yaml: launch.{key}: found {value}, allowed: {theirs.get(key)}, as on the first host"
                )
        for host in range(1, self._settings.hosts):
            if self._store.compare_set(f"seat/{host}", "", self._me).decode() == self._me:
                self.host = host
                self._store.set(f"name/{host}", self.name)
                return
        raise TruefitError(f"{address}: the training there has its {self._settings.hosts} hosts already")

    def watch(self) -> None:
        """Ask the first host whether it is there, for as long as it answers; `heard` says when it last did."""
        # A call that waits for its answer keeps others of the same client from asking.
        own: TCPStore = self._store.clone()  # type: ignore[attr-defined]
        with suppress(RuntimeError):
            while own.check([GREETING]):
                self.heard = time.monotonic()
                time.sleep(1)

    def leave(self) -> None:
        """Give the seat of a host that waits no longer to another."""
        self._store.compare_set(f"seat/{self.host}", self._me, "")

    def next_rendezvous(self) -> RendezvousInfo:
        """Wait for all hosts, the first time without end; raises TruefitError where one does not come back after that."""
        port = self._gather() if self.joins is None else self._follow()
        self.met = True
        here = RendezvousStoreInfo(self.reached_at, port)
        return RendezvousInfo(PrefixStore(f"agents/{self.round}", self._store), self.host, self._settings.hosts, here)

    def _gather(self) -> int:
        """Wait for the others; return the port of a new store for the ranks: those before have left their keys in the old."""
        others, said = range(1, self._settings.hosts), None

        def missing() -> list[int]:
            nonlocal said
            seats = [f"seat/{host}" if not self.round else f"{self.round}/here/{host}" for host in others]
            away = [host for host, seat in zip(others, seats, strict=True) if not (self._has(seat) and self._get(seat))]
            if away and not self.round and len(away) != said:
                said = len(away)
                say(
                    f"waiting for {said} more {'host' if said == 1 else 'hosts'}: truefit join {self.address} there",
                    error=True,
                )
            return away

        patience = self._settings.timeout if self.round else None
        if not self._until(lambda: not missing(), patience):
            names = ", ".join(map(self._name, missing()))
            raise TruefitError(
                f"{names}: not back within {patience:g} s (launch.timeout); `dvc repro` goes on from the last checkpoint"
            )
        self._ranks_store = self._server(listener(Address(self.reached_at, 0)))
        self._store.set(f"{self.round}/port", str(self._ranks_store.port))
        return self._ranks_store.port

    def _follow(self) -> int:
        self._store.set(f"{self.round}/here/{self.host}", self.name)
        patience = self._settings.timeout if self.round else None
        if not self._until(lambda: self._has(f"{self.round}/port"), patience):
            raise TruefitError(f"{self.joins}: the first host did not start again within {patience:g} s (launch.timeout)")
        return int(self._get(f"{self.round}/port"))

    def settle(self, own: Cause | None, may_restart: bool) -> Cause | None:
        """Tell the others how this host's ranks ended (None: well), and return the end of all; None: well, or once more.

        The first host decides. `again` says afterwards whether the ranks are to start once more.
        """
        self.again = False
        if own is not None:
            self._store.set(f"{self.round}/cause/{self.host}", own.model_dump_json())
        if self.joins is not None:
            return self._await_decision()
        cause = own and self._root(own)
        self.again = cause is not None and may_restart and not cause.final
        self._store.set(f"{self.round}/end", cause.model_dump_json() if cause else "well")
        self._store.set(f"{self.round}/again", str(self.again))
        if self.again:
            self.round += 1
        else:  # the store goes with this process
            readers = self._settings.hosts - 1 - self._silent
            self._until(lambda: self._store.add("read", 0) >= readers, SETTLING_SECONDS)
        return cause

    def _root(self, own: Cause) -> Cause:
        others = range(1, self._settings.hosts)
        keys = [f"{self.round}/cause/{host}" for host in others]
        if own.weight <= Weight.ENDED:
            self._until(lambda: all(map(self._has, keys)), SETTLING_SECONDS)
        causes = [own, *(_parse_cause(self._get(key)) for key in keys if self._has(key))]
        silent = [self._name(host) for host, key in zip(others, keys, strict=True) if not self._has(key)]
        root = max(causes, key=Cause.depth)
        self._silent = len(silent) if own.weight <= Weight.ENDED else 0  # others were not waited for
        if root.weight is Weight.LOST and silent:
            how = f"{root.how}; no word from {', '.join(silent)}, which is gone, or the link to it"
            return root.model_copy(update={"how": how})
        return root

    def _await_decision(self) -> Cause | None:
        self._until(lambda: self._has(f"{self.round}/again"), None)
        end, again = self._get(f"{self.round}/end"), self._get(f"{self.round}/again")
        self.again = again == "True"
        if self.again:
            self.round += 1
        else:
            self._store.add("read", 1)
        return None if end == "well" else _parse_cause(end)

    def ask_to_stop(self, number: int) -> None:
        """Ask the first host to hand rank 0 this signal."""
        self._store.set("stop", str(number))

    def asked_to_stop(self) -> int | None:
        """Return the signal that another host wants rank 0 to have, at the first host."""
        if self._settings.hosts == 1 or self.joins is not None or not self._has("stop"):
            return None
        return int(self._get("stop"))

    def _until(self, found: Callable[[], bool], seconds: float | None) -> bool:
        began = time.monotonic()
        while not found():
            if seconds is not None and time.monotonic() - began > seconds:
                return False
            time.sleep(POLL_SECONDS)
        return True

    def _has(self, key: str) -> bool:
        found: bool = self._store.check([key])
        self.heard = time.monotonic()
        return found

    def _get(self, key: str) -> str:
        return self._store.get(key).decode()

    def _name(self, host: int) -> str:
        return self._get(f"name/{host}") if self._has(f"name/{host}") else f"host {host}"

    def get_backend(self) -> str:
        """Return the name that torch's launcher logs."""
        return "truefit"

    def get_run_id(self) -> str:
        """Return the name of the training, of which a meeting has one alone."""
        return "training"

    @property
    def use_agent_store(self) -> bool:
        """Say that MASTER_ADDR and MASTER_PORT are of a store which exists, so that rank 0 makes none."""
        return True

    def num_nodes_waiting(self) -> int:
        """Return the hosts that come in later: none."""
        return 0

    def is_closed(self) -> bool:
        """Say whether nobody is to come in any more: `next_rendezvous` does."""
        return False

    def set_closed(self) -> None:
        """Do nothing, as `settle` tells the others of an end."""

    def shutdown(self) -> bool:
        """Do nothing, as the store goes with the process."""
        return True


def _agreed(settings: LaunchSettings) -> str:
    """Return the settings that all hosts must have alike."""
    return json.dumps(settings.model_dump(include={"processes", "hosts", "timeout", "restarts"}))


def _parse_cause(text: str) -> Cause:
    return Cause.model_validate_json(text)


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
