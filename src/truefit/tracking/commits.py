"""The commits that nobody else has yet: those that the remote lacks, as a git bundle, from which another clone can fetch."""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from truefit.core.errors import TruefitError
from truefit.core.redaction import redacted
from truefit.core.text import one_line
from truefit.tracking.connection import repository_root
from truefit.tracking.git import git
from truefit.tracking.secrets import find_secret, may_hold_secrets

MOST = 1000  # commits in a bundle


@dataclass(frozen=True)
class Commits:
    """Where others find the commit: the address of the remote, the newest commit of the history that it has, and the rest.

    `unbundled` is the reason where commits are missing there, and in `bundle` too.
    """

    remote: str | None = None
    base: str | None = None
    bundle: bytes | None = None
    unbundled: str | None = None


def read_commits(commit: str, limit: int) -> Commits:
    """Return where others find the `commit` that is checked out; contents of more than `limit` bytes are not bundled.

    What is known of the remote decides, and nothing is asked of it. Without one there is nothing that a bundle could build on,
    and each run would have the whole history: there is none then.
    """
    root = repository_root()  # DVC's temporary workspaces know no branches of a remote
    remote = _remote(root)
    if remote is None:
        return Commits()
    name, address = remote
    beyond = (commit, "--not", f"--remotes={name}")
    try:
        listed = git("rev-list", f"--max-count={MOST + 1}", "--boundary", *beyond, cwd=root).stdout.decode().split()
        if not listed:
            return Commits(address, base=commit)
        builds_on = [line[1:] for line in listed if line.startswith("-")]
        if len(listed) - len(builds_on) > MOST:
            return Commits(address, unbundled=f"they are more than {MOST}")
        base, reason = _newest(builds_on, root), _unfit(beyond, limit, root)
        return Commits(address, base, unbundled=reason) if reason else Commits(address, base, _bundle(builds_on))
    except TruefitError as error:  # no reason not to train
        return Commits(address, unbundled=str(error))


def _remote(root: Path) -> tuple[str, str] | None:
    """Return the remote's name, and its address without credentials: that of origin, or else of the first that there is."""
    listed = git("config", "-z", "--get-regexp", r"^remote\..*\.url$", cwd=root, check=False).stdout
    pairs = [entry.partition("\n")[::2] for entry in os.fsdecode(listed).split("\0")[:-1]]
    addresses = {key.removeprefix("remote.").removesuffix(".url"): address for key, address in reversed(pairs)}
    if not addresses:
        return None
    name = "origin" if "origin" in addresses else list(addresses)[-1]
    return name, one_line(redacted(addresses[name]), 1000)


def _newest(commits: Sequence[str], root: Path) -> str | None:
    if len(commits) < 2:
        return commits[0] if commits else None
    return git("rev-list", "--no-walk=sorted", *commits, cwd=root).stdout.decode().split()[0]


def _unfit(beyond: Sequence[str], limit: int, root: Path) -> str | None:
    """Return why what only these commits have must not be recorded: it is too much, or secrets may be in it."""
    objects = git("rev-list", "--objects", *beyond, cwd=root).stdout
    details = git("cat-file", "--batch-check=%(objecttype) %(objectsize) %(objectname) %(rest)", cwd=root, given=objects)
    named, size = {}, 0
    for line in os.fsdecode(details.stdout).split("\n")[:-1]:
        kind, length, digest, path = line.split(" ", 3)
        if kind == "tree":
            continue
        size += int(length)
        named[digest] = path
        # DVC's settings that are in git are there for others; what looks like a password in them is found below.
        if path and may_hold_secrets(path) and not path.endswith(".dvc/config"):
            return f"secrets may be in their {one_line(path, 200)}"
    if size > limit:
        return f"their files have {size / 1e6:.1f} MB, allowed: {limit / 1e6:g} (track.largest_file_mb)"
    return _secret(named, root)


def _secret(named: dict[str, str], root: Path) -> str | None:
    """Look into the objects, each named by its path, or "" for a commit."""
    contents = git("cat-file", "--batch", cwd=root, given="".join(f"{digest}\n" for digest in named).encode()).stdout
    start = 0
    for path in named.values():
        end = contents.index(b"\n", start)
        size = int(contents[start:end].split()[2])
        if what := find_secret(path or "message.md", contents[end + 1 : end + 1 + size]):
            return f"{what} may be in their {one_line(path, 200) or 'messages'}"
        start = end + size + 2
    return None


def _bundle(builds_on: Sequence[str]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "bundle")
        git("bundle", "create", "--quiet", str(path), "HEAD", *(f"^{commit}" for commit in builds_on))
        return path.read_bytes()
