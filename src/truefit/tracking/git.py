"""git, as a command."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from truefit.core.errors import TruefitError
from truefit.core.redaction import redacted


def git(
    *arguments: str,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    index: Path | None = None,
    given: bytes = b"",
    check: bool = True,
    advice: str = "",
) -> "subprocess.CompletedProcess[bytes]":
    """Run git, with `given` on its stdin; a Ctrl-C in the terminal does not reach it.

    `index` and `environment` replace the repository's and this process's. Raises TruefitError where git is not installed, and
    with `check` for a status other than 0: the first line of its complaint, and the `advice`.

    >>> git("check-ref-format", "main..", check=False).returncode
    1
    """
    base = os.environ if environment is None else environment
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=cwd,
            env={**base, **({"GIT_INDEX_FILE": str(index)} if index else {})},
            input=given,
            capture_output=True,
            check=False,
            start_new_session=True,
        )
    except FileNotFoundError:
        raise TruefitError("git: not found; every run records the commit that it ran on") from None
    if check and done.returncode:
        raise TruefitError(f"git {arguments[0]}: {complaint(done)}{advice}")
    return done


def head_commit() -> str:
    """Return the commit that is checked out; raises TruefitError where there is none."""
    advice = "; every run records its commit: `git init` and commit"
    return git("rev-parse", "--verify", "HEAD", advice=advice).stdout.decode().strip()


def root_commit(cwd: Path | None = None) -> str:
    """Return the first commit in the history of the one checked out, which all clones of a repository have in common.

    Of several, as after two histories were merged, the last that git names. Raises TruefitError where there is no commit.
    """
    return git("rev-list", "--max-parents=0", "HEAD", cwd=cwd).stdout.decode().split()[-1]


def is_shallow(cwd: Path | None = None) -> bool:
    """Say whether the repository is a shallow clone: what git takes for its first commit is only where it was cut off."""
    return git("rev-parse", "--is-shallow-repository", cwd=cwd).stdout.strip() == b"true"


def complaint(done: "subprocess.CompletedProcess[bytes]") -> str:
    """Return the first line of what git wrote to its stderr, which may name a remote."""
    return redacted((done.stderr.decode(errors="replace").strip() or "failed").splitlines()[0])
