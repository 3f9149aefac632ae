"""A recorded workspace built again, in a temporary git worktree; the user's own tree, index and cache stay as they are."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from truefit.core.code import code_digest, read_code
from truefit.core.errors import StoppedError, TableError, TruefitError
from truefit.core.redaction import redacted
from truefit.core.signals import Deferred
from truefit.ingest.part_files import ALL, data_digest, part_paths
from truefit.tracking.git import complaint, git

PATIENCE = 20.0  # seconds, before a pipeline that is asked to stop is killed
# Set by git and DVC for the processes that they start; the last would let an installed truefit take the place of the recorded.
_INHERITED = (
    *("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_COMMON_DIR", "DVC_ROOT", "DVC_STAGE", "DVC_EXP_"),
    "PYTHONSAFEPATH",
)


class Worktree:
    """A recorded workspace; `project` is the folder of its dvc.yaml, `folder` the temporary one with all of it."""

    def __init__(self, root: Path, folder: Path) -> None:
        self._root = root
        self.folder = folder
        self.tree = self.project = folder / "tree"
        self._added = False

    def check_out(self, commit: str) -> str | None:
        """Make the worktree; return why that cannot be done, or None."""
        self.project = self.tree / os.fsdecode(self._git("rev-parse", "--show-prefix").stdout).rstrip("\n")
        if self._git("cat-file", "-e", f"{commit}^{{commit}}", check=False).returncode:
            return f"its commit {commit} is not in this repository; `git fetch` may bring it"
        with Deferred():
            # No hooks: DVC's own would check out data.
            self._git("-c", "core.hooksPath=/dev/null", "worktree", "add", "--quiet", "--detach", str(self.tree), commit)
            self._added = True
        if not (self.project / ".dvc").is_dir() or not (self.project / "src").is_dir():
            return f"its commit has no pipeline in {self.project.relative_to(self.tree)}"
        return None

    def restore(self, record: Path, digest: str | None) -> str | None:
        """Bring the code to what ran, of that `digest` where there is one; return why that cannot be done, or None."""
        patch = record / "diff.patch"
        if patch.exists() and patch.stat().st_size:
            applied = self._git("apply", "--whitespace=nowarn", str(patch), cwd=self.tree, check=False)
            if applied.returncode:
                return f"its artifact record/diff.patch does not apply: {complaint(applied)}"
        params, pipeline = self.project / "params.yaml", self.project / "dvc.yaml"
        params.unlink(missing_ok=True)  # it may be a link that leads elsewhere
        shutil.copyfile(record / "params.yaml", params)
        if not pipeline.is_file() or pipeline.read_bytes() != (record / "dvc.yaml").read_bytes():
            return "its artifact record/dvc.yaml is not the dvc.yaml of its commit and record/diff.patch"
        if digest and code_digest(read_code(self.project / "src")) != digest:
            return "the code in src that ran is not in its record: its digest is not that of its tag code.sha256"
        # What DVC knows of earlier results would let it skip stages.
        (self.project / "dvc.lock").unlink(missing_ok=True)
        self._configure()
        return None

    def _configure(self) -> None:
        """Give DVC the user's own settings, but a cache of its own; it reads the user's as if it were a remote."""
        from dvc.config import Config, ConfigError, merge

        try:
            user = Config(str(self._root / ".dvc"))
            with Config(str(self.project / ".dvc")).edit("local") as local:
                for level in ("repo", "local"):
                    merge(local, user.load_one(level))
                cache = user.get("cache", {}).get("dir") or self._root / ".dvc/cache"
                local["remote"]["truefit-cache"] = {"url": str(cache)}
                local["cache"]["dir"] = str(self.folder / "cache")
        except ConfigError as error:
            raise TruefitError(f"{self._root / '.dvc'}: {error}") from None

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
        tracked = next((parent for parent in (path, *path.parents) if Path(f"{parent}.dvc").is_file()), None)
        fault = None
        if path != own and not _digest(path, parts) and _digest(own, parts) == digest:
            for part in part_paths(own, parts):
                place = path / part.relative_to(own)
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(part, place)
        elif not _digest(path, parts) and tracked and tracked.is_relative_to(self.project):
            fault = self._pull(str(tracked.relative_to(self.project)))
        if not (found := _digest(path, parts)):
            known = "has another digest in the working tree" if own.exists() else "is neither in DVC nor in the working tree"
            fault = fault or f"{csv} {known}"
        elif found != digest:
            fault = fault or f"{csv} has another digest than the one that was read"
        return f"its data are gone: {fault}" if fault else None

    def _pull(self, name: str) -> str | None:
        """Bring what a .dvc file tracks; return DVC's complaint, or None."""
        for remote in (["--remote", "truefit-cache"], []):
            done = self.dvc(["pull", *remote, name], {}, capture=True)
            if done.returncode == 0:
                return None
        lines = done.stderr.strip().splitlines() or ["failed"]
        return f"dvc pull {name}: {redacted(next((line for line in lines if line.startswith('ERROR')), lines[0]).strip())}"

    def dvc(
        self, arguments: list[str], environment: Mapping[str, str], capture: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of DVC in the project, its output on stderr; what it started has ended when this ends."""
        environment = {**_plain_environment(), "DVC_SITE_CACHE_DIR": str(self.folder / "site"), **environment}
        # `python` in dvc.yaml is to be this one.
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', os.defpath)}"
        command = [sys.executable, "-m", "dvc", *arguments]
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

    def remove(self) -> None:
        """Remove the folder, and git's note of the worktree."""
        shutil.rmtree(self.folder)
        if self._added:
            self._git("worktree", "remove", "--force", str(self.tree))

    def _git(self, *arguments: str, cwd: Path | None = None, check: bool = True) -> "subprocess.CompletedProcess[bytes]":
        return git(*arguments, cwd=cwd or self._root, environment=_plain_environment(), check=check)


@contextmanager
def recorded_workspace(root: Path, keep: bool) -> Iterator[Worktree]:
    """Give a worktree of the repository at `root`, yet to be checked out; with `keep` it stays, unless the block fails."""
    worktree = Worktree(root, Path(tempfile.mkdtemp(prefix="truefit-rerun-")))
    stays = False
    try:
        yield worktree
        stays = keep and worktree.tree.exists()
    finally:
        if not stays:
            with Deferred():
                worktree.remove()


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


def _plain_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(_INHERITED)}


def _interrupt(process: "subprocess.Popen[str]") -> None:
    with suppress(ProcessLookupError, subprocess.TimeoutExpired):
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=PATIENCE)
