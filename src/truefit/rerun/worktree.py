"""A recorded workspace built again: a git worktree of its commit, in a temporary folder, with its changes and its CSV.

Reads the repository, the record, and the caches and remotes of DVC; writes below the temporary folder only, but for what git
itself notes of a worktree while there is one. Guarantees that the user's working tree, index, branch and cache stay as they
are, and that the folder and git's note are gone when the block has ended, however it ends.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Self

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from truefit.core.code import code_digest, read_code
from truefit.core.errors import InconclusiveError, StoppedError, TruefitError
from truefit.core.files import sha256
from truefit.core.redaction import redacted

# Seconds that a pipeline which is asked to stop may take before it is killed.
PATIENCE = 20.0
# Set by git and DVC for the processes that they start; the last would let an installed truefit take the place of the recorded.
_INHERITED = (
    *("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_COMMON_DIR", "DVC_ROOT", "DVC_STAGE", "DVC_EXP_"),
    "PYTHONSAFEPATH",
)


class Signals:
    """SIGINT, SIGTERM and SIGHUP while it is entered: the first raises StoppedError, those after it are ignored.

    So nothing interrupts the cleaning up. Inside `held` the error waits for the end of the block. Its text ends in `where`.
    """

    def __init__(self, where: str = "before the verdict") -> None:
        self._where = where
        self._held = 0
        self._waiting: int | None = None
        self._stopped = False

    def __enter__(self) -> Self:
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        self._former = {number: signal.signal(number, self._receive) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let a signal wait until the block has ended."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
            if self._waiting is not None:
                self._stop(self._waiting)

    def _receive(self, number: int, _: FrameType | None) -> None:
        if self._held:
            self._waiting = number
        else:
            self._stop(number)

    def _stop(self, number: int) -> None:
        self._waiting = None
        if not self._stopped:
            self._stopped = True
            raise StoppedError(number, self._where)


class Worktree:
    """A recorded workspace; `project` is the folder of its dvc.yaml, `folder` the temporary one with all of it."""

    def __init__(self, root: Path, folder: Path, signals: Signals) -> None:
        self._root = root
        self._signals = signals
        self.folder = folder
        self.tree = self.project = folder / "tree"
        self._added = False

    def check_out(self, commit: str) -> None:
        """Make the worktree, at the commit; raises InconclusiveError where the repository does not have it."""
        self.project = self.tree / self._git("rev-parse", "--show-prefix").stdout.rstrip("\n")
        if self._git("cat-file", "-e", f"{commit}^{{commit}}", check=False).returncode:
            raise InconclusiveError(f"its commit {commit} is not in this repository; `git fetch` may bring it")
        with self._signals.held():
            # No hooks: DVC's own would check out data.
            self._git("-c", "core.hooksPath=/dev/null", "worktree", "add", "--quiet", "--detach", str(self.tree), commit)
            self._added = True
        if not (self.project / ".dvc").is_dir() or not (self.project / "src").is_dir():
            raise InconclusiveError(f"its commit has no pipeline in {self.project.relative_to(self.tree)}")

    def restore(self, record: Path, digest: str | None) -> None:
        """Bring the code to what ran: the commit with the recorded patch and params.

        Raises InconclusiveError where that cannot be done, or the digest of the code is not the recorded one.
        """
        patch = record / "diff.patch"
        if patch.exists() and patch.stat().st_size:
            applied = self._git("apply", "--whitespace=nowarn", str(patch), cwd=self.tree, check=False)
            if applied.returncode:
                raise InconclusiveError(f"its artifact record/diff.patch does not apply: {_line(applied.stderr)}")
        params, pipeline = self.project / "params.yaml", self.project / "dvc.yaml"
        params.unlink(missing_ok=True)  # it may be a link that leads elsewhere
        shutil.copyfile(record / "params.yaml", params)
        if not pipeline.is_file() or pipeline.read_bytes() != (record / "dvc.yaml").read_bytes():
            raise InconclusiveError("its artifact record/dvc.yaml is not the dvc.yaml of its commit and record/diff.patch")
        if digest and code_digest(read_code(self.project / "src")) != digest:
            raise InconclusiveError(
                "the code in src that ran is not in its record: its digest is not that of its tag code.sha256"
            )
        # What DVC knows of earlier results would let it skip stages.
        (self.project / "dvc.lock").unlink(missing_ok=True)
        self._configure()

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

    def bring_csv(self, csv: str, digest: str, record: Path) -> None:
        """Bring the CSV that was read, unless a stage makes it: from the user's working tree, or from DVC.

        Raises InconclusiveError where there is none with that digest.
        """
        name = os.path.normpath(csv)
        if name in _outputs(record / "dvc.lock"):
            return
        path, own = Path(os.path.normpath(self.project / name)), self._root / name  # the same for an absolute path
        if not path.is_relative_to(self.folder) and not Path(name).is_absolute():
            raise InconclusiveError(f"its data cannot be placed: {csv} leads out of the repository")
        tracked = next((parent for parent in (path, *path.parents) if Path(f"{parent}.dvc").is_file()), None)
        if path != own and not path.exists() and own.is_file() and sha256(own) == digest:
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(own, path)
        elif not path.exists() and tracked and tracked.is_relative_to(self.project):
            self._pull(str(tracked.relative_to(self.project)))
        if not path.is_file():
            known = "has another digest in the working tree" if own.is_file() else "is neither in DVC nor in the working tree"
            raise InconclusiveError(f"its data are gone: {csv} {known}")
        if sha256(path) != digest:
            raise InconclusiveError(f"its data are gone: {csv} has another digest than the one that was read")

    def _pull(self, name: str) -> None:
        """Bring what a .dvc file tracks, from the user's cache or else from the remote."""
        for remote in (["--remote", "truefit-cache"], []):
            done = self.dvc(["pull", *remote, name], {}, capture=True)
            if done.returncode == 0:
                return
        complaints = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise InconclusiveError(f"its data are gone: dvc pull {name}: {redacted(_line(*complaints, done.stderr))}")

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
            with self._signals.held():
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

    def _git(self, *arguments: str, cwd: Path | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            ["git", *arguments],
            cwd=cwd or self._root,
            env=_plain_environment(),
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            start_new_session=True,
        )
        if check and done.returncode:
            raise TruefitError(f"git {arguments[0]}: {_line(done.stderr)}")
        return done


@contextmanager
def recorded_workspace(root: Path, commit: str, signals: Signals, keep: bool) -> Iterator[Worktree]:
    """Give a worktree of the commit, in the system's folder for temporary files; with `keep` it stays, unless it is stopped.

    Raises InconclusiveError where the repository at `root` does not have the commit.
    """
    worktree = Worktree(root, Path(tempfile.mkdtemp(prefix="truefit-rerun-")), signals)
    stays = False
    try:
        worktree.check_out(commit)
        yield worktree
        stays = keep
    except InconclusiveError:
        stays = keep and worktree.tree.exists()
        raise
    finally:
        with signals.held():
            if not stays:
                worktree.remove()


def _outputs(lock: Path) -> set[str]:
    """Return the paths of what stages made, by a dvc.lock; raises InconclusiveError for a damaged one."""
    try:
        stages = (YAML(typ="safe", pure=True).load(lock) or {}).get("stages", {})
        return {os.path.normpath(out["path"]) for stage in stages.values() for out in stage.get("outs", [])}
    except (YAMLError, UnicodeDecodeError, AttributeError, LookupError, TypeError):
        raise InconclusiveError("its artifact record/dvc.lock is damaged") from None


def _plain_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(_INHERITED)}


def _line(*texts: str) -> str:
    """Return the first line of the first text that has one."""
    return next((text.strip().splitlines()[0] for text in texts if text.strip()), "failed")


def _interrupt(process: "subprocess.Popen[str]") -> None:
    """Ask a pipeline to stop, as Ctrl-C does, and wait for it for a while."""
    with suppress(ProcessLookupError, subprocess.TimeoutExpired):
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=PATIENCE)
