"""`truefit predict` of Parquet: the columns stay with their types, and the predictions are those for the same CSV."""

import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from helpers_data import prepare
from helpers_training import SCALED, save_untrained

from truefit.cli.prediction import predict
from truefit.core.errors import TableError
from truefit.ingest import parquet_file
from truefit.model.files import ModelDescription, open_model
from truefit.model.models import ModelSettings
from truefit.model.serving import MODEL_ROWS, ServedModel

DAY = datetime.datetime(2024, 2, 27)
KINDS = {"region": "category", "on": "boolean", "sold": {"kind": "date", "format": "%d/%m/%Y"}}
SOURCE, TARGET = Path("in.parquet"), Path("out.parquet")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def model() -> tuple[Any, ModelDescription]:
    """A model that nobody trained, for a table with all kinds and gaps, which was a CSV in another format than the default."""
    rows = [
        f"{'north' if row % 3 else 'south'};{['yes', 'no', ''][row % 3]};{row % 28 + 1:02}/02/2024;{row},5;{row}"
        for row in range(40)
    ]
    text = "\n".join(["region;on;sold;x;y", *rows]) + "\n"
    form = {"separator": ";", "decimal": ",", "missing": ["", "-1,0"]}
    table = prepare(Path(), text, columns=KINDS, format=form, missing={"features": "fill"})
    save_untrained(Path("model"), table, ModelSettings(name="mlp", hidden=(7,)), SCALED, seed=3)
    return open_model(Path("model"))


def rows(count: int) -> dict[str, Any]:
    numbers = np.arange(count)
    return {
        "id": pa.array(numbers, pa.uint16()),
        "x": pa.array([None if row % 7 == 0 else -1.0 if row % 7 == 1 else row + 0.5 for row in numbers]),
        "sold": pa.array([DAY + datetime.timedelta(int(row) % 900) for row in numbers], pa.timestamp("ms")),
        "on": pa.array([[True, False, None][row % 3] for row in numbers]),
        "list": pa.array([[int(row)] for row in numbers]),
        "region": pa.array([["north", "south", "elsewhere", None][row % 4] for row in numbers]).dictionary_encode(),
    }


def write(columns: dict[str, Any], **options: Any) -> pa.Table:
    table = pa.table(columns)
    pyarrow.parquet.write_table(table, SOURCE, **options)
    return table


def refusal(model: tuple[Any, ModelDescription], target: Path = TARGET, **settings: Any) -> str:
    target.write_text("before")
    with pytest.raises(TableError) as caught:
        predict(*model, SOURCE, target, **settings)
    assert target.read_text() == "before"
    return str(caught.value)


def test_columns_stay_as_they_are_with_the_predictions_behind_them(
    model: tuple[Any, ModelDescription], monkeypatch: pytest.MonkeyPatch
) -> None:
    count = MODEL_ROWS + 321
    monkeypatch.setattr(parquet_file, "BATCH_ROWS", 1000)
    table = write(rows(count), row_group_size=700)

    assert predict(*model, SOURCE, TARGET).rows == count

    written = pyarrow.parquet.read_table(TARGET)
    assert written.schema == table.schema.append(pa.field("prediction", pa.float32()))
    assert written.drop_columns("prediction") == table
    assert pyarrow.parquet.read_metadata(TARGET).row_group(0).column(0).compression == "SNAPPY"
    assert [path for path in Path().iterdir() if path.name.startswith(".")] == []


def test_predictions_are_those_for_the_same_csv(model: tuple[Any, ModelDescription]) -> None:
    table = write(rows(100)).drop_columns(["list"])
    frame = table.to_pandas()
    frame["sold"] = frame["sold"].dt.strftime("%d/%m/%Y")
    frame.to_csv("in.csv", index=False, sep=";", decimal=",")
    predict(*model, Path("in.csv"), Path("out.csv"))
    predict(*model, SOURCE, TARGET)

    predicted = pyarrow.parquet.read_table(TARGET)["prediction"].to_numpy()
    lines = Path("out.csv").read_text().splitlines()[1:]
    assert len({*predicted.tolist()}) > 50
    assert predicted.tolist() == [float(np.float32(line.rpartition(";")[2].replace(",", "."))) for line in lines]


def test_the_served_model_gives_the_same_predictions(model: tuple[Any, ModelDescription]) -> None:
    frame = write(rows(100) | {"x": pa.array([None, *np.arange(99) / 3])}).to_pandas()
    predict(*model, SOURCE, TARGET, column="mine")
    assert pyarrow.parquet.read_table(TARGET)["mine"].to_pylist() == ServedModel(*model).predict(frame).tolist()


@pytest.mark.parametrize("names", [["1", "2", "30"], ["1.0", "2.00", "3e1"]])
@pytest.mark.parametrize("words", ["01", ["false", "true"]])
@pytest.mark.parametrize(
    "codes",
    [
        pa.array([1.0, 2.0, None, 30.0, 4.5]),
        pa.array([1, 2, None, 30, 4], pa.int32()),
        pa.array([Decimal("1.00"), Decimal("2.00"), None, Decimal("30.00"), Decimal("4.50")]),
        pa.array([1.0, 2.0, None, 30.0, 4.5]).dictionary_encode(),
    ],
)
@pytest.mark.parametrize("flags", [pa.array([0.0, 1.0, None, 1.0, 0.0], pa.float32()), pa.array([0, 1, None, 1, 0]),
                                   pa.array([False, True, None, True, False])])  # fmt: skip
def test_numbers_and_truth_values_are_taken_for_names_as_by_the_served_model(
    names: list[str], words: str | list[str], codes: Any, flags: Any
) -> None:
    cells = [f"{names[row % 3]},{words[row % 2]},{words[row // 2 % 2]},{row}" for row in range(40)]
    kinds = {"code": "category", "flag": "boolean", "word": "category"}
    table = prepare(Path(), "\n".join(["code,flag,word,y", *cells]), columns=kinds, missing={"features": "fill"})
    save_untrained(Path("model"), table, ModelSettings(name="mlp", hidden=(7,)), SCALED, seed=3)
    trained = open_model(Path("model"))
    write({"code": codes, "flag": flags, "word": flags})

    done = predict(*trained, SOURCE, TARGET)

    expected = ServedModel(*trained).predict(pyarrow.parquet.read_table(SOURCE).to_pandas())
    assert pyarrow.parquet.read_table(TARGET)["prediction"].to_pylist() == expected.tolist()
    assert done.unseen["code"] == 1


def test_parquet_and_csv_are_not_mixed(model: tuple[Any, ModelDescription]) -> None:
    write(rows(10))
    allowed = "is to be written from the Parquet file in.parquet, allowed: a name that ends in .parquet"
    assert refusal(model, Path("out.csv")) == f"out.csv: {allowed}"
    with pytest.raises(
        TableError, match=r"^other\.parquet: is to be written from the CSV data\.csv, allowed: a name that does not"
    ):
        predict(*model, Path("data.csv"), Path("other.parquet"))
    assert refusal(model, separator=";") == "--separator: found ';', allowed: none for the Parquet file in.parquet"


def test_what_cannot_be_predicted_is_refused_and_nothing_written(model: tuple[Any, ModelDescription]) -> None:
    write(rows(10) | {"on": pa.array(["yes", "maybe"] * 5)})
    assert refusal(model).startswith("in.parquet: row 2, column 'on': found 'maybe', allowed: true or false")
    write(rows(10) | {"x": pa.array([[1.0]] * 10)})
    assert refusal(model).startswith("in.parquet: column 'x': found the type list<element: double>, allowed: integers")
    columns = rows(10)
    del columns["region"]
    write(columns)
    assert refusal(model).startswith("in.parquet: found no column 'region' (a feature of the model), allowed: 'id', 'x'")
    write(rows(10) | {"prediction": [1] * 10})
    assert refusal(model) == (
        "in.parquet: column 'prediction': found the name of the column to be written, allowed: another one by --column NAME"
    )
    with pytest.raises(TableError, match=r"^in\.parquet: is the file to be read, allowed: another one$"):
        predict(*model, SOURCE, SOURCE)


def test_a_prediction_that_is_not_finite_is_told_by_its_row(model: tuple[Any, ModelDescription]) -> None:
    write(rows(10) | {"x": pa.array([1.0] * 4 + [3e38] + [1.0] * 5)})
    net, description = model
    with torch.no_grad():
        for parameter in net.body.parameters():
            parameter.mul_(1e20)
    assert refusal((net, description)).startswith("in.parquet: row ")


def test_with_blanks_a_bad_row_has_no_prediction_and_is_counted(model: tuple[Any, ModelDescription]) -> None:
    good, bad = rows(10), rows(10) | {"on": pa.array(["yes"] * 4 + ["maybe"] + ["no"] * 5)}
    write(good | {"on": pa.array(["yes"] * 5 + ["no"] * 5)})
    predict(*model, SOURCE, TARGET)
    expected = pyarrow.parquet.read_table(TARGET)["prediction"].to_pylist()
    write(bad)

    found = predict(*model, SOURCE, TARGET, blanks=True)

    assert (found.rows, found.blank, found.not_finite, found.bad, found.unseen) == (10, 1, 0, {"on": 1}, {"region": 2})
    assert pyarrow.parquet.read_table(TARGET)["prediction"].to_pylist() == [*expected[:4], None, *expected[5:]]
