"""The benchmarks' report of a small, made-up set of figures: what it keeps, prints and writes; and the simulation of hosts."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from workspace import ROOT

from truefit.data.shards import ordered_sum

sys.path.insert(0, str(ROOT / "benchmarks"))

from report import report as write_report
from simulate import MODELS, Choice, Costs, epoch, exchange_seconds, longest, read_bytes

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


def test_the_simulation_prints_an_epoch_for_each_number_of_hosts_that_a_batch_has_rows_for() -> None:
    command = [sys.executable, "benchmarks/simulate.py", "--rows", "1e9", "--hosts", "1", "4", "16384", "--network", "1e8"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    one, four, too_many = [line.split(" | ") for line in printed.splitlines() if re.match(r"\| \d", line)]
    assert all(float(line[2]) > 0 for line in (one, four))
    assert too_many[2:] == ["", "", "", "more shards than rows |"]


@pytest.mark.parametrize("kind", ["doubling", "halving", "ring"])
def test_an_exchange_costs_one_process_nothing_and_a_faster_network_never_slows_it(kind: str) -> None:
    for costs in MODELS.values():
        assert exchange_seconds(replace(costs, processes=1), 1, kind) == 0
        for hosts in (1, 2, 64):
            taken = [exchange_seconds(replace(costs, network=each), hosts, kind) for each in (1e8, 1e9, 1e10)]
            assert taken == sorted(taken, reverse=True) and taken[-1] > 0


def test_a_host_reads_its_share_of_the_pages_at_least_and_all_of_them_alone() -> None:
    costs, rows = MODELS["linear"], 10**6
    assert read_bytes(costs, rows, 1) == rows * costs.row_bytes
    shares = [read_bytes(costs, rows, hosts) / (rows * costs.row_bytes) for hosts in (2, 64, 1024)]
    assert shares == sorted(shares, reverse=True)
    assert all(share >= 1 / hosts for share, hosts in zip(shares, (2, 64, 1024), strict=True))


def test_epochs_of_a_simulation_take_as_long_as_the_rows_where_all_else_is_free() -> None:
    free = Costs(row=1e-6, shard=0, step=0, order=0, read=0, add=0, call=0, latency=0, inner_latency=0)
    free = replace(free, network=1e30, inner=1e30, disk=1e30)
    rows = 8 * 10**6
    for hosts in (1, 4):
        taken, bound = longest(epoch(free, rows, hosts, Choice()))
        assert bound == "rows"
        assert taken == pytest.approx(rows * 1e-6 / hosts / 8, rel=0.05)


def test_halving_with_neighbours_first_gives_the_bits_of_the_ordered_sum() -> None:
    own = torch.randn(8, 64, generator=torch.Generator().manual_seed(1))
    sums = list(own)  # of each process, of the part that it has
    for level in range(3):
        halves = [part.chunk(2) for part in sums]
        kept = [rank >> level & 1 for rank in range(8)]
        sums = [halves[rank][kept[rank]] + halves[rank ^ 1 << level][kept[rank]] for rank in range(8)]
    in_place = [sums[rank] for rank in (0, 4, 2, 6, 1, 5, 3, 7)]  # the first level's bit decides most
    assert torch.equal(torch.cat(in_place), ordered_sum(own.unbind()))
    assert not torch.equal(torch.cat(in_place), sum(own[1:], own[0]))  # one after the other
