"""Stages run one after the other, each in a process of its own that need not import everything anew."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

SRC = Path(__file__).parents[1] / "src"

# Imports what stages need, then forks for each line on stdin; the fork runs the stage's script, as Python would.
SERVER = """
import gc, json, os, resource, runpy, sys
import mlflow.store.tracking.sqlalchemy_store, pyarrow.csv, torch
import truefit.evaluation.figures, truefit.evaluation.report, truefit.training.loop
torch.optim.SGD([torch.zeros(1)])  # imports more
gc.freeze()  # else the first collection in each fork copies all of them
for line in sys.stdin:
    folder, limit, *sys.argv = json.loads(line)
    if (child := os.fork()) == 0:
        os.chdir(folder)
        for descriptor in (1, 2):
            os.dup2(os.open(f"{sys.argv[0]}.{descriptor}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        if limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            sys.dont_write_bytecode = True  # which the limit would cut
        try:
            runpy.run_path(f"{sys.path[-1]}/{sys.argv[0]}.py", run_name="__main__")
        except SystemExit as end:
            sys.stdout.flush()
            os._exit(end.code)  # without the long way out of so many modules
        sys.exit("the stage must end by sys.exit")
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Done(NamedTuple):
    """How a stage ended: its exit status and what it printed to stderr."""

    status: int
    line: str


class Stages:
    """Runs stages in any folder, with the MLflow store of the folder `root`."""

    def __init__(self, root: Path) -> None:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "MLFLOW_"))}
        environment = kept | {"PYTHONPATH": str(SRC), "DVC_ROOT": str(root), "MLFLOW_DISABLE_TELEMETRY": "true"}
        command = [sys.executable, "-c", f"import sys; sys.path.append({str(SRC)!r})\n{SERVER}"]
        pipe = subprocess.PIPE
        self._server = subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True)

    def run(self, folder: Path, stage: str, *arguments: str, limit: int = 0) -> Done:
        """Run a stage's script in `folder`, with files of at most `limit` bytes where that is not 0."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps([str(folder), limit, stage, *arguments]) + "\n")
        self._server.stdin.flush()
        status = int(self._server.stdout.readline())
        return Done(status, (folder / f"{stage}.2").read_text())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.communicate()
