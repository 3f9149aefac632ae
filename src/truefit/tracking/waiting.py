"""The runs that wait in their journals: sent by `truefit sync`, given up by the user, or ended where their process died."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from truefit.core.errors import DamagedError, TrackingError
from truefit.tracking.journal import Journal, pending, setting_aside
from truefit.tracking.names import FAILURE_TAG
from truefit.tracking.records import Metrics, Sent, Status, Values
from truefit.tracking.sending import Sender


class Waiting:
    """The journals below `runs`, and the checkpoints with which trainings may go on."""

    def __init__(self, sender: Sender, runs: Path, checkpoints: Path) -> None:
        self._sender = sender
        self._runs = runs
        self._checkpoints = checkpoints

    def sync(self) -> Iterator[tuple[Journal, Sent | Exception]]:
        """Send what the journals hold; give each that had something with its run in the store, or what kept it from there."""
        for journal in pending(self._runs):
            result: Sent | Exception | None = None
            # Where it is gone, another process has sent it to the end.
            with suppress(FileNotFoundError), setting_aside(journal.path):
                self.end_dead(journal)
                result = self._send(journal)
            if result is not None:
                yield journal, result

    def _send(self, journal: Journal) -> Sent | Exception | None:
        before = journal.sent()
        try:
            sent = self._sender.send(journal)
        except (TrackingError, OSError) as error:
            if isinstance(error, DamagedError):
                raise
            return error if journal.path.exists() else None
        return sent if sent != before else None

    def dead(self) -> list[Journal]:
        """End what dead processes have left, and return the journals for this store that have something to be sent."""
        found = []
        for journal in pending(self._runs):
            with suppress(FileNotFoundError), setting_aside(journal.path):
                if self.end_dead(journal) and journal.header.store == self._sender.connection.address:
                    found.append(journal)
        return found

    def end_dead(self, journal: Journal) -> bool:
        """End the run of a process that died before it could, as KILLED; return whether it was one.

        A training that has a checkpoint may go on, with the next execution of its stage.
        """
        try:
            journal.hold(seconds=0)
        except TrackingError:
            return False
        try:
            fingerprint = journal.header.fingerprint
            final = fingerprint is None or not (self._checkpoints / fingerprint).exists()
            timed = [record for record, _ in journal.read() if isinstance(record, Metrics | Status)]
            last = next((record for record in reversed(timed) if isinstance(record, Status)), None)
            if last is None or last.status == "RUNNING":
                end = max((record.time for record in timed), default=journal.header.start_time)
                journal.append(Values(kind="tags", values={FAILURE_TAG: "its process was killed"}))
                journal.append(Status(status="KILLED", time=end, final=final))
            elif final and not last.final:
                journal.append(last.model_copy(update={"final": True}))
            else:
                return False
            return True
        finally:
            journal.close()

    def forget(self, which: str) -> Journal:
        """Give up the one run that waits with this MLflow id, key or name; raises TrackingError where there is not one."""
        found = [journal for journal in pending(self._runs) if which in _names(journal)]
        if len(found) != 1:
            keys = f", by their keys {', '.join(journal.header.key for journal in found)}" if found else ""
            raise TrackingError(f"{which}: {len(found)} runs of this MLflow id, key or name wait in {self._runs}{keys}")
        (journal,) = found
        journal.hold(seconds=0)
        try:
            with journal.sending():
                journal.remove()
        finally:
            journal.close()
        return journal


def _names(journal: Journal) -> set[str | None]:
    return {journal.header.key, journal.header.name, journal.sent().run_id, journal.sent().name}
