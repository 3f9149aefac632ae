"""From the benchmarks' figures to benchmarks/results.json, a table in the terminal, one in docs/benchmarks.md, and a picture.

Reads FOLDER/NAME.json of each benchmark that ran; of the others the figures in results.json stay. Writes results.json, what
stands between the two marks in docs/benchmarks.md, and docs/images/bench.png.

Usage: python benchmarks/report.py [--out FOLDER] [--root FOLDER]
"""

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure as Picture
from measure import FOLDER, ROOT, Figure, line

BEGIN, END = "<!-- bench: written by make bench -->", "<!-- /bench -->"
NAMES = ("throughput", "loader", "stages", "categories", "pipeline", "outage", "processes", "scale")
THROUGHPUT, OVER, SCALE = "throughput at batch ", " over tutorial's loop", "scale, "
Grid = dict[str, dict[str, Figure]]  # row -> column -> figure


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=FOLDER, help="the folder of the benchmarks' figures")
    parser.add_argument("--root", type=Path, default=ROOT, help="the repository to write to")
    given = parser.parse_args()
    report(given.out, given.root)


def report(out: Path, root: Path) -> None:
    """Print and write everything."""
    results = gather(out, root / "benchmarks/results.json")
    figures = [Figure(**one) for name in NAMES if name in results for one in results[name]["figures"]]
    print("\n".join(map(line, figures)))
    if epochs := multiples(figures):
        (root / "docs/images").mkdir(parents=True, exist_ok=True)
        draw(epochs).savefig(root / "docs/images/bench.png", dpi=120)
    write_between_marks(root / "docs/benchmarks.md", markdown(results, figures))


def gather(out: Path, path: Path) -> dict[str, Any]:
    """Return the figures by benchmark: the new ones, and for a benchmark that has none those in `path`, which is renewed."""
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    results |= {name: json.loads((out / f"{name}.json").read_text()) for name in NAMES if (out / f"{name}.json").exists()}
    path.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    return results


def multiples(figures: list[Figure]) -> Grid:
    """Return each competitor's multiple of the tutorial's loop at each batch size."""
    grid: Grid = {}
    for one in figures:
        if one.group.startswith(THROUGHPUT) and one.name.endswith(OVER):
            grid.setdefault(one.name.removesuffix(OVER), {})[one.group.removeprefix(THROUGHPUT)] = one
    return grid


def markdown(results: dict[str, Any], figures: list[Figure]) -> str:
    """Return the page's part: the machine, an epoch against the peers, the other ratios, the scale, the bounds."""
    text = [f"Measured on {machines(results)}. Each figure is a median, with its quartiles in brackets.", ""]
    if epochs := multiples(figures):
        text += [
            "How many epochs are done in the time of one of the tutorial's loop, by batch size. All take their steps on one",
            "thread; truefit reads the next rows from its file in another. SGDRegressor has no mini-batches: it takes a step",
            "a row, whatever the column.",
            "",
        ]
        text += [*table("", epochs, "batch {}"), "", "![The same figures as bars](images/bench.png)", ""]
    rest = [one for one in figures if one.unit == "×" and not one.group.startswith((THROUGHPUT, SCALE))]
    if rest:
        text += ["| ratio | median | rounds | held to |", "|---|---|---|---|"]
        text += [f"| {one.group}: {one.name} | {cell(one)} | {one.repeats} | {bound(one)} |" for one in rest] + [""]
    scale: Grid = {}
    for one in figures:
        if one.group.startswith(SCALE) and one.unit in ("µs", "MB") and "beyond" not in one.name:
            scale.setdefault(one.group.removeprefix(SCALE), {})[f"{one.name}, {one.unit}"] = one
    text += [*table("stage", scale, "{}"), ""] if scale else []
    held = [one for one in figures if one.met is not None]
    missed = [f"{one.group}: {one.name} ({one.median:.3g}, {bound(one)})" for one in held if not one.met]
    text.append(
        f"{len(held) - len(missed)} of {len(held)} bounds are kept." + (f" Missed: {'; '.join(missed)}." if missed else "")
    )
    return "\n".join(text)


def machines(results: dict[str, Any]) -> str:
    """Return the machines and versions in words, each combination once."""
    found = []
    for result in results.values():
        one = result["machine"]
        versions = ", ".join(f"{name} {number}" for name, number in one["versions"].items())
        found.append(f"{one['cpu']}, {one['cores']} cores, {one['system']}, {versions}")
    return "; ".join(dict.fromkeys(found))


def table(corner: str, grid: Grid, title: str) -> list[str]:
    """Return a grid as a table's lines."""
    columns = list(dict.fromkeys(column for row in grid.values() for column in row))
    lines = [f"| {corner} | {' | '.join(map(title.format, columns))} |", "|---" * (len(columns) + 1) + "|"]
    for name, row in grid.items():
        cells = [cell(row[column]) if column in row else "" for column in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def cell(one: Figure) -> str:
    """Return a median and its quartiles."""
    if one.repeats == 1:
        return digits(one.median)
    return f"{digits(one.median)} ({digits(one.low)}–{digits(one.high)})"


def digits(value: float) -> str:
    """Return a number with three significant digits at least, and no power of ten."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def bound(one: Figure) -> str:
    """Return the bound in words."""
    return f"≥ {one.least:g}" if one.least is not None else f"≤ {one.most:g}" if one.most is not None else ""


def draw(grid: Grid) -> Picture:
    """Return bars of each competitor's multiple, a panel a batch size; truefit's are dark."""
    batches = list(dict.fromkeys(batch for row in grid.values() for batch in row))
    picture = Picture(figsize=(10, 0.32 * len(grid) + 1.4), layout="constrained")
    panels = picture.subplots(1, len(batches), sharex=True, sharey=True, squeeze=False)[0]
    for axes, batch in zip(panels, batches, strict=True):
        for place, (name, row) in enumerate(reversed(grid.items())):
            if batch in row:
                one, ours = row[batch], name.startswith("truefit")
                spread = [[one.median - one.low], [one.high - one.median]]
                axes.barh(place, one.median, xerr=spread, color="0.35" if ours else "0.8", ecolor="0.1", edgecolor="0.2")
                axes.text(max(one.high, 1) * 1.15, place, digits(one.median), va="center", fontsize=8)
        axes.axvline(1, color="0.1", linestyle=":")
        axes.set(title=f"batch {batch}", xscale="log", xlabel="multiple of the tutorial's loop")
    panels[0].set_xlim(right=6 * max(one.high for row in grid.values() for one in row.values()))
    panels[0].set(yticks=range(len(grid)), yticklabels=list(reversed(grid)), ylabel="competitor")
    picture.suptitle("Epochs in the time of one of the tutorial's loop (dark: truefit)")
    return picture


def write_between_marks(path: Path, text: str) -> None:
    """Replace what stands between the marks in the document."""
    before, _, rest = path.read_text().partition(BEGIN)
    _, mark, after = rest.partition(END)
    assert mark, f"{path} has no marks {BEGIN} and {END}"
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


if __name__ == "__main__":
    main()
