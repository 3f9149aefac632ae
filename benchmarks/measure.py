"""What the benchmarks share: competitors that take turns, figures with spread and bound, processes watched from outside.

Each benchmark writes its figures to `FOLDER`/NAME.json; report.py gathers them. A figure is the median over the rounds, and
a ratio is taken within a round, so that a noisy machine is noisy for both sides.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import distributions
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from truefit.data.generating import GenerateSettings
from truefit.ingest.prepare import PrepareSettings, write_table
from truefit.ingest.synthetic import write_csv

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".truefit/bench"
COEFFICIENTS = (1.0, -2.0, 3.0, 0.5)
PACKAGES = (
    *("torch", "numpy", "pandas", "pyarrow", "mlflow", "dvc"),
    *("scikit-learn", "pytorch-lightning", "skorch", "datasets", "tensordict"),
)

T = TypeVar("T")
Seconds = dict[str, list[float]]


@dataclass(frozen=True)
class Figure:
    """One measured figure: median and quartiles over `repeats`, and the bound that it is held to, if there is one."""

    group: str
    name: str
    unit: str
    median: float
    low: float
    high: float
    repeats: int
    least: float | None = None
    most: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the median keeps the bound; None without one."""
        if self.least is None and self.most is None:
            return None
        return (self.least is None or self.median >= self.least) and (self.most is None or self.median <= self.most)


def figure(
    group: str, name: str, unit: str, values: ArrayLike, least: float | None = None, most: float | None = None
) -> Figure:
    """Return the figure of the values, one a round."""
    low, median, high = (float(value) for value in np.quantile(np.asarray(values), [0.25, 0.5, 0.75]))
    return Figure(group, name, unit, median, low, high, np.size(values), least, most)


def line(one: Figure) -> str:
    """Return a figure as a line of text."""
    bound = f", at least {one.least:g}" if one.least is not None else ""
    bound += f", at most {one.most:g}" if one.most is not None else ""
    verdict = "" if one.met is None else " (met)" if one.met else " (MISSED)"
    spread = f"quartiles {one.low:.4g} to {one.high:.4g}, {one.repeats} rounds"
    return f"{one.group}: {one.name}: {one.median:.4g} {one.unit}, {spread}{bound}{verdict}"


def over(seconds: Mapping[str, Sequence[float]], first: str, second: str) -> Any:
    """Return the ratio of the seconds of `first` to those of `second`, round by round."""
    return np.asarray(seconds[first]) / np.asarray(seconds[second])


def take_turns(competitors: Mapping[str, Callable[[], T]], rounds: int, warm: bool = True) -> dict[str, list[T]]:
    """Call each competitor once a round, each round beginning with another; return what they gave, round by round.

    With `warm` there is a round before the first that counts.
    """
    names = list(competitors)
    results: dict[str, list[T]] = {name: [] for name in names}
    for number in range(-1 if warm else 0, rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            result = competitors[name]()
            if number >= 0:
                results[name].append(result)
            print(f"round {number + 1} of {rounds}: {name}: {result}", file=sys.stderr)
    return results


def timed(work: Callable[[], object]) -> Callable[[], float]:
    """Return a function that does the work and gives its seconds."""

    def seconds() -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    return seconds


def in_own_process(function: Callable[..., T], *arguments: Any) -> T:
    """Return what the function gives in a fresh process; it has to be at the top of its module."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def synthetic(rows: int) -> GenerateSettings:
    """Return the settings of so many rows of 4 features."""
    return GenerateSettings(rows=rows, coefficients=COEFFICIENTS)


def make_table(folder: Path, train_rows: int) -> Path:
    """Return `folder` with a prepared table of so many training rows, and an eighth of that for validation and for test."""
    csv = folder / "data.csv"
    write_csv(synthetic(train_rows * 10 // 8), csv)
    write_table(PrepareSettings(csv=str(csv)), folder)
    csv.unlink()
    return folder


def watch(command: Sequence[str], cwd: Path, environment: Mapping[str, str]) -> tuple[float, float]:
    """Run a command; return its seconds, and the highest anonymous memory of it and its children, in MB of 10^6 bytes."""
    with tempfile.TemporaryFile("w+") as printed:
        started, peak = time.perf_counter(), 0
        process = subprocess.Popen(command, cwd=cwd, env=environment, stdout=printed, stderr=subprocess.STDOUT)
        while process.poll() is None:
            peak = max(peak, _rss_anon(process.pid))
            time.sleep(0.005)
        seconds = time.perf_counter() - started
        printed.seek(0)
        assert process.returncode == 0, f"{' '.join(command)}: {process.returncode}\n{printed.read()}"
    return seconds, peak / 1e6


def _rss_anon(process: int, above: bytes = b"") -> int:
    """Return the bytes of RssAnon of the process and those below it, or 0 for one that is gone.

    One with the command line of the process above it is about to start a program, and shows the memory of that process.
    """
    place = Path(f"/proc/{process}")
    try:
        # In this order: a program that begins in between is one whose memory is its own by the second read.
        command, text = (place / "cmdline").read_bytes(), (place / "status").read_text()
        children = [int(child) for task in (place / "task").iterdir() for child in (task / "children").read_text().split()]
    except OSError:
        return 0
    if command == above:
        return 0
    own = next((int(row.split()[1]) * 1024 for row in text.splitlines() if row.startswith("RssAnon")), 0)
    return own + sum(_rss_anon(child, command) for child in children)


def arguments(description: str | None, rounds: int, **options: int | str) -> argparse.Namespace:
    """Return the command line's settings: `--rounds`, `--out`, and the options named, with their defaults."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=FOLDER, help="the folder for the figures (default: .truefit/bench)")
    for name, default in {"rounds": rounds, **options}.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default, help=f"default: {default}")
    return parser.parse_args()


def machine() -> dict[str, Any]:
    """Return what the figures depend on beside the code: the machine and the versions."""
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    installed = {one.name: one.version for one in distributions()}
    versions = {name: installed[name] for name in PACKAGES if name in installed}
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False)
    return {
        "cpu": model[1] if model else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.system(),
        "commit": commit.stdout.strip(),
        "versions": {"python": platform.python_version(), **versions},
    }


def save(out: Path, name: str, figures: Iterable[Figure]) -> None:
    """Print the figures and write them, with the machine, to `out`/NAME.json."""
    figures = list(figures)
    print("\n".join(map(line, figures)))
    out.mkdir(parents=True, exist_ok=True)
    content = {"machine": machine(), "figures": [asdict(one) for one in figures]}
    (out / f"{name}.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
