"""CSV -> validated, split table; each split keeps the CSV's row order.

Memory is bounded by a chunk: rows wait in a staging file until their number, and so the size of each split, is known.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from truefit.core.config import Settings, invalid_value, require_defaults
from truefit.core.errors import TableError
from truefit.core.files import atomic_path, write_json
from truefit.core.seeds import numpy_generator
from truefit.data.moments import Moments
from truefit.data.table import SPLITS, TABLE_JSON, ArrayWriter, CsvSource, Dtype, Split, Table
from truefit.ingest.csv_batches import read_batches
from truefit.ingest.csv_check import missing_column, read_header, require_kept, require_usable, shown_names, varying_column
from truefit.ingest.csv_file import CsvFile
from truefit.ingest.csv_format import FormatSettings

# Part of the split's definition: another length draws other rows from the same seed.
SPLIT_CHUNK_ROWS = 65_536
READ_BYTES = 1 << 24  # of those that are in memory at a time
NUMPYS_LIMIT = 10**9  # rows from which on its draw of sizes fails


# Of a column's range: float32 must not round its fractions by steps as long as this.
COARSE = 0.02
FLOAT32_BITS = 24


class SplitSettings(Settings):
    """Which rows go where: exact fractions drawn with a seed, or a column of the CSV that names each row's split."""

    train: float = Field(0.8, gt=0, lt=1)
    validation: float = Field(0.1, gt=0, lt=1)
    test: float = Field(0.1, gt=0, lt=1)
    seed: int = Field(42, ge=0)
    column: str | None = None

    @model_validator(mode="after")
    def _rows_are_drawn_or_named(self) -> Self:
        if self.column is not None:
            keys = ("train", "validation", "test", "seed")
            require_defaults(self, keys, f"with prepare.split.column {self.column!r}, which says each row's split")
        rest = 1 - self.validation - self.test
        if rest < 1e-9:
            below = round(1 - self.validation, 9)
            raise invalid_value("test", self.test, f"less than {below}, so that the three fractions add up to 1")
        if abs(self.train - rest) > 1e-9:
            raise invalid_value("train", self.train, f"{round(rest, 9)}, so that the three fractions add up to 1")
        return self


class PrepareSettings(Settings):
    """Section `prepare`: which CSV, which of its columns, and how they are split and stored."""

    csv: str = Field("data/synthetic.csv", min_length=1)
    format: FormatSettings = FormatSettings()
    features: list[str] | None = Field(None, min_length=1)
    exclude: list[str] = Field([])
    target: str | None = None
    split: SplitSettings = SplitSettings()
    dtype: Dtype = "float32"

    @model_validator(mode="after")
    def _each_column_has_one_role(self) -> Self:
        if self.target is not None and self.target == self.split.column:
            raise invalid_value("target", self.target, "a column other than prepare.split.column")
        taken = {self.target, self.split.column}
        if self.features and self.exclude:
            raise invalid_value("exclude", self.exclude, "[] beside prepare.features, which names all that are used")
        for name in self.exclude:
            if name in taken:
                raise invalid_value("exclude", name, "neither the target nor the split column")
        for name in self.features or []:
            if name in taken:
                raise invalid_value("features", name, "each column once, neither the target nor the split column")
            taken.add(name)
        return self


class Prepared(NamedTuple):
    """A table that was written, and the number of the CSV's columns that have no name, and so are no features."""

    table: Table
    unnamed: int


def write_table(settings: PrepareSettings, folder: Path) -> Prepared:
    """Prepare the table in `folder`; raises TableError, naming file, line and column, for a CSV that cannot be used."""
    path = Path(settings.csv)
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=folder) as rows, TemporaryFile(dir=folder) as labels:
        with CsvFile(path, settings.format, hashed=True) as source:
            features, target = choose_columns(source, read_header(source), settings)
            columns = [*features, target]
            total, labelled = 0, np.zeros(len(SPLITS), np.int64)
            lowest, highest = np.full(len(columns), np.inf), np.full(len(columns), -np.inf)
            for batch in read_batches(source, columns, settings.dtype, settings.split.column, "prepare"):
                rows.write(batch.values.data)
                labels.write(batch.codes.data)
                total += len(batch.values)
                labelled += np.bincount(batch.codes, minlength=len(SPLITS))
                np.minimum(lowest, batch.lowest, out=lowest)
                np.maximum(highest, batch.highest, out=highest)
            for index in np.flatnonzero(
                (lowest < highest) & (lowest.astype(settings.dtype) == highest.astype(settings.dtype))
            ):
                raise varying_column(source, columns[index])
            if settings.dtype == "float32":
                steps = np.ldexp(1.0, np.frexp(np.maximum(-lowest, highest))[1] - FLOAT32_BITS)
                for index in np.flatnonzero(steps > COARSE * (highest - lowest)):
                    require_kept(source, columns[index], float(steps[index]), float(highest[index] - lowest[index]))
        sizes = _split_sizes(path, total, labelled, settings.split)
        chunks = _labelled(rows, labels, sizes, len(columns), settings)
        moments, digests = _write_splits(folder, chunks, sizes, len(columns), settings.dtype)
    table = Table(
        csv=CsvSource(path=settings.csv, format=settings.format.model_dump(), sha256=source.sha256),
        features=features,
        target=target,
        dtype=settings.dtype,
        rows=sizes,
        mean=moments.mean.tolist(),
        std=moments.std.tolist(),
        sha256=digests,
    )
    write_json(folder / TABLE_JSON, table.model_dump())
    return Prepared(table, 0 if settings.features else source.header.count(""))


def choose_columns(source: CsvFile, header: list[str], settings: PrepareSettings) -> tuple[list[str], str]:
    """Return the features' names and the target's: those of the settings, or by default the last column and all others.

    By default, columns without a name and those that are excluded are neither. Raises TableError when the CSV lacks a column
    that the settings name, has no column left for a feature, or has one of which it is not clear which column it is.
    """
    split, known = settings.split.column, set(header) - {""}
    choice = known - {split, *settings.exclude}
    candidates = [name for name in header if name in choice]
    lists = {"features": settings.features or [], "exclude": settings.exclude}
    named = [(key, name) for key, names in lists.items() for name in names]
    for key, name in [*named, ("target", settings.target), ("split.column", split)]:
        if name is not None and name not in known:
            raise missing_column(source, name, f"prepare.{key}")
    where = f"{source.path}: line {source.header_line}"
    target = settings.target or (candidates[-1] if candidates else "")
    features = settings.features or [name for name in candidates if name != target]
    if target in features:
        raise TableError(
            f"{where}: found the last column {target!r}, the target by default, among prepare.features, "
            "allowed: prepare.target set to another column"
        )
    require_usable(source, {*features, target, split or target})
    if not features:
        names, remark = shown_names(header) or "without names", source.other_separator(header)
        raise TableError(f"{where}: found the columns {names}, allowed: a target and at least one feature{remark}")
    return features, target


def _split_sizes(path: Path, total: int, labelled: NDArray[np.int64], split: SplitSettings) -> dict[Split, int]:
    """Return the number of rows of each split: those `labelled` so, or the fractions of `total` by largest remainder."""
    if split.column is not None:
        sizes = labelled
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


def _labelled(
    rows: IO[bytes], labels: IO[bytes], sizes: dict[Split, int], width: int, settings: PrepareSettings
) -> Iterator[tuple[NDArray[Any], NDArray[np.uint8]]]:
    """Give the staged rows [C, width] in order, each chunk with its rows' splits [C].

    Without a split column the splits are drawn, so that every partition into `sizes` is equally likely. Selection sampling:
    Knuth, TAOCP volume 2, 3.4.2, algorithm S, by the chunk; one that is large is read in parts.
    """
    dtype = np.dtype(settings.dtype)
    left = np.array(list(sizes.values()), np.int64)
    rows.seek(0)
    labels.seek(0)
    most = max(1, READ_BYTES // (width * dtype.itemsize))
    for chunk in range(-(-left.sum() // SPLIT_CHUNK_ROWS)):
        if settings.split.column is not None:
            codes = np.frombuffer(labels.read(SPLIT_CHUNK_ROWS), np.uint8)
        else:
            codes = draw_codes(numpy_generator(settings.split.seed, "split", chunk), left, SPLIT_CHUNK_ROWS)
            left -= np.bincount(codes, minlength=len(SPLITS))
        for start in range(0, len(codes), most):
            part = codes[start : start + most]
            yield np.frombuffer(rows.read(len(part) * width * dtype.itemsize), dtype).reshape(-1, width), part


def draw_codes(generator: np.random.Generator, left: NDArray[np.int64], count: int) -> NDArray[np.uint8]:
    """Return the splits of the next `count` rows, or of the last, as positions in SPLITS [C], where so many are `left` [S].

    How many go to each split is a draw without replacement from what is left (multivariate hypergeometric), and which rows
    they are is a permutation. Where NumPy's draw of the first fails, the rows' places among what is left are drawn instead.
    """
    total = int(left.sum())
    count = min(count, total)
    if total < NUMPYS_LIMIT:
        taken = generator.multivariate_hypergeometric(left, count, method="marginals")
        return generator.permutation(np.repeat(np.arange(len(left), dtype=np.uint8), taken))
    places = generator.choice(total, count, replace=False)
    return np.searchsorted(left.cumsum(), places, side="right").astype(np.uint8)


def _write_splits(
    folder: Path, chunks: Iterator[tuple[NDArray[Any], NDArray[np.uint8]]], sizes: dict[Split, int], width: int, dtype: Dtype
) -> tuple[Moments, dict[Split, str]]:
    """Write each split's array; return the training rows' moments, and the arrays' digests."""
    moments = Moments(width)
    with ExitStack() as stack:
        paths = {name: stack.enter_context(atomic_path(folder / f"{name}.npy")) for name in sizes}
        writers = {name: stack.enter_context(ArrayWriter(paths[name], sizes[name], width, dtype)) for name in sizes}
        for values, codes in chunks:
            # Sorted by their splits, whose rows stay in order: one gather takes less time than a mask for each.
            ordered = values.take(np.argsort(codes, kind="stable"), axis=0)
            parts = np.split(ordered, np.bincount(codes, minlength=len(SPLITS)).cumsum()[:-1])
            for part, writer in zip(parts, writers.values(), strict=True):
                writer.write(part)
            moments.add(parts[0])
        return moments, {name: writer.sha256 for name, writer in writers.items()}
