"""Trainings in several real processes, each of which runs this file as torchrun would: `python helpers_group.py CASES`.

CASES is a JSON file: a list of {"table": folder, "settings": {…}, "kill_after": epoch or null, "checkpoints": folder or null}.
The first process prints the bits that each ends with.
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
from typing import Any

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


def run_cases(cases: Sequence[dict[str, Any]], folder: Path, processes: int) -> list[dict[str, Any]]:
    """Return the bits of each case in so many processes, which have ended; of one, which is this, by itself."""
    if processes == 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as the settings have it; more of them round otherwise
        found = [bits for case in cases if (bits := run_case(Group(), **case))]
        torch.set_num_threads(threads)
        return found
    ended = end_cases(cases, folder, [{}] * processes)
    assert {status for status, *_ in ended} <= {0, -signal.SIGKILL, os.EX_SOFTWARE}, ended
    return [json.loads(line) for line in ended[0][1].splitlines()]


def end_cases(
    cases: Sequence[dict[str, Any]], folder: Path, environments: Sequence[Mapping[str, str]]
) -> list[tuple[int, str, str]]:
    """Return how each process has ended, of which there is one for each environment: its status, and what it printed."""
    path = folder / f"{len(environments)}.json"
    path.write_text(json.dumps(cases))
    shared = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),  # helpers_server's imports MLflow, which takes longer than a training here
        "WORLD_SIZE": str(len(environments)),
        "LOCAL_WORLD_SIZE": str(len(environments)),
        "GLOO_SOCKET_IFNAME": "lo",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }
    started = [
        subprocess.Popen(
            [sys.executable, __file__, str(path)],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, environment in enumerate(environments)
    ]
    printed = [process.communicate(timeout=300) for process in started]
    return [(process.returncode, *texts) for process, texts in zip(started, printed, strict=True)]


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def main() -> None:
    """Run the cases as one process of the group."""
    configure(1)
    cases = json.loads(Path(sys.argv[1]).read_text())
    with join_group(CPU, 60.0) as joined:
        group = Together(joined.rank, joined.size, joined._store)
        group.hosts = joined.hosts
        group.pair()
        for case in cases:
            if bits := run_case(group, **case):
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
    sys.exit(errors.run(main))
