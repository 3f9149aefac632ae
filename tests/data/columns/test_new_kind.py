"""Another kind of column, added as CONTRIBUTING.md says: a class, and its line in KINDS."""

from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pytest
from helpers_data import prepare
from helpers_training import save_untrained, train_with

from truefit.cli.prediction import predict
from truefit.core.errors import TableError
from truefit.data.columns import KINDS
from truefit.data.columns.base import Array, Column, Parsed
from truefit.data.dataset import TableDataset
from truefit.data.table import read_table
from truefit.model.files import load_model


class Range(Column):
    """Two whole numbers, as in 10-20: the middle, and how far the ends are apart in steps of `unit`."""

    kind: Literal["range"] = "range"
    unit: float = 1.0

    stored: ClassVar[int] = 2
    options: ClassVar[tuple[str, ...]] = ("unit",)
    allowed: ClassVar[str] = "a range such as 10-20"

    def parse(self, texts: pa.Array) -> Parsed:
        """Return both ends."""
        found = pyarrow.compute.extract_regex(texts, "^(?P<low>[0-9]+)-(?P<high>[0-9]+)$").to_pylist()
        ends = [(np.nan, np.nan) if pair is None else (float(pair["low"]), float(pair["high"])) for pair in found]
        bad = [pair is None and text is not None for pair, text in zip(found, texts.to_pylist(), strict=True)]
        return np.array(ends, np.float64).reshape(-1, 2), np.array(bad, bool)

    def example(self, mean: float, std: float) -> list[str]:
        """Return three ranges."""
        return ["0-1", "1-2", "2-3"]

    @property
    def values(self) -> list[str]:
        """The middle and the width."""
        return [f"{self.name}.middle", f"{self.name}.width"]

    def encode_values(self, stored: Array, out: Array) -> None:
        """Write them."""
        out[:, 0] = stored.mean(axis=1)
        out[:, 1] = (stored[:, 1] - stored[:, 0]) / self.unit


@pytest.fixture(autouse=True)
def _a_kind_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(KINDS, "range", Range)


def table_of(cells: list[str]) -> str:
    return "age,x,y\n" + "".join(f"{cell},{row},{row}\n" for row, cell in enumerate(cells))


def test_a_new_kind_is_prepared_trained_and_predicted_with() -> None:
    cells = [f"{row}-{row + row % 5 * 2}" for row in range(30)]
    cells[3] = "NA"
    columns = {"age": {"kind": "range", "unit": 2.0}}

    table = prepare(Path(), table_of(cells), columns=columns, missing={"features": "fill"})

    assert read_table(Path("prepared")) == table
    age = table.columns[0]
    assert (type(age), age.gaps) == (Range, True)
    assert table.names == ["age.middle", "age.width", "age=(missing)", "x", "y"]
    rows, _ = TableDataset(Path("prepared"), "test")[:]
    ends = [tuple(map(int, cells[int(x)].split("-"))) for x in rows[:, 3].tolist()]
    assert rows[:, :2].tolist() == [[(low + high) / 2, (high - low) / 2] for low, high in ends]
    train_with(Path("prepared"), engine="numpy", epochs=2)
    save_untrained(Path("model"), table)
    model, description = load_model(Path("model"), table)
    assert description.columns == table.columns
    Path("new.csv").write_text("x,age\n1,10-20\n2,\n")
    assert predict(model, description, Path("new.csv"), Path("out.csv")).rows == 2
    Path("new.csv").write_text("x,age\n1,10-20\n2,10 to 20\n")
    with pytest.raises(TableError) as caught:
        predict(model, description, Path("new.csv"), Path("out.csv"))
    assert str(caught.value) == "new.csv: line 3, column 'age': found '10 to 20', allowed: a range such as 10-20"


def test_its_faults_are_told_as_those_of_other_kinds() -> None:
    with pytest.raises(TableError) as caught:
        prepare(Path(), table_of(["1-2", "1-", "NA"]), columns={"age": "range"})

    assert str(caught.value) == (
        "data.csv: line 3, column 'age': found '1-', allowed: a range such as 10-20 "
        "(1 value is missing; prepare.missing: {features: fill} or {features: drop})"
    )
