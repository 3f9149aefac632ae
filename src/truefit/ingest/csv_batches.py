"""The CSV's cells in batches of rows: as pyarrow reads numbers, and from their texts where that takes a look at them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray
from tqdm import tqdm

from truefit.core.errors import TableError
from truefit.data.columns.base import Array, Parsed, to_numpy
from truefit.data.table import EXACT, Dtype
from truefit.ingest.cells import NONE_BAD, Batch, Batches, Block, Cells, OnRead, Source, Wanted
from truefit.ingest.csv_arrow import arrow_columns
from truefit.ingest.csv_faults import CellTexts, Faults, is_decoded
from truefit.ingest.csv_file import CsvFile
from truefit.ingest.csv_format import FormatSettings
from truefit.ingest.csv_numbers import EXACT_FLOAT32, Numbers, without
from truefit.ingest.source import SourceFile
from truefit.ingest.split_keys import KeyColumn

SLOW_ROWS = 4096  # that Python reads at a time …
SLOW_CELLS = 1 << 18  # … or so many cells, where that is less
_NO_KEYS, _NONE = np.empty(0, np.uint8), np.array(False)


def read_batches(source: CsvFile, wanted: Wanted, title: str) -> Batches:
    """Give all rows of a CSV, in their order, with the columns that are wanted.

    Memory is bounded by a block of text. Raises TableError, naming file, line and column, for a CSV that cannot be used; what
    was given before counts for nothing then.
    """
    # Nearly every CSV can be read the first way. Of a cell the text tells what is wrong; of a row, Python's reader.
    readers = _typed_batches, partial(text_batches, _arrow_blocks), partial(text_batches, _python_blocks)
    yield from first_that_reads(readers, source, wanted, title)


def first_that_reads(
    readers: Sequence[Callable[[Source, Wanted, OnRead], Iterator[Batch]]], source: Source, wanted: Wanted, title: str
) -> Batches:
    """Give all rows by the first of the readers that does not raise pa.ArrowInvalid; each of them gives the same rows.

    A bar with the title shows how far it is; without a title there is none.
    """
    given = 0
    with tqdm(total=source.size, desc=title, unit="B", unit_scale=True, disable=None if title else True) as bar:
        for reader in readers:
            bar.reset()
            read = 0  # rows, from the beginning
            try:
                for batch in reader(source, wanted, bar.update):
                    known = max(0, given - read)
                    read += len(batch.values)
                    if read > given:
                        given = read
                        yield batch._replace(values=batch.values[known:], keys=batch.keys[known:], bad=batch.bad[known:])
            except pa.ArrowInvalid:
                if reader is readers[-1]:
                    raise
                continue
            return


def _typed_batches(source: CsvFile, wanted: Wanted, on_read: OnRead) -> Iterator[Batch]:
    """Give the rows as pyarrow reads numbers; raises pa.ArrowInvalid for what must be looked at as text."""
    columns = arrow_columns(source, wanted.types, source.format.missing, lambda content: on_read(len(content)))
    return typed_batches(columns, source, wanted)


def typed_batches(read: Iterator[dict[str, pa.Array]], source: SourceFile, wanted: Wanted) -> Iterator[Batch]:
    """Give the rows by columns of numbers, in float64, and of texts; likewise."""
    form = source.format
    numbers = Numbers(form, wanted.dtype, source.advice.wider)
    for columns in read:
        parsed, refused = [], []
        for cell in wanted.columns:
            column = columns[cell.name]
            if pa.types.is_string(column.type):
                known, bad = _parse(cell, cell.parse or numbers.parse, _known(column, form), source)
                parsed.append(known.T)
            else:
                parsed.append(_numbers(column, form)[None])
                bad = np.zeros(parsed[-1].shape[1], bool)
            bad |= _too_small(cell, parsed[-1][0])
            faulty = bad if cell.takes_missing else bad | np.isnan(parsed[-1][0])
            if wanted.blanks:
                refused.append(faulty)
            elif faulty.any():
                raise pa.ArrowInvalid("found what is none of the kind, or missing")
        keys = _NO_KEYS if wanted.key is None else wanted.key.read(columns[wanted.key.name])
        yield _batch(parsed, keys, wanted.dtype, refused, checked=False)


def text_batches(
    blocks: Callable[[Source, list[str], Faults, OnRead], Iterator[Block]], source: Source, wanted: Wanted, on_read: OnRead
) -> Iterator[Batch]:
    """Give the rows by their texts; raises TableError with all faults at the end."""
    numbers = Numbers(source.format, wanted.dtype, source.advice.wider)
    faults, rows = Faults(source), 0
    for block in blocks(source, wanted.names, faults, on_read):
        parsed, told = [], dict[str, NDArray[np.bool_]]()
        for cell in wanted.columns:
            cells = block.cells[cell.name]
            known, bad = _parse(cell, cell.parse or numbers.parse, _known(cells.texts, source.format), source)
            bad[cells.undecoded] = True
            bad |= _too_small(cell, known[:, 0])
            missing = ~bad & np.isnan(known[:, 0]) & (not cell.takes_missing)
            told[cell.name] = bad | missing
            if wanted.blanks:
                known[bad] = 0  # which may be too large for the dtype
            else:
                allowed = partial(_allowed, cell, numbers, source)
                faults.add(cell.name, cells, np.flatnonzero(bad), block.row, allowed, cell.has_kind)
                places = np.flatnonzero(missing)
                faults.add_missing(cell.name, cells, places, block.row, cell.allowed, cell.way_out)
            parsed.append(known.T)
        refused = list(told.values()) if wanted.blanks else []
        keys = _keys(wanted.key, block, faults, told) if wanted.key is not None else _NO_KEYS
        rows += block.rows
        if not faults:
            yield _batch(parsed, keys, wanted.dtype, refused, checked=True)
    if faults:
        raise faults.error(rows)


def _keys(key: KeyColumn, block: Block, faults: Faults, told: dict[str, NDArray[np.bool_]]) -> NDArray[Any]:
    """Return the numbers of the key's column, or none where some cells are faults, without those that were told of it."""
    cells = block.cells[key.name]
    if not cells.undecoded:
        with suppress(pa.ArrowInvalid):
            return key.read(cells.texts)
    # In their order, since what a key may be can depend on the rows before.
    reasons = [(place, key.fault(cells.text(place))) for place in range(len(cells.texts))]
    known = told.get(key.name, np.zeros(len(cells.texts), bool))
    bad = {place: reason for place, reason in reasons if reason is not None and not known[place]}
    faults.add(key.name, cells, np.array(list(bad), np.intp), block.row, lambda _: next(iter(bad.values())))
    return _NO_KEYS


def _allowed(cell: Cells, numbers: Numbers, source: SourceFile, text: str) -> str:
    """Return what a bad cell should have held, which may be no text at all."""
    if cell.parse is None:
        return numbers.fault(text) or cell.allowed
    return cell.allowed if is_decoded(text) else f"text in {source.format.encoding}, or {source.advice.encoding}"


def _parse(cell: Cells, parse: Callable[[pa.Array], Parsed], texts: pa.Array, source: SourceFile) -> Parsed:
    try:
        return parse(texts)
    except ValueError as error:
        if isinstance(error, pa.ArrowInvalid):
            raise
        advice = f"allowed: fewer, or the column left out by {source.advice.exclude}"
        raise TableError(f"{source.path}: column {cell.name!r}: found {error}, {advice}") from None


def _too_small(cell: Cells, numbers: Array) -> NDArray[np.bool_]:
    """Return which numbers [B] a column does not take for their size."""
    if cell.least is None:
        return _NONE
    small: NDArray[np.bool_] = numbers < cell.least
    return small


def _known(texts: pa.Array, form: FormatSettings) -> pa.Array:
    """Return the texts without the blanks around them, and null for those that stand for a missing value."""
    texts = pyarrow.compute.ascii_trim(texts, characters=" \t")
    missing = pyarrow.compute.is_in(texts, value_set=pa.array(form.missing, pa.string()))
    return pyarrow.compute.if_else(missing, pa.scalar(None, pa.string()), texts)


def _numbers(column: pa.Array, form: FormatSettings) -> Array:
    """Return the numbers [B], nan for null; raises pa.ArrowInvalid for another nan, which is none."""
    numbers = to_numpy(column.fill_null(np.nan) if column.null_count else column)
    if np.count_nonzero(np.isnan(numbers)) != column.null_count:
        raise pa.ArrowInvalid("found nan")
    return without(numbers, form.missing_numbers)


def _batch(parsed: list[Array], keys: NDArray[Any], dtype: Dtype, refused: list[NDArray[np.bool_]], checked: bool) -> Batch:
    """Return the batch of what the columns' cells say, [S, B] each; rows of cells that are `refused`, [B] each, are zeros.

    Unless it was `checked`, raises pa.ArrowInvalid for what may not be the number that a text says, or that is not kept.
    """
    numbers, bad = np.concatenate(parsed), NONE_BAD
    lowest, highest = numbers.min(axis=1), numbers.max(axis=1)
    for row in np.flatnonzero(np.isnan(lowest)):
        lowest[row] = np.fmin.reduce(numbers[row], initial=np.inf)
        highest[row] = np.fmax.reduce(numbers[row], initial=-np.inf)
    with np.errstate(over="ignore"):
        values = numbers.T.astype(dtype, order="C")
    if not checked:
        _require_kept(numbers, values, np.maximum(-lowest, highest))
    if any(cells.any() for cells in refused):
        bad = np.stack(refused, axis=1)
        values[bad.any(axis=1)] = 0
    return Batch(values, keys, lowest, highest, bad)


def _require_kept(numbers: Array, values: Array, sizes: Array) -> None:
    # Beyond 2^53 an integer may have been rounded, which only its text tells.
    if not sizes.max() < EXACT:
        raise pa.ArrowInvalid("found what is not a finite number, or a large one")
    for large in np.flatnonzero(sizes > EXACT_FLOAT32):
        exact = numbers[large]
        rounded = exact[(exact != values[:, large]) & (np.abs(exact) < EXACT)]
        if (rounded == np.rint(rounded)).any():
            raise pa.ArrowInvalid("found an integer that float32 does not hold")
    if np.count_nonzero(values != 0) < np.count_nonzero(numbers != 0):
        raise pa.ArrowInvalid("found a number that float32 takes for 0")


def _arrow_blocks(source: CsvFile, names: list[str], faults: Faults, on_read: OnRead) -> Iterator[Block]:
    """Give the texts as pyarrow reads them; raises pa.ArrowInvalid for rows that Python's reader has to look at."""
    rows = 0
    for columns in arrow_columns(source, dict.fromkeys(names, pa.string()), [], lambda content: on_read(len(content))):
        cells = {name: CellTexts(column, partial(_text, column), []) for name, column in columns.items()}
        yield Block(cells, partial(int.__add__, rows), len(columns[names[0]]))
        rows += len(columns[names[0]])
    faults.by_row = True


def _text(column: pa.Array, place: int) -> str:
    text: str = column[place].as_py()
    return text


def _python_blocks(source: CsvFile, names: list[str], faults: Faults, on_read: OnRead) -> Iterator[Block]:
    """Give the texts as Python reads them, with their lines, and rows that are too long or too short to `faults`."""
    places = [source.header.index(name) for name in names]
    width, rows = len(source.header), 0
    read = source.data_rows(lambda content: on_read(len(content)))
    while some := list(islice(read, max(1, min(SLOW_ROWS, SLOW_CELLS // len(names))))):
        rows += len(some)
        for line, row in some:
            if len(row) != width:
                faults.add_row(line, row)
        whole = [(line, row) for line, row in some if len(row) == width]
        lines = [line for line, _ in whole]
        cells = {}
        for name, place in zip(names, places, strict=True):
            texts = [row[place] for _, row in whole]
            undecoded = [index for index, text in enumerate(texts) if not is_decoded(text)]
            known = texts if not undecoded else [text if is_decoded(text) else "" for text in texts]
            cells[name] = CellTexts(pa.array(known, pa.string()), texts.__getitem__, undecoded)
        if whole:
            yield Block(cells, lines.__getitem__, len(whole))
    if not rows and not source.may_be_empty:
        raise TableError(f"{source.path}: line {source.header_line}: found no rows below the header, allowed: at least one")
