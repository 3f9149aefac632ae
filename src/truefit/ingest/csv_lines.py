"""A CSV's lines as its readers take them: without comments, with one space for a run of blanks, in UTF-8.

Python's reader gets them one by one, and keeps count of the file's; pyarrow's gets the same text by the block.
"""

import codecs
import io
import re
from collections.abc import Iterable, Iterator
from io import RawIOBase

import numpy as np
import pyarrow as pa

from truefit.ingest.csv_format import FormatSettings

_BOM = b"\xef\xbb\xbf"
_BREAK = re.compile(rb"\r\n|\n|\r")
_QUOTED = re.compile(r'(?:[^"]|"")*+("?)')  # the rest of a quoted cell, whose end may lie on another line
_TEXT = re.compile(r"[^ \t\r\n]*")
_BLANKS = re.compile(r"[ \t]*")


class RowLines:
    """The lines that hold rows, for a reader that takes them one by one; `begin` and `last` are the row's in the file.

    Whoever takes a row that is complete sets `within` to False.
    """

    def __init__(self, lines: Iterable[str], form: FormatSettings) -> None:
        self.begin, self.last = 1, 0
        self.within = False  # a row; a line break in a quoted cell ends none
        self._lines = lines
        self._format = form

    def __iter__(self) -> Iterator[str]:
        """Yield the lines without those of comments."""
        inside = False
        for line in self._lines:
            self.last += 1
            if self.last == 1 and not self._format.is_utf8:
                line = line.removeprefix("\ufeff")
            if not self.within:
                if self._format.comment and line.startswith(self._format.comment):
                    continue
                self.begin, self.within = self.last, True
            if self._format.separator == " ":
                line, inside = single_blanks(line, inside)
            yield line


def single_blanks(line: str, inside: bool = False) -> tuple[str, bool]:
    r"""Return the line with one space between its cells, and whether it ends `inside` a quoted cell, as it may have begun.

    >>> single_blanks('  1.0 \t "two  words"   3 \n')
    ('1.0 "two  words" 3\n', False)
    """
    cells: list[str] = []
    at = 0 if inside else _BLANKS.match(line).end()  # type: ignore[union-attr]
    while inside or (at < len(line) and line[at] not in "\r\n"):
        start = at
        if inside or line[at] == '"':
            rest = _QUOTED.match(line, at if inside else at + 1)
            at, inside = rest.end(), not rest[1]  # type: ignore[union-attr, index]
            if inside:
                return " ".join([*cells, line[start:]]), True
        at = _TEXT.match(line, at).end()  # type: ignore[union-attr]
        cells.append(line[start:at])
        at = _BLANKS.match(line, at).end()  # type: ignore[union-attr]
    return " ".join(cells) + line[at:], False


class RowBlocks:
    """The same text in blocks of bytes in UTF-8, below the header's lines and behind a byte order mark, for pyarrow.

    `read` raises pa.ArrowInvalid where it takes a reader of rows to know what a line is, or what is wrong with the encoding.
    """

    def __init__(self, stream: RawIOBase, form: FormatSettings, header_lines: int) -> None:
        self._stream = stream
        self._decoder = None if form.is_utf8 else codecs.getincrementaldecoder(form.encoding)("surrogateescape")
        self._comment = (form.comment or "").encode()
        self._blanks = form.separator == " "
        self._has_header, self._header_lines = header_lines > 0, header_lines
        self._at_start, self._inside, self._has_quotes, self._ended = True, False, False, False
        self._rest = b""  # of what was read: a line that is not whole yet
        self._ready = b""

    def read(self, size: int) -> bytes:
        """Return `size` bytes, fewer only in the first block or the last: pyarrow wants a row to lie in two blocks at most."""
        changed = self._decoder or self._comment or self._blanks
        while len(self._ready) < (size if changed else len(_BOM) + 1) and not self._ended:
            self._ready += self._next(size)
        block, self._ready = self._ready[:size], self._ready[size:]
        return block

    def _next(self, size: int) -> bytes:
        content: bytes = self._stream.read(size) or b""
        self._ended = not content
        if self._decoder:
            try:
                content = self._decoder.decode(content, final=self._ended).encode(errors="surrogateescape")
            except UnicodeError as error:
                raise pa.ArrowInvalid(str(error)) from None
        if self._at_start:
            content = self._below_header(content)
        return self._lines(content) if self._comment or self._blanks else content

    def _below_header(self, content: bytes) -> bytes:
        text = self._rest + content
        while self._header_lines and (found := _BREAK.search(text)):
            if found.end() == len(text) and not self._ended:  # half a line break, maybe
                break
            text, self._header_lines = text[found.end() :], self._header_lines - 1
        if not self._ended and (self._header_lines or len(text) < len(_BOM)):
            self._rest = text
            return b""
        self._at_start, self._rest = False, b""
        if self._header_lines:
            return b""
        text = text if self._has_header else text.removeprefix(_BOM)
        if text.startswith(_BOM):  # in a cell, from which pyarrow would drop it
            raise pa.ArrowInvalid("found a byte order mark in a cell")
        return text

    def _lines(self, content: bytes) -> bytes:
        """Return the text of the lines that are whole with `content`, as pyarrow is to take it."""
        if self._at_start:
            return b""
        text = self._rest + content
        end = len(text) if self._ended else max(text.rfind(b"\n"), text.rfind(b"\r", 0, -1)) + 1
        text, self._rest = text[:end], text[end:]
        if self._comment and self._comment in text:
            text = self._without_comments(text)
        self._has_quotes = self._has_quotes or b'"' in text
        if not self._blanks:
            return text
        if not self._inside and b'"' not in text:
            return _with_single_blanks(text)
        lines = []
        for line in io.StringIO(text.decode(errors="surrogateescape"), newline=""):
            line, self._inside = single_blanks(line, self._inside)
            lines.append(line)
        return "".join(lines).encode(errors="surrogateescape")

    def _without_comments(self, text: bytes) -> bytes:
        lines = text.splitlines(keepends=True)
        comments = [line.startswith(self._comment) for line in lines]
        if any(comments):
            last = len(comments) - 1 - comments[::-1].index(True)
            rows = (line for line, left_out in zip(lines[:last], comments[:last], strict=True) if not left_out)
            if self._has_quotes or any(b'"' in line for line in rows):
                raise pa.ArrowInvalid("found a comment that may be part of a quoted cell")
        return b"".join(line for line, left_out in zip(lines, comments, strict=True) if not left_out)


def _with_single_blanks(text: bytes) -> bytes:
    """Return lines without quotes with one space between cells, by NumPy: a regular expression takes ten times as long."""
    codes = np.frombuffer(text, np.uint8)
    blank = (codes == ord(" ")) | (codes == ord("\t"))
    last = blank.copy()  # of its run
    last[:-1] &= ~blank[1:]
    codes = codes[~blank | last]
    blank, ends = ((codes[:, None] == np.frombuffer(kinds, np.uint8)).any(axis=1) for kinds in (b" \t", b"\r\n"))
    between = blank.copy()
    between[1:] &= ~ends[:-1]
    between[:-1] &= ~ends[1:]
    if len(codes):
        between[0] = between[-1] = False
    single: bytes = np.where(between, np.uint8(ord(" ")), codes)[~blank | between].tobytes()
    return single
