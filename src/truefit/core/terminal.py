"""The way out to the terminal: whatever a message was made of, it holds no secret and moves no cursor."""

import json
import logging
import sys
import threading
import traceback
from types import TracebackType
from typing import Any

from truefit.core.redaction import redacted
from truefit.core.text import printable


def shown(line: str) -> str:
    r"""Return a line as a terminal may have it.

    >>> print(shown("\x1b[2Jhttps://me:secret@example.org"))
    \x1b[2Jhttps://example.org
    """
    return printable(redacted(line))


def say(*lines: str, error: bool = False) -> None:
    """Print lines to stdout, or to stderr where they tell of an error or a warning; a line break in one is escaped."""
    print(*map(shown, lines), sep="\n", file=sys.stderr if error else sys.stdout)


def say_json(content: Any) -> None:
    """Print a value as JSON, in printable ASCII; raises ValueError for NaN, which JSON does not have."""
    print(json.dumps(content, indent=2, allow_nan=False).replace("\x7f", "\\u007f"))


def guard_tracebacks() -> None:
    """Let the tracebacks of errors that nobody caught, in any thread, leave by `say`."""
    sys.excepthook = _say_traceback
    threading.excepthook = lambda given: _say_traceback(given.exc_type, given.exc_value, given.exc_traceback)


def guard_log(name: str) -> None:
    """Let what a library logs by the handlers of its logger `name` leave as what is said."""
    for handler in logging.getLogger(name).handlers:
        if not isinstance(handler.formatter, _Shown):
            handler.setFormatter(_Shown(handler.formatter or logging.Formatter()))


class _Shown(logging.Formatter):
    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(shown, self._inner.format(record).split("\n")))


def _say_traceback(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    say(*"".join(traceback.format_exception(kind, error, trace)).splitlines(), error=True)
