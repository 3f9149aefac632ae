"""What differs from the commit below the project's folder, as git tells of it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from truefit.tracking.git import git


@dataclass(frozen=True)
class Change:
    """A file that differs from the commit, by its path from the repository's root; `known` are those that git knows."""

    name: str
    known: bool
    new: bool = False  # it is to be added before git can compare it
    former: str = ""  # the object that the commit has of it
    submodule: str = ""  # S and what git says of it: M, files that differ from its own commit; U, new ones


def read_changes(index: Path) -> list[Change]:
    """Return what differs below the current folder, ordered by the bytes of the names.

    `index` takes the place of the repository's, and is not written to.
    """
    asked = ("status", "--porcelain=v2", "-z", "--no-renames", "--untracked-files=all", "--ignore-submodules=none", "--", ".")
    listed = git("--no-optional-locks", *asked, index=index).stdout
    changes: dict[str, Change] = {}
    for entry in os.fsdecode(listed).split("\0")[:-1]:
        change = _parse(entry)
        # A file that was removed from the index alone is listed twice, first as one that git knows.
        twice = changes.get(change.name)
        changes[change.name] = replace(twice, new=True) if twice else change
    return sorted(changes.values(), key=lambda change: os.fsencode(change.name))


def sizes(changes: Sequence[Change], top: Path) -> list[int]:
    """Return each file's bytes, before or after: whichever are more. The repository's root is `top`."""
    asked = "".join(f"{change.former or 'none'}\n" for change in changes).encode()
    found = git("cat-file", "--batch-check=%(objectsize)", given=asked).stdout.decode().splitlines() if changes else []
    before = [int(size) if size.isdigit() else 0 for size in found]  # a new file is `missing` there
    paths = [top / change.name for change in changes]
    after = [os.lstat(path).st_size if os.path.lexists(path) else 0 for path in paths]
    return list(map(max, before, after))


def submodules(top: Path) -> dict[str, str]:
    """Return the commit of each submodule below the current folder that is checked out, by its path from the root, `top`."""
    if not (top / ".gitmodules").is_file():
        return {}
    entries = os.fsdecode(git("ls-files", "--stage", "--full-name", "-z").stdout).split("\0")[:-1]
    names = [entry.partition("\t")[2] for entry in entries if entry.startswith("160000 ")]
    there = [name for name in names if (top / name / ".git").exists()]
    return {name: git("rev-parse", "HEAD", cwd=top / name).stdout.decode().strip() for name in there}


def _parse(entry: str) -> Change:
    """Return a line of `git status --porcelain=v2`."""
    kind, _, rest = entry.partition(" ")
    if kind == "?":
        return Change(rest, known=False, new=True)
    # Of a file in conflict three versions are listed, of which the second is the commit's.
    before, last = (7, 9) if kind == "u" else (5, 7)
    fields = rest.split(" ", last)
    return Change(
        name=fields[last],
        known=True,
        former=fields[before].strip("0") and fields[before],
        submodule=fields[1] if fields[1].startswith("S") else "",
    )
