"""`truefit predict` of a folder: each part is as it is alone, and OUT has all of them or stays as it was."""

import gzip
import os
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet
import pytest
from helpers_data import numbered_csv, prepare
from helpers_launch import wait_until
from helpers_stages import Stages
from helpers_training import UNSCALED, save_untrained

from truefit.cli import prediction_parts
from truefit.cli.predicted import Predicted
from truefit.cli.prediction import predict
from truefit.cli.prediction_parts import MARKER, predict_parts
from truefit.core.errors import StoppedError, TruefitError
from truefit.model.files import ModelDescription, open_model
from truefit.model.models import ModelSettings

IN, OUT = Path("new"), Path("out")
Model = tuple[Any, ModelDescription]

# In the place of the process that predicts parts, one that takes no time to start: it does what a part's content says.
WORKER = """
import os, signal, sys, time
from pathlib import Path
from truefit.core.workers import work

def do(task):
    source, target, *_ = task
    content = Path(source).read_text()
    time.sleep(0.3 * content.count("slow"))
    if "killed" in content:
        os.kill(os.getpid(), signal.SIGKILL)
    if "bad" in content:
        return {"fault": [f"{source}: bad", f"{target}: too"]}
    Path(target).write_text(content)
    return {"done": [1, 0, 0, {}, {}, {}]}

if __name__ == "__main__":
    work(do)
"""


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    IN.mkdir()


@pytest.fixture
def model() -> Model:
    """A model for x1 and x2 that nobody trained, in `model`."""
    save_untrained(
        Path("model"), prepare(Path(), numbered_csv(20, 2)), ModelSettings(name="mlp", hidden=(5,)), UNSCALED, seed=3
    )
    return open_model(Path("model"))


@pytest.fixture
def side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let two processes predict, whatever the cores and the parts."""
    monkeypatch.setattr(prediction_parts, "usable_cores", lambda: 2)
    monkeypatch.setattr(prediction_parts, "PROCESS_BYTES", 1)


@pytest.fixture
def quick_workers(side_by_side: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "quick_worker.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")  # of the worker, beside the folders that are compared
    monkeypatch.setattr(prediction_parts, "MODULE", "quick_worker")


def processes() -> list[psutil.Process]:
    """Return the processes that this one began; one is that of the fixture `stages`."""
    return [*psutil.Process().children()]


def put(**parts: str) -> None:
    for name, content in parts.items():
        (IN / f"{name}.csv").write_text(content)


def rows(count: int) -> str:
    return "x1,x2\n" + "".join(f"{row},{row / 4}\n" for row in range(count))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != MARKER}


def refusal(model: Model, target: Path = OUT, **settings: Any) -> str:
    """Return the text of the error for the folder, for which nothing may be written and nothing may change."""
    before, others = {path: path.read_bytes() if path.is_file() else b"" for path in Path().rglob("*")}, processes()
    with pytest.raises(TruefitError) as caught:
        predict_parts(*model, IN, target, **settings)
    assert {path: path.read_bytes() if path.is_file() else b"" for path in Path().rglob("*")} == before
    assert processes() == others
    return str(caught.value)


# --- the parts


def make_parts() -> dict[str, bytes]:
    """Write parts of all kinds; return what is written for each of them alone."""
    put(b=rows(5000), c=rows(1), d="x1,x2\n", a="x1,n,x2\r\n1,\ufeff,2\r\n")
    (IN / "e.csv.GZ").write_bytes(gzip.compress(rows(300).encode()))
    pyarrow.parquet.write_table(pa.table({"x2": [1.0, 2.0], "x1": [3, 4], "n": ["a", None]}), IN / "f.parquet")
    pyarrow.parquet.write_table(pa.table({"x2": pa.array([], pa.float64()), "x1": pa.array([], pa.int8())}), IN / "g.parquet")
    (IN / ".hidden").write_text("no part")
    (IN / "_SUCCESS").write_text("")
    loaded, expected = open_model(Path("model")), {}
    for part in IN.iterdir():
        if not part.name.startswith((".", "_")):
            name = "e.csv" if part.suffix == ".GZ" else part.name
            predict(*loaded, part, Path("alone") / name, part=True)
            expected[name] = (Path("alone") / name).read_bytes()
    return expected


def test_each_part_is_written_as_it_is_alone(model: Model) -> None:
    expected = make_parts()
    done = predict_parts(*model, IN, OUT)

    assert files(OUT) == expected
    assert set(expected) == {"a.csv", "b.csv", "c.csv", "d.csv", "e.csv", "f.parquet", "g.parquet"}
    assert [part.rows for part in done] == [1, 5000, 1, 0, 300, 2, 0]


def test_two_processes_write_the_same_bytes(model: Model, side_by_side: None) -> None:
    expected = make_parts()
    put(b2=rows(40_000) + "x,1\n", c2="x1,x2\ny,1\n")
    done = predict_parts(*model, IN, OUT, blanks=True)
    assert [part.rows for part in done] == [1, 5000, 40_001, 1, 1, 0, 300, 2, 0]
    written = files(OUT)
    assert written.pop("b2.csv").endswith(b"\nx,1,\n")
    assert written.pop("c2.csv") == b"x1,x2,prediction\ny,1,\n"
    assert written == expected


def test_counts_are_those_of_all_parts() -> None:
    parts = [
        Predicted(10, 2, 1, {"a": 1}, {"r": 3}, {"x": 10, "z": 10}),
        Predicted(0, 0, 0, {}, {}, {"y": 0}),
        Predicted(5, 1, 0, {"b": 1, "a": 4}, {"r": 1}, {"x": 5}),
    ]
    total = Predicted.of_parts(parts)

    assert total == Predicted(15, 3, 1, {"a": 5, "b": 1}, {"r": 4}, {"x": 15, "z": 10})
    assert total.warnings() == [
        "found no column 'x', which the model fills as missing values in all 15 rows",
        "found no column 'z', which the model fills as missing values in 10 of 15 rows",
        "found values that the model does not know, and takes for '(other)', in 'r' 4",
        "left 3 of 15 rows without a prediction: bad cells in 'a' 5, 'b' 1; 1 whose prediction is not finite",
    ]


@pytest.mark.usefixtures("model")
def test_the_command_tells_of_all_parts(tmp_path: Path, stages: Stages) -> None:
    put(a=rows(10), b="x1,x2\n1,2\n1,x\n")
    command = "truefit", "predict", "--model", "model", "new", "out"
    assert stages.run(tmp_path, *command) == (2, "error: new/b.csv: line 3, column 'x2': found 'x', allowed: a number\n")
    done = stages.run(tmp_path, *command, "--errors", "blank")

    assert done == (0, "new: left 1 of 12 rows without a prediction: bad cells in 'x2' 1\n")
    assert stages.printed == "out: 12 rows in 2 parts, 11 of them with a prediction of 'y'\n"


# --- what cannot be used


def test_folders_that_cannot_be_predicted_are_refused(model: Model) -> None:
    assert refusal(model) == f"{IN}: found no part, allowed: at least one file that is neither hidden nor begins with _"
    put(a="x1,x2\n", b="x1,x2\n")
    assert refusal(model) == f"{IN}: found no rows in 2 parts, allowed: at least one"
    put(b="x1,x2\n1,2\n", c="x1\n1\n")
    assert refusal(model) == f"{IN}/c.csv: line 1: found no column 'x2' (a feature of the model), allowed: 'x1'"
    shutil.copy(IN / "a.csv", IN / "b.csv.gz")
    assert refusal(model) == f"{IN}/b.csv.gz: is to be written as 'b.csv', as {IN}/b.csv, allowed: different names"


def test_errors_name_out_and_not_what_is_there_for_a_while(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow.parquet.write_table(pa.table({"x1": [1.0], "x2": [1.0]}), IN / "a.csv")
    told = refusal(model)
    assert told == f"{OUT}/a.csv: is to be written from the Parquet file {IN}/a.csv, allowed: a name that ends in .parquet"
    put(a=rows(10))
    for folder in (OUT, OUT.absolute()):
        monkeypatch.setattr("truefit.cli.prediction._append", lambda file, *_: file.seek(-1))
        assert refusal(model, folder) == f"{folder}/a.csv: Invalid argument"


@pytest.mark.parametrize("where", ["new", "new/out", "./new/../new"])
def test_out_is_not_in_the_folder_to_be_read(where: str, model: Model) -> None:
    put(a=rows(1))
    assert refusal(model, Path(where)) == f"{Path(where)}: found the folder to be read, or one in it, allowed: another one"


def test_what_was_written_is_replaced_as_a_whole(model: Model) -> None:
    put(a=rows(3), b=rows(3))
    OUT.mkdir()  # an empty one
    predict_parts(*model, IN, OUT)
    (IN / "a.csv").rename(IN / "c.csv")
    predict_parts(*model, IN, OUT)
    assert set(files(OUT)) == {"b.csv", "c.csv"}

    put(d="x1,x2\nbad,1\n")
    before = files(OUT)
    assert refusal(model).startswith(f"{IN}/d.csv: line 2")
    assert files(OUT) == before
    assert not list(Path().glob(".*"))


def test_what_was_not_written_so_is_refused_and_stays(model: Model) -> None:
    put(a=rows(3))
    allowed = "an empty folder, a new name, or a folder that it wrote, which is replaced"
    OUT.mkdir()
    (OUT / "a.csv").write_text("own")
    assert refusal(model) == f"{OUT}: found 'a.csv', which `truefit predict` did not write there, allowed: {allowed}"
    (OUT / "a.csv").unlink()
    predict_parts(*model, IN, OUT)
    (OUT / "notes").mkdir()
    assert refusal(model) == f"{OUT}: found 'notes', which `truefit predict` did not write there, allowed: {allowed}"
    Path("file").write_text("own")
    Path("link").symlink_to(OUT)
    for name in ("file", "link"):
        told = refusal(model, Path(name))
        assert told == f"{name}: found no folder, allowed: for the parts of {IN}, an empty folder or a new name"


# --- several processes, and what ends them


@pytest.mark.parametrize(
    ("contents", "first"),
    [
        (["ok", "bad", "bad", "ok"], "b"),
        (["ok", "slow bad", "bad", "killed"], "b"),
        (["slow", "ok", "killed", "bad"], "c"),
        (["slow slow killed", "ok", "ok", "bad"], "a"),
    ],
)
@pytest.mark.usefixtures("quick_workers")
def test_the_first_fault_in_the_parts_order_is_told(contents: list[str], first: str, model: Model) -> None:
    put(**dict(zip("abcd", contents, strict=True)))
    told = refusal(model)

    killed = f"{IN}/{first}.csv: the process that predicted it was ended by SIGKILL; run again; "
    killed += "if memory was short, on fewer cores: `taskset -c 0 truefit predict …`"
    assert told == (
        killed if "killed" in (IN / f"{first}.csv").read_text() else f"{IN}/{first}.csv: bad\n{OUT}/{first}.csv: too"
    )


@pytest.mark.usefixtures("quick_workers")
def test_more_parts_than_processes_come_all(model: Model) -> None:
    put(**{f"part{number}": "slow" if number % 5 == 0 else str(number) for number in range(12)})
    others = processes()
    assert len(predict_parts(*model, IN, OUT)) == 12
    assert files(OUT) == files(IN)
    assert processes() == others


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.usefixtures("quick_workers")
def test_a_signal_leaves_no_process_and_no_temporary_folder(number: signal.Signals, model: Model) -> None:
    put(a="ok", b="slow " * 100, c="slow " * 100)

    def when_one_is_written() -> None:
        wait_until(lambda: bool(list(Path().glob(".out.tmp/new/a.csv"))))
        os.kill(os.getpid(), number)

    sender, others = threading.Thread(target=when_one_is_written), processes()
    sender.start()
    with pytest.raises(StoppedError, match=f"stopped by {number.name} in predicting new") as caught:
        predict_parts(*model, IN, OUT)
    sender.join()
    assert caught.value.status == 128 + number
    assert processes() == others
    assert not list(Path().glob(".*"))
    assert not OUT.exists()
