"""The text of a CSV's rows, as it stands in the file: its mark, the rows' texts and the rest are together its bytes."""

from io import RawIOBase
from itertools import islice

import numpy as np
import pyarrow as pa

from truefit.core.errors import TableError
from truefit.ingest.csv_file import CsvFile

TEXT_BYTES = 1 << 20
ROWS = 256  # that Python's reader gives at a time
BYTES = pa.large_binary()
_BOM = b"\xef\xbb\xbf"
_BREAKS = b"\r\n"


class LineBreakError(Exception):
    """A quoted cell holds a line break, so that not every line ends a row."""


class LineTexts:
    """The rows' texts, cut where lines end, a block of the file at a time; `mark` is the byte order mark, or nothing.

    A row's text begins with the line break behind the row before it, and blank lines; it ends before its own line break.
    Where there are more lines than rows, `take` or, once all rows were taken, `rest` raises LineBreakError.
    """

    def __init__(self, csv: CsvFile, stream: RawIOBase) -> None:
        self._stream = stream
        self.mark = b""
        self._text = b""
        self._begin = 0  # of the next row
        self._ends = np.empty(0, np.int64)  # of it and of those that follow
        if self._read() and self._text.startswith(_BOM):
            self.mark, self._begin = _BOM, len(_BOM)
            # A blank line behind the mark is no row.
            self._ends = self._ends[self._ends > self._begin]

    def take(self, rows: int) -> pa.Array:
        """Return the texts [C] of the next row, and of those of the next `rows` that are in memory with it."""
        while not len(self._ends) and self._read():
            pass
        ends, self._ends = self._ends[:rows], self._ends[rows:]
        if not len(ends):
            if len(self._text) == self._begin or self._text[-1] in _BREAKS:
                raise LineBreakError
            ends = np.array([len(self._text)])
        offsets = np.concatenate([[self._begin], ends])
        self._begin = int(ends[-1])
        return pa.Array.from_buffers(BYTES, len(ends), [None, pa.py_buffer(offsets), pa.py_buffer(self._text)])

    def rest(self) -> bytes:
        """Return the line breaks behind the last row."""
        while self._read():
            pass
        rest = self._text[self._begin :]
        if rest.strip(_BREAKS):
            raise LineBreakError
        return rest

    def _read(self) -> bool:
        more = self._stream.read(TEXT_BYTES)
        if not more:
            return False
        left = self._text[self._begin :]
        codes = np.frombuffer(more, np.uint8)
        is_break = codes == ord("\n")
        if b"\r" in more:
            is_break |= codes == ord("\r")
        found = np.flatnonzero(is_break) + len(left)
        # A line break behind another, or at the very start, is a blank line's.
        before = len(left) - 1 if not left or left[-1] in _BREAKS else -2
        ends = found[np.diff(found, prepend=before) != 1]
        self._ends = np.concatenate([self._ends - self._begin, ends])
        self._text, self._begin = left + more, 0
        return True


class RowTexts:
    """The same rows' texts, cut where Python's reader of CSVs says that a row ends, which takes longer.

    They are in the format's `row_encoding`.
    """

    def __init__(self, csv: CsvFile, stream: RawIOBase) -> None:
        self.mark = _BOM if stream.read(len(_BOM)) == _BOM else b""
        self._csv = csv
        self._lines: list[str] = []  # those of the row that was read last
        self._rows = csv.rows(on_line=self._keep)
        self._break = ""  # behind the row before

    def take(self, rows: int) -> pa.Array:
        """Return the texts [C] of some of the next `rows`, at least one."""
        texts = [self._row() for _ in islice(self._rows, min(rows, ROWS))]
        if not texts:
            raise TableError(f"{self._csv.path}: found fewer rows when it was read again; run again")
        return pa.array(texts, BYTES)

    def rest(self) -> bytes:
        """Return the line breaks behind the last row."""
        if next(self._rows, None):
            raise TableError(f"{self._csv.path}: found more rows when it was read again; run again")
        return self._encode(self._break + "".join(self._lines))

    def _keep(self, line: str) -> str:
        self._lines.append(line)
        return line

    def _row(self) -> bytes:
        text = self._break + "".join(self._lines)
        self._lines.clear()
        end = len(text.rstrip("\r\n"))
        self._break = text[end:]
        return self._encode(text[:end])

    def _encode(self, text: str) -> bytes:
        return text.encode(self._csv.format.row_encoding, "surrogateescape")
