"""CSV -> validated, split table; each split keeps the CSV's row order.

Memory is bounded by a chunk: rows wait in a staging file until their number, and so the size of each split, is known.
"""

from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple, Self

from pydantic import Field, ValidationError, model_validator

from truefit.core.config import Settings, invalid_value
from truefit.core.errors import TableError
from truefit.core.files import write_json
from truefit.core.launch import LaunchSettings
from truefit.data.columns import KINDS, column_from
from truefit.data.columns.base import Column
from truefit.data.table import TABLE_JSON, CsvSource, Dtype, Table
from truefit.ingest.cells import Wanted
from truefit.ingest.csv_check import missing_column, require_usable, shown_names
from truefit.ingest.csv_format import FormatSettings
from truefit.ingest.part_files import ALL
from truefit.ingest.part_processes import part_readers
from truefit.ingest.source import SourceFile
from truefit.ingest.split import SplitSettings, make_splitter
from truefit.ingest.staging import MissingSettings, Reading, Staged, write_splits
from truefit.ingest.table_source import TableSource
from truefit.ingest.weights import WeightSums

ALONE = LaunchSettings()


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


def write_table(settings: PrepareSettings, folder: Path, launch: LaunchSettings = ALONE) -> Prepared:
    """Prepare the table in `folder`; raises TableError, naming file, line and column, for a CSV that cannot be used."""
    path = Path(settings.csv)
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=folder) as rows, TemporaryFile(dir=folder) as keys:
        splitter = make_splitter(settings.split, settings.format, path, keys)
        with TableSource(path, settings.parts, settings.format) as source:
            features, target = choose_columns(source.first, source.first.header, settings)
            others = [settings.weight, None if splitter.key is None else splitter.key.name]
            kinds = source.kinds([*features, target, *(name for name in others if name is not None)])
            reading = Reading(
                format=settings.format,
                features=[settings.column(name, kinds[name]) for name in features],
                target=target,
                missing=settings.missing,
                weight=settings.weight,
                split=settings.split,
                dtype=settings.dtype,
            )
            staged = Staged(rows, reading)
            with part_readers(source, reading, staged, folder, launch) as read:
                for batch in source.batches(Wanted(staged.cells, settings.dtype, splitter.key), "prepare", read):
                    splitter.add(*staged.add(batch))
            staged.require_kept(source)
        sizes = splitter.sizes()
        columns = staged.learned(path, splitter, sizes["train"])
        sums = WeightSums(path, settings.weight) if settings.weight is not None else None
        moments, digests, weight = write_splits(folder, staged, splitter, columns, sizes, sums)
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
            found, allowed = "no feature", "features alone; take it out there, or name it in prepare.features"
            if name == target:
                found, allowed = "the target", "features alone, since the target is a number"
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
