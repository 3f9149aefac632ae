"""The description of a run: what it says, and that names from outside are text in it. How it looks: ui/test_mlflow_ui.py."""

from pathlib import Path
from typing import Any

import pytest
from helpers_data import numbered_csv, prepare
from helpers_training import renamed
from test_security import HOSTILE

from truefit.data.table import Table
from truefit.evaluation.note import describe, escape_markdown
from truefit.evaluation.report import formula
from truefit.training.settings import TrainSettings

SCORES = {"mse": 0.5, "rmse": 0.25, "mae": 1.0, "r2": None}
REPORT: dict[str, Any] = {
    "test": SCORES,
    "least_squares": SCORES,
    "excess_mse": -0.125,
    "parameters": {"intercept": 1.5, "coefficients": {"x1": -2.0}},
}


@pytest.fixture
def table(tmp_path: Path) -> Table:
    table = prepare(tmp_path, numbered_csv(20))
    source = table.csv.model_copy(update={"path": "data/a.csv", "sha256": "0123456789abcdef"})
    return renamed(table, ["x1"], csv=source, target="y")


def test_description_says_model_data_scores_line_and_command(table: Table) -> None:
    assert describe(table, TrainSettings(), REPORT).splitlines() == [
        "A **linear model** of **y** from **x1**. "
        "Engine torch, loss mse, sgd with learning rate 0.05, 16 rows a step, 50 epochs.",
        "",
        "Data: **data/a.csv**, 20 rows: 16 to train, 2 to validate, 2 to test. SHA-256 `0123456789ab…`.",
        "",
        "| test rows | mse | rmse | mae | r2 |",
        "|---|---|---|---|---|",
        "| this model | 0.5 | 0.25 | 1 | - |",
        "| least squares | 0.5 | 0.25 | 1 | - |",
        "",
        "Its mse is **12.500% below** that of least squares, the best line for the training rows. "
        "R2 is undefined: all targets of the test rows are equal.",
        "",
        "Learned: y = 1.5 -2·x1",
        "",
        "Run it again and compare every number: `truefit rerun RUN_ID`, with the Run ID that this page shows.",
    ]


def test_description_names_the_true_line_where_there_is_one(table: Table) -> None:
    truth = {"intercept": 1.0, "coefficients": {"x1": 2.0}, "noise_mse": 0.01}
    assert "True: y = 1 +2·x1, and noise of variance 0.01" in describe(table, TrainSettings(), REPORT | {"truth": truth})


@pytest.mark.parametrize(
    ("excess", "told"),
    [
        (None, "Excess mse is undefined: the mse over that of least squares is beyond float64."),
        (1e13, "The mse is 1e+13 times that of least squares."),
    ],
)
def test_description_has_no_percentage_that_says_nothing(table: Table, excess: float | None, told: str) -> None:
    worse = SCORES | {"r2": -2.0}
    text = describe(table, TrainSettings(), REPORT | {"excess_mse": excess, "test": worse})
    mean = "The model is worse than predicting the mean of the test rows' targets for each row, since r2 is below 0."
    assert f"\n\n{told} {mean}\n\n" in text
    assert "%" not in text


def test_description_says_what_the_settings_leave_open(table: Table) -> None:
    settings = TrainSettings.model_validate(
        {
            "engine": "auto",
            "batch_size": "all",
            "model": {"name": "mlp", "hidden": [8, 4]},
            "early_stopping": {"patience": 3},
        }
    )
    text = describe(table, settings, REPORT)
    assert "A **mlp model [8, 4]** of" in text
    assert "Engine auto (the tag `engine` says which)" in text
    assert "all rows a step, at most 50 epochs." in text


def test_only_the_first_names_are_shown(table: Table) -> None:
    names = [f"x{number}" for number in range(10)]
    wide = renamed(table, names)
    assert "from **x0**, **x1**, **x2**, **x3**, **x4**, **x5**, **x6**, **x7** and 2 more." in describe(
        wide, TrainSettings(), REPORT
    )
    assert formula({"intercept": 0.0, "coefficients": dict.fromkeys(names, 1.0)}).endswith(" +1·x7 + …")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("data/a-1.csv", "data/a-1.csv"),
        ("größe", "größe"),
        ("a_b", "a&#95;b"),
        ("*<`[|&\\", "&#42;&#60;&#96;&#91;&#124;&#38;&#92;"),
        ("a\nb", "a&#92;nb"),
        ("www.a.org", "www&#46;a.org"),
        ("https://a.org", "https&#58;//a.org"),
        ("x" * 41, "x" * 39 + "&#8230;"),
    ],
)
def test_name_is_text_in_markdown(name: str, text: str) -> None:
    assert escape_markdown(name) == text


def test_description_fits_into_a_tag_whatever_the_names(table: Table) -> None:
    names = [f"{number}{chr(0x1F600) * 50}" for number in range(20)]
    source = table.csv.model_copy(update={"path": HOSTILE * 10})
    wide = renamed(table, names, target=HOSTILE, csv=source)
    line = {"intercept": 1.0, "coefficients": dict.fromkeys(names, -1.23456e-300)}
    content = REPORT | {"parameters": line}
    # MLflow takes 8000 characters.
    assert len(describe(wide, TrainSettings(), content)) < 8000
