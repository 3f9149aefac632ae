"""`truefit inspect`: what it prints, and what it writes into params.yaml."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from ruamel.yaml import YAML
from workspace import ROOT

from truefit.cli.inspecting import write_params
from truefit.cli.main import commands
from truefit.core.config import Params
from truefit.core.errors import SettingsError, TruefitError
from truefit.core.params_text import with_value, without
from truefit.ingest.recommend import Advice

CARS = "".join(f"{row};{'yes' if row % 3 else 'no'};{'ABC'[row % 3]};{row % 7 or ''};{3 * row},5\n" for row in range(120))
CARS = f"no;new;make;doors;price\n{CARS}"


@pytest.fixture(autouse=True)
def _in_a_folder_with_a_csv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cars.csv").write_text(CARS)


def inspect(*arguments: str) -> Result:
    return CliRunner().invoke(commands, ["inspect", *arguments])


def test_the_report_has_a_line_a_column_and_the_settings_with_reasons() -> None:
    lines = inspect("cars.csv").output.splitlines()
    assert lines[0] == "cars.csv: 120 rows, 5 columns"
    assert lines[2].split() == ["column", "kind", "missing", "distinct", "values", "remarks"]
    assert [" ".join(line.split()) for line in lines[3:8]] == [
        "'no' number 0 120 0 … 119 left out: a row number: each is 1 more than the one before; "
        "nearly the target itself, correlation 1.0000: exclude it if it is not known beforehand",
        "'new' boolean 0 2 'yes' 80, 'no' 40",
        "'make' category 0 3 'A' 40, 'B' 40, 'C' 40",
        "'doors' number 18 6 1 … 6",
        "'price' number 0 120 0.5 … 357.5 the target",
    ]
    yaml = "\n".join(lines[10:])
    assert '    separator: ";"                         # 5 cells in 121 of the first 121 rows' in yaml
    settings = YAML(typ="safe", pure=True).load(yaml)
    assert settings["prepare"]["csv"] == "cars.csv"
    assert settings["prepare"]["columns"] == {"new": "boolean", "make": "category"}


def test_json_holds_the_same_report() -> None:
    report = json.loads(inspect("cars.csv", "--json", "--target", "doors").output)
    assert (report["file"], report["rows"], report["target"], report["changed"]) == ("cars.csv", 120, "doors", None)
    assert report["columns"][1]["frequent"] == {"yes": 80, "no": 40}
    assert report["columns"][4]["greatest"] == 357.5
    assert report["settings"]["prepare"]["missing"] == {"features": "refuse", "target": "drop"}
    assert report["why"]["prepare.missing.target"] == "rows without it: 18"


def test_write_changes_the_values_in_params_yaml_and_nothing_else() -> None:
    before = (ROOT / "params.yaml").read_text()
    Path("params.yaml").write_text(before)
    done = inspect("cars.csv", "--write")
    assert done.exit_code == 0
    after = Path("params.yaml").read_text()
    values = YAML(typ="safe", pure=True).load(after)
    assert values["prepare"]["csv"] == "cars.csv"
    assert values["prepare"]["columns"] == {"new": "boolean", "make": "category"}
    assert values["prepare"]["split"] == YAML(typ="safe", pure=True).load(before)["prepare"]["split"]
    assert "  csv: cars.csv             # the path of your own CSV, which may be compressed, or Parquet file; or a " in after
    assert '    separator: ";"          # "," | ";"' in after
    kept = [line.partition("#")[2] for line in before.splitlines() if "#" in line]
    assert [line.partition("#")[2] for line in after.splitlines() if "#" in line] == kept
    assert "  prepare.csv: data/synthetic.csv -> cars.csv\n" in done.output
    assert '  prepare.format.separator: "," -> ";"\n' in done.output

    again = inspect("cars.csv", "--write")
    assert again.output.endswith("\nparams.yaml: 0 settings changed\n")
    assert Path("params.yaml").read_text() == after


def test_write_needs_a_params_yaml() -> None:
    done = inspect("cars.csv", "--write")
    assert isinstance(done.exception, SettingsError)
    assert str(done.exception).startswith("params.yaml: cannot be read")


def test_a_refused_file_ends_with_one_line_and_leaves_params_yaml() -> None:
    Path("params.yaml").write_text("prepare:\n  csv: x.csv\n")
    command = [
        sys.executable,
        "-c",
        "from truefit.cli.main import main; main()",
        "inspect",
        "cars.csv",
        "--target",
        "make",
        "--write",
    ]
    done = subprocess.run(command, env={"PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: cars.csv: column 'make': found text, such as 'A', 'B', 'C', in 120 rows")
    assert done.stderr.count("\n") == 1
    assert Path("params.yaml").read_text() == "prepare:\n  csv: x.csv\n"


def changed(text: str, key: str, value: Any) -> str:
    return with_value(text, key.split("."), value)


LONG = {f"column{number}": "category" for number in range(9)}


@pytest.mark.parametrize(
    ("text", "key", "value", "after"),
    [
        ("a: 1  # one\nb: 2\n", "a", "x", "a: x  # one\nb: 2\n"),
        ("a: 1         # one\nb: 2\n", "a", [0.5, None], "a: [0.5, null] # one\nb: 2\n"),
        ("a: [1, 2]    # some\n", "a", [], "a: []        # some\n"),
        ("a:           # some\n  - 1\n  - 2   # two\n\n# b\nb: 2\n", "a", [3], "a: [3]       # some\n\n# b\nb: 2\n"),
        ("a:   # none\nb: 2\n", "a", True, "a: true # none\nb: 2\n"),
        ("a: {b: 1, c: 2} # two\n", "a.c", "d e", 'a: {b: 1, c: "d e"} # two\n'),
        ("a: {b: 1} # one\n", "a.c", 2, "a: {b: 1, c: 2} # one\n"),
        ("a: {}   # none\n", "a.c", 2, "a: {c: 2}   # none\n"),
        ("a:\n    b: 1  # one\n\n# c\nc: 2", "a.d.e", 2, "a:\n    b: 1  # one\n    d:\n      e: 2\n\n# c\nc: 2"),
        ("a: 1", "b", {}, "a: 1\nb: {}"),
        (
            "x:\n  a: {}   # none\n  b: 1\n",
            "x.a",
            LONG,
            "x:\n  a:      # none\n" + "".join(f"    {name}: category\n" for name in LONG) + "  b: 1\n",
        ),
        ("a: 'b'   # text\n", "a", "\t", 'a: "\\t"  # text\n'),
        ("a: é # é\nb: é\n", "b", "ü: #", 'a: é # é\nb: "ü: #"\n'),
    ],
)
def test_a_value_is_replaced_in_the_text(text: str, key: str, value: Any, after: str) -> None:
    assert changed(text, key, value) == after
    found = YAML(typ="safe", pure=True).load(after)
    for name in key.split("."):
        found = found[name]
    assert found == value


def test_a_key_is_taken_out_with_its_line() -> None:
    assert without("a:\n  b: 1  # one\n  c: [2,\n    3]\n  d: 4\n", ["a", "c"]) == "a:\n  b: 1  # one\n  d: 4\n"


def test_keys_of_another_schedule_and_an_engine_for_lines_alone_go() -> None:
    text = "train:\n  engine: numpy\n  schedule:\n    name: step\n    gamma: 0.5 # half\n  epochs: 9\n"
    path = Path("params.yaml")
    path.write_text(text)
    model = {"train.model.name": "mlp", "train.model.hidden": [8]}
    advice = model | {"train.optimizer.name": "adam", "train.schedule.name": "cosine"}
    changes = write_params(path, [Advice(key, value, "") for key, value in advice.items()])
    values = Params(path).values["train"]
    assert values["schedule"] == {"name": "cosine"}
    assert (values["engine"], values["epochs"]) == ("torch", 9)
    assert {key for key, *_ in changes} == {*advice, "train.schedule.gamma", "train.engine"}


@pytest.mark.parametrize("text", ["prepare: &one {csv: x}\ntrain: *one\n", "prepare: [1]\n"])
def test_what_cannot_be_changed_in_the_text_is_refused(text: str) -> None:
    path = Path("params.yaml")
    path.write_text(text)
    advice = {"prepare.csv": "y", "train.csv": "z", "train.model.name": "linear", "train.optimizer.name": "sgd"}
    with pytest.raises(
        TruefitError, match=r"params\.yaml: cannot be changed as it is written .*; put in the settings by hand"
    ):
        write_params(path, [Advice(key, value, "") for key, value in advice.items()])
    assert path.read_text() == text


def params_with(*changes: tuple[str, Any]) -> str:
    """Write the repository's params.yaml with some values changed, and return its text."""
    text = (ROOT / "params.yaml").read_text()
    for key, value in changes:
        text = changed(text, key, value)
    Path("params.yaml").write_text(text)
    return text


def written() -> dict[str, Any]:
    values: dict[str, Any] = YAML(typ="safe", pure=True).load(Path("params.yaml").read_text())["prepare"]
    return values


@pytest.mark.parametrize("key", ["weight", "split.group", "split.order"])
def test_the_target_by_default_is_no_column_that_has_another_role(key: str) -> None:
    params_with((f"prepare.{key}", "price"), *([("prepare.split.seed", 42)] if key == "split.order" else []))
    done = inspect("cars.csv", "--write")
    assert done.exit_code == 0, done.exception
    assert (written()["target"], written()["exclude"]) == ("doors", ["no"])
    assert "# the last column that is used for nothing else" in done.output


def test_nothing_is_written_where_the_settings_do_not_go_together() -> None:
    before = params_with(("prepare.weight", "price"))
    done = inspect("cars.csv", "--write", "--target", "price")
    assert isinstance(done.exception, SettingsError)
    assert str(done.exception) == (
        "params.yaml: prepare.weight: found 'price', allowed: a column that prepare.target does not name"
    )
    assert Path("params.yaml").read_text() == before


@pytest.mark.parametrize("key", ["prepare.weight", "prepare.split.column"])
def test_a_role_of_a_column_that_the_file_lacks_is_told_and_nothing_written(key: str) -> None:
    before = params_with((key, "household"))
    told = f"{key}: found 'household', allowed: null, or a column of cars.csv, which has none of that name"
    assert inspect("cars.csv").output.endswith(f"\nparams.yaml: {told}\n")
    assert json.loads(inspect("cars.csv", "--json").output)["remarks"] == [told]
    done = inspect("cars.csv", "--write")
    assert isinstance(done.exception, SettingsError)
    assert str(done.exception) == f"params.yaml: {told}"
    assert Path("params.yaml").read_text() == before


def test_of_a_folder_the_parts_of_params_yaml_are_read_and_of_a_file_none_are_named() -> None:
    params_with(("prepare.parts", "*.csv"))
    Path("parts").mkdir()
    for name in ("a.csv", "b.csv"):
        Path("parts", name).write_text(CARS)
    Path("parts", "README.md").write_text("# Cars\n")
    assert inspect("parts", "--write").output.startswith("parts: 240 rows, 5 columns\n")
    assert (written()["csv"], written()["parts"]) == ("parts", "*.csv")
    assert inspect("cars.csv", "--write").exit_code == 0
    assert (written()["csv"], written()["parts"]) == ("cars.csv", "*")
