"""What a journal holds: the header of a run, its records, and how far they were sent. Each is checked as it is read."""

import time
from pathlib import PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, Field, TypeAdapter, model_validator

LONGEST_NAME = 250  # characters of a run's name: as many as a database below MLflow may take
DATASET_FIELDS = {"name", "digest", "source_type", "source", "schema", "profile"}

Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Key = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
Natural = Annotated[int, Field(ge=0, lt=2**63)]  # as much as a database takes


def _check_place(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or len(path.parts) < 2 or str(path) != name or not name.isprintable():
        raise ValueError("not a relative path with a folder and no ..")
    return name


class Checked(BaseModel, frozen=True, extra="forbid", strict=True, allow_inf_nan=False):
    """Checked as it is read, since anyone may have planted it."""


class Header(Checked):
    """Which run it is, and in which store, None for the repository's own; times in milliseconds.

    A training has the `fingerprint` of what decides its result. An evaluation `completes` a run whose model has that digest,
    that of the `training` with this key where it is known.
    """

    key: Key
    store: str | None
    experiment: str
    name: Annotated[str, Field(max_length=LONGEST_NAME)]
    start_time: Natural
    tags: dict[str, str]
    fingerprint: Digest | None = None
    completes: Digest | None = None
    training: Key | None = None


class Metrics(Checked):
    """Metrics at a step; `time` is in milliseconds."""

    kind: Literal["metrics"] = "metrics"
    step: Natural
    time: Natural
    values: dict[str, float]


class Values(Checked):
    """Params, tags or the fields of the dataset; a model's say that all its artifacts were written."""

    kind: Literal["params", "tags", "dataset", "model"]
    values: dict[str, str]

    @model_validator(mode="after")
    def _dataset_is_whole(self) -> Self:
        if self.kind == "dataset" and set(self.values) != DATASET_FIELDS:
            raise ValueError(f"a dataset has the fields {', '.join(sorted(DATASET_FIELDS))}")
        return self


class Artifact(Checked):
    """An artifact, by its path in the run, and the digest of its bytes."""

    kind: Literal["artifact"] = "artifact"
    name: Annotated[str, AfterValidator(_check_place)]
    sha256: Digest


class Status(Checked):
    """How the run goes, or has ended; when `final`, no record will follow."""

    kind: Literal["status"] = "status"
    status: Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
    time: Natural
    final: bool


Record = Metrics | Values | Artifact | Status
RECORD: TypeAdapter[Record] = TypeAdapter(Annotated[Record, Field(discriminator="kind")])


class Sent(Checked):
    """How far a journal has reached the store: the run there, whether another journal made it, the last record acknowledged.

    `skipped` names what the store refuses for ever. When `over`, the store has all, and none will follow.
    """

    run_id: str | None = None
    name: str = ""
    is_anothers_run: bool = False
    number: Natural = 0
    skipped: list[str] = []
    over: bool = False


def now() -> int:
    """Return the time as MLflow counts it, in milliseconds."""
    return time.time_ns() // 1_000_000
