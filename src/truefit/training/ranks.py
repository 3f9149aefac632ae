"""The ranks of a host, started, watched and started again by torch's launcher."""

import os
import signal
import time
from contextlib import suppress

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.rendezvous import RendezvousGracefulExitError

from truefit.core.launch import LaunchSettings
from truefit.core.terminal import say
from truefit.training.causes import Cause, Weight
from truefit.training.meeting import Meeting

ENDING_SECONDS = 3.0  # for a rank to end, after another one has; rank 0, which has records to write, gets launch.timeout


class Ranks(LocalElasticAgent):
    """torch's launcher of this host's ranks, which settles with the other hosts after each round; `end` is its outcome."""

    def __init__(self, command: list[str], settings: LaunchSettings, meeting: Meeting, folder: str) -> None:
        spec = WorkerSpec(
            role="rank",
            local_world_size=settings.processes_here,
            entrypoint=command[0],
            args=tuple(command[1:]),
            rdzv_handler=meeting,
            max_restarts=settings.restarts + 1,  # one more than are made: `_restart_workers` decides after each round
            monitor_interval=0.1,
        )
        super().__init__(spec, DefaultLogsSpecs(log_dir=folder))
        self._meeting = meeting
        self._restarts, self._hosts, self._patience = settings.restarts, settings.hosts, settings.timeout
        self._cause: Cause | None = None
        self._killed = set[int]()  # processes
        self.end: Cause | None = None
        self.settling = False
        self.stopping: int | None = None
        self.asked_by: str | None = None
        self._asked: int | None = None

    def pids(self) -> dict[int, int]:
        """Return the processes of this host's ranks, by rank, from when they have started."""
        workers = self.get_worker_group().workers
        return {worker.global_rank: worker.id for worker in workers if isinstance(worker.id, int)}

    def send(self, number: int) -> None:
        """Hand rank 0, which is to be here, a signal; from then on no rank starts again."""
        # A rank makes a checkpoint at SIGINT and SIGTERM.
        self.stopping, self._asked = signal.SIGTERM if number == signal.SIGHUP else number, self.pids().get(0)
        with suppress(ProcessLookupError):
            if self._asked is not None:
                os.kill(self._asked, self.stopping)

    def kill(self) -> None:
        """Kill those that run, and their own children, all of a session each."""
        for pid in self.pids().values():
            self._kill(pid)

    def _kill(self, pid: int) -> None:
        if not _ended(pid):
            self._killed.add(pid)
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        asked = self._meeting.asked_to_stop()
        if asked is not None and self.stopping is None:
            number, self.asked_by = asked
            self.send(number)
        if self.stopping is not None and self._asked != self.pids().get(0):  # which has just been started again
            self.send(self.stopping)
        pids = self.pids().values()
        if any(map(_failed, pids)) or self._meeting.is_over():
            self._let_end()
        if not all(map(_ended, pids)):  # torch's launcher would stop those that run on beside one that has failed
            return RunResult(state=WorkerState.HEALTHY)
        result: RunResult = super()._monitor_workers(worker_group)
        if result.state is WorkerState.UNKNOWN:
            return result
        # What a training leaves behind is rank 0's alone: where that has ended well, no other one's end matters.
        well = not result.failures or (0 in self.pids() and 0 not in result.failures)
        self._cause = None if well else Cause.of(result.failures, self._meeting.name, self._killed)
        if self._cause is not None and self._cause.number and self.asked_by is not None:
            self._cause = self._cause.model_copy(update={"host": self.asked_by})
        return RunResult(state=WorkerState.FAILED)  # for the launcher to call `_restart_workers`, whatever the end

    def _let_end(self) -> None:
        """Wait until all ranks have ended, and kill those that do not; torch's launcher would wait longer, and stop rank 0."""
        began = time.monotonic()
        while alive := {rank: pid for rank, pid in self.pids().items() if not _ended(pid)}:
            waited = time.monotonic() - began
            for rank, pid in alive.items():
                if waited > (self._patience if rank == 0 else ENDING_SECONDS):
                    self._kill(pid)
            time.sleep(0.05)

    def _restart_workers(self, worker_group: WorkerGroup) -> None:
        """Settle with the other hosts, and start the ranks again or end the launcher."""
        self._stop_workers(worker_group)
        self._settle(self._cause)
        if not self._meeting.again:
            raise RendezvousGracefulExitError
        self.settling = False
        if self.end is not None and self._meeting.joins is None:
            count = f"restart {self._meeting.round} of {self._restarts}"
            say(f"warning: {self.end.line(self._hosts)}; going on from the last checkpoint, {count}", error=True)
        super()._restart_workers(worker_group)

    def _settle(self, cause: Cause | None) -> None:
        self._meeting.count_silence_anew()
        self.settling = True
        may_restart = self.stopping is None and self._meeting.round < self._restarts
        self.end = cause  # what there is to tell where the other hosts do not answer
        self.end = self._meeting.settle(cause, may_restart)
        if self.end is not None and self.end.told and cause is not None and cause.weight is Weight.ERROR:
            # Rank 0 has told it to the other ranks, one of which has a text here.
            if self.end.number is None:
                self.end = cause
            elif cause.number is not None:
                self.end = self.end.model_copy(update={"how": cause.how})


def _ended(pid: int) -> bool:
    """Say whether the child process has ended, and leave its status to torch's launcher."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:  # which has taken it already
        return True


def _failed(pid: int) -> bool:
    try:
        found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return found is not None and (found.si_code != os.CLD_EXITED or found.si_status != 0)
