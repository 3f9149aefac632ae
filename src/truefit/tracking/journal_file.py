"""The file of a journal: a SQLite database that anyone may have planted, its errors, and locks beside it."""

import errno
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from truefit.core.errors import DamagedError, TrackingError

BUSY_SECONDS = 10.0  # that another process which has the journal is waited for
LARGEST = 2**26  # bytes of a value
# SQLite's errors where the disk is at fault, or who may use it, and not what is in the file.
_OF_THE_DISK = {
    *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_PERM),
    sqlite3.SQLITE_READONLY,
}


def connect(path: Path) -> sqlite3.Connection:
    """Open a database that is there, whoever has put it there."""
    database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", BUSY_SECONDS, isolation_level=None, uri=True)
    database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LARGEST)
    database.execute("PRAGMA trusted_schema = OFF")
    # In the mode WAL: what is written survives the process at once, and the machine from the next checkpoint on.
    database.execute("PRAGMA synchronous = NORMAL")
    return database


@contextmanager
def errors(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into an OSError, or a DamagedError where the file's content is at fault."""
    try:
        yield
    except sqlite3.Error as error:
        if not path.exists():
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path)) from None
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
        if code in _OF_THE_DISK:
            raise OSError(errno.ENOSPC if code == sqlite3.SQLITE_FULL else errno.EIO, str(error), str(path)) from error
        raise DamagedError(f"{path}: damaged: {error}") from None


@contextmanager
def locked(path: Path, doing: str, seconds: float | None = None) -> Iterator[None]:
    """Hold the lock of the one process by which the journal is being `doing`, such as written: a file beside it.

    Raises TrackingError where another process holds it, for so many seconds or BUSY_SECONDS.
    """
    lock = beside(path, doing)
    try:
        held = FileLock(lock, BUSY_SECONDS if seconds is None else seconds).acquire()
    except Timeout:
        raise TrackingError(f"{path}: being {doing} by another process") from None
    with held:
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)  # filelock begins anew where it waited for one that is gone


def beside(path: Path, what: str) -> Path:
    """Return the place of what goes with the journal, hidden."""
    return path.with_name(f".{path.stem}.{what}")


def remove(path: Path) -> None:
    """Remove the journal and what goes with it, but for locks, which their holders remove."""
    for file in (path, *path.parent.glob(f"{path.name}-*"), *path.parent.glob(f".{path.name}.tmp*")):
        file.unlink(missing_ok=True)
    shutil.rmtree(beside(path, "artifact"), ignore_errors=True)


def clear(path: Path) -> None:
    """Remove what goes with a journal that is gone, unless a living process has it, which is about to begin it."""
    with suppress(TrackingError), locked(path, "written", 0), locked(path, "sent", 0):
        remove(path)
