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

from truefit.core.config import Settings, invalid_value
from truefit.core.errors import TableError
from truefit.core.files import atomic_path, write_json
from truefit.data.moments import Moments
from truefit.data.table import SPLITS, TABLE_JSON, ArrayWriter, CsvSource, Dtype, Split, Table
from truefit.ingest.csv_batches import read_batches
from truefit.ingest.csv_check import missing_column, read_header, require_kept, require_usable, shown_names, varying_column
from truefit.ingest.csv_file import CsvFile
from truefit.ingest.csv_format import FormatSettings
from truefit.ingest.split import SplitSettings, make_splitter

READ_BYTES = 1 << 24  # of the rows that are in memory at a time

# Of a column's range: float32 must not round its fractions by steps as long as this.
COARSE = 0.02
FLOAT32_BITS = 24


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
        key, column = self.split.key or ("", None)
        if self.target is not None and self.target == column:
            raise invalid_value("target", self.target, f"a column other than prepare.split.{key}")
        taken = {self.target, column}
        if self.features and self.exclude:
            raise invalid_value("exclude", self.exclude, "[] beside prepare.features, which names all that are used")
        for name in self.exclude:
            if name in taken:
                raise invalid_value("exclude", name, "neither the target nor the split column")
        if key != "column":  # a group, or a place in an order, may explain the target
            taken = {self.target}
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
    with TemporaryFile(dir=folder) as rows, TemporaryFile(dir=folder) as keys:
        splitter = make_splitter(settings.split, settings.format, path, keys)
        with CsvFile(path, settings.format, hashed=True) as source:
            features, target = choose_columns(source, read_header(source), settings)
            columns = [*features, target]
            lowest, highest = np.full(len(columns), np.inf), np.full(len(columns), -np.inf)
            for batch in read_batches(source, columns, settings.dtype, splitter.key, "prepare"):
                rows.write(batch.values.data)
                splitter.add(len(batch.values), batch.keys)
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
        sizes = splitter.sizes()
        chunks = _staged(rows, splitter.codes(), len(columns), settings.dtype)
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

    By default, columns without a name, those that are excluded and the one by which the table is split are neither. Raises
    TableError when the CSV lacks a column that the settings name, has no column left for a feature, or has one of which it is
    not clear which column it is.
    """
    rule, split = settings.split.key or ("", None)
    known = set(header) - {""}
    choice = known - {split, *settings.exclude}
    candidates = [name for name in header if name in choice]
    lists = {"features": settings.features or [], "exclude": settings.exclude}
    named = [(key, name) for key, names in lists.items() for name in names]
    for key, name in [*named, ("target", settings.target), (f"split.{rule}", split)]:
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


def _staged(
    rows: IO[bytes], codes: Iterator[NDArray[np.uint8]], width: int, dtype: Dtype
) -> Iterator[tuple[NDArray[Any], NDArray[np.uint8]]]:
    """Give the staged rows [C, width] in order, each chunk with its rows' splits [C]; one that is large is read in parts."""
    row_bytes = width * np.dtype(dtype).itemsize
    most = max(1, READ_BYTES // row_bytes)
    rows.seek(0)
    for chunk in codes:
        for start in range(0, len(chunk), most):
            part = chunk[start : start + most]
            yield np.frombuffer(rows.read(len(part) * row_bytes), dtype).reshape(-1, width), part


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
