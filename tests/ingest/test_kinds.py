"""A table of all kinds of columns, from the CSV to predictions: what is learned, from which rows, and where it travels."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers_columns import ALL_KINDS, rows_of_all_kinds
from helpers_data import READERS, prepare, read_only_by, read_splits
from helpers_training import SCALED, same_bits, save_untrained, train_with, untrained

from truefit.cli.prediction import predict
from truefit.core.config import Params
from truefit.core.errors import SettingsError, TableError, TruefitError
from truefit.data.columns import KINDS
from truefit.data.columns.category import Category
from truefit.data.dataset import TableDataset
from truefit.data.table import SPLITS, Table, read_table
from truefit.ingest.prepare import PrepareSettings
from truefit.model.files import load_model
from truefit.model.serving import ServedModel

FILL = {"features": "fill"}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def prepared(frame: pd.DataFrame, **settings: Any) -> Table:
    content = frame.to_csv(index=False)
    return prepare(Path(), content, **{"columns": ALL_KINDS, "missing": FILL, "split": {"column": "s"}, **settings})


def features(split: str, table: Table) -> pd.DataFrame:
    made = TableDataset(Path("prepared"), split)[:][0].double().numpy()  # type: ignore[arg-type]
    return pd.DataFrame(made, columns=table.features)


# --- what is learned


def test_the_features_are_those_of_each_kind_in_the_order_of_the_columns() -> None:
    frame = rows_of_all_kinds()
    table = prepared(frame)

    counts = frame["region"][frame["s"] == "train"].replace({"": None, "NA": None, "?": None}).value_counts().to_dict()
    assert table.features == [
        *("x", "x=(missing)"),
        *(f"region={name}" for name in sorted(counts, key=lambda name: (-counts[name], name))),
        *("region=(other)", "region=(missing)"),
        *("smoker", "smoker=(missing)"),
        *(f"sold.{part}" for part in ("year", "month", "day", "weekday", "day_of_year", "hour", "days")),
        "sold=(missing)",
        *(f"seen.{part}" for part in ("year", "month", "day", "weekday", "day_of_year", "days")),
        "seen=(missing)",
    ]
    assert len(table.mean) == len(table.features) + 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("reader", READERS)
def test_the_features_are_what_pandas_makes_of_the_texts(reader: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read_only_by(reader, monkeypatch)
    frame = rows_of_all_kinds()
    table = prepared(frame, dtype=dtype)
    known = frame.replace({"": None, "NA": None, "?": None})
    train = known[known["s"] == "train"]

    for split in SPLITS:
        part, made = known[known["s"] == split].reset_index(), features(split, table)
        numbers = part["x"].astype(float).fillna(train["x"].astype(float).median())
        np.testing.assert_allclose(made["x"], numbers, rtol=1e-6)
        smokers = part["smoker"].str.lower().isin(["yes", "t"])
        there = part["smoker"].notna()
        assert (made["smoker"][there] == smokers[there]).all()
        for region in train["region"].dropna().unique():
            assert (made[f"region={region}"] == (part["region"] == region)).all()
        assert not made["region=(other)"].any()
        for name, form in (("sold", None), ("seen", "%d.%m.%y")):
            days, there = pd.to_datetime(part[name], format=form), part[name].notna()
            first = pd.to_datetime(train[name], format=form).min().normalize()
            expected: dict[str, Any] = {
                "year": days.dt.year,
                "month": days.dt.month,
                "day": days.dt.day,
                "weekday": days.dt.day_of_week,
            }
            expected |= {"day_of_year": days.dt.day_of_year, "days": (days - first) / pd.Timedelta(days=1)}
            expected |= {"hour": days.dt.hour} if name == "sold" else {}
            for key, values in expected.items():
                np.testing.assert_allclose(made[f"{name}.{key}"][there], values[there], rtol=0, atol=1e-4)
        for name in ("x", "region", "smoker", "sold", "seen"):
            assert (made[f"{name}=(missing)"] == part[name].isna()).all()


@pytest.mark.parametrize("seed", range(5))
def test_all_is_learned_from_the_training_rows_alone(seed: int) -> None:
    frame = rows_of_all_kinds(seed=seed)
    table = prepared(frame)
    train = read_splits(Path())["train"]
    other = frame.copy()
    held = other["s"] != "train"
    other.loc[held, "x"] = np.where(np.arange(held.sum()) % 2, "1e6", "")
    other.loc[held, "region"] = [f"new {number}" for number in range(held.sum())]
    other.loc[held, ["smoker", "sold", "seen", "y"]] = ["yes", "1990-05-05 23:59:59", "01.01.99", "1e3"]

    changed = prepared(other)

    assert (changed.columns, changed.mean, changed.std) == (table.columns, table.mean, table.std)
    assert read_splits(Path())["train"].tobytes() == train.tobytes()
    assert features("test", changed)["region=(other)"].all()


def test_more_than_a_hundred_values_share_a_feature() -> None:
    cells = [f"n{number}" for number in range(150)] + [f"n{number}" for number in range(120, 150)]

    table = prepare(Path(), "c,y\n" + "".join(f"{cell},{row}\n" for row, cell in enumerate(cells)), columns={"c": "category"})

    assert len(table.features) == 101
    (column,) = table.columns
    assert isinstance(column, Category)
    made = features("train", table)
    assert (made.sum(axis=1) == 1).all()
    assert made["c=(other)"].sum() >= 1


def test_columns_of_one_kind_beside_many_numbers_are_each_read_right() -> None:
    names = [f"x{number}" for number in range(300)]
    content = ",".join(["c", *names, "b", "y"]) + "\n"
    content += "".join(",".join([f"v{row % 3}", *[str(row)] * 300, "yn"[row % 2], str(row)]) + "\n" for row in range(40))

    table = prepare(Path(), content, columns={"c": "category", "b": "boolean"})

    made = features("train", table)
    index = made["x0"].astype(int)
    assert (made[names].to_numpy() == made[["x0"]].to_numpy()).all()
    assert (made["b"] == 1 - index % 2).all()
    for value in range(3):
        assert (made[f"c=v{value}"] == (index % 3 == value)).all()


# --- where it travels


def test_what_was_learned_comes_back_from_table_json_and_model_json() -> None:
    table = prepared(rows_of_all_kinds())

    assert read_table(Path("prepared")) == table
    assert [type(column) for column in table.columns] == [KINDS[column.kind] for column in table.columns]
    save_untrained(Path("model"), table, scale=SCALED)
    model, description = load_model(Path("model"), table)
    assert description.columns == table.columns
    assert [type(column) for column in description.columns] == [type(column) for column in table.columns]
    assert same_bits(dict(model.state_dict()), dict(untrained(table, scale=SCALED).state_dict()))
    described = json.loads(Path("prepared/table.json").read_text())["columns"]
    assert described == json.loads(Path("model/model.json").read_text())["columns"]
    assert [column["kind"] for column in described] == ["number", "category", "boolean", "date", "date"]


def test_a_model_of_other_training_rows_is_not_taken_for_this_tables() -> None:
    def table(middle: int) -> Table:
        cells = ["", "1", str(middle), "9", *"123456"]
        return prepare(Path(), "x,y\n" + "".join(f"{cell},{row}\n" for row, cell in enumerate(cells * 3)), missing=FILL)

    save_untrained(Path("model"), table(2))
    other = table(7)

    with pytest.raises(TruefitError) as caught:
        load_model(Path("model"), other)
    assert str(caught.value) == (
        "model/model.json: trained on the same columns of other training rows; `dvc repro --force train` writes it anew"
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_predict_and_a_served_model_give_the_bits_of_the_tables_own_rows_of_all_kinds(dtype: str) -> None:
    frame = rows_of_all_kinds()
    table = prepared(frame, dtype=dtype, exclude=[])
    save_untrained(Path("model"), table, scale=SCALED)
    model, description = load_model(Path("model"), table)
    new = frame[frame["s"] == "test"].drop(columns=["s", "y"])
    new.to_csv("new.csv", index=False, columns=["seen", "sold", "smoker", "region", "x"])

    assert predict(model, description, Path("new.csv"), Path("out.csv")).rows == len(new)

    with torch.no_grad():
        expected = model(TableDataset(Path("prepared"), "test")[:][0])[:, 0].numpy()
    written = pd.read_csv("out.csv")["prediction"].to_numpy().astype(dtype)
    assert written.tobytes() == expected.tobytes()
    served = ServedModel(model, description).predict(pd.read_csv("new.csv", dtype=str, keep_default_na=False))
    assert served.tobytes() == expected.tobytes()
    typed = pd.read_csv("new.csv", parse_dates=["sold"])
    assert ServedModel(model, description).predict(typed).tobytes() == expected.tobytes()


def test_a_number_that_stands_for_a_missing_value_does_so_for_each_who_predicts() -> None:
    content = "x,y\n" + "".join(f"{'-200' if row % 5 == 0 else row},{row}\n" for row in range(40))
    table = prepare(Path(), content, missing=FILL, format={"missing": ["-200"]})
    save_untrained(Path("model"), table, scale=SCALED)
    model, description = load_model(Path("model"), table)
    Path("new.csv").write_text("x\n-200.0\n3\n")

    predict(model, description, Path("new.csv"), Path("out.csv"))

    written = pd.read_csv("out.csv")["prediction"].to_numpy().astype("float32")
    for cells in ([-200, 3], [-200.0, 3.0], ["-200", "3"], ["-2e2", "3"], [None, 3]):
        served = ServedModel(model, description).predict(pd.DataFrame({"x": cells}))
        assert served.tobytes() == written.tobytes()


def test_a_served_model_names_row_and_column_of_what_is_none_of_the_kind() -> None:
    table = prepared(rows_of_all_kinds())
    save_untrained(Path("model"), table)
    model, description = load_model(Path("model"), table)
    good = {"x": "1", "region": "north", "smoker": "yes", "sold": "2026-01-31", "seen": "31.01.26"}

    for name, cell, allowed in [
        ("x", "1,5", "a number"),
        ("smoker", "maybe", "true or false, yes or no, t or f, y or n, 1 or 0"),
        ("sold", "31.01.26", "a date such as 2026-01-31 or 2026-01-31 23:59:00"),
        ("seen", "2026-01-31", "a date like %d.%m.%y"),
    ]:
        frame = pd.DataFrame([good, good | {name: cell}], index=["a", "b"])
        with pytest.raises(ValueError, match=r"^row b") as caught:
            ServedModel(model, description).predict(frame)
        assert str(caught.value) == f"row b, column '{name}': found '{cell}', allowed: {allowed}"


def test_values_never_seen_are_one_and_the_same_other() -> None:
    table = prepared(rows_of_all_kinds())
    save_untrained(Path("model"), table, scale=SCALED)
    model, description = load_model(Path("model"), table)
    days = "yes,2026-01-31,31.01.26"
    Path("new.csv").write_text(f"x,region,smoker,sold,seen\n1,never,{days}\n1,nor this,{days}\n1,north,{days}\n1,,{days}\n")

    predict(model, description, Path("new.csv"), Path("out.csv"))

    never, other, north, missing = pd.read_csv("out.csv")["prediction"]
    assert never == other
    assert len({never, north, missing}) == 3


@pytest.mark.parametrize("engine", ["numpy", "autograd", "torch"])
def test_engines_learn_the_same_from_all_kinds(engine: str) -> None:
    prepared(rows_of_all_kinds(), dtype="float64")

    def losses(name: str) -> list[float]:
        outcome = train_with(Path("prepared"), engine=name, epochs=3, batch_size=7, seed=3)
        return outcome.history()["train_loss"].tolist()

    np.testing.assert_allclose(losses(engine), losses("numpy"), rtol=1e-9)


# --- what is refused


@pytest.mark.parametrize(
    ("columns", "key", "line"),
    [
        ("{x: text}", "x", "found 'text', allowed: a kind, number, boolean, category, date, or {kind: …} with its options"),
        ("{x: 3}", "x", "found 3, allowed: a kind, number, boolean, category, date, or {kind: …} with its options"),
        (
            "{x: [date]}",
            "x",
            "found ['date'], allowed: a kind, number, boolean, category, date, or {kind: …} with its options",
        ),
        ("{x: null}", "x", "found null, allowed: a kind, number, boolean, category, date, or {kind: …} with its options"),
        (
            "{x: {kind: [date]}}",
            "x",
            "found ['date'], allowed: a kind, number, boolean, category, date, or {kind: …} with its options",
        ),
        (
            "{x: {format: '%Y'}}",
            "x",
            "found {'format': '%Y'}, allowed: a kind, number, boolean, category, date, or {kind: …} with its options",
        ),
        ("{x: {kind: date, style: iso}}", "x", "found 'style', allowed: kind and format for the kind date"),
        ("{x: {kind: category, names: [a]}}", "x", "found 'names', allowed: kind for the kind category"),
        ("{x: {kind: date, name: z}}", "x", "found 'name', allowed: kind and format for the kind date"),
        ("{x: {kind: date, format: 7}}", "x.format", "found 7, allowed: a valid string"),
        (
            "{x: {kind: date, format: '%d.%m.'}}",
            "x.format",
            "found '%d.%m.', allowed: a format with a year, and of %Y %y %m %d %H %M %S %j %b %B each once at most, "
            "such as '%d/%m/%Y'",
        ),
        ("{y: category}", "y", "found 'category', allowed: number, which the target has to be"),
    ],
)
def test_a_kind_that_cannot_be_is_refused_with_the_keys_path(columns: str, key: str, line: str) -> None:
    Path("params.yaml").write_text(f"prepare: {{target: y, columns: {columns}}}\n")

    with pytest.raises(SettingsError) as caught:
        Params().section("prepare", PrepareSettings)

    assert str(caught.value) == f"params.yaml: prepare.columns.{key}: {line}"


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"columns": {"z": "date"}}, "found no column 'z' (prepare.columns), allowed: 'c', 'x', 'y'"),
        ({"columns": {"y": "date"}}, "found the column 'y', the target, in prepare.columns, "
         "allowed: features alone, since the target is a number"),
        ({"columns": {"c": "category"}, "exclude": ["c"]}, "found the column 'c', no feature, in prepare.columns, "
         "allowed: features alone; take it out there, or name it in prepare.features"),
    ],
)  # fmt: skip
def test_a_column_with_a_kind_must_be_a_feature(settings: dict[str, Any], line: str) -> None:
    with pytest.raises(TableError) as caught:
        prepare(Path(), "c,x,y\na,1,2\n", **settings)

    assert str(caught.value) == f"data.csv: line 1: {line}"


@pytest.mark.parametrize(
    ("header", "columns", "found"),
    [
        ("c,c=b,y", {"c": "category"}, "c=b"),
        ("c,c=(other),y", {"c": "category"}, "c=(other)"),
        ("c,x,c=b", {"c": "category"}, "c=b"),
    ],
)
def test_two_features_of_the_same_name_are_refused(header: str, columns: dict[str, Any], found: str) -> None:
    content = f"{header}\n" + "".join(f"{'ab'[row % 2]},{row},{row}\n" for row in range(20))

    with pytest.raises(
        TableError, match="allowed: different names; give a column another name, or leave it out by "
    ) as caught:
        prepare(Path(), content, columns=columns)

    assert f"found a second feature called '{found}'" in str(caught.value)
