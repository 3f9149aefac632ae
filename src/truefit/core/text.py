"""Texts from outside, such as a column's name, as they are shown: in a printed line, an error, a description or a picture."""

from collections.abc import Container

LONGEST_NAME = 40  # characters of a name that are shown


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
