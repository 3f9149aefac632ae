"""The CSV's numbers in batches of rows: by pyarrow's fast reader, and cell by cell from where that cannot go on."""

import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
from numpy.typing import NDArray
from tqdm import tqdm

from truefit.core.errors import TableError
from truefit.data.table import EXACT, Dtype
from truefit.ingest.csv_check import EXACT_FLOAT32, LARGEST, checked_rows
from truefit.ingest.csv_file import CsvFile, OnBytes
from truefit.ingest.csv_format import FormatSettings
from truefit.ingest.csv_lines import RowBlocks
from truefit.ingest.split_keys import KeyColumn

BLOCK_BYTES = 1 << 20  # that pyarrow parses at a time; a row that is longer is left to csv_check.py
BLOCK_COLUMNS = 1024  # of more columns a block is larger, since it costs some microseconds for each
SLOW_ROWS = 4096  # that csv_check.py gives at a time …
SLOW_CELLS = 1 << 18  # … or so many cells, where that is less
_NO_KEYS = np.empty(0, np.uint8)
_LONG_INTEGER = r"^[+-]?[0-9]{16,}$"
_NOT_ZERO = r"^[^eE]*[1-9]"
_ZEROS = b"0" * 200  # a number that float64 takes for 0 has as many, or three digits in its exponent


class Batch(NamedTuple):
    """Some rows: `values` [B, columns], the `lowest` and `highest` of each column in float64 [columns], and their keys.

    `keys` [B] are what the column by which the table is split says of each row; without such a column it is empty.
    """

    values: NDArray[Any]
    keys: NDArray[Any]
    lowest: NDArray[np.float64]
    highest: NDArray[np.float64]


Batches = Generator[Batch, None, None]


def read_batches(source: CsvFile, columns: list[str], dtype: Dtype, key: KeyColumn | None, title: str) -> Batches:
    """Give all rows, in their order; `columns` must hold finite numbers of `dtype`, `key`, which may be one, what it reads.

    Memory is bounded by a block of text. Raises TableError, naming file, line and column, for a CSV that cannot be used; what
    was given before counts for nothing then.
    """
    # Large numbers are rare, and to tell them from integers that float64 rounds takes their text.
    readers = _fast_batches, partial(_fast_batches, as_text=True), _slow_batches
    given = 0
    with tqdm(total=source.size, desc=title, unit="B", unit_scale=True, disable=None) as bar:
        for reader in readers:
            bar.reset()
            read = 0  # rows, from the beginning
            try:
                for batch in reader(source, columns, dtype, key, lambda content: bar.update(len(content))):
                    known = max(0, given - read)
                    read += len(batch.values)
                    if read > given:
                        given = read
                        yield batch._replace(values=batch.values[known:], keys=batch.keys[known:])
            except pa.ArrowInvalid:
                continue
            return


def _fast_batches(
    source: CsvFile, columns: list[str], dtype: Dtype, key: KeyColumn | None, on_bytes: OnBytes, as_text: bool = False
) -> Iterator[Batch]:
    """Give the rows as pyarrow reads them; raises pa.ArrowInvalid for what must be looked at as text, or cell by cell."""
    place = {name: str(index) for index, name in enumerate(source.header)}
    # By their places, since the names of those that are not used may be anything.
    types = {place[name]: pa.string() if as_text else pa.float64() for name in columns}
    if key is not None:
        types[place[key.name]] = pa.string()
    rows = 0
    with source.content(on_bytes) as stream:
        feed = _Feed(source.blocks(stream))
        for batch in _record_batches(feed, source, types):
            if batch.num_rows:
                rows += batch.num_rows
                keys = _NO_KEYS if key is None else key.read(batch.column(place[key.name]))
                values, lowest, highest = _checked(batch, len(columns), dtype, source.format, as_text)
                yield Batch(values, keys, lowest, highest)
    if not rows:
        raise pa.ArrowInvalid("found no rows")
    if feed.has_quotes:
        # pyarrow forgives a quote that is left open, and takes the rows behind it for text.
        deque(source.rows(), maxlen=0)
    if feed.may_be_small and not as_text:
        raise pa.ArrowInvalid("found what may be a number that float64 takes for 0")


class _Feed:
    """The CSV's bytes for Arrow's threads, and what was met in them: what pyarrow lets pass, and what could not be read."""

    def __init__(self, blocks: RowBlocks) -> None:
        self.has_quotes = False
        self.may_be_small = False
        self.error: OSError | TableError | pa.ArrowInvalid | None = None
        self._blocks = blocks
        self._end = b""  # of what was read last, since a number may lie across

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes; none where they cannot be read, since Arrow's threads would keep the error."""
        try:
            content = self._blocks.read(size)
        except (OSError, TableError, pa.ArrowInvalid) as error:
            self.error = error
            return b""
        self.has_quotes = self.has_quotes or b'"' in content
        self.may_be_small = self.may_be_small or _may_be_small(content) or _may_be_small(self._end + content[: len(_ZEROS)])
        self._end = content[-len(_ZEROS) :]
        return content


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


def _record_batches(feed: _Feed, source: CsvFile, types: dict[str, Any]) -> Iterator[pa.RecordBatch]:
    """Give pyarrow's batches of the columns in `types`; at its end, however that comes, no thread has anything of Python's.

    Arrow's threads drop what they read from in their own time, also after an error. If the interpreter ends meanwhile, the
    thread that waits for its lock is ended by it, and C++ answers with abort().
    """
    options = {
        "read_options": pyarrow.csv.ReadOptions(
            block_size=BLOCK_BYTES * -(-len(source.header) // BLOCK_COLUMNS),
            column_names=list(map(str, range(len(source.header)))),
        ),
        "parse_options": pyarrow.csv.ParseOptions(delimiter=source.format.separator, newlines_in_values=True),
        # An empty cell must not become a missing value: it is refused as a number.
        "convert_options": pyarrow.csv.ConvertOptions(
            column_types=types, include_columns=list(types), null_values=[], decimal_point=source.format.decimal
        ),
    }
    released = threading.Event()
    handle, reader = _Handle(feed.read), None
    weakref.finalize(handle, released.set)
    try:
        # Buffered, so that the blocks that the threads hold are Arrow's own memory, and no bytes of Python's.
        reader = pyarrow.csv.open_csv(pa.BufferedInputStream(pa.PythonFile(handle, "r"), 1), **options)
        yield from reader
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


def _slow_batches(
    source: CsvFile, columns: list[str], dtype: Dtype, key: KeyColumn | None, on_bytes: OnBytes
) -> Iterator[Batch]:
    rows = checked_rows(source, columns, dtype, key, on_bytes)
    count = max(1, min(SLOW_ROWS, SLOW_CELLS // len(columns)))
    while batch := list(islice(rows, count)):
        keys = _NO_KEYS if key is None else key.read(pa.array([cell for _, cell in batch], pa.string()))
        numbers = np.array([values for values, _ in batch])
        yield Batch(numbers.astype(dtype), keys, numbers.min(axis=0), numbers.max(axis=0))


def _checked(
    batch: pa.RecordBatch, columns: int, dtype: Dtype, form: FormatSettings, as_text: bool
) -> tuple[NDArray[Any], ...]:
    """Return the values [C, columns] of the first columns, and the lowest and the highest of each [columns].

    With `as_text` all are texts in the format; without it the one that is the key's column too may be.

    Raises pa.ArrowInvalid for what may not be the number that the text says, and for what `dtype` does not keep.
    """
    numbers = np.empty((columns, batch.num_rows))
    for index in range(columns):
        column = batch.column(index)
        numbers[index] = np.from_dlpack(
            _numbers(column, form) if column.type == pa.string() else column
        )  # to_numpy imports pandas
    lowest, highest = numbers.min(axis=1), numbers.max(axis=1)
    sizes = np.maximum(-lowest, highest)
    # Beyond 2^53 an integer may have been rounded, which only its text tells.
    if not sizes.max() < (min(LARGEST, float(np.finfo(dtype).max)) if as_text else EXACT):
        raise pa.ArrowInvalid("found what is not a finite number, or a large one")
    values = numbers.T.astype(dtype, order="C")
    for large in np.flatnonzero(sizes > EXACT_FLOAT32):
        exact = numbers[large]
        rounded = exact[(exact != values[:, large]) & (np.abs(exact) < EXACT)]
        if (rounded == np.rint(rounded)).any():
            raise pa.ArrowInvalid("found an integer that float32 does not hold")
    if np.count_nonzero(values != 0) < np.count_nonzero(numbers != 0):
        raise pa.ArrowInvalid("found a number that float32 takes for 0")
    return values, lowest, highest


def _numbers(texts: pa.Array, form: FormatSettings) -> pa.Array:
    """Return the float64 that the texts say; raises pa.ArrowInvalid where that is another number."""
    texts = pyarrow.compute.ascii_trim(texts, characters=" \t")
    if form.thousands or form.decimal != ".":
        if not pyarrow.compute.all(pyarrow.compute.match_substring_regex(texts, f"^(?:{form.number})$")).as_py():
            raise pa.ArrowInvalid("found what is no number")
        if form.thousands:
            texts = pyarrow.compute.replace_substring(texts, form.thousands, "")
        texts = pyarrow.compute.replace_substring(texts, form.decimal, ".")
    if pyarrow.compute.any(pyarrow.compute.match_substring_regex(texts, _LONG_INTEGER)).as_py():
        raise pa.ArrowInvalid("found an integer that may be beyond 2^53")
    numbers = texts.cast(pa.float64())
    zeros = texts.filter(pyarrow.compute.equal(numbers, 0.0))
    if pyarrow.compute.any(pyarrow.compute.match_substring_regex(zeros, _NOT_ZERO)).as_py():
        raise pa.ArrowInvalid("found a number that float64 takes for 0")
    return numbers
