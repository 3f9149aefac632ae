"""Cost against size: each stage's time a row and its anonymous memory, from a small table to one larger than most memories.

Runs the stage scripts in a clone, at three sizes ten times apart, training with both shuffles, and at a huge size with
`block` alone. Memory is the highest RssAnon of the process and its children, read from outside. From the seconds those of
1000 rows are taken off, which are start-up; what is left at a size is compared with that at a larger one where it is more
than four times the start-up's interquartile range. The small size runs in every round, the middle one in three at most, the
others once. A CSV takes 95 bytes a row, its tables 40.

Usage: python benchmarks/scale.py [--rounds N] [--small N] [--middle N] [--large N] [--huge N] [--engine NAME] [--folder DIR]
"""

import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
from measure import COEFFICIENTS, ROOT, Figure, arguments, figure, save, watch

sys.path.insert(0, str(ROOT / "tests"))

from workspace import Workspace

START_ROWS = 1000
STAGES = {
    "generate": "python src/generate.py data/synthetic.csv",
    "prepare": "python src/prepare.py data/prepared",
    "train full": "python src/train.py data/prepared results",
    "train block": "python src/train.py data/prepared results",
    "evaluate": "python src/evaluate.py data/prepared results data/synthetic.csv",
}
Measured = dict[str, tuple[float, float]]  # stage -> seconds, MB


def run_stages(workspace: Workspace, rows: int, stages: dict[str, str]) -> Measured:
    """Run the stages one after the other on so many rows; return what each took."""
    measured = {}
    for stage, command in stages.items():
        workspace.set_params(generate__rows=rows, train__shuffle="block" if stage.endswith("block") else "full")
        measured[stage] = watch(command.split(), workspace.path, workspace.environment)
        print(f"{rows} rows: {stage}: {measured[stage][0]:.3f} s, {measured[stage][1]:.0f} MB", file=sys.stderr)
    for folder in ("data/prepared", "results"):
        shutil.rmtree(workspace.path / folder)
    return measured


def compare(runs: dict[int, list[Measured]], huge: Measured, huge_rows: int) -> Iterator[Figure]:
    """Give the figures of `runs`, by rows: the start, and the three sizes."""
    start, *sizes = sorted(runs)
    for stage in STAGES:
        group = f"scale, {stage}"
        base = statistics.median(each[stage][0] for each in runs[start])
        seconds = {rows: (np.array([each[stage][0] for each in runs[rows]]) - base) / rows for rows in sizes}
        memory = {rows: np.array([each[stage][1] for each in runs[rows]]) for rows in sizes}
        yield figure(group, "start-up", "s", [each[stage][0] for each in runs[start]])
        for rows in sizes:
            yield figure(group, f"time a row at {rows / 1e6:g}M rows", "µs", seconds[rows] * 1e6)
        for rows in sizes:
            yield figure(group, f"RssAnon at {rows / 1e6:g}M rows", "MB", memory[rows])
        low, high = np.quantile([each[stage][0] for each in runs[start]], [0.25, 0.75])
        for before, after in combinations(sizes, 2):
            if np.median(seconds[before]) * before < 4 * (high - low):
                continue
            name = f"time a row at {after / 1e6:g}M rows over {before / 1e6:g}M"
            yield figure(group, name, "×", seconds[after] / np.median(seconds[before]), most=1.3)
        _, middle, large = sizes
        # The permutation of the training rows, which `full` holds, comes on top.
        allowed = 150 + (8 * 0.8 * (large - middle) / 1e6 if stage == "train full" else 0)
        growth = memory[large] - np.median(memory[middle])
        yield figure(group, f"RssAnon at {large / 1e6:g}M rows beyond that at {middle / 1e6:g}M", "MB", growth, most=allowed)
    for stage, (taken, peak) in huge.items():
        yield figure(f"scale, {stage}", f"seconds at {huge_rows / 1e6:g}M rows", "s", [taken])
        most = 600 if stage == "train block" else None
        yield figure(f"scale, {stage}", f"RssAnon at {huge_rows / 1e6:g}M rows", "MB", [peak], most=most)


def main() -> None:
    """Run all sizes."""
    sizes = {"small": 200_000, "middle": 2_000_000, "large": 20_000_000, "huge": 50_000_000}
    given = arguments(__doc__, rounds=5, **sizes, batch=64, epochs=2, engine="torch", folder="")
    with tempfile.TemporaryDirectory(dir=given.folder or None) as temporary:
        workspace = Workspace(Path(temporary))
        workspace.set_params(generate__coefficients=list(COEFFICIENTS), train__engine=given.engine, train__device="cpu")
        workspace.set_params(train__batch_size=given.batch, train__epochs=given.epochs)
        runs: dict[int, list[Measured]] = {}
        repeats = {START_ROWS: given.rounds, given.small: given.rounds, given.middle: min(given.rounds, 3), given.large: 1}
        run_stages(workspace, START_ROWS, STAGES)  # writes the bytecode
        for number in range(given.rounds):
            for rows in [rows for rows, times in repeats.items() if number < times]:
                runs.setdefault(rows, []).append(run_stages(workspace, rows, STAGES))
        huge = {stage: command for stage, command in STAGES.items() if stage != "train full"}
        figures = list(compare(runs, run_stages(workspace, given.huge, huge), given.huge))
    save(given.out, "scale", figures)


if __name__ == "__main__":
    main()
