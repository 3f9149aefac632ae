"""What it costs that the tracking server is away: a training without it against one with it.

Prepares 8000 training rows in a clone of the working tree, starts a real MLflow server, and times `src/train.py` (numpy, 60
epochs of single rows) with the server there and with it killed at the first epoch. Both take turns, so that a noisy machine
is noisy for both. Prints the medians, their quartiles and the ratio of each pair.

Usage: python benchmarks/outage.py [PAIRS]
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pairs import print_pairs

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from test_sync import TRAIN, Server, wait_for_epochs
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
    """Time pairs of trainings and print what they took."""
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
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
            measured = []
            for _ in range(pairs + 1):
                there = seconds(workspace, server, away=False)
                measured.append((seconds(workspace, server, away=True), there))
        finally:
            server.kill()
    print_pairs("server away", "server there", measured)


if __name__ == "__main__":
    main()
