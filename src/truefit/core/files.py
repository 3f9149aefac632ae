"""Files, and folders of them, that are either whole or absent, and digests.

A reader meets the old file or the new one and never a part of either. The temporary name is the same for each writer of a
file, and locked: a second writer is refused, and what a killed one left is replaced by the next. What is no regular file,
such as a link, a pipe or a device, is never replaced.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from truefit.core.signals import Deferred

_KINDS = {stat.S_IFLNK: "a symbolic link", stat.S_IFIFO: "a named pipe"}


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path, whose file takes the name `path` when the block ends well, and is removed when it raises.

    The folder is created if need be. Raises OSError, naming `path`, also where another writer has begun with it; and where
    it, or the temporary path, is there and no regular file.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    for replaced in (path, temporary):
        _require_regular(replaced)
    with naming(path, temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _create_locked(temporary, path) as lock:
            try:
                yield temporary
                os.fsync(lock.fileno())
                temporary.replace(path)
            finally:
                if _is_at(temporary, lock):
                    temporary.unlink()
        _sync(path.parent)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder, which takes the name `path` when the block ends well, and is removed when it raises.

    A folder that is at `path` by then is removed with all that is in it. Raises OSError, naming `path`, also where another
    writer has begun with it.
    """
    work = path.with_name(f".{path.name}.tmp")
    new, former = work / "new", work / "former"
    if work.is_symlink():
        raise FileExistsError(errno.EEXIST, f"found {_KINDS[stat.S_IFLNK]}, allowed: a folder", str(work))
    with naming(path, work):
        work.mkdir(parents=True, exist_ok=True)
        with _create_locked(work / "lock", path):
            try:
                for left in (new, former):  # by a writer that was killed
                    shutil.rmtree(left, ignore_errors=True)
                new.mkdir()
                yield new
                _sync(new)
                with Deferred():
                    if path.exists():
                        path.rename(former)
                    new.rename(path)
            finally:
                with Deferred():
                    shutil.rmtree(work)
        _sync(path.parent)


@contextmanager
def naming(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Name `path` in an OSError that names no file, as of a write to a full disk, or names `temporary`."""
    try:
        yield
    except OSError as error:
        if error.filename not in (None, temporary, str(temporary)):
            raise
        # Not the error's own text where there is a number: pyarrow's is long.
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise OSError(error.errno or errno.EIO, reason, str(path)) from error


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON atomically; raises ValueError for NaN, which JSON does not have."""
    write_bytes(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def sha256(path: Path) -> str:
    """Return the SHA-256 of the file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _require_regular(path: Path) -> None:
    """Raise OSError where something other than a regular file is at `path`."""
    try:
        kind = stat.S_IFMT(path.lstat().st_mode)
    except FileNotFoundError:
        return
    if kind == stat.S_IFDIR:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if kind != stat.S_IFREG:
        # What is at the other end of it would not get the content, and the thing itself would be lost.
        text = f"found {_KINDS.get(kind, 'a device or a socket')}, allowed: a regular file, which is replaced, or a new name"
        raise FileExistsError(errno.EEXIST, text, str(path))


def _create_locked(temporary: Path, path: Path) -> IO[bytes]:
    while True:
        file = temporary.open("ab")
        try:
            # Not by filelock, which would take a file for locked that has been given its name between opening and locking.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            text = "being written by another process; try again when that has ended"
            raise BlockingIOError(errno.EWOULDBLOCK, text, str(path)) from None
        if _is_at(temporary, file):
            if os.fstat(file.fileno()).st_size == 0:
                return file
            temporary.unlink()  # a killed writer's, which may have had another umask
        file.close()


def _is_at(path: Path, file: IO[bytes]) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
