"""What a run records of what differs from the commit in the project's folder: a patch, and what stays out of it, and why.

Neither the working tree nor the index changes. What lies outside the project's folder is not looked at.
"""

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from truefit.core.text import one_line
from truefit.tracking.changes import Change, read_changes, sizes, submodules
from truefit.tracking.git import git, head_commit
from truefit.tracking.secrets import find_secret, may_hold_secrets

# Of the files that git does not know, those that are recorded: code and configuration, by their names.
_CODE = (
    *("*.py", "*.pyi", "*.pyx", "*.pxd", "*.c", "*.cc", "*.cpp", "*.h", "*.hpp", "*.cu", "*.sh", "Makefile", "Dockerfile"),
    *("*.toml", "*.yaml", "*.yml", "*.cfg", "*.ini", "*.lock", "requirements*.txt", "constraints*.txt"),
    *("*.dvc", ".dvcignore", ".gitignore", ".gitattributes"),
)
_BESIDE_DATA = ("*.dvc", ".gitignore")
_OTHERS = (".*", "node_modules", "site-packages", "__pycache__", "*.egg-info")  # folders of what is not the project's own
_PYTHON = "pyvenv.cfg"  # lies in the folder of each virtual environment
_TOGETHER = 200  # names that a command line takes at once
_SHOWN = 100  # names that a summary has
# Whatever the user's own settings of git say of how a diff looks.
_DIFF = (
    *("diff", "--no-ext-diff", "--no-textconv", "--no-color", "--no-relative", "--no-renames", "--submodule=short"),
    *("--src-prefix=a/", "--dst-prefix=b/", "--binary", "--unified=3"),
)


@dataclass(frozen=True)
class LeftOut:
    """A file that is not recorded, and the reason; a rerun may need it, or does not."""

    name: str
    reason: str
    needed: bool


@dataclass(frozen=True)
class Workspace:
    """The commit checked out, and a patch with what differs from it, but for what was left out.

    It is dirty where a file differs that git knows, or one that a rerun needs. `submodules` has the commit of each that is
    checked out, by its path from the repository's root.
    """

    commit: str
    dirty: bool
    patch: bytes
    left_out: tuple[LeftOut, ...] = ()
    submodules: Mapping[str, str] = field(default_factory=dict)


def read_workspace(limit: int) -> Workspace:
    """Return the state of the project in the current folder, with uncommitted files of up to `limit` bytes, each and together.

    Raises TruefitError where there is no repository or no commit in it.
    """
    commit = head_commit()
    rules = _Rules(limit)
    with tempfile.TemporaryDirectory() as folder:
        # A copy of the index, so that files which git does not know yet can be added to it without a trace.
        index = Path(folder, "index")
        # With its time: by that git knows which files, of the same size and second, it must read to see whether they changed.
        shutil.copy2(_ask("--path-format=absolute", "--git-path", "index"), index)
        changes = read_changes(index)
        left_out = list(rules.refused(changes))
        names = {file.name for file in left_out}
        patch, found = rules.patch([change for change in changes if change.name not in names], index)
    left_out += found
    dirty = any(change.known for change in changes) or bool(patch) or any(file.needed for file in left_out)
    return Workspace(commit, dirty, patch, tuple(left_out), submodules(rules.top))


def summary(files: Iterable[LeftOut]) -> str:
    """Return the files by reasons, for a tag or a line, in at most 5000 characters.

    >>> summary([LeftOut("a.bin", "too large", True), LeftOut("b.bin", "too large", True), LeftOut(".env", "secret", False)])
    'a.bin, b.bin (too large); .env (secret)'
    """
    reasons: dict[str, list[str]] = {}
    for file in sorted(files, key=lambda file: not file.needed):
        reasons.setdefault(file.reason, []).append(one_line(file.name, 200))
    parts = []
    for reason, names in reasons.items():
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        parts.append(f"{', '.join(names[:_SHOWN])}{more} ({reason})")
    text = "; ".join(parts)
    return text if len(text) <= 5000 else f"{text[:4999]}…"


class _Rules:
    """What is recorded of the project in the current folder, and what is not; the repository's root is `top`."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.top = _ask("--show-toplevel")
        self._prefix = PurePosixPath(os.fsdecode(git("rev-parse", "--show-prefix").stdout).rstrip("\n"))

    def refused(self, changes: Sequence[Change]) -> Iterator[LeftOut]:
        """Give the files that are not recorded, as far as their names, kinds and sizes tell."""
        environments = {PurePosixPath(change.name).parent for change in changes if change.name.endswith(f"/{_PYTHON}")}
        candidates = []
        for change in changes:
            own = self._is_own(change, environments)
            if reason := self._reason(change, own):
                yield LeftOut(change.name, reason, self._is_needed(change, own))
            elif not change.submodule:
                candidates.append(change)
        total = 0
        for size, change in sorted(zip(sizes(candidates, self.top), candidates, strict=True), key=lambda pair: pair[0]):
            total += size
            if total > self._limit:
                beyond = "larger" if size > self._limit else "together larger"
                yield LeftOut(change.name, f"{beyond} than track.largest_file_mb", True)

    def _reason(self, change: Change, own: bool) -> str | None:
        if change.submodule:
            return "a submodule with changes of its own" if set(change.submodule) & {"M", "U"} else None
        if change.name.endswith("/"):
            return "a repository of its own"
        if may_hold_secrets(change.name):
            return "secrets may be in it"
        return None if change.known or (own and self._is_code(change)) else "neither code nor configuration"

    def _is_own(self, change: Change, environments: set[PurePosixPath]) -> bool:
        """Say whether a file is the project's own, by its folders."""
        path = self._below(change)
        others = any(fnmatchcase(folder, pattern) for folder in path.parts[:-1] for pattern in _OTHERS)
        return not others and not environments.intersection(PurePosixPath(change.name).parents)

    def _is_code(self, change: Change) -> bool:
        path = self._below(change)
        # The run has the digest of the data that it read; what DVC keeps beside them names these, and is small.
        patterns = _BESIDE_DATA if path.parts[:1] == ("data",) else _CODE
        return any(fnmatchcase(path.name, pattern) for pattern in patterns)

    def _is_needed(self, change: Change, own: bool) -> bool:
        """Say whether a rerun may need a file that is left out: one that git knows, but for DVC's settings, or one in src."""
        path = self._below(change)
        if change.submodule:
            return "M" in change.submodule
        if change.known:
            return not (path.parent.name == ".dvc" and path.name.startswith("config"))
        return own and path.parts[:1] == ("src",) and not path.name.startswith(".") and not may_hold_secrets(change.name)

    def _below(self, change: Change) -> PurePosixPath:
        return PurePosixPath(change.name).relative_to(self._prefix)

    def patch(self, changes: Sequence[Change], index: Path) -> tuple[bytes, list[LeftOut]]:
        """Return a patch with the changes, and the files that are not in it because what looks like a secret is in them."""
        files = {change.name: change for change in changes if not change.submodule}
        # Also where nothing of a name is checked out, as git says of it.
        adding = ("add", "--intent-to-add", "--sparse", "--pathspec-from-file=-", "--pathspec-file-nul")
        new = b"".join(os.fsencode(change.name) + b"\0" for change in files.values() if change.new)
        if new:
            git("-C", str(self.top), "--literal-pathspecs", *adding, index=index, given=new)
        sections, found, names = [], [], list(files)
        for first in range(0, len(names), _TOGETHER):
            places = [f":(top,literal){name}" for name in names[first : first + _TOGETHER]]
            text = git(*_DIFF, "HEAD", "--", *places, index=index).stdout
            for name, section in _sections(text):
                if what := find_secret(name, section) or (_is_binary(section) and self._secret_inside(files[name])):
                    found.append(LeftOut(name, f"{what} may be in it", True))
                else:
                    sections.append((name, section))
        dropped = {file.name for file in found}
        return b"".join(section for name, section in sections if name not in dropped), found

    def _secret_inside(self, change: Change) -> str | None:
        """Look where a patch shows nothing but compressed bytes: into the file, and what the commit has of it."""
        path = self.top / change.name
        after = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        before = git("cat-file", "blob", change.former, check=False).stdout if change.former else b""
        return find_secret(change.name, after) or find_secret(change.name, before)


def _ask(*asked: str) -> Path:
    return Path(os.fsdecode(git("rev-parse", *asked).stdout).rstrip("\n"))


def _sections(patch: bytes) -> Iterator[tuple[str, bytes]]:
    """Give the parts of a patch, each with the name of its file."""
    begin = b"diff --git "
    for text in (b"\n" + patch.removesuffix(b"\n")).split(b"\n" + begin)[1:]:
        header = text.partition(b"\n")[0]
        name = header[: len(header) // 2]  # it stands there twice, once with a/ and once with b/
        if name.startswith(b'"'):
            name = name[1:-1].decode("unicode_escape").encode("latin-1")
        yield os.fsdecode(name[2:]), begin + text + b"\n"


def _is_binary(section: bytes) -> bool:
    return b"\nGIT binary patch\n" in section
