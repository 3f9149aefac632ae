"""The parent of a host's ranks: torch's launcher in a thread, and in the main one what ends it all in bounded time."""

import logging
import os
import signal
import tempfile
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from types import FrameType

import torch.distributed as dist

from truefit.core.addresses import Address, interface_towards
from truefit.core.beginning import STOPPING
from truefit.core.errors import StoppedError, TruefitError
from truefit.core.launch import LaunchSettings
from truefit.core.terminal import say
from truefit.training.causes import Weight
from truefit.training.launch import LAUNCHED
from truefit.training.meeting import SETTLING_SECONDS, Meeting
from truefit.training.ranks import Ranks

HANGING_SECONDS = 10.0  # for ranks that lost the first host to end by themselves
GREETING_SECONDS = 10.0  # for what listens at an address to show that it is the first host
NO_TRAINING = "what listens there does not answer as the first host of a training does"


def start_ranks(command: list[str], settings: LaunchSettings, joins: Address | None = None) -> int:
    """Run `command` as this host's ranks until the training has ended, and return the exit status.

    Without `joins` this is the first host. The status is 0, or rank 0's own where it has told an error or was stopped. Raises
    TruefitError for any other end, and where hosts cannot meet. SIGINT, SIGTERM and SIGHUP are passed to rank 0.
    """
    return Supervisor(command, settings, joins).run()


class Supervisor:
    """Runs this host's ranks, passes signals on, and ends what does not end by itself.

    torch's launcher and the store of the hosts can block, as for a link that is down: so they have a thread of their own.
    """

    def __init__(self, command: list[str], settings: LaunchSettings, joins: Address | None) -> None:
        self._command = command
        self._settings = settings
        self._joins = joins
        self._meeting = Meeting(settings, joins)
        self._ranks: Ranks | None = None
        self._greeting: float | None = None
        self._greeted = False
        self._signals: list[int] = []
        self._stopped: int | None = None
        self._deadline = float("inf")
        self._done: Future[None] = Future()
        _silence_torch()

    def run(self) -> int:
        """Run them until the training has ended, and return the exit status; raises TruefitError."""
        with tempfile.TemporaryDirectory(prefix="truefit-", ignore_cleanup_errors=True) as folder:
            former = {number: signal.signal(number, self._receive) for number in STOPPING if not _ignored(number)}
            thread = threading.Thread(target=self._work, args=(folder,), daemon=True, name="ranks")
            thread.start()
            try:
                while thread.is_alive() and not self._overdue():
                    time.sleep(0.05)
                    self._pass_signals_on()
                return self._conclude(thread)
            finally:
                for number, handler in former.items():
                    signal.signal(number, handler)

    def _work(self, folder: str) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)  # ranks inherit it: they take a signal once they can tell of it
        try:
            if self._joins is not None:
                self._meeting.reach(self._joins)
                self._greeting = time.monotonic()
                self._meeting.greet(self._joins)
                self._greeting, self._greeted = None, True
                threading.Thread(target=self._meeting.watch, daemon=True, name="watch").start()
                self._meeting.take_seat()
            self._set_environment()
            self._ranks = Ranks(self._command, self._settings, self._meeting, folder)
            self._ranks.run()
        except (TruefitError, RuntimeError, OSError, ValueError) as error:
            self._done.set_exception(error)
        else:
            self._done.set_result(None)

    def _set_environment(self) -> None:
        """Set what the ranks find beside torchrun's variables."""
        os.environ[LAUNCHED] = str(os.getpid())
        os.environ["TORCH_ELASTIC_WORKER_IDENTICAL"] = "1"  # all hosts have the same number: no need to ask each other
        # Its errors are exceptions too, which the ranks tell of.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
        # Otherwise gloo listens at the address of the host's name, where that has one.
        if interface := interface_towards(self._meeting.reached_at):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
            os.environ.setdefault("NCCL_SOCKET_IFNAME", interface)

    def _receive(self, number: int, _: FrameType | None) -> None:
        self._signals.append(number)

    def _pass_signals_on(self) -> None:
        while self._signals:
            number = self._signals.pop(0)
            again, self._stopped = self._stopped is not None, self._stopped or number
            self._deadline = min(self._deadline, time.monotonic() + self._settings.timeout)
            if self._ranks is None or not self._ranks.pids() or (self._joins is not None and again):
                self._deadline = 0
            elif self._joins is not None:
                threading.Thread(target=self._ask_to_stop, args=(number,), daemon=True).start()
            else:
                self._ranks.send(number)

    def _ask_to_stop(self, number: int) -> None:
        with suppress(RuntimeError):  # the first host has gone, as the others find
            self._meeting.ask_to_stop(number)

    def _overdue(self) -> bool:
        """Say whether to wait no longer; raises TruefitError where the first host cannot be joined."""
        now, patience = time.monotonic(), self._settings.timeout
        if now > self._deadline:
            return True
        if self._greeting is not None and now - self._greeting > GREETING_SECONDS:
            raise TruefitError(f"{self._joins}: {NO_TRAINING}")
        if not self._greeted:
            return False
        silent = now - self._meeting.heard
        if not self._meeting.met and silent > patience:
            raise TruefitError(f"{self._joins}: the first host has not answered for {patience:g} s")
        if self._ranks is not None and self._ranks.settling and self._ranks.end is not None:
            return silent > SETTLING_SECONDS
        return silent > patience + HANGING_SECONDS  # the ranks end by themselves, unless they hang

    def _conclude(self, thread: threading.Thread) -> int:
        """Return the status of a training that went well, or whose rank 0 has told why not; raises TruefitError otherwise."""
        whole = not thread.is_alive()
        if not whole and not (self._ranks and self._ranks.settling):
            self._kill()
            thread.join(SETTLING_SECONDS)
        if self._done.done() and (error := self._done.exception()) is not None:
            self._kill()
            if self._stopped is not None:
                raise StoppedError(self._stopped, f"here; {self._explained(error)}")
            raise self._explained(error)
        ranks, repro = self._ranks, self._go_on
        if ranks is None or not ranks.pids():
            self._give_seat_back()
            where = "while it waited for other hosts" if self._settings.hosts > 1 else "before it began"
            raise StoppedError(self._stopped or signal.SIGTERM, where)
        end = ranks.end
        if whole and end is None:
            return 0
        if end is not None and end.told and self._joins is None:
            if end.number and ranks.asked_by is not None:
                say(f"the signal came to host {ranks.asked_by}", error=True)
            return end.status
        if self._stopped is not None and (end is None or end.weight <= Weight.ENDED or self._joins is not None):
            where = "before it could save" if self._joins is None else "on all hosts"
            raise StoppedError(self._stopped, f"{where}; {repro}")
        if end is not None and end.number:
            raise StoppedError(end.number, f"on host {end.host}{end.how or f'; {repro}'}")
        if end is None or (not whole and end.weight is Weight.ENDED):  # killed here, for the silence of the first host
            raise TruefitError(f"{self._joins}: the first host has not answered for {self._settings.timeout:g} s; {repro}")
        raise TruefitError(end.line(self._settings.hosts) + ("" if end.final else f"; {repro}"))

    def _give_seat_back(self) -> None:
        if self._greeted:
            leaving = threading.Thread(target=self._meeting.leave, daemon=True)
            leaving.start()
            leaving.join(1)

    def _explained(self, error: BaseException) -> TruefitError:
        if isinstance(error, TruefitError):
            return error
        if self._greeting is not None:
            return TruefitError(f"{self._joins}: {NO_TRAINING}: {_first_line(error)}")
        where = f"here: {_first_line(error)}"
        if self._joins is not None and isinstance(error, dist.DistError):
            where = f"{self._joins}: the first host, or the link to it, went away"
        end = self._ranks and self._ranks.end
        why = f"{end.line(self._settings.hosts)}; " if end and end.weight > Weight.ENDED else ""  # else it follows from that
        return TruefitError(f"{why}{where}; {self._go_on}")

    @property
    def _go_on(self) -> str:
        there = "" if self._joins is None else " on the first host"
        return f"`dvc repro`{there} goes on from the last checkpoint"

    def _kill(self) -> None:
        if self._ranks is not None:
            self._ranks.kill()


def _ignored(number: int) -> bool:
    return signal.getsignal(number) == signal.SIG_IGN


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _silence_torch() -> None:
    """Let this process, not its ranks, print nothing of torch's own about them."""
    logger = logging.getLogger("torch.distributed")
    logger.handlers, logger.propagate = [logging.NullHandler()], False
