"""The prepared table on disk: an array [rows, S + 1] a split, with the target as the last column, and table.json about them.

Where the rows have weights, these are one more column, behind the target: [rows, S + 2]. An array that is too large for one
file lies in several.

Arrays are memory maps of the shape, type and size that table.json gives; a file that changes afterwards is noticed.
"""

import hashlib
import math
import mmap
import os
import sys
import weakref
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NoReturn, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from truefit.core.errors import TableError
from truefit.data.columns import AnyColumn
from truefit.data.columns.encoding import Encoding

TABLE_JSON = "table.json"
# Without it Linux refuses a private map larger than its memory. The module mmap has no name for it yet.
_MAP_NORESERVE = 0x4000 if sys.platform == "linux" else 0
SPLITS = ("train", "validation", "test")
# Up to here float64 holds every integer. Beyond, it does not tell 2^53 from 2^53 + 1.
EXACT = 2**53
# Of the rows in a file. A larger file would be slow to move, as a remote begins anew with one that breaks off, and to verify,
# since a digest is one core's work: a minute for so much. Some remotes take 100 GB for a file, few take more than 5 TB.
PART_BYTES = 1 << 35

Split = Literal["train", "validation", "test"]
Dtype = Literal["float32", "float64"]


class CsvSource(BaseModel, frozen=True, extra="forbid", strict=True):
    """The CSV that a table was prepared from; `format` is `prepare.format`, by which it was read."""

    path: str
    sha256: str
    format: dict[str, Any] = {}


class Weight(BaseModel, frozen=True, extra="forbid", strict=True, allow_inf_nan=False):
    """The CSV's column of the rows' weights, and their mean over the training rows, by which a reader divides them."""

    name: str
    mean: Annotated[float, Field(gt=0)]


class Part(NamedTuple):
    """A file of a split: its name, the number of its rows and its digest."""

    name: str
    rows: int
    sha256: str


class Table(BaseModel, frozen=True, extra="forbid", strict=True, allow_inf_nan=False):
    """What table.json says: of each of the CSV's columns that is a feature, of the target, of weights, and of the arrays.

    `sha256` has an array's digest, or those of its parts, all of the same number of rows but the last, which may have less.
    `mean` and `std` (population) are the training rows', weighted where these have weights: a number for each feature and the
    target.
    """

    csv: CsvSource
    columns: list[AnyColumn]
    target: str
    weight: Weight | None = None
    dtype: Dtype
    rows: dict[Split, Annotated[int, Field(ge=1)]]
    mean: list[float]
    std: list[Annotated[float, Field(ge=0)]]
    sha256: dict[Split, str | list[str]]

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if not (set(self.rows) == set(self.sha256) == set(SPLITS)):
            raise PydanticCustomError("incomplete", "rows and sha256 must have train, validation and test")
        parted = [split for split, given in self.sha256.items() if isinstance(given, list)]
        if any(len(self.sha256[split]) < 2 or self.parts(split)[-1].rows < 1 for split in parted):
            raise PydanticCustomError(
                "incomplete", "sha256 must have a split's digest, or those of its parts, each with a row"
            )
        if not (len(self.mean) == len(self.std) == len(self.names)):
            raise PydanticCustomError("incomplete", "mean and std must have a number for each feature and the target")
        if len(set(self.names)) < len(self.names):
            raise PydanticCustomError("doubled", "features and target must have different names")
        return self

    @cached_property
    def encoding(self) -> Encoding:
        """What makes features of the arrays' rows."""
        return Encoding(self.columns)

    @property
    def features(self) -> list[str]:
        """The names of the features, of which a column may be several."""
        return self.encoding.names

    @property
    def names(self) -> list[str]:
        """The features' names, and the target's."""
        return [*self.features, self.target]

    @property
    def stored(self) -> int:
        """The numbers that an array has for a row."""
        return self.encoding.width + 1 + (self.weight is not None)

    def parts(self, split: Split) -> list[Part]:
        """Return the files of a split, in the order of their rows."""
        given = self.sha256[split]
        digests = [given] if isinstance(given, str) else given
        files = divided(split, self.rows[split], len(digests))
        return [Part(*file, digest) for file, digest in zip(files, digests, strict=True)]

    @property
    def digest(self) -> str:
        """The SHA-256 of the description, and so of the arrays, whose digests it holds."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def read_table(folder: Path) -> Table:
    """Return the description in `folder`; raises TableError when there is none or it is damaged."""
    path = folder / TABLE_JSON
    try:
        return Table.model_validate_json(path.read_bytes())
    except OSError as error:
        raise unreadable(path, error) from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = f"{'.'.join(map(str, first['loc']))}: " if first["loc"] else ""
        raise TableError(f"{path}: {place}{first['msg']}; `dvc repro --force prepare` writes it anew") from None


def divided(split: Split, rows: int, parts: int) -> list[tuple[str, int]]:
    """Return the names of a split's files and the numbers of their rows.

    >>> divided("train", 10, 1), divided("train", 10, 3)
    ([('train.npy', 10)], [('train-00000.npy', 4), ('train-00001.npy', 4), ('train-00002.npy', 2)])
    """
    if parts == 1:
        return [(f"{split}.npy", rows)]
    each = -(-rows // parts)
    return [(f"{split}-{number:05d}.npy", min(each, rows - number * each)) for number in range(parts)]


def unreadable(path: Path, error: OSError) -> TableError:
    """Return the error for a file of a table that cannot be read."""
    return TableError(f"{path}: cannot be read: {error.strerror}; `dvc repro prepare` writes it")


class SplitFile:
    """A file of a split, held open: `rows` [N, stored] is a memory map; writing to it changes private pages, never the file.

    Raises TableError when the file is missing or is not the array that `table` describes.
    """

    def __init__(self, folder: Path, split: Split, table: Table, number: int = 0) -> None:
        name, rows, self._sha256 = table.parts(split)[number]
        self.path = folder / name
        try:
            self._file = self.path.open("rb", buffering=0)  # a buffer could be older than the file
            # The file is closed with the object, wherever that ends.
            weakref.finalize(self, self._file.close)
            self._descriptor = self._file.fileno()  # asked for at every row
            status = os.fstat(self._descriptor)
            self.version = status.st_size, status.st_mtime_ns
            np.lib.format.read_magic(self._file)
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(self._file)
        except OSError as error:
            raise unreadable(self.path, error) from None
        except (ValueError, EOFError) as error:
            raise TableError(f"{self.path}: not a whole .npy file: {error}") from None
        found, allowed = (str(dtype), shape), (table.dtype, (rows, table.stored))
        if found != allowed:
            self._refuse(f"found {found[0]} {found[1]}, allowed: {allowed[0]} {allowed[1]}")
        offset, found_size = self._file.tell(), self.version[0]
        size = offset + math.prod(shape) * dtype.itemsize
        if found_size != size:
            self._refuse(f"found {found_size} bytes, allowed: {size}")
        content = mmap.mmap(self._descriptor, size, mmap.MAP_PRIVATE | _MAP_NORESERVE, mmap.PROT_READ | mmap.PROT_WRITE)
        self.rows: NDArray[Any] = np.ndarray(shape, dtype, content, offset, order="F" if fortran else "C")

    def part(self, number: int) -> Self:
        """Return the file itself, which has all of the split's rows."""
        assert number == 0
        return self

    def verify(self) -> None:
        """Read the whole file; raises TableError for another digest than table.json's."""
        self._file.seek(0)
        found = hashlib.file_digest(self._file, "sha256").hexdigest()
        if found != self._sha256:
            self._refuse(f"found the SHA-256 {found[:12]}…, allowed: {self._sha256[:12]}…")

    def require_unchanged(self) -> None:
        """Raise TableError unless the file still has the size and the time of change in `version`."""
        # Reading a map beyond the end of a file that was cut would kill the process.
        status = os.fstat(self._descriptor)
        if (status.st_size, status.st_mtime_ns) != self.version:
            raise TableError(f"{self.path}: changed while it was read; `dvc repro --force prepare` writes it anew")

    def _refuse(self, reason: str) -> NoReturn:
        raise TableError(f"{self.path}: {reason}, as {TABLE_JSON} says; `dvc repro --force prepare` writes it anew")
