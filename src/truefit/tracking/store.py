"""The runs of this repository: begun and ended here, journalled below .truefit/runs/, and sent to MLflow in the background.

No step of a training waits for the store; its start and its end may, for a bounded time.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from truefit.core.errors import StoppedError, StoreAwayError, is_final
from truefit.core.redaction import redacted
from truefit.core.terminal import say
from truefit.tracking import trained
from truefit.tracking.connection import Connection, repository_root
from truefit.tracking.journal import Journal, pending, setting_aside
from truefit.tracking.names import BASELINE_TAG, DIGEST_TAG, EXPERIMENT_TAG, FAILURE_TAG, GRID_TAG
from truefit.tracking.records import LONGEST_NAME, Header, Status, Values, now
from truefit.tracking.run import Run, TrackSettings
from truefit.tracking.sending import Sender
from truefit.tracking.system_metrics import SystemMetrics
from truefit.tracking.uploading import Uploader
from truefit.tracking.waiting import Waiting

if TYPE_CHECKING:
    from truefit.tracking.provenance import Origin


class Store:
    """The MLflow store, and the journals of the runs that it does not have yet.

    It has what a `Connection` has, and `sync` and `forget` as `Waiting` has them. The runs raise TrackingError where the store
    is there and cannot take them.
    """

    def __init__(self) -> None:
        connection = Connection()
        self.uri, self.redacted_uri, self.address = connection.uri, connection.redacted_uri, connection.address
        self.connect, self.experiment = connection.connect, connection.experiment
        self.errors, self.tag = connection.errors, connection.tag
        folder = connection.root / ".truefit"
        self._runs, self._trained = folder / "runs", folder / "trained"
        self._runs.mkdir(parents=True, exist_ok=True)
        self.sender = Sender(connection, self._runs)
        self._waiting = Waiting(self.sender, self._runs, folder / "checkpoints")
        self.sync, self.forget = self._waiting.sync, self._waiting.forget

    @contextmanager
    def training_run(
        self, track: TrackSettings, name: str, fingerprint: str, read_origin: "Callable[[], Origin]"
    ) -> Iterator[Run]:
        """Begin a run, or go on with that of an interrupted training; it is called as in the settings, or else `name`.

        After the block the run is FINISHED, and `Run.end` is to be called when nothing is left to do: a stage that is killed
        before that is executed again, and goes on with the same run.
        """
        self._check(track)
        machine = SystemMetrics()
        journal = self._interrupted(fingerprint)
        if journal is None:
            origin = read_origin()
            journal = Journal.create(self._runs, self._header(track, name, fingerprint), origin.records(), origin.artifacts)
        else:
            journal.append(Status(status="RUNNING", time=now(), final=False))
            journal.append(Values(kind="tags", values=_experiment_tags()))
        with self._recording(journal) as run, machine.recorded(run.log_sample):
            yield run
            if run.digest is not None:
                tags = journal.header.tags | _experiment_tags()
                trained.remember(self._trained, run.digest, journal.header.model_copy(update={"tags": tags}))

    @contextmanager
    def evaluation_run(self, track: TrackSettings, digest: str) -> Iterator[Run]:
        """Add to the run of the training that ended here with the model of that state_dict digest.

        Where none did it is the user's latest run with such a model, and where there is none either, a run of its own.
        """
        self._check(track)
        header = self._header(track, f"evaluation of {digest[:8]}", completes=digest)
        training = trained.latest(self._trained, digest, header.store, header.experiment, header.tags)
        header = header.model_copy(update={"training": training})
        journal = Journal.create(self._runs, header, [Values(kind="tags", values={DIGEST_TAG: digest})], {})
        with self._recording(journal) as run:
            yield run

    def _check(self, track: TrackSettings) -> None:
        with suppress(StoreAwayError):
            self.experiment(track.experiment)

    def _interrupted(self, fingerprint: str) -> Journal | None:
        for journal in pending(self._runs):
            # One that is over may be removed by another process in this moment.
            with suppress(FileNotFoundError), setting_aside(journal.path):
                if journal.header.fingerprint == fingerprint and not ((status := journal.status) and status.final):
                    journal.hold()
                    return journal
        return None

    def _header(self, track: TrackSettings, name: str, fingerprint: str | None = None, completes: str | None = None) -> Header:
        from mlflow.tracking.context.registry import resolve_tags

        tags = _experiment_tags()
        ending = f" ({tags[EXPERIMENT_TAG]})"[-LONGEST_NAME:] if tags else ""
        return Header(
            key=uuid4().hex,
            store=self.address,
            experiment=track.experiment,
            name=track.run_name or f"{name[: LONGEST_NAME - len(ending)]}{ending}",
            start_time=now(),
            # MLflow adds who started the run, from which script, and the address of the git remote.
            tags={**{tag: redacted(value) for tag, value in resolve_tags().items()}, **tags},
            fingerprint=fingerprint,
            completes=completes,
        )

    @contextmanager
    def _recording(self, journal: Journal) -> Iterator[Run]:
        """Send the journal in the background while it is written; end the run, with its reason, as the block ends."""
        run = Run(journal)
        is_training = journal.header.fingerprint is not None
        uploader = Uploader(self.sender, journal, self._waiting.dead())
        uploader.start()
        try:
            yield run
        except BaseException as error:
            failed = isinstance(error, Exception) and not isinstance(error, StoppedError)
            with suppress(OSError):  # a full disk must not hide its own report
                run.set_tags({FAILURE_TAG: redacted(str(error) or type(error).__name__)[:5000]})
                # Only a training goes on later.
                final = not is_training or is_final(error)
                journal.append(Status(status="FAILED" if failed else "KILLED", time=now(), final=final))
            raise
        else:
            journal.append(Status(status="FINISHED", time=now(), final=not is_training))
        finally:
            try:
                fault = uploader.finish()
            finally:
                journal.close()
            if uploader.sent:
                run.name, run.run_id = uploader.sent.name, uploader.sent.run_id
                run.joined = uploader.sent.is_anothers_run
                if uploader.sent.skipped:
                    skipped = ", ".join(uploader.sent.skipped)[:5000]
                    say(f"warning: MLflow run {run.run_id}: the store refuses {skipped}; left out", error=True)
            if fault:
                run.waits = True
                say(f"warning: {fault}; {journal.path} keeps run {run.name!r}: `truefit sync` sends it", error=True)


def _experiment_tags() -> dict[str, str]:
    name, baseline = os.environ.get("DVC_EXP_NAME"), os.environ.get("DVC_EXP_BASELINE_REV")
    if not name:
        return {}
    # DVC numbers the experiments of a grid that was given a name: lr-1, lr-2. It queues them, and gives each a workspace.
    queued = repository_root() / ".dvc/tmp" in Path.cwd().parents
    grid = re.fullmatch(r"(.+)-\d+", name) if queued else None
    tags = {EXPERIMENT_TAG: name, BASELINE_TAG: baseline, GRID_TAG: grid and grid[1]}
    return {tag: value for tag, value in tags.items() if value}
