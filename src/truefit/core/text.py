"""Texts from outside, such as a column's name, as they are shown: in a printed line, an error, a description or a picture."""

import datetime
import math
from collections.abc import Container, Iterator

LONGEST_NAME = 40  # characters of a name that are shown
LONGEST_VALUE = 200  # characters of a setting's value


def printable(text: str, drawable: Container[int] | None = None) -> str:
    r"""Return the text on one line, with escapes for what is not printed, or not drawn.

    Nothing is left that moves a terminal's cursor, changes its colours, or turns the order of letters round. `drawable` holds
    the code points that a font has; without it, all that is printable counts.

    >>> print(printable("a\x1b[2Jb\u202ec"))
    a\x1b[2Jb\u202ec
    """
    if text.isprintable() and drawable is None:
        return text
    return "".join(
        character
        if character.isprintable() and (drawable is None or ord(character) in drawable)
        else character.encode("unicode_escape").decode()
        for character in text
    )


def one_line(name: str, longest: int = LONGEST_NAME, drawable: Container[int] | None = None) -> str:
    r"""Return the name as `printable` does, with at most so many characters.

    >>> print(one_line("sold\nat"), one_line("price in thousands of dollars", longest=14), one_line("größe"))
    sold\nat price in thou… größe
    """
    pieces = [printable(character, drawable) for character in name[: longest + 1]]
    if sum(map(len, pieces)) <= longest:
        return "".join(pieces)
    while sum(map(len, pieces)) >= longest:  # which leaves room for the ellipsis, and no escape in part
        pieces.pop()
    return "".join(pieces) + "…"


def as_yaml(value: object, longest: int = LONGEST_VALUE) -> str:
    """Return a value of params.yaml, or of JSON, as YAML spells it, on one line, with texts quoted as Python does.

    Of more than `longest` characters the rest is left out.

    >>> print(as_yaml({"hidden": (8, 4), "patience": None}), as_yaml([True, "true", float("inf")]))
    {'hidden': [8, 4], 'patience': null} [true, 'true', .inf]
    """
    text = ""
    for piece in _pieces(value):
        text += piece
        if len(text) > longest:  # a value of YAML may contain itself
            return f"{text[:longest]}…"
    return text


def _pieces(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        yield "{"
        for number, (key, item) in enumerate(value.items()):
            yield ", " if number else ""
            yield from _pieces(key)
            yield ": "
            yield from _pieces(item)
        yield "}"
    elif isinstance(value, list | tuple):
        yield "["
        for number, item in enumerate(value):
            yield ", " if number else ""
            yield from _pieces(item)
        yield "]"
    elif value is None:
        yield "null"
    elif isinstance(value, bool):
        yield str(value).lower()
    elif isinstance(value, float) and not math.isfinite(value):
        yield repr(value).replace("inf", ".inf").replace("nan", ".nan")
    else:
        yield str(value) if isinstance(value, datetime.date) else repr(value)
