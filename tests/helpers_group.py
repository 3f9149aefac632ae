"""Trainings in several real processes, which find what torchrun would give them: `python helpers_group.py TASK`.

TASK is a JSON file with "cases", each {"table": folder, "settings": {…}, "kill_after": epoch or null, "checkpoints": folder or
null}, and "environments", one for each process. These are forks of that one, which has imported what they need. The first of
them prints the bits that each case ends with.
"""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch

from truefit.core import errors
from truefit.data.dataset import open_verified
from truefit.model.files import state_dict_digest
from truefit.training.build import build_engine, untrained_model
from truefit.training.checkpoint import Checkpoints, CheckpointSettings
from truefit.training.device import configure
from truefit.training.group import Group, join_group
from truefit.training.loop import fit
from truefit.training.progress import Epoch
from truefit.training.settings import TrainSettings

CPU = torch.device("cpu")


class Together(Group):
    """A group whose processes go on to the next case with the first."""

    def meet(self, where: str) -> None:
        self.cases = getattr(self, "cases", 0) + 1
        super().meet(f"{where} {self.cases}")

    def end_with_first(self, well: bool = True) -> None:
        return


class Ended(NamedTuple):
    """How the processes of trainings have ended: the bits of each case, and by rank the status and what was told on stderr."""

    bits: list[dict[str, Any]]
    statuses: Sequence[int] = (0,)
    told: Sequence[str] = ("",)


def run_alone(cases: Sequence[dict[str, Any]]) -> Ended:
    """Run the cases in this process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the settings have it; more of them round otherwise
    found = [bits for case in cases if (bits := run_case(Group(), **case))]
    torch.set_num_threads(threads)
    return Ended(found)


def run_cases(cases: Sequence[dict[str, Any]], folder: Path, environments: Sequence[Mapping[str, str]]) -> Ended:
    """Run the cases in as many processes as there are environments, which have ended."""
    path, size = folder / f"{len(environments)}.json", str(len(environments))
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),  # helpers_server's imports MLflow, which takes longer than a training here
        "WORLD_SIZE": size,
        "LOCAL_WORLD_SIZE": size,
        "GLOO_SOCKET_IFNAME": "lo",
    }
    own = [
        {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank), **environment} for rank, environment in enumerate(environments)
    ]
    path.write_text(json.dumps({"cases": cases, "environments": own}))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TORCH_CPP_LOG_LEVEL": "ERROR"}
    done = subprocess.run([sys.executable, __file__, str(path)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    printed, told = ([_output(path, rank, number).read_text() for rank in range(len(own))] for number in (1, 2))
    return Ended([json.loads(line) for line in printed[0].splitlines()], json.loads(done.stdout), told)


def _output(task: Path, rank: int, number: int) -> Path:
    return task.with_suffix(f".{rank}.{number}")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def main() -> None:
    """Run the task, and print the statuses of its processes."""
    path = Path(sys.argv[1])
    task = json.loads(path.read_text())
    begun = [_begin(path, task["cases"], rank, environment) for rank, environment in enumerate(task["environments"])]
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in begun]))


def _begin(path: Path, cases: Sequence[dict[str, Any]], rank: int, environment: Mapping[str, str]) -> int:
    """Return the id of the process of that rank."""
    if pid := os.fork():
        return pid
    for number in (1, 2):
        os.dup2(os.open(_output(path, rank, number), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.update(environment)
    status = errors.run(lambda: _run_rank(cases))
    sys.stdout.flush()
    os._exit(status)


def _run_rank(cases: Sequence[dict[str, Any]]) -> None:
    """Run the cases as one process of the group."""
    configure(1)
    with join_group(CPU, 60.0) as joined:
        joined.__class__ = Together
        for case in cases:
            if bits := run_case(joined, **case):
                print(json.dumps(bits), flush=True)


def run_case(
    group: Group, table: str, settings: dict[str, Any], kill_after: int | None = None, checkpoints: str | None = None
) -> dict[str, Any] | None:
    """Train with the settings; the first process kills itself after an epoch, or returns the bits."""
    checked, datasets = TrainSettings.model_validate(settings), open_verified(Path(table), "train", "validation")

    def on_epoch(epoch: Epoch) -> None:
        if epoch.epoch == kill_after and group.is_first:
            os.kill(os.getpid(), signal.SIGKILL)

    own = Checkpoints(Path(checkpoints), CheckpointSettings(epochs=1)) if checkpoints and group.is_first else nullcontext()
    with own as kept:
        model = untrained_model(datasets, checked)
        engine = build_engine(model, datasets[0], checked, CPU, group)
        outcome = fit(engine, model, datasets, checked, CPU, on_epoch, kept, group)
    if not group.is_first:
        return None
    states = {kind: state_dict_digest(getattr(outcome, f"{kind}_state")) for kind in ("best", "final", "kept")}
    history = hashlib.sha256(outcome.history().to_csv(index=False).encode()).hexdigest()
    return {**states, "history": history, "epochs": len(outcome.epochs)}


if __name__ == "__main__":
    main()
