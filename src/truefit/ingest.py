"""CSV -> validated, split table, in one pass over the CSV.

Reads the CSV at `prepare.csv`; writes the arrays and the description that table.py defines. Guarantees that every value is
a finite number, that each split keeps the CSV's row order, the same bytes for the same CSV and settings, and memory bounded
by a chunk of rows: the rows wait in a staging file until their number, and with it the size of each split, is known.
"""

import hashlib
import io
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
from numpy.typing import NDArray
from pydantic import Field, model_validator
from tqdm import tqdm

from truefit.config import Settings, impossible
from truefit.csv_check import find_fault, read_header
from truefit.errors import TableError
from truefit.files import atomic_path, write_json
from truefit.seeds import numpy_generator
from truefit.table import SPLITS, TABLE_JSON, ArrayWriter, CsvSource, Dtype, Split, Table

# Part of the split's definition: another length draws other rows from the same seed.
CHUNK_ROWS = 65_536


class SplitSettings(Settings):
    """Which rows go where: exact fractions drawn with a seed, or a column of the CSV that names each row's split."""

    train: float = Field(0.8, gt=0, lt=1)
    validation: float = Field(0.1, gt=0, lt=1)
    test: float = Field(0.1, gt=0, lt=1)
    seed: int = Field(42, ge=0)
    column: str | None = None

    @model_validator(mode="after")
    def _fractions_make_a_whole(self) -> Self:
        rest = 1 - self.validation - self.test
        if rest < 1e-9:
            below = round(1 - self.validation, 9)
            raise impossible("test", self.test, f"less than {below}, so that the three fractions add up to 1")
        if abs(self.train - rest) > 1e-9:
            raise impossible("train", self.train, f"{round(rest, 9)}, so that the three fractions add up to 1")
        return self


class PrepareSettings(Settings):
    """Section `prepare`: which CSV, which of its columns, and how they are split and stored."""

    csv: str = Field("data/synthetic.csv", min_length=1)
    features: list[str] | None = Field(None, min_length=1)
    target: str | None = None
    split: SplitSettings = SplitSettings()
    dtype: Dtype = "float32"

    @model_validator(mode="after")
    def _each_column_has_one_role(self) -> Self:
        if self.target is not None and self.target == self.split.column:
            raise impossible("target", self.target, "a column other than prepare.split.column")
        taken = {self.target, self.split.column}
        for name in self.features or []:
            if name in taken:
                raise impossible("features", name, "each column once, neither the target nor the split column")
            taken.add(name)
        return self


def write_table(settings: PrepareSettings, folder: Path) -> Table:
    """Prepare the table of `settings.csv` in `folder` and return its description.

    Raises TableError, naming file, line and column, for a CSV that cannot be used.
    """
    path = Path(settings.csv)
    header = read_header(path)
    features, target = choose_columns(path, header, settings)
    width = len(features) + 1
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=folder) as rows, TemporaryFile(dir=folder) as labels:
        digest, total = _stage(path, header, [*features, target], settings, rows, labels)
        sizes = _split_sizes(path, total, labels, settings.split)
        mean, std, digests = _write_splits(
            folder, _labelled(rows, labels, sizes, width, settings), sizes, width, settings.dtype
        )
    table = Table(
        csv=CsvSource(path=settings.csv, sha256=digest),
        features=features,
        target=target,
        dtype=settings.dtype,
        rows=sizes,
        mean=mean,
        std=std,
        sha256=digests,
    )
    write_json(folder / TABLE_JSON, table.model_dump())
    return table


def choose_columns(path: Path, header: list[str], settings: PrepareSettings) -> tuple[list[str], str]:
    """Return the features' names and the target's: those of the settings, or by default the last column and all others.

    Raises TableError when the CSV lacks a column that the settings name, or has no column left for a feature.
    """
    split = settings.split.column
    candidates = [name for name in header if name != split]
    named = [("features", name) for name in settings.features or []] + [
        ("target", settings.target),
        ("split.column", split),
    ]
    for key, name in named:
        if name is not None and name not in header:
            raise TableError(f"{path}: line 1: found no column {name!r} (prepare.{key}), allowed: {', '.join(header)}")
    target = settings.target or (candidates[-1] if candidates else "")
    features = settings.features or [name for name in candidates if name != target]
    if target in features:
        raise TableError(
            f"{path}: line 1: found the last column {target!r}, the target by default, among prepare.features, "
            "allowed: prepare.target set to another column"
        )
    if not features:
        raise TableError(f"{path}: line 1: found the columns {', '.join(header)}, allowed: a target and at least one feature")
    return features, target


class _HashingReader(io.RawIOBase):
    """A file read once, front to back, whose digest is known at the end."""

    def __init__(self, file: IO[bytes], progress: tqdm) -> None:  # type: ignore[type-arg]
        super().__init__()
        self._file = file
        self._progress = progress
        self.digest = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer)  # type: ignore[attr-defined]
        self.digest.update(memoryview(buffer)[:count])
        self._progress.update(count)
        return int(count)


def _stage(
    path: Path, header: list[str], columns: list[str], settings: PrepareSettings, rows: IO[bytes], labels: IO[bytes]
) -> tuple[str, int]:
    """Append the CSV's values to `rows` and, with a split column, each row's split to `labels`, one byte a row.

    Return the CSV's digest and its number of rows.
    """
    split = settings.split.column
    total = 0
    types = dict.fromkeys(columns, pa.float64()) | ({split: pa.string()} if split is not None else {})
    # An empty cell must not become a missing value: it is refused as a number.
    convert = pyarrow.csv.ConvertOptions(column_types=types, include_columns=list(types), null_values=[], check_utf8=False)
    parse = pyarrow.csv.ParseOptions(newlines_in_values=True)
    with (
        path.open("rb") as file,
        tqdm(total=path.stat().st_size, desc="prepare", unit="B", unit_scale=True, disable=None) as bar,
    ):
        source = _HashingReader(file, bar)
        try:
            with pyarrow.csv.open_csv(source, parse_options=parse, convert_options=convert) as batches:
                for batch in batches:
                    values = _matrix(batch, columns, settings.dtype)
                    _write_finite(rows, values)
                    if split is not None:
                        labels.write(_codes(batch.column(split)).data)
                    total += len(values)
        except pa.ArrowInvalid as error:
            fault = find_fault(path, header, columns, settings.dtype, split)
            raise TableError(fault or f"{path}: {' '.join(str(error).split())}") from None
    if not total:
        raise TableError(find_fault(path, header, columns, settings.dtype, split))
    return source.digest.hexdigest(), total


def _matrix(batch: pa.RecordBatch, columns: list[str], dtype: Dtype) -> NDArray[Any]:
    """Return the batch's columns as an array [C, columns]; what `dtype` cannot hold becomes infinite."""
    values = np.empty((batch.num_rows, len(columns)), dtype)
    with np.errstate(over="ignore"):
        for index, name in enumerate(columns):
            values[:, index] = batch.column(name).to_numpy(zero_copy_only=False)
    return values


def _write_finite(file: IO[bytes], values: NDArray[Any]) -> None:
    if not np.isfinite(values).all():
        raise pa.ArrowInvalid("found a value that is not finite")
    file.write(values.data)


def _codes(column: pa.Array) -> NDArray[np.uint8]:
    """Return each row's position in SPLITS."""
    codes = pyarrow.compute.index_in(column, value_set=pa.array(SPLITS))
    if codes.null_count:
        raise pa.ArrowInvalid("found a split that is not known")
    return np.asarray(codes, np.uint8)


def _split_sizes(path: Path, total: int, labels: IO[bytes], split: SplitSettings) -> dict[Split, int]:
    """Return the number of rows of each split: counted in `labels`, or the fractions of `total` by largest remainder.

    Raises TableError when a split is left empty.
    """
    if split.column is not None:
        sizes = _count(labels)
        where = f"column {split.column!r}: found no row with"
    else:
        shares = np.array([split.train, split.validation, split.test]) * total
        sizes = np.floor(shares + 1e-9).astype(np.int64)
        for index in np.argsort(sizes - shares, kind="stable")[: total - sizes.sum()]:
            sizes[index] += 1
        where = f"prepare.split: found too few rows, {total}, for"
    for name, size in zip(SPLITS, sizes, strict=True):
        if size == 0:
            raise TableError(f"{path}: {where} {name!r}, allowed: at least one row in each split")
    return {"train": int(sizes[0]), "validation": int(sizes[1]), "test": int(sizes[2])}


def _count(labels: IO[bytes]) -> NDArray[np.int64]:
    """Return how often each split stands in `labels`."""
    sizes = np.zeros(len(SPLITS), np.int64)
    labels.seek(0)
    while chunk := labels.read(CHUNK_ROWS):
        sizes += np.bincount(np.frombuffer(chunk, np.uint8), minlength=len(SPLITS))
    return sizes


def _labelled(
    rows: IO[bytes], labels: IO[bytes], sizes: dict[Split, int], width: int, settings: PrepareSettings
) -> Iterator[tuple[NDArray[Any], NDArray[np.uint8]]]:
    """Give the staged rows [C, width] in order, each chunk with its rows' splits [C].

    Without a split column the splits are drawn, so that every partition into `sizes` is equally likely: how many of a
    chunk's rows go to each split is a draw without replacement from what is left (multivariate hypergeometric), and
    which rows they are is a permutation. Selection sampling: Knuth, TAOCP volume 2, 3.4.2, algorithm S, by the chunk.
    """
    dtype = np.dtype(settings.dtype)
    left = np.array(list(sizes.values()), np.int64)
    rows.seek(0)
    labels.seek(0)
    chunk = 0
    while content := rows.read(CHUNK_ROWS * width * dtype.itemsize):
        values = np.frombuffer(content, dtype).reshape(-1, width)
        if settings.split.column is not None:
            codes = np.frombuffer(labels.read(CHUNK_ROWS), np.uint8)
        else:
            generator = numpy_generator(settings.split.seed, "split", chunk)
            taken = generator.multivariate_hypergeometric(left, len(values), method="marginals")
            codes = generator.permutation(np.repeat(np.arange(len(SPLITS), dtype=np.uint8), taken))
            left -= taken
        yield values, codes
        chunk += 1


def _write_splits(
    folder: Path,
    chunks: Iterator[tuple[NDArray[Any], NDArray[np.uint8]]],
    sizes: dict[Split, int],
    width: int,
    dtype: Dtype,
) -> tuple[list[float], list[float], dict[Split, str]]:
    """Write each split's array; return the training rows' mean and standard deviation [width], and the arrays' digests."""
    count, origin, mean, squares = 0, np.zeros(width), np.zeros(width), np.zeros(width)
    with ExitStack() as stack:
        paths = {name: stack.enter_context(atomic_path(folder / f"{name}.npy")) for name in sizes}
        writers = {name: stack.enter_context(ArrayWriter(paths[name], sizes[name], width, dtype)) for name in sizes}
        for values, codes in chunks:
            for code, writer in enumerate(writers.values()):
                writer.write(values[codes == code])
            train = values[codes == 0].astype(np.float64)
            if len(train):
                # Counted from the first row: a constant column's deviation is exactly 0, and an offset costs no digits.
                origin = origin if count else train[0].copy()
                train -= origin
                # Chan, Golub and LeVeque (1979): the moments of two samples joined, without a sum of large squares.
                count += len(train)
                delta = train.mean(axis=0) - mean
                squares += ((train - train.mean(axis=0)) ** 2).sum(axis=0) + delta**2 * len(train) * (
                    count - len(train)
                ) / count
                mean += delta * len(train) / count
        digests = {name: writer.sha256 for name, writer in writers.items()}
    return (origin + mean).tolist(), np.sqrt(squares / count).tolist(), digests
