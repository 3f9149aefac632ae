"""Stages and commands run one after the other, each in a process of its own that need not import everything anew."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

SRC = Path(__file__).parents[1] / "src"

# Imports what stages need, then forks for each line on stdin; the fork runs the stage's script, as Python would, or `truefit`.
SERVER = """
import gc, json, os, resource, runpy, sys
import mlflow.store.tracking.sqlalchemy_store, pyarrow.csv, torch
import truefit.cli.main, truefit.evaluation.figures, truefit.evaluation.report, truefit.training.loop
torch.optim.SGD([torch.zeros(1)])  # imports more
os.environ.pop("TORCHINDUCTOR_CACHE_DIR", None)  # which that sets, and which a stage sets for itself
gc.freeze()  # else the first collection in each fork copies all of them
for line in sys.stdin:
    folder, variables, limit, *sys.argv = json.loads(line)
    if (child := os.fork()) == 0:
        for descriptor in (1, 2):
            os.dup2(os.open(str(descriptor), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        os.chdir(folder)
        os.environ.update(variables)
        if limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            sys.dont_write_bytecode = True  # which the limit would cut
        try:
            if sys.argv[0] == "truefit":
                truefit.cli.main.main()
            else:
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
    """Runs stages, and `truefit` with its commands, in any folder; `printed` is what the last one wrote to stdout."""

    printed = ""

    def __init__(self) -> None:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "MLFLOW_"))}
        environment = kept | {"PYTHONPATH": str(SRC), "MLFLOW_DISABLE_TELEMETRY": "true"}
        command = [sys.executable, "-c", f"import sys; sys.path.append({str(SRC)!r})\n{SERVER}"]
        pipe = subprocess.PIPE
        self._output = tempfile.TemporaryDirectory()
        self._server = subprocess.Popen(command, cwd=self._output.name, env=environment, stdin=pipe, stdout=pipe, text=True)

    def run(self, folder: Path, stage: str, *arguments: str, limit: int = 0, **variables: str) -> Done:
        """Run a stage's script in `folder`, which has the MLflow store too, unless DVC_ROOT names another.

        Where `limit` is not 0, files have at most so many bytes.
        """
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        environment = {"DVC_ROOT": str(folder), **variables}
        self._server.stdin.write(json.dumps([str(folder), environment, limit, stage, *arguments]) + "\n")
        self._server.stdin.flush()
        status = int(self._server.stdout.readline())
        self.printed, complaint = (Path(self._output.name, name).read_text() for name in ("1", "2"))
        return Done(status, complaint)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.communicate()
        self._output.cleanup()
