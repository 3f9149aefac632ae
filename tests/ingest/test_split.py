import hashlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from helpers_data import prepare, read_splits
from numpy.typing import NDArray

from truefit.core.errors import TableError
from truefit.ingest import csv_arrow
from truefit.ingest.csv_format import FormatSettings
from truefit.ingest.split import SplitSettings, make_splitter
from truefit.ingest.split_keys import GroupColumn, OrderColumn

TRAIN, VALIDATION, TEST = range(3)
SLOW = "9007199254740992"  # a cell that only the reader that goes cell by cell takes


pytestmark = pytest.mark.usefixtures("_in_an_empty_folder")


@pytest.fixture
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    # So that a cell in the last rows is met when others were given already.
    monkeypatch.setattr(csv_arrow, "BLOCK_BYTES", 200)


def split_rows(rows: int | list[str], **settings: Any) -> NDArray[np.uint8]:
    """Return the splits of so many rows, or of those with these cells in the key's column, taken in batches of 50."""
    with TemporaryFile() as staged:
        splitter = make_splitter(SplitSettings.model_validate(settings), FormatSettings(), Path("data.csv"), staged)
        if isinstance(rows, int):
            splitter.add(rows, np.empty(0, np.uint8))
        else:
            assert splitter.key is not None
            for start in range(0, len(rows), 50):
                keys = splitter.key.read(pa.array(rows[start : start + 50]))
                splitter.add(len(keys), keys)
        sizes = splitter.sizes()
        codes = np.concatenate(list(splitter.codes()))
    assert list(sizes.values()) == np.bincount(codes, minlength=3).tolist()
    return codes


def random_groups(generator: np.random.Generator, groups: int, largest: int) -> list[str]:
    """Return cells of so many groups, each of up to `largest` rows, in random order."""
    rows = generator.integers(1, largest, groups, endpoint=True)
    return [f"group {group}" for group in generator.permutation(np.repeat(np.arange(groups), rows))]


def rows_of(cells: list[str]) -> NDArray[np.int64]:
    return np.unique(cells, return_counts=True)[1]


def assert_none_is_parted(cells: list[str], codes: NDArray[np.uint8]) -> None:
    splits: dict[str, set[int]] = {}
    for cell, code in zip(cells, codes.tolist(), strict=True):
        splits.setdefault(cell, set()).add(code)
    assert {len(found) for found in splits.values()} == {1}


def refusal(content: str, **settings: Any) -> str:
    with pytest.raises(TableError) as caught:
        prepare(Path(), content, **settings)
    return str(caught.value)


# --- fractions


@pytest.mark.parametrize(
    ("rows", "settings", "digest"),
    [
        (19, {}, "f3d1f49944494ef22300bd889d9712aef0bb5d249365d0773e0ce9cdca26bf90"),
        (200_003, {}, "f129ce9623f4fdcd7ba65b4226e7148d739707489630a4cbbcc655661acc7bb8"),
        (
            200_003,
            {"train": 0.6, "validation": 0.3, "test": 0.1, "seed": 7},
            "41beda657d1a9a69c54795f5b5111ce6edc06de1a23b85750f29e734d0dd5a15",
        ),
    ],
)
def test_a_seed_draws_the_split_that_it_always_drew(rows: int, settings: dict[str, Any], digest: str) -> None:
    # The digests were taken before groups, orders and folds were known.
    assert hashlib.sha256(split_rows(rows, **settings).tobytes()).hexdigest() == digest


# --- groups


@pytest.mark.usefixtures("_small_chunks")
@pytest.mark.parametrize("seed", range(20))
def test_a_group_is_in_one_split_and_the_sizes_are_within_the_largest_group(seed: int) -> None:
    generator = np.random.default_rng(seed)
    cells = random_groups(generator, int(generator.integers(30, 80)), (1, 3, 20, 100)[seed % 4])

    codes = split_rows(cells, group="g", train=0.6, validation=0.3, seed=seed)

    assert_none_is_parted(cells, codes)
    shares = np.array([0.6, 0.3, 0.1]) * len(cells)
    assert np.abs(np.bincount(codes, minlength=3) - shares).max() < rows_of(cells).max()


def test_many_small_groups_have_the_sizes_of_rows_that_are_drawn() -> None:
    cells = random_groups(np.random.default_rng(0), 500, 20)

    sizes = [np.bincount(codes, minlength=3) for codes in (split_rows(cells, group="g"), split_rows(len(cells)))]

    assert np.abs(sizes[0] - sizes[1]).max() <= 1


def test_three_groups_are_enough_however_large_they_are() -> None:
    for rows in ([1000, 1, 1], [1, 1000, 1000], [5, 5, 5]):
        cells = [f"{group}" for group, count in enumerate(rows) for _ in range(count)]
        codes = split_rows(cells, group="g")

        assert_none_is_parted(cells, codes)
        assert set(codes.tolist()) == {TRAIN, VALIDATION, TEST}


def test_groups_of_each_size_are_equally_likely_to_test() -> None:
    # 20 groups of 10 rows and 300 of one: 500 rows, of which a tenth tests.
    cells = [f"large {row // 10}" for row in range(200)] + [f"small {row}" for row in range(300)]

    tested = np.array([split_rows(cells, group="g", seed=seed) == TEST for seed in range(200)])

    # Of large groups two are expected.
    assert tested.sum(axis=1).tolist() == [50] * 200
    assert 1.75 < tested[:, :200:10].sum(axis=1).mean() < 2.25  # five standard errors are 0.45
    assert tested[:, ::10].mean(axis=0).max() < 0.25


def test_a_seed_decides_which_groups_go_where() -> None:
    cells = random_groups(np.random.default_rng(1), 100, 5)

    first, again, other = (split_rows(cells, group="g", seed=seed) for seed in (3, 3, 4))

    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_blanks_around_a_group_are_no_part_of_its_name() -> None:
    codes = split_rows([" a", "a\t", "b", "c ", "a", "c"], group="g")

    assert len({codes[0], codes[1], codes[4]}) == 1
    assert codes[3] == codes[5]


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize("y", ["1", SLOW], ids=["by pyarrow", "cell by cell"])
def test_a_text_column_can_be_the_group_and_is_no_feature(y: str) -> None:
    lines = [f"{row},patient {row * row % 11},{y if row == 99 else row}\n" for row in range(100)]

    table = prepare(Path(), "x,who,y\n" + "".join(lines), split={"group": "who"}, dtype="float64")

    assert table.features == ["x"]
    patients = [{row * row % 11 for row in rows[:, 0].astype(int)} for rows in read_splits(Path()).values()]
    assert sum(map(len, patients)) == len(set.union(*patients)) == 6


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize("key", ["group", "order"])
@pytest.mark.parametrize("y", ["1", "16777217.5e9", SLOW], ids=["by pyarrow", "as text", "cell by cell"])
def test_the_column_can_be_a_feature_too(key: str, y: str) -> None:
    lines = [f"{row % 7},{row},{y if row == 99 else row}\n" for row in range(100)]

    table = prepare(Path(), "k,x,y\n" + "".join(lines), split={key: "k"}, features=["x", "k"], dtype="float64")

    rows = np.concatenate(list(read_splits(Path()).values()))
    assert table.features == ["x", "k"]
    assert np.array_equal(rows[:, 0] % 7, rows[:, 1])
    assert table.rows["train"] > 50


# --- an order


def shuffled(keys: list[str]) -> tuple[list[str], NDArray[np.int64]]:
    """Return the sorted keys in another order, and where each is in theirs."""
    places = np.random.default_rng(5).permutation(len(keys))
    return [keys[place] for place in places], places


ORDERS: dict[str, Callable[[int], str]] = {
    "whole numbers": lambda row: str(row - 150),
    "fractions": lambda row: f"{(row - 150) / 8}",
    "whole numbers, then fractions": lambda row: f"{row / 2:g}",
    "beyond 2^53": lambda row: str(1_700_000_000_000_000_000 + row),
    "signs and blanks": lambda row: f" {row - 150:+}\t",
    "days": lambda row: str(np.datetime64("1999-11-01") + row),
    "months": lambda row: str(np.datetime64("1960-01") + row),
    "hours": lambda row: str(np.datetime64("1969-12-28T00") + row) + ":30:00",
    "microseconds": lambda row: f"2024-02-29 23:59:59.{999_000 + row}",
    "a day, then its times": lambda row: "2024-01-01" if row == 0 else f"2024-01-01T0{row // 60}:{row % 60:02}",
    "time zones": lambda row: f"2024-01-01T{10 + row % 3}:{row // 3 // 2:02}:{row // 3 % 2}{row % 3}+0{row % 3}:00",
}


@pytest.mark.usefixtures("_small_chunks")
@pytest.mark.parametrize("kind", ORDERS)
def test_the_first_rows_train_and_the_last_test(kind: str) -> None:
    cells, places = shuffled([ORDERS[kind](row) for row in range(300)])

    codes = split_rows(cells, order="t", train=0.7, validation=0.2)

    assert np.array_equal(codes, np.repeat([TRAIN, VALIDATION, TEST], [210, 60, 30])[places])


@pytest.mark.parametrize("seed", range(5))
def test_of_rows_at_the_same_place_the_ones_that_the_file_has_first_come_first(seed: int) -> None:
    keys = np.random.default_rng(seed).integers(0, 12, 200)

    codes = split_rows([str(key) for key in keys], order="t")

    assert np.bincount(codes).tolist() == [160, 20, 20]
    in_order = sorted(range(200), key=lambda row: (keys[row], row))
    assert all(codes[row] <= codes[following] for row, following in pairwise(in_order))


def test_each_split_of_an_order_keeps_the_csvs_order() -> None:
    lines = [f"2024-01-{31 - row:02},{row},{row}\n" for row in range(30)]

    table = prepare(Path(), "day,x,y\n" + "".join(lines), split={"order": "day"})

    assert table.features == ["x"]
    splits = read_splits(Path())
    assert [rows[:, 0].tolist() for rows in splits.values()] == [list(range(6, 30)), [3, 4, 5], [0, 1, 2]]


def test_an_order_is_read_in_the_csvs_format() -> None:
    lines = [
        f'"{row // 1000 or ""}{"." if row >= 1000 else ""}{row % 1000:03},5";{row};{row}\n' for row in range(0, 4000, 100)
    ]

    prepare(
        Path(),
        "t;x;y\n" + "".join(reversed(lines)),
        split={"order": "t"},
        format={"separator": ";", "decimal": ",", "thousands": "."},
    )

    assert read_splits(Path())["test"][:, 0].tolist() == [3900, 3800, 3700, 3600]


# --- folds


def all_folds(rows: int | list[str], folds: int, **settings: Any) -> NDArray[np.uint8]:
    """Return the rows' splits [K, rows] of each fold."""
    return np.array([split_rows(rows, folds=folds, fold=fold, **settings) for fold in range(folds)])


def assert_each_row_tests_once(codes: NDArray[np.uint8]) -> None:
    assert ((codes == TEST).sum(axis=0) == 1).all()
    assert ((codes == VALIDATION).sum(axis=0) == 1).all()
    # A fold that tests has validated in the run before.
    assert np.array_equal(codes == VALIDATION, np.roll(codes == TEST, -1, axis=0))


@pytest.mark.usefixtures("_small_chunks")
@pytest.mark.parametrize(("rows", "folds"), [(3, 3), (100, 3), (101, 4), (57, 10), (300, 299)])
def test_each_row_is_a_test_row_of_one_fold(rows: int, folds: int) -> None:
    codes = all_folds(rows, folds, seed=rows)

    assert_each_row_tests_once(codes)
    # As scikit-learn's KFold does: the first of them have one more.
    assert (codes == TEST).sum(axis=1).tolist() == [rows // folds + (fold < rows % folds) for fold in range(folds)]


@pytest.mark.parametrize("seed", range(8))
def test_each_group_is_in_one_fold(seed: int) -> None:
    generator = np.random.default_rng(seed)
    folds = int(generator.integers(3, 8))
    cells = random_groups(generator, int(generator.integers(folds, 60)), 30)

    codes = all_folds(cells, folds, group="g")

    assert_each_row_tests_once(codes)
    sizes = (codes == TEST).sum(axis=1)
    assert_none_is_parted(cells, (codes == TEST).argmax(axis=0).astype(np.uint8))
    assert sizes.min() > 0
    assert np.abs(sizes - len(cells) / folds).max() <= rows_of(cells).max()


def test_folds_are_drawn_with_the_seed() -> None:
    first, again, other = (split_rows(200, folds=5, seed=seed) for seed in (1, 1, 2))

    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    # Not in blocks: of 199 neighbours 112 are expected to go to different splits.
    assert np.count_nonzero(np.diff(first)) > 75


# --- what is refused


@pytest.mark.parametrize(
    ("rows", "settings", "line"),
    [
        (2, {}, "prepare.split: found too few rows, 2, for 'validation', allowed: at least one row in each split"),
        (4, {"folds": 5}, "prepare.split.folds: found 5 folds for 4 rows, allowed: at least one row in each fold"),
        (
            ["a", "b", "a"],
            {"group": "g"},
            "column 'g': found 2 groups (prepare.split.group), allowed: at least 3, one for each split",
        ),
        (
            ["a", "b", "c"] * 5,
            {"group": "g", "folds": 4},
            "column 'g': found 3 groups (prepare.split.group), allowed: at least 4, one for each fold",
        ),
        (
            ["1", "2"],
            {"order": "t"},
            "prepare.split: found too few rows, 2, for 'validation', allowed: at least one row in each split",
        ),
        (
            ["train", "test"],
            {"column": "s"},
            "column 's': found no row with 'validation', allowed: at least one row in each split",
        ),
    ],
)
def test_too_few_are_refused(rows: int | list[str], settings: dict[str, Any], line: str) -> None:
    with pytest.raises(TableError) as caught:
        split_rows(rows, **settings)

    assert str(caught.value) == f"data.csv: {line}"


A_PLACE = "a number, or a date or time such as 2024-01-31 or 2024-01-31T12:30:00"


@pytest.mark.parametrize(
    ("key", "cells", "faults"),
    [
        ("group", ["a", " ", "b"], ["line 3, column 'k': found an empty cell, allowed: text that names the row's group"]),
        ("order", ["", "3", "x"], [
            f"line 2, column 'k': found an empty cell, allowed: {A_PLACE}",
            "line 4, column 'k': found 'x', allowed: a number, as in the rows before",
        ]),
        ("order", ["2024-02-29", "2023-02-29", "5"], [
            "line 3, column 'k': found '2023-02-29', allowed: a date or time without a time zone, as in the rows before",
            "line 4, column 'k': found '5', allowed: a date or time without a time zone, as in the rows before",
        ]),
        ("order", ["2024-01-01T00:00Z", "2024-01-01"], [
            "line 3, column 'k': found '2024-01-01', allowed: a date and time with a time zone, as in the rows before",
        ]),
        ("order", ["1", "nan", "1e999"], [
            "line 3, column 'k': found 'nan', allowed: a number, as in the rows before",
            "line 4, column 'k': found '1e999', allowed: a number, as in the rows before",
        ]),
        ("order", ["31.12.2024"], [f"line 2, column 'k': found '31.12.2024', allowed: {A_PLACE}"]),
    ],
)  # fmt: skip
def test_a_cell_that_says_no_group_or_place_is_named(key: str, cells: list[str], faults: list[str]) -> None:
    content = "x,k,y\n" + "".join(f"{row},{cell},{row}\n" for row, cell in enumerate(cells))

    total = f" ({len(faults)} bad cells in the column)" if len(faults) > 1 else ""
    assert refusal(content, split={key: "k"}) == f"data.csv: {faults[0]}{total}"


@pytest.mark.parametrize("key", ["group", "order"])
def test_a_column_that_the_csv_lacks_is_named_with_its_key(key: str) -> None:
    line = f"line 1: found no column 'z' (prepare.split.{key}), allowed: 'x', 'y'"

    assert refusal("x,y\n1,2\n", split={key: "z"}) == f"data.csv: {line}"


@pytest.mark.parametrize("column", [GroupColumn("k"), OrderColumn("k", FormatSettings())])
def test_bytes_that_are_no_text_are_a_fault(column: GroupColumn | OrderColumn) -> None:
    assert column.fault("12\udcff") is not None
    assert column.fault("12") is None
