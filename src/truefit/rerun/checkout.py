"""A recorded commit as files: from this repository, or from the bundle of its record; and the submodules in it.

The user's repository gets no commit and no ref.
"""

import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from subprocess import CompletedProcess

from truefit.core.terminal import say
from truefit.core.text import one_line
from truefit.tracking.git import complaint
from truefit.tracking.names import RECORDED_BUNDLE

Git = Callable[..., "CompletedProcess[bytes]"]
# Files as they are in the repository, and all of them, whatever the user's settings; no hooks: DVC's would check out data.
AS_STORED = tuple(
    part
    for setting in ("autocrlf=false", "eol=lf", "sparseCheckout=false", "hooksPath=/dev/null")
    for part in ("-c", f"core.{setting}")
)


def find_commit(git: Git, root: Path, folder: Path, commit: str, bundle: Path, remote: str | None) -> Path | str:
    """Return a repository that has the commit, the one at `root` or one made in `folder`; or why there is none."""
    if has_commit(git, root, commit):
        return root
    if not bundle.is_file():
        return f"its commit {commit} is not in this repository; {_advice(remote, commit)}"
    if missing := next((base for base in _prerequisites(bundle) if not has_commit(git, root, base)), None):
        return f"its commit {commit} builds on {missing}, which is not in this repository; {_advice(remote, missing)}"
    made = _shared_repository(git, root, folder / "repository")
    unpacked = git("bundle", "unbundle", str(bundle), cwd=made, check=False)
    if unpacked.returncode:
        return f"its artifact {RECORDED_BUNDLE} is damaged: {complaint(unpacked)}"
    if not has_commit(git, made, commit):
        return f"its commit {commit} is neither in this repository nor in its artifact {RECORDED_BUNDLE}"
    return made


def _shared_repository(git: Git, root: Path, made: Path) -> Path:
    """Make a repository that has all objects of the one at `root`, and none of its refs."""
    git("init", "--quiet", "--template=", str(made), cwd=root)
    objects, shallow = (
        Path(_asked(git, root, "--path-format=absolute", "--git-path", name)) for name in ("objects", "shallow")
    )
    alternates = made / ".git/objects/info/alternates"
    alternates.parent.mkdir(exist_ok=True)
    alternates.write_bytes(os.fsencode(objects) + b"\n")
    if shallow.exists():
        shutil.copyfile(shallow, made / ".git/shallow")
    return made


def has_commit(git: Git, repository: Path, commit: str) -> bool:
    """Say whether the repository has a commit."""
    return git("cat-file", "-e", f"{commit}^{{commit}}", cwd=repository, check=False).returncode == 0


def project_folder(git: Git, root: Path) -> tuple[Path, Path]:
    """Return the top folder of the repository, and where in it the project is, which is at `root`."""
    return Path(_asked(git, root, "--show-toplevel")), Path(_asked(git, root, "--show-prefix"))


def bring_submodules(git: Git, tree: Path, own: Path, recorded: Mapping[str, str], index: Path) -> None:
    """Fill the folders of submodules, which git leaves empty in a worktree, from those of the user, and warn where it cannot.

    They are those of which a commit is `recorded`, by their paths from the top folders: `tree`, and `own` of the user.
    `index` is a place for a temporary one.
    """
    for name, _ in _submodules(git, tree):
        if name in recorded:
            _fill(git, tree / name, own / name, recorded[name], index)


def _fill(git: Git, place: Path, own: Path, commit: str, index: Path) -> None:
    """Fill the folder of a submodule, and of those in it."""
    if not (own / ".git").exists() or not has_commit(git, own, commit):
        known = f"the commit {one_line(commit)} is not in {_shown(own)}; `git submodule update --init` there may bring it"
        say(f"warning: {_shown(place)} is empty: {known}", error=True)
        return
    git("read-tree", commit, cwd=own, index=index)
    git(*AS_STORED, "checkout-index", "--all", f"--prefix={place}/", cwd=own, index=index)
    for name, inner in _submodules(git, own, index):
        _fill(git, place / name, own / name, inner, index)


def _submodules(git: Git, repository: Path, index: Path | None = None) -> list[tuple[str, str]]:
    """Return the paths of submodules, and the commits that an index has of them."""
    listed = git("ls-files", "--stage", "-z", cwd=repository, index=index).stdout.split(b"\0")
    links = [os.fsdecode(entry) for entry in listed if entry.startswith(b"160000 ")]
    return [(entry.partition("\t")[2], entry.split()[1]) for entry in links]


def _prerequisites(bundle: Path) -> Iterator[str]:
    """Give the commits that a bundle builds on."""
    with bundle.open("rb") as file:
        for line in iter(file.readline, b"\n"):
            if not line:
                return
            if found := re.match(rb"-([0-9a-f]{40,64})\b", line):
                yield found[1].decode()


def _advice(remote: str | None, commit: str) -> str:
    return f"`git fetch {shlex.quote(_shown(remote))} {commit}` may bring it" if remote else "`git fetch` may bring it"


def _shown(text: str | Path) -> str:
    return one_line(str(text), 500)


def _asked(git: Git, repository: Path, *asked: str) -> str:
    return os.fsdecode(git("rev-parse", *asked, cwd=repository).stdout).rstrip("\n")
