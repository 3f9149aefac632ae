"""The digests of the sources: of all that a run executes, and of what alone decides a training's numbers."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

SOURCES = Path(__file__).parents[2]
# A training's result follows from these, beside its settings, its table, the libraries and the machine. dvc.yaml has the same.
DECISIVE = ("train.py", "truefit/core", "truefit/data", "truefit/model", "truefit/training")


def read_code(folder: Path = SOURCES) -> dict[str, str]:
    r"""Return the SHA-256 of each Python file in `folder` and below, by its path there.

    A line may end with \n or \r\n, which are the same to Python, and which git may put in each other's place.
    """
    # An editor may keep a link there that leads nowhere.
    files = [path for path in sorted(folder.rglob("*.py")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): _digest(path.read_bytes().replace(b"\r\n", b"\n")) for path in files}


def decisive(code: Mapping[str, str]) -> dict[str, str]:
    """Return those digests of `read_code` that a training's numbers depend on."""
    rooms = tuple(f"{room}/" for room in DECISIVE)
    return {name: digest for name, digest in code.items() if name in DECISIVE or name.startswith(rooms)}


def code_digest(code: Mapping[str, str]) -> str:
    """Return one SHA-256 for what `read_code` returned."""
    lines = "".join(f"{digest} {name}\n" for name, digest in code.items())
    return _digest(lines.encode(errors="surrogateescape"))  # a name may be no UTF-8


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
