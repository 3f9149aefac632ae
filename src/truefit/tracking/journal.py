"""The journal of a run: a folder on this machine's disk with all that is to reach MLflow.

A run appears with its whole origin or not at all. What was written survives the death of the process, and of the machine but
for the last second; a line torn by a kill is dropped.
"""

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO, Annotated, Literal, Self, TypeVar

from filelock import FileLock, Timeout
from pydantic import AfterValidator, BaseModel, Field, TypeAdapter, ValidationError, model_validator

from truefit.core.errors import TrackingError
from truefit.core.files import naming, sha256, write_bytes, write_json

SYNC_SECONDS = 1.0  # that records may wait for the disk; the operating system has them at once
BUSY_SECONDS = 10.0  # that another process which sends the same journal is waited for

JOURNAL = "journal.jsonl"
DATASET_FIELDS = {"name", "digest", "source_type", "source", "schema", "profile"}

T = TypeVar("T")

Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Natural = Annotated[int, Field(ge=0, lt=2**63)]  # as much as a database takes


def _check_place(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or len(path.parts) < 2 or str(path) != name or not name.isprintable():
        raise ValueError("not a relative path with a folder and no ..")
    return name


class _Line(BaseModel, frozen=True, extra="forbid", strict=True, allow_inf_nan=False):
    """Checked as it is read, since anyone may have planted it."""


class Header(_Line):
    """A journal's first line: which run it is, and in which store, None for the repository's own; times in milliseconds.

    A training has the `fingerprint` of what decides its result. An evaluation `completes` the run whose model has that digest.
    """

    format: Literal[1] = 1
    key: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
    store: str | None
    experiment: str
    name: str
    start_time: Natural
    tags: dict[str, str]
    fingerprint: Digest | None = None
    completes: Digest | None = None


class Metrics(_Line):
    """Metrics at a step; `time` is in milliseconds."""

    kind: Literal["metrics"] = "metrics"
    step: Natural
    time: Natural
    values: dict[str, float]


class Values(_Line):
    """Params, tags or the fields of the dataset."""

    kind: Literal["params", "tags", "dataset"]
    values: dict[str, str]

    @model_validator(mode="after")
    def _dataset_is_whole(self) -> Self:
        if self.kind == "dataset" and set(self.values) != DATASET_FIELDS:
            raise ValueError(f"a dataset has the fields {', '.join(sorted(DATASET_FIELDS))}")
        return self


class Artifact(_Line):
    """A file beside the journal, under artifacts/, and the digest of its bytes."""

    kind: Literal["artifact"] = "artifact"
    name: Annotated[str, AfterValidator(_check_place)]
    sha256: Digest


class Status(_Line):
    """How the run goes, or has ended; when `final`, no record will follow."""

    kind: Literal["status"] = "status"
    status: Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
    time: Natural
    final: bool


Record = Metrics | Values | Artifact | Status
_RECORD: TypeAdapter[Record] = TypeAdapter(Annotated[Record, Field(discriminator="kind")])


class Sent(_Line):
    """How far a journal has reached the store: the run there, whether another journal made it, the bytes acknowledged."""

    run_id: str | None = None
    name: str = ""
    is_anothers_run: bool = False
    offset: Natural = 0


def now() -> int:
    """Return the time as MLflow counts it, in milliseconds."""
    return time.time_ns() // 1_000_000


class Journal:
    """A run's journal in `folder`; raises TrackingError, naming file and line, where it is not one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / JOURNAL
        self._file: IO[bytes] | None = None
        self._synced = time.monotonic()
        with self._path.open("rb") as file:
            line = file.readline()
        self.header = self._checked(Header.model_validate_json, line, 0)
        self._begin = len(line)
        if self.header.key != folder.name:
            raise TrackingError(f"{self._path}: line 1: found the key {self.header.key}, allowed: the folder's name")

    @classmethod
    def create(cls, runs: Path, header: Header, origin: list[Values], artifacts: Mapping[str, bytes]) -> "Journal":
        """Begin a journal below `runs` with all that the run starts from, in one step."""
        folder = runs / header.key
        lines = [header, *origin, *(_write_artifact(folder, name, content) for name, content in artifacts.items())]
        write_bytes(folder / JOURNAL, b"".join(map(_line, lines)))
        return cls(folder)

    def append(self, record: Record) -> None:
        """Write a record: to the operating system at once, to the disk within about SYNC_SECONDS or at `close`."""
        with naming(self._path):
            if self._file is None:
                # A line torn by a kill would spoil the next one.
                os.truncate(self._path, self._path.read_bytes().rfind(b"\n") + 1)
                self._file = self._path.open("ab")
            self._file.write(_line(record))
            self._file.flush()
            if time.monotonic() - self._synced > SYNC_SECONDS:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()

    def append_artifact(self, name: str, content: bytes) -> None:
        """Write an artifact's file, and its record."""
        self.append(_write_artifact(self.folder, name, content))

    def close(self) -> None:
        """Flush what was written to the disk."""
        if self._file is not None:
            with naming(self._path), self._file:
                os.fsync(self._file.fileno())
            self._file = None

    def read(self, offset: int = 0) -> Iterator[tuple[Record, int]]:
        """Give the records behind `offset` bytes, each with the offset behind it; raises TrackingError for what is none."""
        position = max(offset, self._begin)
        with self._path.open("rb") as file:
            file.seek(position)
            for line in file:
                if not line.endswith(b"\n"):  # not yet whole
                    return
                record = self._checked(_RECORD.validate_json, line, position)
                position += len(line)
                yield record, position

    def artifact(self, record: Artifact) -> Path:
        """Return the file of an artifact; raises TrackingError when it is not what was written, or is gone."""
        path = self.folder / "artifacts" / record.name
        if not path.is_file() or sha256(path) != record.sha256:
            raise TrackingError(f"{path}: its digest is not the one in {JOURNAL}; remove {self.folder} to give the run up")
        return path

    @property
    def final(self) -> bool:
        """Whether the run has ended for good."""
        return any(isinstance(record, Status) and record.final for record, _ in self.read())

    @contextmanager
    def sending(self) -> Iterator[Sent]:
        """Hold the journal for sending, and give how far it was sent; raises TrackingError where another process holds it."""
        # Beside the folder, which goes when all was sent. Its file goes each time: filelock begins anew where it waited for
        # one that is gone.
        lock = self.folder.with_name(f".{self.folder.name}.lock")
        try:
            held = FileLock(lock, BUSY_SECONDS).acquire()
        except Timeout:
            raise TrackingError(f"{self.folder}: being sent by another process") from None
        with held:
            try:
                yield self.sent()
            finally:
                lock.unlink()

    def sent(self) -> Sent:
        """Return how far the journal has reached the store; raises FileNotFoundError where it was sent to the end."""
        with self._path.open("rb") as file:
            try:
                sent = Sent.model_validate_json((self.folder / "sent.json").read_bytes())
            except (FileNotFoundError, ValidationError):
                return Sent()  # sending everything again changes nothing
            file.seek(max(sent.offset - 1, 0))
            ends_a_line = file.read(1) == b"\n"
        return sent if ends_a_line or sent.offset == 0 else Sent()

    def save_sent(self, sent: Sent) -> None:
        """Keep how far the journal has reached the store."""
        # Not further than the disk has it: after a power failure the offset would be that of other records.
        with self._path.open("rb") as file:
            os.fsync(file.fileno())
        write_json(self.folder / "sent.json", sent.model_dump())

    def remove(self) -> None:
        """Remove the folder, at once for every reader; to be called while `sending`."""
        gone = self.folder.with_name(f".{self.folder.name}.tmp")
        self.folder.rename(gone)
        shutil.rmtree(gone)

    def _checked(self, validate: Callable[[bytes], T], line: bytes, position: int) -> T:
        try:
            return validate(line)
        except ValidationError as error:
            number = self._path.read_bytes()[:position].count(b"\n") + 1
            fault = f"line {number}: damaged: {error.errors(include_url=False)[0]['msg']}"
            raise TrackingError(f"{self._path}: {fault}; remove {self.folder} to give the run up") from None


def pending(runs: Path) -> list[Journal]:
    """Return the journals below `runs`, the oldest first, a training before its evaluation of the same millisecond."""
    journals = []
    for path in runs.glob(f"[0-9a-f]*/{JOURNAL}"):
        with suppress(FileNotFoundError):  # sent and removed by another process in this moment
            journals.append(Journal(path.parent))
    return sorted(journals, key=lambda journal: (journal.header.start_time, journal.header.completes is not None))


def _write_artifact(folder: Path, name: str, content: bytes) -> Artifact:
    record = Artifact(name=name, sha256=hashlib.sha256(content).hexdigest())
    write_bytes(folder / "artifacts" / name, content)
    return record


def _line(record: BaseModel) -> bytes:
    return record.model_dump_json().encode() + b"\n"
