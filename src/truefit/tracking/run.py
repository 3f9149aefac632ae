"""A run that is being written: what it records, in its journal."""

from collections.abc import Mapping
from contextlib import closing, suppress
from types import ModuleType

from pydantic import Field

from truefit.core.config import Settings
from truefit.data.table import Table
from truefit.tracking.journal import Journal
from truefit.tracking.mlflow_model import pack_model
from truefit.tracking.names import DIGEST_TAG, MODEL, SYSTEM_PREFIX
from truefit.tracking.records import LONGEST_NAME, Metrics, Values, now

LONGEST_EXPERIMENT = 256  # characters of its name: as many as a database below MLflow may take


class TrackSettings(Settings):
    """Section `track`: where in MLflow the runs go, and what they are called."""

    experiment: str = Field("truefit", min_length=1, max_length=LONGEST_EXPERIMENT)
    run_name: str | None = Field(None, min_length=1, max_length=LONGEST_NAME)
    largest_file_mb: float = Field(10.0, ge=0)
    log_model: bool = True

    @property
    def largest_file(self) -> int:
        """The bytes of uncommitted files that the record holds, each and together, and of commits that are not pushed."""
        return int(self.largest_file_mb * 1_000_000)


class Run:
    """A run that is being written; `run_id` is the store's, known when the block that writes it has ended."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._recorded = self._sample = -1
        for record, _ in journal.read():
            if isinstance(record, Metrics) and any(name.startswith(SYSTEM_PREFIX) for name in record.values):
                self._sample = max(self._sample, record.step)
            elif isinstance(record, Metrics):
                self._recorded = max(self._recorded, record.step)
        self.name = journal.header.name
        self.run_id: str | None = None
        self.digest: str | None = None  # of the model that it ends with
        self.joined = False  # whether it is the run of a training, which an evaluation adds to
        self.waits = False  # for the store, which does not have all of it when the block has ended

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record metrics at a step, but for a step that an interrupted execution has recorded already."""
        if step > self._recorded:
            self._journal.append(Metrics(step=step, time=now(), values=dict(metrics)))

    def log_sample(self, metrics: Mapping[str, float]) -> None:
        """Record what was measured of the machine, counted by itself; may be called by another thread."""
        self._sample += 1
        values = {f"{SYSTEM_PREFIX}{name}": value for name, value in metrics.items()}
        with closing(Journal(self._journal.path)) as journal:  # an open one belongs to its thread
            journal.append(Metrics(step=self._sample, time=now(), values=values))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags; a tag that is there already is replaced."""
        self._journal.append(Values(kind="tags", values=dict(tags)))
        self.digest = tags.get(DIGEST_TAG, self.digest)

    def log_artifacts(self, artifacts: Mapping[str, bytes]) -> None:
        """Record contents by their paths among the run's artifacts."""
        for name, content in artifacts.items():
            self._journal.append_artifact(name, content)

    def log_model(self, loader: ModuleType, model: Mapping[str, bytes], table: Table) -> None:
        """Record an MLflow model: the files of a model that was trained on the table, and the code that rebuilds it.

        `loader` has the function `_load_pyfunc`, which MLflow calls with the files' folder, the `ROOMS` and `PACKAGES` that it
        needs, and `example_rows`, which returns some rows as the model takes them.
        """
        header = self._journal.header
        self.log_artifacts(pack_model(loader, model, table, header.key, header.start_time))
        self._journal.append(Values(kind="model", values={"name": MODEL}))

    def end(self) -> None:
        """End a FINISHED run for good: the last act of its stage, which goes on with the same run if it is killed before."""
        with suppress(FileNotFoundError):  # another command may have found that its checkpoint is gone, and ended it
            self._journal.finish(seconds=0 if self.waits else None)

    def __str__(self) -> str:
        return f"MLflow run {self.name!r}, {self.run_id or f'which waits in {self._journal.path}'}"
