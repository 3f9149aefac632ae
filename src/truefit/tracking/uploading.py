"""A journal that is sent while it is written, in the background: no step of a training waits for the store."""

import threading
from collections.abc import Iterable
from contextlib import suppress

from truefit.core.errors import TrackingError
from truefit.core.redaction import redacted
from truefit.tracking.journal import Journal, setting_aside
from truefit.tracking.records import Sent
from truefit.tracking.sending import Sender

FLUSH_SECONDS = 5.0  # that records may wait, to be sent together with those that follow
LONGEST_PAUSE = 60.0  # a store that fails is tried again after 1, 2, 4 … seconds, and at the end of the stage
PATIENCE = 60.0  # seconds without an answer, at the end of the stage, after which it is given up


class Uploader(threading.Thread):
    """Sends a journal in the background while it is written, and once more at the end; `sent` is how far it has come.

    When the store has answered once, it also sends `others`, which nobody waits for.
    """

    def __init__(self, sender: Sender, journal: Journal, others: Iterable[Journal] = ()) -> None:
        super().__init__(name="uploader", daemon=True)
        self._sender = sender
        self._journal = journal
        self._others = list(others)
        self._closing = threading.Event()
        self._fault: str | None = None
        self.sent: Sent | None = None

    def run(self) -> None:
        """Send, wait, send again: soon while all goes well, later and later while it does not."""
        pause = 1.0
        while self._journal.path.exists():
            last = self._closing.is_set()
            self._fault = f"MLflow store {self._sender.connection.redacted_uri}: no answer"
            try:
                self.sent = self._sender.send(self._journal)
            except (TrackingError, OSError) as error:
                self._fault = redacted(" ".join(str(error).split()))
                wait, pause = pause, min(2 * pause, LONGEST_PAUSE)
            else:
                self._fault, wait, pause = None, FLUSH_SECONDS, 1.0
                self._send_others()
            if last:
                break
            self._closing.wait(wait)
        if not self._journal.path.exists():  # sent to the end, if not here then by another process
            self._fault = None

    def finish(self) -> str | None:
        """Wait for a last attempt, as long as the store answers; return what kept the journal from being sent, or None."""
        self._closing.set()
        while self.is_alive():
            before = self._sender.answered
            self.join(PATIENCE)
            # An upload ends by itself, by MLflow's own limits, where the store takes no more of it or does not answer.
            if self._sender.answered == before and not self._sender.uploads:
                break
        return self._fault

    def _send_others(self) -> None:
        while self._others:
            journal = self._others.pop()
            # Of one that cannot be sent `truefit sync` tells.
            with suppress(TrackingError, OSError), setting_aside(journal.path):
                self._sender.send(journal)
