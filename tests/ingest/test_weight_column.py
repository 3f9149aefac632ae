"""The column of the rows' weights: read, stored and refused by stage prepare."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_data import prepare, read_splits

from truefit.core.errors import TableError
from truefit.data.dataset import TableDataset
from truefit.data.table import SPLITS, Weight
from truefit.ingest.prepare import PrepareSettings


def csv_of(weights: list[Any], header: str = "x,w,y", quoted: bool = False) -> str:
    """Return a CSV whose rows have these weights, x counting from 1 and y twice as much."""
    shown = [f'"{weight}"' if quoted else weight for weight in weights]
    lines = [f"{row},{weight},{2 * row + row % 3}" for row, weight in enumerate(shown, 1)]
    return "\n".join([header, *lines]) + "\n"


def refused(folder: Path, content: str, **settings: Any) -> str:
    with pytest.raises(TableError) as caught:
        prepare(folder, content, weight="w", **settings)
    return str(caught.value).replace(str(folder), "")


@pytest.mark.parametrize("quoted", [False, True], ids=["plain", "quoted"])
def test_weights_are_stored_behind_the_target_and_are_no_feature(tmp_path: Path, quoted: bool) -> None:
    weights: list[Any] = [0, 1, 2.5, "1e-3", 4, 5, 6, 7, 8, 9]
    table = prepare(tmp_path, csv_of(weights, quoted=quoted), weight="w", dtype="float64")
    arrays = read_splits(tmp_path)
    rows = np.concatenate([*arrays.values()])
    assert (table.features, table.target) == (["x"], "y")
    assert sorted(rows.tolist()) == [[n, 2 * n + n % 3, float(weight)] for n, weight in enumerate(weights, 1)]
    assert table.weight == Weight(name="w", mean=arrays["train"][:, -1].mean())


def test_the_last_column_is_no_target_where_it_is_the_weight(tmp_path: Path) -> None:
    table = prepare(tmp_path, csv_of([1] * 10, header="x,y,w"), weight="w")
    assert (table.features, table.target) == (["x"], "y")


def test_a_dataset_gives_each_weight_over_the_mean_of_the_training_rows(tmp_path: Path) -> None:
    table = prepare(tmp_path, csv_of([1, 2, 3, 4] * 5), weight="w", dtype="float64")
    assert table.weight is not None
    for split, stored in read_splits(tmp_path).items():
        rows = TableDataset(tmp_path / "prepared", split)
        for _ in range(2):  # what was read once must not be divided twice
            features, target = rows[:]
            np.testing.assert_array_equal(features, stored[:, :1])
            np.testing.assert_allclose(target, np.column_stack([stored[:, 1], stored[:, 2] / table.weight.mean]), rtol=1e-15)
        assert rows[0][1].tolist() == target[0].tolist()


def test_behind_a_category_the_weight_still_is_the_last(tmp_path: Path) -> None:
    content = "c,w,y\n" + "".join(f"{'ab'[row % 2]},{row},{row % 5}\n" for row in range(1, 21))
    table = prepare(tmp_path, content, weight="w", columns={"c": "category"}, missing={"features": "fill"})
    features, target = TableDataset(tmp_path / "prepared", "train")[:]
    assert table.weight is not None
    row = (target[:, 1] * table.weight.mean).round().int()
    assert features.shape[1] == len(table.features)
    assert (target[:, 0] == row % 5).all()
    assert (features[:, table.features.index("c=b")] == row % 2).all()


def test_means_and_deviations_are_those_of_repeated_rows(tmp_path: Path) -> None:
    # But for the rows that count for nothing, the column c is constant.
    draw = np.random.default_rng(0)
    rows = [(x, 7 if row % 4 else 9, y, row % 4, "train") for row, (x, y) in enumerate(draw.normal(size=(30, 2)))]
    rows += [(0.0, 7, 0.0, 1, "validation"), (0.0, 7, 0.0, 1, "test")]
    weighted = "x,c,y,w,s\n" + "".join(f"{x},{c},{y},{w},{s}\n" for x, c, y, w, s in rows)
    again = "x,c,y,s\n" + "".join(f"{x},{c},{y},{s}\n" * w for x, c, y, w, s in rows)
    settings: dict[str, Any] = {"split": {"column": "s"}, "target": "y", "dtype": "float64"}
    one = prepare(tmp_path, weighted, weight="w", **settings)
    other = prepare(tmp_path, again, **settings)
    np.testing.assert_allclose(one.mean, other.mean, rtol=1e-12)
    np.testing.assert_allclose(one.std, other.std, rtol=1e-12)
    assert one.std[1] == other.std[1] == 0


# What is refused.


@pytest.mark.parametrize("quoted", [False, True], ids=["plain", "quoted"])
@pytest.mark.parametrize(
    ("cell", "told"),
    [
        ("-1", "found '-1', allowed: a number of at least 0"),
        ("-1e-300", "found '-1e-300', allowed: 0, or a number that float32 tells from it, or prepare.dtype: float64"),
        (
            "",
            "found an empty cell, allowed: a number of at least 0 (1 value is missing; a row of weight 0 counts for nothing)",
        ),
        ("heavy", "found 'heavy', allowed: a number"),
    ],
)
def test_a_cell_that_is_no_weight_is_named_by_its_line(tmp_path: Path, cell: str, told: str, quoted: bool) -> None:
    content = csv_of([1, 1, cell, *[1] * 7], quoted=quoted)
    assert refused(tmp_path, content, missing={"features": "drop"}) == f"/data.csv: line 4, column 'w': {told}"


def test_weights_that_are_mostly_below_0_are_not_taken_for_another_format(tmp_path: Path) -> None:
    told = refused(tmp_path, csv_of([-1, -2, -3, -4, *[1] * 6]))
    assert told == "/data.csv: line 2, column 'w': found '-1', allowed: a number of at least 0 (4 bad cells in the column)"
    told = refused(tmp_path, csv_of([*[-1] * 9, 1]))
    assert told == "/data.csv: line 2, column 'w': found '-1', allowed: a number of at least 0 (9 bad cells in the column)"


@pytest.mark.parametrize("split", SPLITS)
def test_a_split_that_weighs_nothing_is_refused(tmp_path: Path, split: str) -> None:
    rows = [(name, int(name != split)) for name in SPLITS for _ in range(2)]
    content = "x,w,y,s\n" + "".join(f"{row},{weight},{row % 4},{name}\n" for row, (name, weight) in enumerate(rows))
    told = refused(tmp_path, content, split={"column": "s"})
    found = f"found the weight 0 in all rows of the split {split!r}"
    assert told == f"/data.csv: column 'w': {found}, allowed: at least one above 0 in each split"
    assert not (tmp_path / "prepared/train.npy").exists()


def test_a_weight_beyond_all_others_is_refused(tmp_path: Path) -> None:
    content = "x,w,y,s\n1,1,1,train\n2,1,5,train\n3,1,4,validation\n4,2e15,4,test\n"
    told = refused(tmp_path, content, split={"column": "s"}, dtype="float64")
    found = "found the weight 2e+15, while the mean of the training rows' is 1"
    assert told == f"/data.csv: column 'w': {found}, allowed: weights up to 1e+15 times the mean"


def test_weights_may_lie_nearer_to_each_other_than_float32_tells(tmp_path: Path) -> None:
    table = prepare(tmp_path, csv_of([1, 1.00000001] * 5), weight="w")
    assert table.weight == Weight(name="w", mean=1.0)


@pytest.mark.parametrize(
    ("settings", "role"),
    [
        ({"target": "w"}, "target"),
        ({"features": ["x", "w"]}, "features"),
        ({"exclude": ["w"]}, "exclude"),
        ({"split": {"column": "w"}}, "split.column"),
    ],
)
def test_the_weight_has_no_other_role(settings: dict[str, Any], role: str) -> None:
    with pytest.raises(ValueError, match=f"'w', allowed: a column that prepare.{role} does not name"):
        PrepareSettings.model_validate({"weight": "w", **settings})


def test_the_weight_is_a_column_of_the_csv_and_has_no_kind(tmp_path: Path) -> None:
    told = refused(tmp_path, csv_of([1] * 10, header="x,v,y"))
    assert told == "/data.csv: line 1: found no column 'w' (prepare.weight), allowed: 'x', 'v', 'y'"
    told = refused(tmp_path, csv_of([1] * 10), columns={"w": "boolean"})
    assert told == (
        "/data.csv: line 1: found the column 'w', no feature, in prepare.columns, "
        "allowed: features alone; take it out there, or name it in prepare.features"
    )
