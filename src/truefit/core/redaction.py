"""What must not stand in a message, a record or a log."""

import re


def redacted(text: str) -> str:
    """Return the text without the user's name and password that an address in it may hold.

    >>> redacted("https://me:secret@example.org/mlflow")
    'https://example.org/mlflow'
    """
    return re.sub(r"//[^/\s]*@", "//", text)
