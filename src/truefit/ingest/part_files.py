"""Which files a table's data are: one, or the parts in a folder; and their digest."""

import hashlib
import os
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from truefit.core.errors import TableError
from truefit.core.files import sha256

ALL = "*"  # the parts, but for those whose names begin with one of …
HIDDEN = (".", "_")  # … which are what others leave beside the data, such as _SUCCESS


def part_paths(path: Path, names: str) -> list[Path]:
    """Return the files in a folder that have such `names`, sorted, or the path itself where it is no folder.

    Raises TableError for a folder without such files, or with a folder among them; and for names, beside a file.
    """
    if not path.is_dir():
        if names != ALL:
            raise TableError(
                f"{path}: found no folder beside prepare.parts: {names!r}, allowed: a folder, or {ALL!r} for a file"
            )
        if set("*?[") & set(path.name) and not path.exists():
            advice = f"prepare.csv: {path.parent} and prepare.parts: {path.name!r}"
            raise TableError(f"{path}: found a pattern, allowed: the folder, which is what DVC can watch: {advice}")
        return [path]
    try:
        listed = sorted(item.name for item in path.iterdir())
    except OSError as error:
        raise TableError(f"{path}: cannot be read: {error.strerror}") from None
    found = [name for name in listed if not name.startswith(HIDDEN) and fnmatchcase(name, names)]
    for name in found:
        if (path / name).is_dir():
            raise TableError(f"{path / name}: found a folder among the parts, allowed: files alone, in one folder")
    if not found:
        like = "" if names == ALL else f" like {names!r} (prepare.parts)"
        raise TableError(f"{path}: found no part{like}, allowed: at least one file that is neither hidden nor begins with _")
    return [path / name for name in found]


def parts_digest(digests: Iterable[tuple[str, str]]) -> str:
    """Return the digest of parts by their names and SHA-256s: that of what `sha256sum` prints for them in their folder."""
    listed = "".join(f"{digest}  {name}\n" for name, digest in digests)
    return hashlib.sha256(os.fsencode(listed)).hexdigest()


def data_digest(path: Path, names: str) -> str:
    """Return the SHA-256 of a file, or the digest of the parts in a folder; raises TableError as `part_paths` does."""
    parts = part_paths(path, names)
    return parts_digest((part.name, sha256(part)) for part in parts) if path.is_dir() else sha256(path)
