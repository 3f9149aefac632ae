"""What it costs that the tracking server is away: a training without it against one with it.

Prepares 8000 training rows in a clone of the working tree, starts a real MLflow server, and times `src/train.py` (numpy, 60
epochs of single rows) with the server there and with it killed at the first epoch. Both take turns, so that a noisy machine
is noisy for both.

Usage: python benchmarks/outage.py [--rounds N]
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import ROOT, arguments, figure, over, save, take_turns

sys.path.insert(0, str(ROOT / "tests"))

from helpers_server import TRAIN, Server, wait_for_epochs
from workspace import Workspace


def seconds(workspace: Workspace, server: Server, away: bool) -> float:
    """Return the wall time of a training, with the server killed at its first epoch or not."""
    server.start()
    started = time.perf_counter()
    process = subprocess.Popen(
        TRAIN, cwd=workspace.path, env=workspace.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True
    )
    if away:
        wait_for_epochs(workspace, process, 1)
        server.kill()
    assert process.wait() == 0
    return time.perf_counter() - started


def main() -> None:
    """Time the trainings in turn."""
    given = arguments(__doc__, rounds=5)
    with tempfile.TemporaryDirectory() as temporary:
        clone, folder = Path(temporary, "clone"), Path(temporary, "server")
        clone.mkdir()
        folder.mkdir()
        workspace, server = Workspace(clone), Server(folder)
        workspace.environment |= {"MLFLOW_TRACKING_URI": server.uri, "PYTHONPATH": str(clone / "src")}
        workspace.set_params(generate__rows=10_000, train__engine="numpy", train__batch_size=1, train__epochs=60)
        workspace.run("python", "src/generate.py", "data/synthetic.csv")
        workspace.run("python", "src/prepare.py", "data/prepared")
        try:
            turns = {name: lambda away=name == "away": seconds(workspace, server, away) for name in ("there", "away")}
            measured = take_turns(turns, given.rounds)
        finally:
            server.kill()
    name = "training, its MLflow server away"
    figures = [figure("outage", name, "s", measured["away"])]
    figures.append(figure("outage", f"{name}: time over that with the server", "×", over(measured, "away", "there"), most=1.2))
    save(given.out, "outage", figures)


if __name__ == "__main__":
    main()
