"""How the processes of a training tell each other of its end: by a text in the store that torch's launcher has for them."""

import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TypeVar

from torch.distributed.distributed_c10d import Store

from truefit.core.errors import LostError

POLL_SECONDS = 0.2
_END = "end"  # the key under which a process that ends the training says why, and the first that it went well
_LAST_WORD_SECONDS = 3.0  # for the reason of a connection that is lost already
T = TypeVar("T")


class Ending:
    """One process's view of it; the store's calls raise RuntimeError where there is no answer for `timeout` seconds."""

    def __init__(self, store: Store, timeout: float) -> None:
        self._store, self._timeout = store, timeout

    def tell(self, reason: str) -> None:
        """Tell the others why the training ends, unless one has told before; an empty reason: it went well."""
        self.ask(lambda store: store.compare_set(_END, "", reason))

    def told(self, seconds: float | None = None) -> str | None:
        """Return why the training has ended, an empty text where it went well, or None: nobody has told of an end."""
        return self.ask(lambda store: store.get(_END).decode() if store.check([_END]) else None, seconds)

    def wait(self) -> str:
        """Return what one tells, once one does."""
        while (reason := self.told()) is None:
            time.sleep(POLL_SECONDS)
        return reason

    def ask(self, question: Callable[[Store], T], seconds: float | None = None) -> T:
        """Return what the store answers; over a link that is down torch would wait on."""
        patience, answer = seconds or self._timeout, Future[T]()

        def work() -> None:
            try:
                answer.set_result(question(self._store))
            except RuntimeError as error:
                answer.set_exception(error)

        threading.Thread(target=work, daemon=True).start()
        try:
            return answer.result(patience)
        except TimeoutError:
            raise RuntimeError("timed out") from None

    @contextmanager
    def connected(self, peers: Callable[[], Sequence[str]]) -> Iterator[None]:
        """Raise LostError, with the reason that another process has told, where one of the `peers` is lost."""
        try:
            yield
        except RuntimeError as error:  # torch's, of which dist.DistError is a kind, and gloo's
            raise LostError(self._last_word() or loss(error, self._timeout, peers())) from None

    def _last_word(self) -> str:
        try:
            return self.told(_LAST_WORD_SECONDS) or ""
        except RuntimeError:
            return ""


def loss(error: RuntimeError, seconds: float, peers: Sequence[str] = ()) -> str:
    """Return what an error of gloo, or of the store, means to the user: which of the `peers` was lost, and how.

    The peer is known where it is the only one; else by its address, which gloo has in most of its texts.
    """
    text = str(error).strip().partition("\n")[0]
    address = re.search(r"\[([0-9a-fA-F.:%]+)\]:\d+", text)
    peer = peers[0] if len(peers) == 1 else f"one at {address[1]}" if address else "it"
    if re.search("timed out|timeout", text, re.IGNORECASE):
        return f"lost another process of the training: {peer} did not answer for {seconds:g} s"
    if re.search("connection (was likely )?(closed|reset)|broken pipe|socket closed", text, re.IGNORECASE):
        return f"lost another process of the training: {peer} closed the connection"
    # Without the line of gloo's source, and its advice.
    words = re.sub(r"^\[\S+\] |\. This is typically.*", "", text)
    return f"lost another process of the training: {words}"
