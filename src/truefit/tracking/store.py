"""The runs of this repository: begun and ended here, journalled, and sent to the store in the background.

Writes each run's journal below .truefit/runs/. Guarantees that no step of a training waits for the store (its start and its
end may, for a bounded time), and that whatever the store has not acknowledged stays in the journal.
"""

import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from uuid import uuid4

from truefit.core.errors import StoppedError, StoreAwayError, TrackingError, is_final
from truefit.core.redaction import redacted
from truefit.tracking.connection import Connection
from truefit.tracking.journal import Header, Journal, Sent, Status, Values, now, pending
from truefit.tracking.names import BASELINE_TAG, DIGEST_TAG, EXPERIMENT_TAG, FAILURE_TAG, GRID_TAG, RANGE_TAG
from truefit.tracking.run import Origin, Run, TrackSettings
from truefit.tracking.sending import send

# Seconds that records may wait before they are sent together with those that follow.
FLUSH_SECONDS = 5.0
# A store that fails is tried again after 1, 2, 4 … seconds, and at the end of the stage.
LONGEST_PAUSE = 60.0
# Seconds without an answer, at the end of the stage, after which it is given up.
PATIENCE = 60.0


class Store(Connection):
    """The MLflow store, and the journals of the runs that it does not have yet."""

    def __init__(self) -> None:
        super().__init__()
        self._runs = self.root / ".truefit/runs"
        self._runs.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def training_run(
        self, track: TrackSettings, name: str, fingerprint: str, read_origin: Callable[[], Origin]
    ) -> Iterator[Run]:
        """Begin a run, or go on with the one of an interrupted training that has the fingerprint; end it with its reason.

        It is called as in the settings, or else `name`. Raises TrackingError when the store is there and cannot take the run.
        """
        with suppress(StoreAwayError):
            self.experiment(track.experiment)
        journal = self._open_run(fingerprint)
        if journal is None:
            origin = read_origin()
            header = self._header(track, name, fingerprint=fingerprint)
            journal = Journal.create(self._runs, header, origin.records(), origin.artifacts)
        else:
            journal.append(Status(status="RUNNING", time=now(), final=False))
            journal.append(Values(kind="tags", values=_experiment_tags()))
        with self._recording(journal) as run:
            yield run

    @contextmanager
    def range_test_run(self, track: TrackSettings, name: str, origin: Origin) -> Iterator[Run]:
        """Begin the run of a learning-rate range test, which nothing goes on with; end it with its reason.

        It is called `name`. Raises TrackingError when the store is there and cannot take the run.
        """
        with suppress(StoreAwayError):
            self.experiment(track.experiment)
        header = self._header(track.model_copy(update={"run_name": None}), name)
        tags = Values(kind="tags", values={RANGE_TAG: "true"})
        with self._recording(Journal.create(self._runs, header, [*origin.records(), tags], origin.artifacts)) as run:
            yield run

    @contextmanager
    def evaluation_run(self, track: TrackSettings, digest: str) -> Iterator[Run]:
        """Add to the latest run whose model has the state_dict digest, or to a run of its own where there is none.

        Where several runs ended with the same bits, the one of the current DVC experiment or rerun is preferred.
        Raises TrackingError when the store is there and cannot take the run.
        """
        with suppress(StoreAwayError):
            self.experiment(track.experiment)
        header = self._header(track, f"evaluation of {digest[:8]}", completes=digest)
        journal = Journal.create(self._runs, header, [Values(kind="tags", values={DIGEST_TAG: digest})], {})
        with self._recording(journal) as run:
            yield run

    def _open_run(self, fingerprint: str) -> Journal | None:
        """Return the journal of an interrupted training that has the fingerprint."""
        for journal in pending(self._runs):
            # One that is over may be sent and removed by another process in this moment.
            with suppress(FileNotFoundError):
                if journal.header.fingerprint == fingerprint and not journal.final:
                    return journal
        return None

    def _header(self, track: TrackSettings, name: str, **purpose: str) -> Header:
        from mlflow.tracking.context.registry import resolve_tags

        tags = _experiment_tags()
        full_name = track.run_name or (f"{name} ({tags[EXPERIMENT_TAG]})" if tags else name)
        return Header(
            key=uuid4().hex,
            store=self.address,
            experiment=track.experiment,
            name=full_name,
            start_time=now(),
            # MLflow adds who started the run, from which script, and the address of the git remote.
            tags={**{tag: redacted(value) for tag, value in resolve_tags().items()}, **tags},
            **purpose,  # type: ignore[arg-type]
        )

    @contextmanager
    def _recording(self, journal: Journal) -> Iterator[Run]:
        """Send the journal in the background while it is written; end the run as the block ends."""
        run = Run(journal)
        uploader = Uploader(self, journal)
        uploader.start()
        try:
            yield run
        except BaseException as error:
            failed = isinstance(error, Exception) and not isinstance(error, StoppedError)
            with suppress(OSError):  # a full disk must not hide its own report
                run.set_tags({FAILURE_TAG: (str(error) or type(error).__name__)[:5000]})
                # Only a training goes on later.
                final = journal.header.fingerprint is None or is_final(error)
                status = Status(status="FAILED" if failed else "KILLED", time=now(), final=final)
                journal.append(status)
            raise
        else:
            journal.append(Status(status="FINISHED", time=now(), final=True))
        finally:
            journal.close()
            fault = uploader.finish()
            if uploader.sent:
                run.name, run.run_id = uploader.sent.name, uploader.sent.run_id
            if fault:
                print(f"warning: {fault}; {journal.folder} keeps run {run.name!r}: `truefit sync` sends it", file=sys.stderr)

    def sync(self) -> Iterator[tuple[Journal, Sent | Exception]]:
        """Send what the journals hold; give each with its run in the store, or with what kept it from being sent."""
        for journal in pending(self._runs):
            try:
                yield journal, self.send(journal)
            except (TrackingError, OSError) as error:
                if journal.folder.exists():  # where it is gone, another process has sent it to the end
                    yield journal, error

    def send(self, journal: Journal) -> Sent:
        """Send what the store does not have yet, and return the run there; a run that has ended for good is removed.

        Raises TrackingError or OSError where the store does not take it; what it took is not sent again.
        """
        return send(self, self._runs, journal)


class Uploader(threading.Thread):
    """Sends a journal in the background while it is written, and once more at the end."""

    def __init__(self, store: Store, journal: Journal) -> None:
        super().__init__(name="uploader", daemon=True)
        self._store = store
        self._journal = journal
        self._closing = threading.Event()
        self._fault: str | None = None
        self.sent: Sent | None = None

    def run(self) -> None:
        """Send, wait, send again: soon while all goes well, later and later while it does not."""
        pause = 1.0
        while self._journal.folder.exists():
            last = self._closing.is_set()
            self._fault = f"MLflow store {self._store.redacted_uri}: no answer"
            try:
                self.sent = self._store.send(self._journal)
            except (TrackingError, OSError) as error:
                self._fault = redacted(" ".join(str(error).split()))
                wait, pause = pause, min(2 * pause, LONGEST_PAUSE)
            else:
                self._fault, wait, pause = None, FLUSH_SECONDS, 1.0
            if last:
                break
            self._closing.wait(wait)
        if not self._journal.folder.exists():  # sent to the end, if not here then by another process
            self._fault = None

    def finish(self) -> str | None:
        """Wait for a last attempt, as long as the store answers; return what kept the journal from being sent, or None."""
        self._closing.set()
        while self.is_alive():
            before = self._store.calls
            self.join(PATIENCE)
            if self._store.calls == before:
                break
        return self._fault


def _experiment_tags() -> dict[str, str]:
    """Return the tags that name the DVC experiment, the commit it began from, and its grid, where there is one.

    DVC numbers the experiments of a grid that was given a name: lr-1, lr-2 and so on.
    """
    name, baseline = os.environ.get("DVC_EXP_NAME"), os.environ.get("DVC_EXP_BASELINE_REV")
    if not name:
        return {}
    grid = re.fullmatch(r"(.+)-\d+", name)
    return {EXPERIMENT_TAG: name} | ({BASELINE_TAG: baseline} if baseline else {}) | ({GRID_TAG: grid[1]} if grid else {})
