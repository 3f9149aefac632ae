"""A clone of the working tree in a temporary folder, in which tests run the real pipeline."""

import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run
from ruamel.yaml import YAML

from truefit.tracking.database import open_store

ROOT = Path(__file__).parents[1]


@cache
def _empty_store() -> bytes:
    with TemporaryDirectory() as folder:
        file = Path(folder, "mlflow.db")
        open_store(f"sqlite:///{file}")
        return file.read_bytes()


def put_store(file: Path) -> str:
    """Write a database with MLflow's tables and nothing in them, which takes a second to make; return its address."""
    file.write_bytes(_empty_store())
    return f"sqlite:///{file}"


def copy_working_tree(to: Path) -> None:
    """Copy the files of the working tree that git knows, or does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    for name in listed.stdout.decode().rstrip("\0").split("\0"):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)


class Workspace:
    """A git repository of its own with the files of the working tree, committed, and an environment that runs them.

    The repository is at `path`, or at `top`, with the files below it at `path`; without `copy` it is there already. It has an
    empty store, or without `store` none.
    """

    def __init__(self, path: Path, top: Path | None = None, copy: bool = True, store: bool = True) -> None:
        self.path = path
        self.environment = self._environment()
        if copy:
            self._copy(top or path)
            if store:
                put_store(path / "mlflow.db")

    def _copy(self, top: Path) -> None:
        copy_working_tree(self.path)
        names = [["config", "user.name", "t"], ["config", "user.email", "t@example.org"]]
        for command in (["init", "--quiet", str(top)], *names):
            self.run("git", *command)
        self.commit()

    @staticmethod
    def _environment() -> dict[str, str]:
        names = {f"GIT_{who}_{what}": "test@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "MLFLOW_", "GIT_"))}
        folder = str(Path(sys.executable).parent)
        return {**kept, **names, "PATH": f"{folder}:{os.environ['PATH']}", "MLFLOW_DISABLE_TELEMETRY": "true"}

    def run(self, *command: str, status: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command there and check its exit status."""
        done = subprocess.run(
            command, cwd=self.path, env=self.environment | variables, capture_output=True, text=True, check=False
        )
        assert done.returncode == status, f"{' '.join(command)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def commit(self) -> None:
        """Commit everything that git does not ignore."""
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--allow-empty", "--message", "state")

    def set_params(self, **values: Any) -> None:
        """Change keys of params.yaml, written with two underscores for the dots."""
        yaml = YAML()
        params = yaml.load(self.path / "params.yaml")
        for key, value in values.items():
            section = params
            *parents, last = key.split("__")
            for parent in parents:
                section = section[parent]
            section[last] = value
        yaml.dump(params, self.path / "params.yaml")

    def add_comment(self, *rooms: str) -> None:
        """Add a comment to the code of these rooms."""
        for room in rooms:
            with (self.path / "src/truefit" / room / "__init__.py").open("a") as module:
                module.write("# another line\n")

    def json(self, name: str) -> Any:
        """Return the content of a JSON file."""
        return json.loads((self.path / name).read_text())

    @property
    def client(self) -> MlflowClient:
        """A client of the workspace's own store."""
        return MlflowClient(f"sqlite:///{self.path / 'mlflow.db'}")

    def runs(self, name: str = "truefit") -> list[Run]:
        """Return all runs of the experiment, the latest first."""
        experiment = self.client.get_experiment_by_name(name)
        if experiment is None:
            return []
        return list(self.client.search_runs([experiment.experiment_id], order_by=["attributes.start_time DESC"]))
