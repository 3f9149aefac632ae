"""Whose a recorded run is: what this user may run again without a word, and what is shown of the rest.

A rerun executes the code in the record, and in a shared store that may be anyone's.
"""

import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from truefit.core.errors import TrackingError
from truefit.core.text import one_line
from truefit.tracking.connection import repository_root
from truefit.tracking.git import complaint, git, root_commit
from truefit.tracking.names import COMMIT_TAG, RECORD, RECORDED_BUNDLE, RECORDED_PATCH, REMOTE_TAG, ROOT_TAG, USER_TAG
from truefit.tracking.store import Store
from truefit.tracking.user import current_user

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun

_LONGEST = 200  # characters of a name or an address that are shown


@dataclass(frozen=True)
class Owner:
    """A user and a repository, as runs are tagged with them; the store of `root` None is the repository's own."""

    user: str | None
    root: str | None

    @classmethod
    def here(cls, store: Store) -> Self:
        """Return this user and this repository; raises TruefitError where either has no name in a shared store."""
        user = current_user()
        if user is None and store.address is not None:
            raise TrackingError("user: has no name here, by which runs are told apart; set LOGNAME to one")
        return cls(user, None if store.address is None else root_commit(repository_root()))

    @property
    def where(self) -> str:
        """The condition in a search for this owner's runs; raises TrackingError for a name that none can hold."""
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

    Nothing of it is executed or applied for that. Raises TrackingError where the store does not give the patch.
    """
    tags = run.data.tags
    where = f", from {_shown(tags[REMOTE_TAG])}" if REMOTE_TAG in tags else ""
    lines = [f"run {run.info.run_id}, {_shown(run.info.run_name)}: of {_name(tags.get(USER_TAG))}{where}"]
    client = store.connect()
    with store.errors(), tempfile.TemporaryDirectory(prefix="truefit-patch-") as folder:
        recorded = {item.path for item in client.list_artifacts(run.info.run_id, RECORD)}
        code = _shown(tags.get(COMMIT_TAG, "none"))
        code += f", with {RECORDED_BUNDLE}" if RECORDED_BUNDLE in recorded else ""
        code += "" if _is_reachable(tags.get(COMMIT_TAG, "")) else ", which is on no branch and no tag here"
        lines.append(f"its code: commit {code}")
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
    changes = [line.split("\t", 2) for line in listed.stdout.decode(errors="replace").splitlines()]
    return [*lines, "its patch:", *(f"  +{added} -{removed} {_shown(name)}" for added, removed, name in changes)]


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
