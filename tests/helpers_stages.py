"""Stages and commands run or started, each in a process of its own that need not import everything anew."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

SRC = Path(__file__).parents[1] / "src"

# Imports what stages need, then answers each line on stdin. One with the id of a process is answered with the status of that,
# if it has ended or is to be waited for; for any other it forks, and the fork runs the stage's script, as Python would, or
# `truefit`. PYTHON asks for such a fork at the socket, gives it its streams and its place, and is told the status at the end.
SERVER = """
import gc, json, os, resource, select, socket, sys
import mlflow.store.tracking.sqlalchemy_store, pyarrow.csv, torch
import truefit.cli.main, truefit.evaluation.figures, truefit.evaluation.report, truefit.training.loop
torch.optim.SGD([torch.zeros(1)])  # imports more
os.environ.pop("TORCHINDUCTOR_CACHE_DIR", None)  # which that sets, and which a stage sets for itself
gc.freeze()  # else the first collection in each fork copies all of them

def execute():
    # Runs what sys.argv names, and ends without the long way out of so many modules.
    try:
        if sys.argv[0] == "truefit":
            truefit.cli.main.main()
        else:
            script = os.path.join(sys.path[-1], f"{sys.argv[0]}.py")
            sys.argv[0] = os.path.join("src", f"{sys.argv[0]}.py")
            exec(compile(open(script).read(), script, "exec"), {"__name__": "__main__", "__file__": script})
        status = 0
    except SystemExit as end:
        status = end.code
    sys.stdout.flush()
    os._exit(status)

def answer_python():
    # A fork for the stage, and one that waits for it, to which the server need not listen.
    with listener.accept()[0] as connection:
        content, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 2)
        if os.fork() == 0:
            if (child := os.fork()) == 0:
                for number, descriptor in enumerate(descriptors, 1):
                    os.dup2(descriptor, number)
                folder, variables, *sys.argv = json.loads(content)
                os.chdir(folder)
                os.environ.clear()
                os.environ.update(variables)
                execute()
            connection.sendall(bytes([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) % 256]))
            os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)

listener = socket.socket(fileno=int(sys.argv[1]))
lines = open(0, "rb", buffering=0)  # so that none waits in a buffer
while True:
    if listener in select.select([lines, listener], [], [])[0]:
        answer_python()
        continue
    if not (line := lines.readline()):
        break
    first, *rest = json.loads(line)
    if isinstance(first, int):
        ended, status = os.waitpid(first, 0 if rest[0] else os.WNOHANG)
        print(json.dumps(os.waitstatus_to_exitcode(status) if ended else None), flush=True)
        continue
    folder, variables, limit, *sys.argv = rest
    if (child := os.fork()) == 0:
        os.setsid()
        for descriptor in (1, 2):
            os.dup2(os.open(f"{first}.{descriptor}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        os.chdir(folder)
        os.environ.update(variables)
        if limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            sys.dont_write_bytecode = True  # which the limit would cut
        execute()
    print(child, flush=True)
"""

# What a shell starts as `python src/STAGE.py …`, as `python tools/TOOL.py …` and as `truefit …` with the PATH of Stages.path.
PYTHON = """#!{python} -IS
import json, os, pathlib, socket, sys
command, *arguments = sys.argv
script = pathlib.Path(arguments[0])
if os.path.basename(command) == "truefit":
    command = "truefit"
elif str(script.parent) in ("src", "tools"):
    command = script.stem if str(script.parent) == "src" else os.path.join({root!r}, script.with_suffix(""))
    del arguments[0]
else:
    os.execv({python!r}, [{python!r}, *arguments])
with socket.socket(socket.AF_UNIX) as server:
    server.connect({socket!r})
    content = json.dumps([os.getcwd(), dict(os.environ), command, *arguments]).encode()
    socket.send_fds(server, [content], [1, 2])
    sys.exit(server.recv(1)[0])
"""


class Done(NamedTuple):
    """How a stage ended: its exit status and what it printed to stderr."""

    status: int
    line: str


class Started:
    """A stage that runs, as the leader of a group of processes; has what the tests use of subprocess.Popen."""

    def __init__(self, stages: "Stages", pid: int, output: Path) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._stages = stages
        self._output = output

    def _ask(self, wait: bool) -> int | None:
        if self.returncode is None:
            self.returncode = self._stages.ask(self.pid, wait)
        return self.returncode

    def poll(self) -> int | None:
        return self._ask(wait=False)

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait until it has ended, or raise subprocess.TimeoutExpired."""
        if timeout is None:
            return self._ask(wait=True)
        latest = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > latest:
                raise subprocess.TimeoutExpired(str(self._output), timeout)
            time.sleep(0.005)
        return self.returncode

    def communicate(self) -> tuple[str, str]:
        """Wait until it has ended, and return what it printed to stdout and stderr."""
        self.wait()
        printed, complaint = (self._output.with_suffix(f".{number}").read_text() for number in (1, 2))
        return printed, complaint

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


Process = subprocess.Popen[str] | Started


class Stages:
    """Runs stages, and `truefit` with its commands, in any folder; `printed` is what the last one wrote to stdout."""

    printed = ""

    def __init__(self) -> None:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "MLFLOW_"))}
        environment = kept | {"PYTHONPATH": str(SRC), "MLFLOW_DISABLE_TELEMETRY": "true"}
        self._output = tempfile.TemporaryDirectory()
        self._started = 0
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self._socket)
            listener.listen()
            code, handed = f"import sys; sys.path.append({str(SRC)!r})\n{SERVER}", listener.fileno()
            self._server = subprocess.Popen(
                [sys.executable, "-c", code, str(handed)],
                cwd=self._output.name,
                env=environment,
                pass_fds=[handed],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )

    @property
    def _socket(self) -> str:
        return str(Path(self._output.name, "socket"))

    @cached_property
    def path(self) -> str:
        """PATH with which the stages that `dvc` runs, and `truefit`, are forks too, which no signal to its group reaches."""
        folder = Path(self._output.name, "bin")
        folder.mkdir()
        for name in ("python", "truefit"):
            file = folder / name
            file.write_text(PYTHON.format(python=sys.executable, root=str(SRC.parent), socket=self._socket))
            file.chmod(0o700)
        return f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"

    def ask(self, *question: Any) -> Any:
        """Return the server's answer."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(question) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def start(self, folder: Path, stage: str, *arguments: str, limit: int = 0, **variables: str) -> Started:
        """Start a stage's script in `folder`, which has the MLflow store too, unless DVC_ROOT names another.

        A stage is one of src, or the whole path of another script, without `.py`.
        Where `limit` is not 0, files have at most so many bytes.
        """
        self._started += 1
        environment = {"DVC_ROOT": str(folder), **variables}
        pid = self.ask(str(self._started), str(folder), environment, limit, stage, *arguments)
        return Started(self, pid, Path(self._output.name, str(self._started)))

    def run(self, folder: Path, stage: str, *arguments: str, limit: int = 0, **variables: str) -> Done:
        """Run it to its end."""
        started = self.start(folder, stage, *arguments, limit=limit, **variables)
        self.printed, complaint = started.communicate()
        assert started.returncode is not None
        return Done(started.returncode, complaint)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.communicate()
        self._output.cleanup()
