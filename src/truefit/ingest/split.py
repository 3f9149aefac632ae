"""Which rows train, which validate and which test: the settings at `prepare.split`, and each row's split by them.

Rows are divided into parts: the three splits, or the folds, each of which has a role. A Splitter is told of every row in turn
before it gives the sizes, and then the rows' splits in the same order.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from truefit.core.config import Settings, invalid_value, require_defaults
from truefit.core.errors import TableError
from truefit.core.seeds import numpy_generator
from truefit.data.table import SPLITS, Split
from truefit.ingest.csv_format import FormatSettings
from truefit.ingest.split_keys import GroupColumn, KeyColumn, NameColumn, OrderColumn
from truefit.ingest.split_parts import draw_codes, largest_remainder, whole_groups

# Part of the split's definition: another length draws other rows from the same seed.
SPLIT_CHUNK_ROWS = 65_536
MOST_FOLDS = 1000
TRAIN, VALIDATION, TEST = range(len(SPLITS))


class SplitSettings(Settings):
    """Which rows go where: fractions, or folds, drawn with a seed; whole groups; by an order; or as a column says."""

    train: float = Field(0.8, gt=0, lt=1)
    validation: float = Field(0.1, gt=0, lt=1)
    test: float = Field(0.1, gt=0, lt=1)
    seed: int = Field(42, ge=0)
    column: str | None = None
    group: str | None = None
    order: str | None = None
    folds: int | None = Field(None, ge=len(SPLITS), le=MOST_FOLDS)
    fold: int = Field(0, ge=0)

    @property
    def key(self) -> tuple[str, str] | None:
        """The key that names a column of the table by which it is split, and the column's name."""
        named = [(key, name) for key in ("column", "group", "order") if (name := getattr(self, key)) is not None]
        return named[0] if named else None

    @model_validator(mode="after")
    def _has_one_rule(self) -> Self:
        if self.column is not None:
            others = tuple(key for key in type(self).model_fields if key != "column")
            require_defaults(self, others, f"with prepare.split.column {self.column!r}, which says each row's split")
        if self.order is not None:
            if self.folds is not None:
                reason = "since a model of later rows would be tested on earlier ones"
                raise invalid_value("folds", self.folds, f"null with prepare.split.order {self.order!r}, {reason}")
            where = f"with prepare.split.order {self.order!r}, which alone says each row's split"
            require_defaults(self, ("seed", "group"), where)
        if self.folds is None:
            require_defaults(self, ("fold",), "without prepare.split.folds")
        else:
            where = f"with prepare.split.folds {self.folds}, of which one tests, one validates, and all others train"
            require_defaults(self, SPLITS, where)
            if self.fold >= self.folds:
                raise invalid_value("fold", self.fold, f"0 to {self.folds - 1} with prepare.split.folds {self.folds}")
        return self

    @model_validator(mode="after")
    def _fractions_add_up(self) -> Self:
        rest = 1 - self.validation - self.test
        if rest < 1e-9:
            below = round(1 - self.validation, 9)
            raise invalid_value("test", self.test, f"less than {below}, so that the three fractions add up to 1")
        if abs(self.train - rest) > 1e-9:
            raise invalid_value("train", self.train, f"{round(rest, 9)}, so that the three fractions add up to 1")
        return self

    def shares(self, total: int) -> NDArray[np.float64]:
        """Return how many of `total` rows each part is to have [P], which need be no whole number."""
        if self.folds is not None:
            return np.full(self.folds, total / self.folds)
        return np.array([self.train, self.validation, self.test]) * total

    @property
    def roles(self) -> NDArray[np.uint8]:
        """The split [P] that each part is, as a position in SPLITS: of the folds, the one after `fold` validates."""
        if self.folds is None:
            return np.arange(len(SPLITS), dtype=np.uint8)
        roles = np.full(self.folds, TRAIN, np.uint8)
        roles[self.fold], roles[(self.fold + 1) % self.folds] = TEST, VALIDATION
        return roles


class Splitter(ABC):
    """Each row's split. Call `add` for all rows in their order, then `sizes`, then `codes`.

    `key` is the column whose numbers `add` wants, if any; `staged` is an empty file for what is kept of each row.
    """

    key: KeyColumn | None = None

    def __init__(self, settings: SplitSettings, path: Path, staged: IO[bytes]) -> None:
        self.settings, self.path, self.staged = settings, path, staged
        self.total = 0

    def add(self, rows: int, keys: NDArray[Any]) -> None:
        """Take the next rows, with the numbers [rows] of the key's column, where there is one."""
        self.total += rows
        self._keep(keys)

    def sizes(self) -> dict[Split, int]:
        """Return the number of rows of each split; raises TableError where one would have none."""
        sizes = np.bincount(self.settings.roles, self._part_sizes(), len(SPLITS))
        for name, size in zip(SPLITS, sizes, strict=True):
            if size == 0:
                raise TableError(f"{self.path}: {self._no_row} {name!r}, allowed: at least one row in each split")
        train, validation, test = map(int, sizes)
        return {"train": train, "validation": validation, "test": test}

    @abstractmethod
    def codes(self) -> Iterator[NDArray[np.uint8]]:
        """Yield the rows' splits [C], as positions in SPLITS, SPLIT_CHUNK_ROWS at a time."""

    @abstractmethod
    def _part_sizes(self) -> NDArray[np.int64]:
        """Return the number of rows of each part [P]."""

    @property
    def _no_row(self) -> str:
        return f"prepare.split: found too few rows, {self.total}, for"

    def _keep(self, keys: NDArray[Any]) -> None:
        self.staged.write(keys.data)

    def _kept(self, dtype: type[np.unsignedinteger[Any]]) -> Iterator[NDArray[Any]]:
        self.staged.seek(0)
        while content := self.staged.read(SPLIT_CHUNK_ROWS * np.dtype(dtype).itemsize):
            yield np.frombuffer(content, dtype)


def key_column(settings: SplitSettings, form: FormatSettings) -> KeyColumn | None:
    """Return the column by which a table is split whose numbers are written in the format, if there is one."""
    if settings.column is not None:
        return NameColumn(settings.column)
    if settings.group is not None:
        return GroupColumn(settings.group)
    return OrderColumn(settings.order, form) if settings.order is not None else None


def make_splitter(settings: SplitSettings, form: FormatSettings, path: Path, staged: IO[bytes]) -> Splitter:
    """Return the Splitter for the table at `path`."""
    match key_column(settings, form):
        case NameColumn() as names:
            return _NamedRows(settings, path, staged, names)
        case GroupColumn() as groups:
            return _WholeGroups(settings, path, staged, groups)
        case OrderColumn() as order:
            return _OrderedRows(settings, path, staged, order)
    return _DrawnRows(settings, path, staged)


class _DrawnRows(Splitter):
    """Parts whose sizes are exact and whose rows are drawn: every division into such parts is equally likely.

    Selection sampling: Knuth, TAOCP volume 2, 3.4.2, algorithm S, by the chunk. Nothing is kept of a row.
    """

    def codes(self) -> Iterator[NDArray[np.uint8]]:
        left = self._part_sizes()
        for chunk in range(-(-self.total // SPLIT_CHUNK_ROWS)):
            parts = draw_codes(numpy_generator(self.settings.seed, "split", chunk), left, SPLIT_CHUNK_ROWS)
            left -= np.bincount(parts, minlength=len(left))
            yield self.settings.roles[parts]

    def _part_sizes(self) -> NDArray[np.int64]:
        sizes = largest_remainder(self.settings.shares(self.total), self.total)
        if self.settings.folds is not None and self.total < len(sizes):
            found = f"prepare.split.folds: found {len(sizes)} folds for {self.total} rows"
            raise TableError(f"{self.path}: {found}, allowed: at least one row in each fold")
        return sizes


class _NamedRows(Splitter):
    """Splits as a column says: a byte a row on the disk."""

    def __init__(self, settings: SplitSettings, path: Path, staged: IO[bytes], key: NameColumn) -> None:
        super().__init__(settings, path, staged)
        self.key = key
        self._sizes = np.zeros(len(SPLITS), np.int64)

    def codes(self) -> Iterator[NDArray[np.uint8]]:
        return self._kept(np.uint8)

    def _keep(self, keys: NDArray[Any]) -> None:
        super()._keep(keys)
        self._sizes += np.bincount(keys, minlength=len(SPLITS))

    def _part_sizes(self) -> NDArray[np.int64]:
        return self._sizes

    @property
    def _no_row(self) -> str:
        return f"column {self.settings.column!r}: found no row with"


class _WholeGroups(Splitter):
    """Parts of whole groups: four bytes a row on the disk, and the table of the groups in memory."""

    def __init__(self, settings: SplitSettings, path: Path, staged: IO[bytes], key: GroupColumn) -> None:
        super().__init__(settings, path, staged)
        self.key = self._groups = key
        self._parts = np.empty(0, np.uint16)  # of the groups

    def codes(self) -> Iterator[NDArray[np.uint8]]:
        roles = self.settings.roles[self._parts]
        return (roles[numbers] for numbers in self._kept(np.uint32))

    def _part_sizes(self) -> NDArray[np.int64]:
        rows = np.zeros(self._groups.count, np.int64)
        for numbers in self._kept(np.uint32):
            np.add.at(rows, numbers, 1)
        shares, met = self.settings.shares(self.total), np.flatnonzero(rows)
        if len(met) < len(shares):
            each = "split" if self.settings.folds is None else "fold"
            found = f"column {self.settings.group!r}: found {len(met)} groups (prepare.split.group)"
            raise TableError(f"{self.path}: {found}, allowed: at least {len(shares)}, one for each {each}")
        self._parts = np.zeros(len(rows), np.uint16)
        self._parts[met] = whole_groups(rows[met], shares, numpy_generator(self.settings.seed, "groups"))
        return np.bincount(self._parts, rows, len(shares)).astype(np.int64)


class _OrderedRows(Splitter):
    """The first rows by a column train, the next validate, the last test; of equal ones, those that the file has first.

    It keeps 8 bytes a row in memory, and needs some 20 more to sort them. Whole numbers beyond 2^53 are told apart unless some
    row has a fraction.
    """

    def __init__(self, settings: SplitSettings, path: Path, staged: IO[bytes], key: OrderColumn) -> None:
        super().__init__(settings, path, staged)
        self.key = key
        self._keys: list[NDArray[Any]] = []

    def codes(self) -> Iterator[NDArray[np.uint8]]:
        sizes = self._part_sizes()
        order = np.argsort(np.concatenate(self._keys), kind="stable")
        codes = np.empty(self.total, np.uint8)
        codes[order] = np.repeat(np.arange(len(sizes), dtype=np.uint8), sizes)
        return (codes[start : start + SPLIT_CHUNK_ROWS] for start in range(0, self.total, SPLIT_CHUNK_ROWS))

    def _keep(self, keys: NDArray[Any]) -> None:
        self._keys.append(keys)

    def _part_sizes(self) -> NDArray[np.int64]:
        return largest_remainder(self.settings.shares(self.total), self.total)
