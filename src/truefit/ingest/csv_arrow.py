"""A CSV's columns by pyarrow's reader, which is fast, and forgives what it should not: that is looked for beside it."""

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv

from truefit.core.errors import TableError
from truefit.ingest.csv_file import CsvFile, OnBytes
from truefit.ingest.csv_lines import RowBlocks

BLOCK_BYTES = 1 << 20  # that pyarrow parses at a time; a row that is longer is left to Python
BLOCK_COLUMNS = 1024  # of more columns a block is larger, since it costs some microseconds for each
_BOM = b"\xef\xbb\xbf"
_ZEROS = b"0" * 200  # a number that float64 takes for 0 has as many, or three digits in its exponent


def arrow_columns(
    source: CsvFile, kinds: dict[str, Any], missing: list[str], on_bytes: OnBytes
) -> Iterator[dict[str, pa.Array]]:
    """Yield the columns of `kinds`, by name, of a block of rows; numbers whose text is one of `missing` are null.

    Raises pa.ArrowInvalid where it takes another reader: for what it cannot read, for no rows, and, at the end, for what may
    be a number that it takes for 0.
    """
    # By their places, since the names of those that are not used may be anything.
    places = {source.header.index(name): kind for name, kind in kinds.items()}
    return (dict(zip(kinds, cells, strict=True)) for cells in arrow_cells(source, places, missing, on_bytes))


def arrow_cells(source: CsvFile, kinds: dict[int, Any], missing: list[str], on_bytes: OnBytes) -> Iterator[list[pa.Array]]:
    """Yield the same of the columns at the places of `kinds`, in their order."""
    rows = 0
    with source.content(on_bytes) as stream:
        feed = _Feed(source, stream)
        for batch in _record_batches(feed, source, {str(place): kind for place, kind in kinds.items()}, missing):
            if batch.num_rows:
                rows += batch.num_rows
                yield batch.columns
    if not rows:
        raise pa.ArrowInvalid("found no rows")
    if not feed.quotes.are_sound():
        # pyarrow forgives a quote that is left open, and takes the rows behind it for text.
        deque(source.rows(), maxlen=0)
    if feed.may_be_small and pa.float64() in kinds.values():
        raise pa.ArrowInvalid("found what may be a number that float64 takes for 0")


class _Feed:
    """The CSV's bytes for Arrow's threads, and what was met in them: what pyarrow lets pass, and what could not be read."""

    def __init__(self, source: CsvFile, stream: Any) -> None:
        self.quotes = _Quotes(source.format.separator)
        self.may_be_small = False
        self.error: OSError | TableError | pa.ArrowInvalid | None = None
        self._blocks: RowBlocks = source.blocks(stream)
        self._end = b""  # of what was read last, since a number may lie across

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes; none where they cannot be read, since Arrow's threads would keep the error."""
        try:
            content = self._blocks.read(size)
        except (OSError, TableError, pa.ArrowInvalid) as error:
            self.error = error
            return b""
        self.quotes.add(content)
        self.may_be_small = self.may_be_small or _may_be_small(content) or _may_be_small(self._end + content[: len(_ZEROS)])
        self._end = content[-len(_ZEROS) :]
        return content


class _Quotes:
    """Whether all quotes in a text open a cell, close one or are doubled in one: then every reader sees the same cells."""

    def __init__(self, separator: str) -> None:
        self._beside = np.frombuffer(f'{separator}"\r\n'.encode(), np.uint8)
        self._inside, self._sound = False, True
        self._rest = b"\n"  # the byte before those that are looked at, and the last, of which it is not known what follows

    def add(self, text: bytes) -> None:
        """Take a block of the text."""
        if self._rest == b"\n":
            text = text.removeprefix(_BOM)
        text = self._rest + text
        self._rest = text[-2:]
        if not self._sound or b'"' not in text:
            return
        codes = np.frombuffer(text, np.uint8)
        quotes = np.flatnonzero(codes[1:-1] == ord('"')) + 1
        opens = (np.arange(len(quotes)) + self._inside) % 2 == 0
        self._sound = bool(np.isin(codes[np.where(opens, quotes - 1, quotes + 1)], self._beside).all())
        self._inside ^= bool(len(quotes) % 2)

    def are_sound(self) -> bool:
        """Whether they are, at the end of the text."""
        self.add(b"\n")
        return self._sound and not self._inside


def _may_be_small(text: bytes) -> bool:
    # By NumPy, which leaves Python's lock to the thread that takes the batches; a regular expression keeps it.
    codes = np.frombuffer(text, np.uint8)
    exponents = np.flatnonzero((codes[1:-3] == ord("-")) & ((codes[:-4] == ord("e")) | (codes[:-4] == ord("E"))))
    digits = codes[exponents[:, None] + [2, 3, 4]] - np.uint8(ord("0")) < 10  # an unsigned difference
    return bool(digits.all(axis=1).any()) or _ZEROS in text


class _Handle:
    """What Arrow reads from. It alone holds it, so that its end tells that no thread of Arrow's will ask for Python again."""

    closed = False

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self.read = read  # whose frames, in a traceback, do not hold this

    def close(self) -> None:
        """Do nothing: whoever opened the file closes it."""


def _record_batches(feed: _Feed, source: CsvFile, types: dict[str, Any], missing: list[str]) -> Iterator[pa.RecordBatch]:
    """Give pyarrow's batches of the columns in `types`, with null for numbers whose text is `missing`.

    At its end, however that comes, no thread has anything of Python's.

    Arrow's threads drop what they read from in their own time, also after an error. If the interpreter ends meanwhile, the
    thread that waits for its lock is ended by it, and C++ answers with abort().
    """
    options = {
        "read_options": pyarrow.csv.ReadOptions(
            block_size=BLOCK_BYTES * -(-len(source.header) // BLOCK_COLUMNS),
            column_names=list(map(str, range(len(source.header)))),
        ),
        "parse_options": pyarrow.csv.ParseOptions(delimiter=source.format.separator, newlines_in_values=True),
        "convert_options": pyarrow.csv.ConvertOptions(
            column_types=types, include_columns=list(types), null_values=missing, decimal_point=source.format.decimal
        ),
    }
    released = threading.Event()
    handle, reader = _Handle(feed.read), None
    weakref.finalize(handle, released.set)
    try:
        # Buffered, so that the blocks that the threads hold are Arrow's own memory, and no bytes of Python's.
        reader = pyarrow.csv.open_csv(pa.BufferedInputStream(pa.PythonFile(handle, "r"), 1), **options)
        for batch in reader:
            # Where the bytes could not be read on, Arrow takes the row that they broke off in for the last one.
            if feed.error is not None:
                break
            yield batch
    except pa.ArrowInvalid:
        if feed.error is None:
            raise
    finally:
        if reader is not None:
            reader.close()
        del reader, handle
        released.wait()
    if feed.error is not None:
        raise feed.error
