"""Parts that several processes read: the bytes and the errors of one process, and nothing left of those that are killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers_parts import ROWS, prepared, write_csv, write_parquet
from helpers_torture import long

from truefit.core.errors import TableError
from truefit.ingest import part_processes

SRC = Path(__file__).parents[2] / "src"

DRIVER = f"""
import resource, sys
sys.path.insert(0, {str(SRC)!r})
import prepare
from truefit.core import errors
from truefit.ingest import part_processes
part_processes.PROCESS_BYTES, part_processes.usable_cores = 1, lambda: 2
if len(sys.argv) > 2:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop()),) * 2)
sys.exit(errors.run(prepare.main))
"""


pytestmark = pytest.mark.usefixtures("_parts")


@pytest.fixture
def _parts(_in_an_empty_folder: None) -> None:
    Path("parts").mkdir()


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have two processes read parts, however small."""
    monkeypatch.setattr(part_processes, "PROCESS_BYTES", 1)
    monkeypatch.setattr(part_processes, "usable_cores", lambda: 2)


def refusal(**settings: Any) -> str:
    with pytest.raises(TableError) as caught:
        prepared("refused", **settings)
    assert not list(Path("refused").iterdir())
    return str(caught.value)


@pytest.mark.parametrize(
    ("write", "settings"),
    [
        (
            write_csv,
            {"missing": {"features": "fill"}, "weight": "w", "split": {"group": "g", "folds": 4}},
        ),
        (write_csv, {"missing": {"features": "drop"}, "dtype": "float64", "split": {"order": "o"}}),
        (write_parquet, {"missing": {"features": "fill"}, "split": {"column": "s"}}),
    ],
    ids=["csv, groups", "csv, order", "parquet"],
)
def test_two_processes_write_the_bytes_of_one(
    write: Callable[[int, bool], None], settings: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    for number in range(5):
        write(number, True)
    alone = prepared("alone", **settings)
    request.getfixturevalue("two")
    assert prepared("together", **settings) == alone


@pytest.fixture
def three_parts(_parts: None) -> None:
    for number in range(3):
        write_csv(number, gaps=False)


def spoil(number: int, column: int, text: str, row: int = ROWS) -> None:
    """Write another text into a cell of a part."""
    path = Path(f"parts/{number}.csv")
    lines = path.read_text().splitlines()
    cells = lines[row].split(",")
    lines[row] = ",".join([*cells[:column], text, *cells[column + 1 :]])
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.usefixtures("three_parts", "two")
def test_of_the_parts_with_faults_the_first_is_told_though_another_is_found_before_it() -> None:
    path = Path("parts/1.csv")
    header, *lines = path.read_text().splitlines(keepends=True)
    path.write_text(header + "".join(lines) * 200)
    spoil(1, 0, "one", row=ROWS * 200)
    spoil(2, 0, "two", row=1)
    assert refusal() == f"parts/1.csv: line {ROWS * 200 + 1}, column 'x': found 'one', allowed: a number"


@pytest.mark.usefixtures("three_parts", "two")
def test_what_is_wrong_with_a_part_by_those_before_it_is_told_as_by_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(2, 5, "2024-01-31", row=1)
    allowed = "a number, as in the rows before"
    assert refusal(split={"order": "o"}) == f"parts/2.csv: line 2, column 'o': found '2024-01-31', allowed: {allowed}"
    monkeypatch.setattr("truefit.data.columns.category.MOST_TEXTS", 6)
    assert refusal() == (
        "parts/2.csv: column 'c': found more than 6 different texts, allowed: fewer, or the column left out by prepare.exclude"
    )


@long
@pytest.mark.usefixtures("two")
def test_parts_without_rows_are_told_as_by_one_process() -> None:
    for number in range(2):
        Path(f"parts/{number}.csv").write_text("x,y\n")
    assert refusal(columns={}, exclude=[]) == "parts: found no rows in 2 parts, allowed: at least one"


def test_small_parts_are_read_by_one_process(three_parts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_processes, "usable_cores", lambda: 2)
    monkeypatch.setattr(subprocess, "Popen", None)
    assert prepared("alone")[0].table.rows["train"] == 720


@pytest.fixture
def driver(three_parts: None) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Give what starts the stage prepare, with two processes for the parts."""
    params = (SRC.parent / "params.yaml").read_text().replace("data/synthetic.csv", "parts", 1)
    Path("params.yaml").write_text(params.replace("features: null", "features: [x]", 1))
    started = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", DRIVER, "prepared", *arguments]
        started.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, process_group=0))
        return started[0]

    yield start
    with started[0] as process:
        process.kill()


def readers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the processes that read parts, as soon as they are there, and so before they have begun."""
    own, end, found = psutil.Process(process.pid), time.monotonic() + 60, list[psutil.Process]()
    while len(found) < 2:
        assert time.monotonic() < end
        time.sleep(0.01)
        found = own.children()
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=long)])
def test_a_signal_ends_all_processes_with_a_line_and_leaves_no_file(
    number: signal.Signals, driver: Callable[..., subprocess.Popen[str]]
) -> None:
    process = driver()
    found = readers(process)
    os.killpg(process.pid, number)  # as a terminal does
    line = f"error: stopped by {number.name} before the table was written\n"
    assert (process.communicate()[1], process.returncode) == (line, 128 + number)
    assert not psutil.wait_procs(found, timeout=0)[1]
    assert not list(Path("prepared").iterdir())


@long
def test_the_processes_end_with_the_one_that_was_killed(driver: Callable[..., subprocess.Popen[str]]) -> None:
    process = driver()
    found = readers(process)
    process.kill()
    assert not psutil.wait_procs(found, timeout=60)[1]
    assert process.communicate()[1] == ""
    assert not list(Path("prepared").iterdir())


def test_a_process_that_is_killed_ends_the_stage_with_a_line(driver: Callable[..., subprocess.Popen[str]]) -> None:
    process = driver()
    found = readers(process)
    found[0].kill()
    error, status = process.communicate()[1], process.returncode
    assert (error.count("\n"), status) == (1, 2)
    assert error.startswith("error: parts/")
    assert ".csv: the process that read it was ended by SIGKILL; run again" in error
    assert not psutil.wait_procs(found, timeout=0)[1]
    assert not list(Path("prepared").iterdir())


def test_a_full_disk_ends_the_stage_with_a_line(driver: Callable[..., subprocess.Popen[str]]) -> None:
    process = driver("4096")
    assert (process.communicate()[1], process.returncode) == ("error: [Errno 27] File too large\n", 2)
    assert not list(Path("prepared").iterdir())
