"""CSV -> validated, split table; each split keeps the CSV's row order.

Memory is bounded by a chunk: rows wait in a staging file until their number, and so the size of each split, is known.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator

from truefit.core.config import Settings, invalid_value
from truefit.core.errors import TableError
from truefit.core.files import atomic_path, write_json
from truefit.data.columns import KINDS, column_from
from truefit.data.columns.base import Array, Column
from truefit.data.columns.encoding import Encoding
from truefit.data.moments import Moments
from truefit.data.table import SPLITS, TABLE_JSON, ArrayWriter, CsvSource, Dtype, Split, Table, Weight
from truefit.ingest.csv_batches import Batch, Cells, Wanted, cells_of
from truefit.ingest.csv_check import missing_column, require_kept, require_usable, shown_names, varying_column
from truefit.ingest.csv_format import FormatSettings
from truefit.ingest.part_files import ALL
from truefit.ingest.source import SourceFile
from truefit.ingest.split import SplitSettings, Splitter, make_splitter
from truefit.ingest.table_source import TableSource
from truefit.ingest.weights import WeightSums, weight_cells

READ_BYTES = 1 << 24  # of the rows that are in memory at a time
# A median is exact for so many training rows; of more, evenly spaced ones are looked at. Less for very many columns.
MEDIAN_ROWS, MEDIAN_NUMBERS = 1 << 20, 1 << 24

# Of a column's range: float32 must not round its fractions by steps as long as this.
COARSE = 0.02
FLOAT32_BITS = 24


class MissingSettings(Settings):
    """What becomes of a missing value: it is refused; filled in, by the training rows; or its row is dropped."""

    features: Literal["refuse", "fill", "drop"] = "refuse"
    target: Literal["refuse", "drop"] = "refuse"


class PrepareSettings(Settings):
    """Section `prepare`: which CSV, Parquet file or folder of such parts, which columns, and how they are split and stored."""

    csv: str = Field("data/synthetic.csv", min_length=1)
    parts: str = Field(ALL, min_length=1)
    format: FormatSettings = FormatSettings()
    features: list[str] | None = Field(None, min_length=1)
    exclude: list[str] = Field([])
    target: str | None = None
    columns: dict[str, Any] = Field({})
    missing: MissingSettings = MissingSettings()
    weight: str | None = None
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

    @model_validator(mode="after")
    def _weight_has_no_other_role(self) -> Self:
        key, column = self.split.key or ("", None)
        roles = {"target": [self.target], "features": self.features, "exclude": self.exclude, f"split.{key}": [column]}
        for role, names in roles.items():
            if self.weight is not None and self.weight in (names or []):
                raise invalid_value("weight", self.weight, f"a column that prepare.{role} does not name")
        return self

    @model_validator(mode="after")
    def _each_kind_is_known(self) -> Self:
        for name, described in self.columns.items():
            options = described if isinstance(described, dict) else {"kind": described}
            kind = options.get("kind")
            if not isinstance(kind, str) or kind not in KINDS:
                found = kind if "kind" in options else described
                raise invalid_value(f"columns.{name}", found, f"a kind, {', '.join(KINDS)}, or {{kind: …}} with its options")
            for option in options:
                if option not in ("kind", *KINDS[kind].options):
                    allowed = " and ".join(("kind", *KINDS[kind].options))
                    raise invalid_value(f"columns.{name}", option, f"{allowed} for the kind {kind}")
            if name == self.target and kind != "number":
                raise invalid_value(f"columns.{name}", kind, "number, which the target has to be")
            try:
                self.column(name)
            except ValidationError as error:
                fault = error.errors(include_url=False)[0]
                key = ".".join(("columns", name, *map(str, fault["loc"])))
                raise invalid_value(key, fault["input"], fault["msg"].removeprefix("Input should be ")) from None
        return self

    def column(self, name: str, kind: str = "number") -> Column:
        """Return the column of that name, of its kind, or of this one where `columns` has none, with nothing learned yet."""
        described = self.columns.get(name, kind)
        return column_from({"name": name} | ({"kind": described} if isinstance(described, str) else described))


class Prepared(NamedTuple):
    """A table that was written, and what is not in it.

    That is the number of the CSV's columns that have no name, and so are no features, and of the rows that were dropped; and
    by column, how many of its values were missing in those.
    """

    table: Table
    unnamed: int
    dropped: int
    missing: dict[str, int]


def write_table(settings: PrepareSettings, folder: Path) -> Prepared:
    """Prepare the table in `folder`; raises TableError, naming file, line and column, for a CSV that cannot be used."""
    path = Path(settings.csv)
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=folder) as rows, TemporaryFile(dir=folder) as keys:
        splitter = make_splitter(settings.split, settings.format, path, keys)
        with TableSource(path, settings.parts, settings.format) as source:
            features, target = choose_columns(source.first, source.first.header, settings)
            others = [settings.weight, None if splitter.key is None else splitter.key.name]
            kinds = source.kinds([*features, target, *(name for name in others if name is not None)])
            staged = _Staged(rows, [settings.column(name, kinds[name]) for name in features], target, settings)
            for batch in source.batches(Wanted(staged.cells, settings.dtype, splitter.key), "prepare"):
                splitter.add(*staged.add(batch))
            staged.require_kept(source)
        sizes = splitter.sizes()
        columns = staged.learned(path, splitter, sizes["train"])
        sums = WeightSums(path, settings.weight) if settings.weight is not None else None
        moments, digests, weight = _write_splits(folder, staged, splitter, columns, sizes, sums)
    table = Table(
        csv=CsvSource(path=settings.csv, format=settings.format.model_dump(), sha256=source.sha256),
        columns=columns,
        target=target,
        weight=weight,
        dtype=settings.dtype,
        rows=sizes,
        mean=moments.mean.tolist(),
        std=moments.std.tolist(),
        sha256=digests,
    )
    write_json(folder / TABLE_JSON, table.model_dump())
    return Prepared(table, 0 if settings.features else source.first.header.count(""), staged.dropped, staged.missing)


def choose_columns(source: SourceFile, header: list[str], settings: PrepareSettings) -> tuple[list[str], str]:
    """Return the features' names and the target's: those of the settings, or by default the last column and all others.

    By default, columns without a name, those that are excluded, the weight and the one by which the table is split are none.
    Raises TableError when the CSV lacks a column that the settings name, has no column left for a feature, or has one of which
    it is not clear which column it is.
    """
    rule, split = settings.split.key or ("", None)
    known = set(header) - {""}
    choice = known - {split, settings.weight, *settings.exclude}
    candidates = [name for name in header if name in choice]
    lists = {"features": settings.features or [], "exclude": settings.exclude, "columns": settings.columns}
    named = [(key, name) for key, names in lists.items() for name in names]
    for key, name in [*named, ("target", settings.target), ("weight", settings.weight), (f"split.{rule}", split)]:
        if name is not None and name not in known:
            raise missing_column(source, name, f"prepare.{key}")
    where = source.header_place
    target = settings.target or (candidates[-1] if candidates else "")
    features = settings.features or [name for name in candidates if name != target]
    for name in settings.columns:
        if name not in features:
            found = "the target" if name == target else "no feature"
            allowed = "features" if name != target else "features, since the target is a number"
            raise TableError(f"{where}: found the column {name!r}, {found}, in prepare.columns, allowed: {allowed}")
    if target in features:
        raise TableError(
            f"{where}: found the last column {target!r}, the target by default, among prepare.features, "
            "allowed: prepare.target set to another column"
        )
    require_usable(source, {*features, target, split or target, settings.weight or target})
    if not features:
        names, remark = shown_names(header) or "without names", source.other_separator(header)
        raise TableError(f"{where}: found the columns {names}, allowed: a target and at least one feature{remark}")
    return features, target


class _Staged:
    """The rows that are kept of a CSV, on the disk until it is known which are the training rows: [N, stored], as parsed."""

    def __init__(self, file: IO[bytes], columns: list[Column], target: str, settings: PrepareSettings) -> None:
        policy = settings.missing
        self.learners = [column.learner(policy.features == "fill") for column in columns]
        features = [
            cells_of(
                learner.column, learner, policy.features != "refuse", "prepare.missing: {features: fill} or {features: drop}"
            )
            for learner in self.learners
        ]
        own = Cells(target, takes_missing=policy.target != "refuse", way_out="prepare.missing: {target: drop}", has_kind=False)
        self._valued = [*features, own]  # of which float32 has to hold more than of a weight
        self.cells = [*self._valued, *([] if settings.weight is None else [weight_cells(settings.weight)])]
        self.dropped, self.missing = 0, dict[str, int]()
        self.places = list(accumulate((cell.stored for cell in self.cells), initial=0))
        self._drops = [(cell.name, at) for cell, at in zip(self._valued, self.places, strict=False)]
        if policy.features != "drop":
            self._drops = self._drops[-1:] if policy.target == "drop" else []
        elif policy.target != "drop":
            self._drops = self._drops[:-1]
        self._file, self.dtype = file, settings.dtype
        self._rows = 0
        self._lowest, self._highest = np.full(self.places[-1], np.inf), np.full(self.places[-1], -np.inf)

    def add(self, batch: Batch) -> tuple[int, NDArray[Any]]:
        """Keep the rows that are not dropped; return their number, and their keys."""
        np.minimum(self._lowest, batch.lowest, out=self._lowest)
        np.maximum(self._highest, batch.highest, out=self._highest)
        values, keys = batch.values, batch.keys
        if self._drops:
            missing = np.isnan(values[:, [at for _, at in self._drops]])
            for (name, _), count in zip(self._drops, missing.sum(axis=0).tolist(), strict=True):
                if count:
                    self.missing[name] = self.missing.get(name, 0) + count
            kept = ~missing.any(axis=1)
            self.dropped += len(values) - int(kept.sum())
            values, keys = values[kept], keys[kept] if len(keys) else keys
        self._file.write(np.ascontiguousarray(values).data)
        self._rows += len(values)
        return len(values), keys

    def require_kept(self, source: TableSource) -> None:
        """Raise TableError for a column of numbers that the dtype does not tell apart, or rounds coarsely."""
        if not self._rows:
            raise TableError(f"{source.path}: found a missing value in each row, allowed: rows that can be kept")
        numbers = [(cell.name, at) for cell, at in zip(self._valued, self.places, strict=False) if cell.parse is None]
        for name, at in numbers:
            low, high = self._lowest[at], self._highest[at]
            if low < high and low.astype(self.dtype) == high.astype(self.dtype):
                raise varying_column(source.numbers(name), name, source.first.advice.wider)
            step = float(np.ldexp(1.0, np.frexp(max(-low, high))[1] - FLOAT32_BITS))
            if self.dtype == "float32" and low < high and step > COARSE * (high - low):
                require_kept(source.numbers(name), name, source.first.advice.wider, step, float(high - low))

    def chunks(self, splitter: Splitter) -> Iterator[tuple[Array, NDArray[np.uint8]]]:
        """Yield the rows [C, stored] in order, and their splits [C]; a chunk that is large comes in parts."""
        width, dtype = self.places[-1], np.dtype(self.dtype)
        self._file.seek(0)
        most = max(1, READ_BYTES // (width * dtype.itemsize))
        for codes in splitter.codes():
            for start in range(0, len(codes), most):
                part = codes[start : start + most]
                yield np.frombuffer(self._file.read(len(part) * width * dtype.itemsize), dtype).reshape(-1, width), part

    def learned(self, path: Path, splitter: Splitter, train_rows: int) -> list[Column]:
        """Return the columns with what the training rows teach; raises TableError where they teach nothing of one."""
        learning = [(learner, at) for learner, at in zip(self.learners, self.places, strict=False) if learner.learns]
        if learning:
            every = -(-train_rows // max(1, min(MEDIAN_ROWS, MEDIAN_NUMBERS // len(learning))))
            for values, codes in self.chunks(splitter):
                train = values[codes == 0]
                for learner, at in learning:
                    learner.add(train[:, at : at + learner.column.stored], every)
        columns = []
        for learner in self.learners:
            try:
                columns.append(learner.fitted())
            except ValueError as error:
                allowed = "at least one, or the column left out by prepare.exclude"
                raise TableError(f"{path}: column {learner.column.name!r}: found {error}, allowed: {allowed}") from None
        _require_different(path, columns, self._valued[-1].name)
        return columns

    def finish(self, rows: Array) -> None:
        """Make rows [C, stored] as they were parsed those that are stored, in place."""
        for learner, at in zip(self.learners, self.places, strict=False):
            if learner.learns:
                place = slice(at, at + learner.column.stored)
                rows[:, place] = learner.stored(rows[:, place])


def _require_different(path: Path, columns: Sequence[Column], target: str) -> None:
    met = {target}
    for column in columns:
        for feature in column.features:
            if feature in met:
                raise TableError(
                    f"{path}: column {column.name!r}: found a second feature called {feature!r}, allowed: different names; "
                    "give a column another name, or leave it out by prepare.exclude"
                )
            met.add(feature)


def _write_splits(
    folder: Path,
    staged: _Staged,
    splitter: Splitter,
    columns: list[Column],
    sizes: dict[Split, int],
    weights: WeightSums | None,
) -> tuple[Moments, dict[Split, str], Weight | None]:
    """Write each split's array; return the moments of the training rows' features and target, the digests, and the weight."""
    encoding = Encoding(columns)
    names = len(encoding.names)
    moments, width = Moments(names + 1), staged.places[-1]
    most = max(1, READ_BYTES // ((names + 1) * np.dtype(staged.dtype).itemsize))
    with ExitStack() as stack:
        paths = {name: stack.enter_context(atomic_path(folder / f"{name}.npy")) for name in sizes}
        writers = {name: stack.enter_context(ArrayWriter(paths[name], sizes[name], width, staged.dtype)) for name in sizes}
        for values, codes in staged.chunks(splitter):
            # Sorted by their splits, whose rows stay in order: one gather takes less time than a mask for each.
            ordered = values.take(np.argsort(codes, kind="stable"), axis=0)
            staged.finish(ordered)
            parts = np.split(ordered, np.bincount(codes, minlength=len(SPLITS)).cumsum()[:-1])
            for part, writer in zip(parts, writers.values(), strict=True):
                writer.write(part)
            if weights is not None:
                weights.add([part[:, -1] for part in parts])
            for start in range(0, len(parts[0]), most):
                rows = encoding.rows(parts[0][start : start + most])
                moments.add(rows[:, : names + 1], None if weights is None else rows[:, -1])
        digests = {name: writer.sha256 for name, writer in writers.items()}
        return moments, digests, None if weights is None else weights.fitted()
