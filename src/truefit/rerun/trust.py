"""Whose a recorded run is: what this user may run again without a word, and what is shown of the rest.

A rerun executes the code in the record, and in a shared store that may be anyone's.
"""

import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

from truefit.core.errors import TrackingError
from truefit.core.text import one_line
from truefit.rerun.checkout import find_commit
from truefit.rerun.leftovers import process_environment
from truefit.tracking.connection import repository_root
from truefit.tracking.git import complaint, git, is_shallow, root_commit
from truefit.tracking.names import (
    BASE_TAG,
    COMMIT_TAG,
    RECORD,
    RECORDED_BUNDLE,
    RECORDED_PATCH,
    REMOTE_TAG,
    ROOT_TAG,
    USER_TAG,
)
from truefit.tracking.store import Store
from truefit.tracking.user import current_user

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun

_LONGEST = 200  # characters of a name or an address that are shown
_MOST = 100  # changed files that are shown, of commits and of a patch each
_UNSHALLOW = "this is a shallow clone, where no run can be told for this repository's; `git fetch --unshallow` brings the rest"


@dataclass(frozen=True)
class Owner:
    """A user and a repository, as runs are tagged with them; the store of `root` None is the repository's own.

    Unless it is `shallow`: then the repository cannot be told in a store that is shared, and no run is this owner's.
    """

    user: str | None
    root: str | None
    shallow: bool = False

    @classmethod
    def here(cls, store: Store) -> Self:
        """Return this user and this repository; raises TruefitError where either has no name in a shared store."""
        user = current_user()
        if user is None and store.address is not None:
            raise TrackingError("user: has no name here, by which runs are told apart; set LOGNAME to one")
        if store.address is None:
            return cls(user, None)
        root = repository_root()
        return cls(user, None, shallow=True) if is_shallow(root) else cls(user, root_commit(root))

    @property
    def where(self) -> str:
        """The condition in a search for this owner's runs; raises TrackingError where there is none to tell them by."""
        if self.shallow:
            raise TrackingError(f"git: {_UNSHALLOW}")
        if self.user is None:
            return f"tags.`{USER_TAG}` IS NULL"
        if (user := quoted(self.user)) is None:
            raise TrackingError(f"user {self.user!r}: has both kinds of quotes; set MLFLOW_TRACKING_USERNAME or LOGNAME")
        return f"tags.`{USER_TAG}` = {user}" + (f" and tags.`{ROOT_TAG}` = '{self.root}'" if self.root else "")

    def stranger(self, run: "MlflowRun") -> str | None:
        """Return why a run is not this owner's, or its commit is none of this repository's history; else None."""
        tags = run.data.tags
        if (user := tags.get(USER_TAG)) != self.user:
            return f"it is of {_name(user)}, not of {_name(self.user)}"
        if self.shallow:
            return _UNSHALLOW
        if self.root and (root := tags.get(ROOT_TAG)) != self.root:
            return f"it is of another repository: its tag {ROOT_TAG} is {_shown(root or 'not there')}, not {self.root}"
        if (commit := tags.get(COMMIT_TAG)) is not None and not _is_reachable(commit):
            return f"its commit {_shown(commit)} is on no branch and no tag here"
        return None

    def __str__(self) -> str:
        return f"{_name(self.user)} in this repository"


def is_commit(text: str) -> bool:
    """Say whether a text is a commit's whole hash.

    >>> [is_commit("f7" * 20), is_commit("HEAD"), is_commit("--all")]
    [True, False, False]
    """
    return re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", text) is not None


def quoted(text: str) -> str | None:
    """Return a text as MLflow's searches take it; None for one with both kinds of quotes, which cannot be searched for.

    >>> print(quoted("it's"))
    "it's"
    """
    mark = next((mark for mark in "'\"" if mark not in text), None)
    return mark and f"{mark}{text}{mark}"


def origin(store: Store, run: "MlflowRun") -> list[str]:
    """Return lines that tell whose a run is, and what would be executed: the commit, and the files that its patch changes.

    For a commit that is on no branch and no tag here, also the files that it changes of what is. Nothing of it is executed or
    applied for that. Raises TrackingError where the store does not give the patch or the commits.
    """
    tags = run.data.tags
    where = f", from {_shown(tags[REMOTE_TAG])}" if REMOTE_TAG in tags else ""
    lines = [f"run {run.info.run_id}, {_shown(run.info.run_name)}: of {_name(tags.get(USER_TAG))}{where}"]
    client = store.connect()
    with store.errors(), tempfile.TemporaryDirectory(prefix="truefit-patch-") as folder:
        recorded = {item.path for item in client.list_artifacts(run.info.run_id, RECORD)}
        code = _shown(tags.get(COMMIT_TAG, "none"))
        code += f", with {RECORDED_BUNDLE}" if RECORDED_BUNDLE in recorded else ""
        if _is_reachable(tags.get(COMMIT_TAG, "")):
            lines.append(f"its code: commit {code}")
        else:
            lines.append(f"its code: commit {code}, which is on no branch and no tag here")
            bundle = Path(folder, "none")
            if RECORDED_BUNDLE in recorded:
                bundle = Path(client.download_artifacts(run.info.run_id, RECORDED_BUNDLE, folder))
            lines += _committed(tags, Path(folder), bundle)
        if RECORDED_PATCH not in recorded:
            return [*lines, "its patch: none"]
        patch = client.download_artifacts(run.info.run_id, RECORDED_PATCH, folder)
        if not Path(patch).stat().st_size:
            return [*lines, "its patch: empty"]
        # From the top, since git leaves out what is not below the current folder.
        top = os.fsdecode(git("rev-parse", "--show-toplevel", cwd=repository_root()).stdout).rstrip("\n")
        listed = git("-c", "core.quotePath=false", "apply", "--numstat", patch, cwd=Path(top), check=False)
    if listed.returncode:
        return [*lines, f"its patch: cannot be read: {_shown(complaint(listed))}"]
    return [*lines, "its patch:", *_changes(listed.stdout)]


def _committed(tags: Mapping[str, str], folder: Path, bundle: Path) -> list[str]:
    """Return lines that tell what a commit changes of the history that is here, which may be in the bundle.

    The folder is a temporary one. The base that a tag names counts only where this repository has it on a branch or a tag:
    what lies before another goes unseen.
    """
    commit, base, root = tags.get(COMMIT_TAG, ""), tags.get(BASE_TAG, ""), repository_root()
    untold = "its commits: what they change cannot be told"
    if not is_commit(commit):
        return [f"{untold}: {_shown(commit or 'none')} is not a commit's whole hash"]
    called = partial(git, environment=process_environment(folder))
    found = find_commit(called, root, folder, commit, bundle, tags.get(REMOTE_TAG))
    if isinstance(found, str):
        return [f"{untold}: {one_line(found, 1000)}"]
    if found == root:
        base = called("merge-base", "HEAD", commit, cwd=root, check=False).stdout.decode().strip()
        if not base:
            return [f"{untold}: they have no commit in common with HEAD"]
    elif not _is_reachable(base):
        return [f"{untold}: what they build on, {_shown(base or 'not recorded')}, is on no branch and no tag here"]
    # Neither renames, which hide a name, nor what the user's settings would have git run or leave out.
    options = ("--numstat", "--no-renames", "--no-ext-diff", "--no-textconv", "--no-relative", "--ignore-submodules=none")
    listed = called("-c", "core.quotePath=false", "diff-tree", "-r", *options, base, commit, "--", cwd=found, check=False)
    if listed.returncode:
        return [f"{untold}: {_shown(complaint(listed))}"]
    return [f"its commits, since {base}:", *(_changes(listed.stdout) or ["  no file"])]


def _changes(listed: bytes) -> list[str]:
    """Return what git lists of changed files as lines to be shown, and how many there are beyond those."""
    changes = [line.split("\t", 2) for line in listed.decode(errors="replace").split("\n")[:-1]]
    lines = [f"  +{added} -{removed} {_shown(name)}" for added, removed, name in changes[:_MOST]]
    return [*lines, f"  and {len(changes) - _MOST} more"] if len(changes) > _MOST else lines


def _is_reachable(commit: str) -> bool:
    """Say whether HEAD, a branch, a tag or another ref of this repository has the commit in its history."""
    if not is_commit(commit):
        return False
    root = repository_root()
    if git("merge-base", "--is-ancestor", commit, "HEAD", cwd=root, check=False).returncode == 0:
        return True
    return bool(git("for-each-ref", "--count=1", "--contains", commit, cwd=root, check=False).stdout)


def _name(user: str | None) -> str:
    return "nobody" if user is None else _shown(user)


def _shown(text: str) -> str:
    return one_line(text, _LONGEST)
