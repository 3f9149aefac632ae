"""What a table is prepared from: a CSV or a Parquet file, or several of one of them with the same columns."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Self

from pydantic_core import PydanticCustomError

from truefit.core.config import require_defaults
from truefit.core.errors import TableError
from truefit.ingest.cells import Batches, Wanted
from truefit.ingest.containers import is_parquet
from truefit.ingest.csv_batches import read_batches
from truefit.ingest.csv_check import read_header
from truefit.ingest.csv_faults import cell_text
from truefit.ingest.csv_file import CsvFile
from truefit.ingest.csv_format import FormatSettings
from truefit.ingest.parquet_batches import read_parquet
from truefit.ingest.parquet_file import ParquetFile
from truefit.ingest.part_files import part_paths, parts_digest

Part = CsvFile | ParquetFile
ReadPart = Callable[[Part, Wanted, str], Batches]


class TableSource:
    """The parts of a table, of which a file is the only one; as a context, it raises TableError when they have changed.

    Raises TableError, naming the part, for parts that do not go together.
    """

    def __init__(self, path: Path, names: str, form: FormatSettings) -> None:
        self.path, self._names = path, names
        self.paths = part_paths(path, names)
        parquet = [is_parquet(part) for part in self.paths]
        if len({*parquet}) > 1:
            other = self.paths[parquet.index(not parquet[0])]
            found, like = ("a CSV", "Parquet") if parquet[0] else ("Parquet", "a CSV")
            raise TableError(f"{other}: found {found}, allowed: {like}, as {self.paths[0]} is")
        if parquet[0]:
            _require_no_format(path, form)
        self.parts = [open_part(part, form, parquet[0]) for part in self.paths]
        for part in self.parts:
            part.may_be_empty = len(self.parts) > 1
            _require_same_header(part, self.first)

    @property
    def first(self) -> Part:
        """The first part, which has the names of all columns."""
        return self.parts[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        for part in self.parts:
            part.__exit__(kind, *rest)
        if kind is None and part_paths(self.path, self._names) != self.paths:
            raise TableError(f"{self.path}: found other parts than before; run again")

    @property
    def sha256(self) -> str:
        """The digest of the file, or of the folder's parts, as they were read."""
        if self.first.path == self.path:
            return self.first.sha256
        return parts_digest((part.path.name, part.sha256) for part in self.parts)

    def kinds(self, used: Iterable[str]) -> dict[str, str]:
        """Return the kinds that the columns `used` are by the files themselves, which the parts must agree on."""
        kinds = {name: self.first.kind(name) for name in used}
        for part in self.parts:
            part.require_types(kinds)
            for name, kind in kinds.items():
                if (other := part.kind(name)) != kind:
                    where = f"{part.path}: column {name!r}"
                    raise TableError(f"{where}: found the kind {other}, allowed: {kind}, as in {self.first.path}")
        return kinds

    def batches(self, wanted: Wanted, title: str, read: ReadPart | None = None) -> Batches:
        """Give all rows, part by part, with the columns that are wanted; raises TableError as `read` does, or `read_part`."""
        rows = 0
        for part in self.parts:
            for batch in (read or read_part)(part, wanted, title):
                rows += len(batch.values)
                yield batch
        if not rows:
            raise TableError(f"{self.path}: found no rows in {len(self.parts)} parts, allowed: at least one")

    def numbers(self, name: str) -> Iterator[tuple[str, str, float]]:
        """Give the places, the texts and the numbers of a column of numbers, but for missing values."""
        for part in self.parts:
            yield from part.numbers(name)


def open_part(path: Path, form: FormatSettings, parquet: bool) -> Part:
    """Return a part, of which its header was read; raises TableError where it cannot be."""
    if parquet:
        return ParquetFile(path, form, hashed=True)
    csv = CsvFile(path, form, hashed=True)
    read_header(csv)
    return csv


def read_part(part: Part, wanted: Wanted, title: str) -> Batches:
    """Give a part's rows with the columns that are wanted."""
    return read_parquet(part, wanted, title) if isinstance(part, ParquetFile) else read_batches(part, wanted, title)


def _require_no_format(path: Path, form: FormatSettings) -> None:
    keys = tuple(key for key in FormatSettings.model_fields if key != "missing")
    try:
        require_defaults(form, keys, "for Parquet, whose columns say what they are")
    except PydanticCustomError as error:
        raise TableError(f"{path}: prepare.format.{error.message()}") from None


def _require_same_header(part: Part, first: Part) -> None:
    found, allowed = part.header, first.header
    if len(found) != len(allowed):
        raise TableError(f"{part.header_place}: found {len(found)} columns, allowed: {len(allowed)}, as in {first.path}")
    for number, (name, other) in enumerate(zip(found, allowed, strict=True), 1):
        if name != other:
            place = f"{part.header_place}, column {number}"
            raise TableError(f"{place}: found {cell_text(name)}, allowed: {cell_text(other)}, as in {first.path}")
