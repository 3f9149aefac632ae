"""The journal of a run: a SQLite file on this machine's disk with all that is to reach MLflow, and how far it has come.

A run appears with its whole origin or not at all. What was written survives the death of the process, and of the machine but
for the last second. A file that is no journal, or one of another format, is set aside and stops nothing else.
"""

import hashlib
import re
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import TypeVar

from pydantic import ValidationError

from truefit.core.errors import DamagedError, TrackingError
from truefit.core.files import atomic_path
from truefit.core.terminal import say
from truefit.tracking import journal_file
from truefit.tracking.records import RECORD, Artifact, Header, Record, Sent, Status, Values

FORMAT = 2  # of the tables; 1 was a folder with a file of JSON lines
SYNC_SECONDS = 1.0  # that records may wait for the disk; the operating system has them at once
PART = 2**24  # bytes of an artifact that are written and read at once

TABLES = (
    "CREATE TABLE part (record INTEGER NOT NULL, bytes BLOB NOT NULL)",
    "CREATE TABLE record (number INTEGER PRIMARY KEY, json TEXT NOT NULL)",
    "CREATE TABLE run (header TEXT NOT NULL, sent TEXT NOT NULL)",
)

T = TypeVar("T")


class Journal:
    """A run's journal at `path`; raises DamagedError, naming the file, where it is not one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writer: sqlite3.Connection | None = None
        self._held = ExitStack()
        self._synced = time.monotonic()
        with self._open() as database:
            (found,) = database.execute("PRAGMA user_version").fetchone()
            if found != FORMAT:
                raise self._damaged(f"found the format {found}, allowed: {FORMAT}")
            # A view or a trigger, which SQLite would execute, is none of ours.
            tables = database.execute("SELECT sql FROM sqlite_master ORDER BY name").fetchmany(len(TABLES) + 1)
            if tables != [(table,) for table in TABLES]:
                raise self._damaged("its tables are not those of a journal")
            rows = database.execute("SELECT header FROM run").fetchmany(2)
        if len(rows) != 1:
            raise self._damaged(f"found {len(rows)} headers, allowed: 1")
        self.header = self._checked(Header.model_validate_json, rows[0][0], "header")
        if self.header.key != path.stem:
            raise self._damaged(f"header: found the key {self.header.key}, allowed: the file's name")

    @classmethod
    def create(cls, runs: Path, header: Header, origin: list[Values], artifacts: Mapping[str, bytes]) -> "Journal":
        """Begin a journal below `runs` with all that the run starts from, in one step, and `hold` it."""
        path, held = runs / f"{header.key}.sqlite", ExitStack()
        held.enter_context(journal_file.locked(path, "written", 0))
        # No journal of SQLite's, since the file appears only when it is whole and on the disk.
        with atomic_path(path) as file, journal_file.errors(file), closing(sqlite3.connect(file)) as database:
            for statement in ("PRAGMA synchronous = OFF", "PRAGMA journal_mode = OFF", f"PRAGMA user_version = {FORMAT}"):
                database.execute(statement)
            with database:
                for table in TABLES:
                    database.execute(table)
                database.execute("INSERT INTO run VALUES (?, ?)", (header.model_dump_json(), Sent().model_dump_json()))
                for record in origin:
                    _insert(database, record)
                for name, content in artifacts.items():
                    _insert_artifact(database, name, content)
            database.execute("PRAGMA journal_mode = WAL")
        journal = cls(path)
        journal._held = held
        return journal

    def hold(self, seconds: float | None = None) -> None:
        """Be the one that writes, until `close`; raises TrackingError where another process is, as `locked` does."""
        self._held.enter_context(journal_file.locked(self.path, "written", seconds))

    def append(self, record: Record) -> None:
        """Write a record: to the operating system at once, to the disk within about SYNC_SECONDS, a status at once."""
        with journal_file.errors(self.path):
            _insert(self._appending(), record)
            if isinstance(record, Status) or time.monotonic() - self._synced > SYNC_SECONDS:
                self._appending().execute("PRAGMA wal_checkpoint").fetchall()
                self._synced = time.monotonic()

    def append_artifact(self, name: str, content: bytes) -> None:
        """Write an artifact, the whole of it or nothing."""
        with journal_file.errors(self.path), self._appending() as database:
            database.execute("BEGIN IMMEDIATE")
            _insert_artifact(database, name, content)

    def close(self) -> None:
        """Bring what was written to the disk, and let others write."""
        with self._held:
            if self._writer is not None:
                with journal_file.errors(self.path), closing(self._writer):
                    self._writer.execute("PRAGMA wal_checkpoint").fetchall()
                self._writer = None

    def finish(self, seconds: float | None = None) -> None:
        """Make the status that ended the run a final one; the journal goes at once where the store has all of it already.

        One that is being sent, and for so many seconds or BUSY_SECONDS, goes when that has ended, or later.
        """
        whole = False
        self.hold()
        with closing(self):
            with suppress(TrackingError), self.sending(seconds) as sent:
                whole = next(self.read(sent.number), None) is None
            if not whole and (ended := self.status) and not ended.final:
                self.append(ended.model_copy(update={"final": True}))
        if whole:
            self.path.unlink()  # the last of all: by now everything that was beside it is gone

    def read(self, after: int = 0) -> Iterator[tuple[Record, int]]:
        """Give the records behind the number `after`, each with its own; raises DamagedError for what is none."""
        following = "SELECT number, json FROM record WHERE number > ? ORDER BY number LIMIT 1"
        with self._open() as database:
            # One at a time: all could be of any size, and while a query goes on no checkpoint is whole.
            while row := database.execute(following, (after,)).fetchone():
                after, text = row
                yield self._checked(RECORD.validate_json, text, f"record {after}"), after

    @contextmanager
    def artifact(self, record: Artifact, number: int) -> Iterator[Path]:
        """Give the file of an artifact, whose record has the number, until the block ends; to be called while `sending`.

        Raises DamagedError when it is not what was written.
        """
        folder = journal_file.beside(self.path, "artifact")
        shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
        folder.mkdir()
        file, digest = folder / PurePosixPath(record.name).name, hashlib.sha256()
        try:
            with self._open() as database, file.open("wb") as writing:
                parts = "SELECT CAST(bytes AS BLOB) FROM part WHERE record = ? ORDER BY rowid"
                for (part,) in database.execute(parts, (number,)):
                    digest.update(part)
                    writing.write(part)
            if digest.hexdigest() != record.sha256:
                raise self._damaged(f"record {number}: the digest of {record.name} is not that of its bytes")
            yield file
        finally:
            shutil.rmtree(folder)

    @property
    def status(self) -> Status | None:
        """How the run goes, or has ended, as far as it is recorded."""
        found = None
        for record, _ in self.read():
            found = record if isinstance(record, Status) else found
        return found

    @contextmanager
    def sending(self, seconds: float | None = None) -> Iterator[Sent]:
        """Hold the journal for sending, and give how far it was sent.

        Raises TrackingError where another process holds it, as `locked` does.
        """
        # While it is open here, no other opening is the last that closes it, which makes SQLite tidy up each time.
        with journal_file.locked(self.path, "sent", seconds), self._open():
            yield self.sent()

    def sent(self) -> Sent:
        """Return how far the journal has reached the store; raises FileNotFoundError where it was sent to the end."""
        with self._open() as database:
            (text,) = database.execute("SELECT sent FROM run").fetchone()
        return self._checked(Sent.model_validate_json, text, "sent")

    def acknowledge(self, sent: Sent) -> None:
        """Keep how far the journal has reached the store; this is not on the disk before the records that it is about."""
        with self._open() as database:
            database.execute("UPDATE run SET sent = ?", (sent.model_dump_json(),))

    def remove(self) -> None:
        """Remove the journal, at once for every reader; to be called while `sending`."""
        journal_file.remove(self.path)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with journal_file.errors(self.path), closing(journal_file.connect(self.path)) as database:
            yield database

    def _appending(self) -> sqlite3.Connection:
        if self._writer is None:
            self._writer = journal_file.connect(self.path)
        return self._writer

    def _damaged(self, fault: str) -> DamagedError:
        return DamagedError(f"{self.path}: damaged: {fault}")

    def _checked(self, validate: Callable[[str], T], text: str, place: str) -> T:
        try:
            return validate(text)
        except ValidationError as error:
            raise self._damaged(f"{place}: {error.errors(include_url=False)[0]['msg']}") from None


def pending(runs: Path) -> list[Journal]:
    """Return the journals below `runs`, the oldest first, a training before its evaluation of the same millisecond.

    What is none is set aside, and what killed processes left of journals that are gone is removed.
    """
    journals = []
    for path in runs.iterdir():
        match = re.fullmatch(r"\.?([0-9a-f]{32})(.*)", path.name)
        key, ending = match.groups() if match else ("", ".damaged")
        with suppress(FileNotFoundError), setting_aside(path):  # one that is gone was sent to the end in this moment
            if ending == ".sqlite" and not path.is_file():
                raise DamagedError(f"{path}: is no regular file")
            if ending == ".sqlite":
                journals.append(Journal(path))
            elif ending == "":
                raise DamagedError(f"{path}: the journal of an earlier truefit, which alone can send it")
            elif not ending.startswith(".damaged") and not (runs / f"{key}.sqlite").exists():
                journal_file.clear(runs / f"{key}.sqlite")
    return sorted(journals, key=lambda journal: (journal.header.start_time, journal.header.completes is not None))


@contextmanager
def setting_aside(path: Path) -> Iterator[None]:
    """Rename the journal, with a warning on stderr, if the block finds that it is damaged and no living process writes it."""
    try:
        yield
    except DamagedError as error:
        aside = path.with_suffix(".damaged")
        with suppress(TrackingError), journal_file.locked(path.with_suffix(".sqlite"), "written", 0):
            for ending in ("-wal", ""):
                with suppress(FileNotFoundError):
                    path.with_name(path.name + ending).rename(f"{aside}{ending}")
            say(f"warning: {error}; it is set aside as {aside.name}", error=True)


def _insert(database: sqlite3.Connection, record: Record) -> int | None:
    return database.execute("INSERT INTO record (json) VALUES (?)", (record.model_dump_json(),)).lastrowid


def _insert_artifact(database: sqlite3.Connection, name: str, content: bytes) -> None:
    number = _insert(database, Artifact(name=name, sha256=hashlib.sha256(content).hexdigest()))
    parts = (content[begin : begin + PART] for begin in range(0, len(content), PART))
    database.executemany("INSERT INTO part VALUES (?, ?)", ((number, part) for part in parts))
