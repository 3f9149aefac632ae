"""The runs of this repository: begun and ended here, journalled below .truefit/runs/, and sent to MLflow in the background.

No step of a training waits for the store; its start and its end may, for a bounded time.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING
from uuid import uuid4

from truefit.core.errors import StoppedError, StoreAwayError, is_final
from truefit.core.redaction import redacted
from truefit.core.terminal import say
from truefit.tracking.connection import Connection
from truefit.tracking.journal import Header, Journal, Status, Values, now, pending
from truefit.tracking.names import BASELINE_TAG, DIGEST_TAG, EXPERIMENT_TAG, FAILURE_TAG, GRID_TAG
from truefit.tracking.run import Run, TrackSettings
from truefit.tracking.sending import Sender, Uploader

if TYPE_CHECKING:
    from truefit.tracking.provenance import Origin


class Store:
    """The MLflow store, and the journals of the runs that it does not have yet.

    It has what a `Connection` has, and `sync` as a `Sender`. The three runs raise TrackingError where the store is there and
    cannot take them.
    """

    def __init__(self) -> None:
        connection = Connection()
        self.uri, self.redacted_uri, self.address = connection.uri, connection.redacted_uri, connection.address
        self.connect, self.experiment = connection.connect, connection.experiment
        self.errors, self.tag = connection.errors, connection.tag
        self._runs = connection.root / ".truefit/runs"
        self._runs.mkdir(parents=True, exist_ok=True)
        self.sender = Sender(connection, self._runs)
        self.sync = self.sender.sync

    @contextmanager
    def training_run(
        self, track: TrackSettings, name: str, fingerprint: str, read_origin: "Callable[[], Origin]"
    ) -> Iterator[Run]:
        """Begin a run, or go on with that of an interrupted training; it is called as in the settings, or else `name`."""
        self._check(track)
        journal = self._interrupted(fingerprint)
        if journal is None:
            origin = read_origin()
            journal = Journal.create(self._runs, self._header(track, name, fingerprint), origin.records(), origin.artifacts)
        else:
            journal.append(Status(status="RUNNING", time=now(), final=False))
            journal.append(Values(kind="tags", values=_experiment_tags()))
        with self._recording(journal) as run:
            yield run

    @contextmanager
    def evaluation_run(self, track: TrackSettings, digest: str) -> Iterator[Run]:
        """Add to the latest run whose model has the state_dict digest, or to a run of its own where there is none."""
        self._check(track)
        header = self._header(track, f"evaluation of {digest[:8]}", completes=digest)
        journal = Journal.create(self._runs, header, [Values(kind="tags", values={DIGEST_TAG: digest})], {})
        with self._recording(journal) as run:
            yield run

    def _check(self, track: TrackSettings) -> None:
        with suppress(StoreAwayError):
            self.experiment(track.experiment)

    def _interrupted(self, fingerprint: str) -> Journal | None:
        for journal in pending(self._runs):
            with suppress(FileNotFoundError):  # one that is over may be removed by another process in this moment
                if journal.header.fingerprint == fingerprint and not journal.final:
                    return journal
        return None

    def _header(self, track: TrackSettings, name: str, fingerprint: str | None = None, completes: str | None = None) -> Header:
        from mlflow.tracking.context.registry import resolve_tags

        tags = _experiment_tags()
        return Header(
            key=uuid4().hex,
            store=self.address,
            experiment=track.experiment,
            name=track.run_name or (f"{name} ({tags[EXPERIMENT_TAG]})" if tags else name),
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
        uploader = Uploader(self.sender, journal)
        uploader.start()
        try:
            yield run
        except BaseException as error:
            failed = isinstance(error, Exception) and not isinstance(error, StoppedError)
            with suppress(OSError):  # a full disk must not hide its own report
                run.set_tags({FAILURE_TAG: redacted(str(error) or type(error).__name__)[:5000]})
                # Only a training goes on later.
                final = journal.header.fingerprint is None or is_final(error)
                journal.append(Status(status="FAILED" if failed else "KILLED", time=now(), final=final))
            raise
        else:
            journal.append(Status(status="FINISHED", time=now(), final=True))
        finally:
            journal.close()
            fault = uploader.finish()
            if uploader.sent:
                run.name, run.run_id = uploader.sent.name, uploader.sent.run_id
            if fault:
                say(f"warning: {fault}; {journal.folder} keeps run {run.name!r}: `truefit sync` sends it", error=True)


def _experiment_tags() -> dict[str, str]:
    name, baseline = os.environ.get("DVC_EXP_NAME"), os.environ.get("DVC_EXP_BASELINE_REV")
    if not name:
        return {}
    grid = re.fullmatch(r"(.+)-\d+", name)  # DVC numbers the experiments of a grid that was given a name: lr-1, lr-2
    tags = {EXPERIMENT_TAG: name, BASELINE_TAG: baseline, GRID_TAG: grid and grid[1]}
    return {tag: value for tag, value in tags.items() if value}
