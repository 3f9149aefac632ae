"""A recorded workspace built again, in a temporary git worktree; the user's own tree, index and cache stay as they are."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from truefit.core.code import code_digest, read_code
from truefit.core.config import PARAMS
from truefit.core.errors import StoppedError, TableError
from truefit.core.launch import LaunchSettings
from truefit.core.params_text import with_value
from truefit.core.redaction import redacted
from truefit.core.signals import Deferred
from truefit.ingest.part_files import ALL, data_digest, part_paths
from truefit.rerun.checkout import AS_STORED, bring_submodules, find_commit, project_folder
from truefit.rerun.leftovers import TREE, known_folder, process_environment
from truefit.tracking.git import complaint, git
from truefit.tracking.names import RECORDED_BUNDLE

PATIENCE = 20.0  # seconds, before a pipeline that is asked to stop is killed
_BRING = Path(__file__).with_name("bring.py")


class Worktree:
    """A recorded workspace; `project` is the folder of its dvc.yaml, `folder` the temporary one with all of it."""

    def __init__(self, root: Path, folder: Path) -> None:
        self._root = self._top = root
        self.folder = folder
        self.tree = self.project = folder / TREE
        self._environment = process_environment(folder)
        self._git = partial(git, environment=self._environment)

    def check_out(self, commit: str, record: Path | None = None, remote: str | None = None) -> str | None:
        """Make the worktree; return why that cannot be done, or None.

        A commit that is not in this repository may be in the record; if not, the reason names the recorded `remote`.
        """
        self._top, prefix = project_folder(self._git, self._root)
        self.project = self.tree / prefix
        bundle = (record or self.folder) / Path(RECORDED_BUNDLE).name
        repository = find_commit(self._git, self._root, self.folder, commit, bundle, remote)
        if isinstance(repository, str):
            return repository
        with Deferred():
            self._git(*AS_STORED, "worktree", "add", "--quiet", "--detach", str(self.tree), commit, cwd=repository)
        if not (self.project / ".dvc").is_dir() or not (self.project / "src").is_dir():
            return f"its commit has no pipeline in {self.project.relative_to(self.tree)}"
        return None

    def restore(self, record: Path, digest: str | None) -> str | None:
        """Bring the code to what ran, of that `digest` where there is one; return why that cannot be done, or None."""
        patch = record / "diff.patch"
        if patch.exists() and patch.stat().st_size:
            applied = self._git(*AS_STORED, "apply", "--whitespace=nowarn", str(patch), cwd=self.tree, check=False)
            if applied.returncode:
                return f"its artifact record/diff.patch does not apply: {complaint(applied)}"
        if (submodules := _submodules(record / "submodules.json")) is None:
            return "its artifact record/submodules.json is damaged"
        bring_submodules(self._git, self.tree, self._top, submodules, self.folder / "index")
        params, pipeline = self.project / "params.yaml", self.project / "dvc.yaml"
        settings = self.project / ".dvc/config.local"
        for path in (params, settings):
            path.unlink(missing_ok=True)  # it may be a link that leads elsewhere
        shutil.copyfile(record / "params.yaml", params)
        if not pipeline.is_file() or _lines(pipeline) != _lines(record / "dvc.yaml"):
            return "its artifact record/dvc.yaml is not the dvc.yaml of its commit and record/diff.patch"
        if digest and code_digest(read_code(self.project / "src")) != digest:
            return "the code in src that ran is not in its record: its digest is not that of its tag code.sha256"
        # What DVC knows of earlier results would let it skip stages.
        (self.project / "dvc.lock").unlink(missing_ok=True)
        # A cache of its own, whatever the project's settings: these go before them.
        settings.write_text(f"[cache]\n    dir = {os.path.relpath(self.folder / 'cache', settings.parent)}\n")
        return None

    def launch(self, settings: LaunchSettings) -> None:
        """Let the training have as many processes and hosts as `settings` say, which decides none of its numbers."""
        path = self.project / PARAMS
        text = path.read_text(encoding="utf-8")
        for key, value in settings.model_dump().items():
            text = with_value(text, ["launch", key], value)
        path.write_text(text, encoding="utf-8")

    def bring_csv(self, csv: str, digest: str, record: Path, parts: str = ALL) -> str | None:
        """Bring the CSV, unless a stage makes it, from the working tree or DVC; return why none has the digest, or None.

        It may be a Parquet file, or a folder with such `parts`.
        """
        name, outputs = os.path.normpath(csv), _outputs(record / "dvc.lock")
        if outputs is None:
            return "its artifact record/dvc.lock is damaged"
        if name in outputs:
            return None
        path, own = Path(os.path.normpath(self.project / name)), self._root / name  # the same for an absolute path
        if not path.is_relative_to(self.folder) and not Path(name).is_absolute():
            return f"its data cannot be placed: {csv} leads out of the repository"
        # A link that was recorded may lead anywhere.
        inside = path.parent.resolve().is_relative_to(self.folder.resolve())
        tracked = next((parent for parent in (path, *path.parents) if Path(f"{parent}.dvc").is_file()), None)
        fault = None
        if inside and _digest(path, parts) != digest and _digest(own, parts) == digest:
            for part in part_paths(own, parts):
                place = path / part.relative_to(own)
                place.parent.mkdir(parents=True, exist_ok=True)
                place.unlink(missing_ok=True)
                shutil.copyfile(part, place)
        elif inside and not _digest(path, parts) and tracked and tracked.is_relative_to(self.project):
            fault = self._from_dvc(path)
        if not (found := _digest(path, parts)):
            known = "has another digest in the working tree" if own.exists() else "is neither in DVC nor in the working tree"
            fault = fault or f"{csv} {known}"
        elif found != digest:
            fault = fault or f"{csv} has another digest than the one that was read"
        return f"its data are gone: {fault}" if fault else None

    def _from_dvc(self, path: Path) -> str | None:
        """Bring what DVC tracks, from the user's cache or remotes; return DVC's complaint, or None."""
        name = path.relative_to(self.project).as_posix()
        done = self._python(["-P", str(_BRING), str(self.project), str(self._root), name], {}, True)
        if done.returncode == 0:
            return None
        lines = done.stderr.strip().splitlines() or ["failed"]
        fault = next((line for line in lines if line.startswith("ERROR: ")), lines[-1]).removeprefix("ERROR: ")
        return f"DVC does not have {name}: {redacted(fault)}"

    def read(self, name: str) -> str:
        """Return the text of a file of the project, or nothing where it is not there."""
        path = self.project / name
        return path.read_text(errors="replace") if path.is_file() else ""

    def dvc(self, arguments: list[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        """Run a command of DVC in the project, its output on stderr; what it started has ended when this ends."""
        return self._python(["-m", "dvc", *arguments], environment, False)

    def truefit(self, arguments: list[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        """Run a command of the recorded truefit in the project, its output on stderr."""
        code = {"PYTHONPATH": str(self.project / "src")}
        return self._python(["-c", "from truefit.cli.main import main; main()", *arguments], {**environment, **code}, False)

    def _python(self, arguments: list[str], environment: Mapping[str, str], capture: bool) -> subprocess.CompletedProcess[str]:
        environment = {**self._environment, "DVC_SITE_CACHE_DIR": str(self.folder / "site"), **environment}
        # `python` in dvc.yaml is to be this one.
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', os.defpath)}"
        command = [sys.executable, *arguments]
        output = subprocess.PIPE if capture else sys.stderr
        process = None
        try:
            with Deferred():
                # In a session of its own: the terminal's Ctrl-C is for this process, which passes it on and waits.
                process = subprocess.Popen(
                    command, cwd=self.project, env=environment, stdout=output, stderr=output, text=True, start_new_session=True
                )
            out, err = process.communicate()
        except StoppedError:
            if process:
                _interrupt(process)
            raise
        finally:
            with suppress(ProcessLookupError):
                if process:
                    os.killpg(process.pid, signal.SIGKILL)  # a stage that DVC, itself killed, left behind
                    process.wait()
        return subprocess.CompletedProcess(command, process.returncode, out or "", err or "")


@contextmanager
def recorded_workspace(root: Path, keep: bool, key: str) -> Iterator[Worktree]:
    """Give a worktree of the repository at `root`, yet to be checked out, for the rerun `key`.

    With `keep` it stays, unless the block fails.
    """
    with known_folder(root, key, keep) as folder:
        yield Worktree(root, folder)


def _digest(data: Path, parts: str) -> str | None:
    """Return the digest of a file, or of a folder with such parts, or None where there is no such thing."""
    try:
        return data_digest(data, parts)
    except (OSError, TableError):
        return None


def _outputs(lock: Path) -> set[str] | None:
    """Return the paths of what stages made; None for a damaged dvc.lock."""
    try:
        stages = (YAML(typ="safe", pure=True).load(lock) or {}).get("stages", {})
        return {os.path.normpath(out["path"]) for stage in stages.values() for out in stage.get("outs", [])}
    except (YAMLError, UnicodeDecodeError, AttributeError, LookupError, TypeError):
        return None


def _submodules(path: Path) -> dict[str, str] | None:
    """Return the recorded commits of submodules, by their paths; none without a file, and None for a damaged one."""
    try:
        recorded = json.loads(path.read_bytes()) if path.exists() else {}
        return {str(name): str(commit) for name, commit in recorded.items()}
    except (ValueError, AttributeError):
        return None


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines()  # which git may end in either way


def _interrupt(process: "subprocess.Popen[str]") -> None:
    with suppress(ProcessLookupError, subprocess.TimeoutExpired):
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=PATIENCE)
