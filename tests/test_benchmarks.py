"""The benchmarks' report: what it keeps, prints and writes from a small, made-up set of figures, and the bounds."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from report import report as write_report

MACHINE = {"cpu": "made up", "cores": 2, "system": "Linux", "versions": {"torch": "0"}}


def figure(group: str, name: str, median: float, **bound: float) -> dict[str, Any]:
    spread = {"low": 0.9 * median, "high": 1.2 * median, "repeats": 5, "least": None, "most": None}
    return {"group": group, "name": name, "unit": "×", "median": median, **spread, **bound}


THROUGHPUT = [
    figure("throughput at batch 16", "Lightning over tutorial's loop", 0.5),
    figure("throughput at batch 16", "truefit torch over tutorial's loop", 1.75, least=1.5),
    figure("throughput at batch 256", "truefit torch over tutorial's loop", 7.5, least=8),
    figure("throughput at batch 256", "truefit compiled over tutorial's loop", 60.0, least=60),
    figure("throughput at batch 256", "truefit compiled over Lightning", 30.0, least=1),
]
SCALE = [figure("scale, prepare", "time a row at 2M rows", 0.75) | {"unit": "µs"}]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/benchmarks.md").write_text(
        "before\n<!-- bench: written by make bench -->\nold\n<!-- /bench -->\nafter\n"
    )
    return tmp_path


def report(root: Path, **benchmarks: list[dict[str, Any]]) -> str:
    """Write the benchmarks' report and return the page behind it."""
    out = root / "out"
    out.mkdir(exist_ok=True)
    for name, figures in benchmarks.items():
        (out / f"{name}.json").write_text(json.dumps({"machine": MACHINE, "figures": figures}))
    write_report(out, root)
    return (root / "docs/benchmarks.md").read_text()


def test_the_page_shows_the_medians_by_competitor_and_batch_size(root: Path) -> None:
    page = report(root, throughput=THROUGHPUT, scale=SCALE)
    assert page.startswith("before\n<!-- bench") and page.endswith("<!-- /bench -->\nafter\n")
    assert "old" not in page
    assert "| truefit torch | 1.75 (1.57–2.1) | 7.5 (6.75–9) |" in page
    assert "| truefit compiled |  | 60 (54–72) |" in page
    assert "| Lightning | 0.5 (0.45–0.6) |  |" in page
    assert "| prepare | 0.75 (0.675–0.9) |" in page
    assert "made up, 2 cores, Linux, torch 0" in page


def test_a_missed_bound_is_named(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = report(root, throughput=THROUGHPUT)
    printed = capsys.readouterr().out
    assert "3 of 4 bounds are kept. Missed: throughput at batch 256: truefit torch over tutorial's loop (7.5, ≥ 8)." in page
    assert printed.count("(met)") == 3
    assert printed.count("(MISSED)") == 1


def test_the_results_keep_what_was_not_measured_again(root: Path) -> None:
    report(root, throughput=THROUGHPUT, scale=SCALE)
    (root / "out/scale.json").unlink()
    report(root, throughput=THROUGHPUT[:1])
    results = json.loads((root / "benchmarks/results.json").read_text())
    assert results["scale"]["figures"] == SCALE
    assert results["throughput"]["figures"] == THROUGHPUT[:1]


def test_the_picture_is_drawn(root: Path) -> None:
    report(root, throughput=THROUGHPUT)
    assert (root / "docs/images/bench.png").read_bytes().startswith(b"\x89PNG")
