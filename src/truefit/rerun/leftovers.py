"""What reruns leave that were killed: found by a link below .truefit/reruns, and cleared by the next rerun.

Beside the link lies a lock, held while the rerun's process lives, which other hosts see that share the repository's folder.
Each process that a rerun starts has the path of its folder in its environment.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from truefit.core.signals import Deferred
from truefit.core.terminal import say
from truefit.tracking.git import git
from truefit.tracking.names import RERUN_KEY_TAG
from truefit.tracking.store import Store

FOLDER = "TRUEFIT_RERUN"  # in the environment of a rerun's processes
PATIENCE = 20.0  # seconds, before processes that do not die are left alone
TREE = "tree"  # of the folder, where git makes the worktree
_LINKS = Path(".truefit/reruns")
# Set by git and DVC for the processes that they start; the last would let an installed truefit take the place of the recorded.
_INHERITED = (
    *("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_COMMON_DIR", "DVC_ROOT", "DVC_STAGE", "DVC_EXP_"),
    "PYTHONSAFEPATH",
)


@contextmanager
def known_folder(root: Path, key: str, keep: bool) -> Iterator[Path]:
    """Give a temporary folder for the rerun `key` of the repository at `root`.

    With `keep` it stays where it has a worktree at the end, unless the block fails.
    If this process is killed, the next rerun removes it.
    """
    links = root / _LINKS
    links.mkdir(parents=True, exist_ok=True)
    link, lock = links / key, links / f"{key}.lock"
    folder = Path(tempfile.mkdtemp(prefix="truefit-rerun-"))
    with FileLock(lock):  # before the link: one without a lock is cleared
        link.symlink_to(folder)
        stays = False
        try:
            yield folder
            stays = keep and (folder / TREE).exists()
        finally:
            with Deferred():
                if not stays:
                    remove_folder(root, folder)
                if stays or not folder.exists():
                    link.unlink(missing_ok=True)
                    lock.unlink(missing_ok=True)


def process_environment(folder: Path) -> dict[str, str]:
    """Return the environment for a process of the rerun in `folder`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_INHERITED)}
    return {**inherited, FOLDER: str(folder)}


def remove_folder(root: Path, folder: Path) -> None:
    """Remove a rerun's folder, and the note of its worktree, where there is one, from the repository at `root`."""
    shutil.rmtree(folder, ignore_errors=True)  # a download that was interrupted may still write to it
    # Forced twice: one that was killed while git made it is locked.
    worktree = ("worktree", "remove", "--force", "--force", str(folder / TREE))
    git(*worktree, cwd=root, environment=process_environment(folder), check=False)


def clear_leftovers(root: Path, store: Store) -> None:
    """Clear what killed reruns of the repository at `root` left: processes, folders, worktrees; end their runs as KILLED.

    Raises TrackingError where the store fails; it is tried again the next time then.
    """
    links = root / _LINKS
    links.mkdir(parents=True, exist_ok=True)
    for lock in sorted(links.glob("*.lock")):
        with suppress(Timeout), FileLock(lock, timeout=0):
            link = lock.with_suffix("")
            if link.is_symlink():  # or it has ended since
                _clear(root, link.readlink())
                _end_runs(store, link.name)
            if not link.exists():
                link.unlink(missing_ok=True)
                lock.unlink(missing_ok=True)


def _clear(root: Path, folder: Path) -> None:
    say(f"clearing {folder}, which a rerun that was killed left", error=True)
    _end_processes(folder)
    remove_folder(root, folder)


def _end_processes(folder: Path) -> None:
    latest = time.monotonic() + PATIENCE
    while (alive := _processes(folder)) and time.monotonic() < latest:
        for process in alive:
            with suppress(psutil.Error):
                process.kill()
        time.sleep(0.05)


def _processes(folder: Path) -> list[psutil.Process]:
    running = psutil.process_iter(["environ"])
    return [process for process in running if (process.info["environ"] or {}).get(FOLDER) == str(folder)]


def _end_runs(store: Store, key: str) -> None:
    """End the run of the rerun `key`, in whichever experiment it is."""
    with store.errors():
        client = store.connect()
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        where = f"tags.`{RERUN_KEY_TAG}` = '{key}' and attributes.status = 'RUNNING'"
        for run in client.search_runs(experiments, where, max_results=10):
            client.set_terminated(run.info.run_id, "KILLED")
