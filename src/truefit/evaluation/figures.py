"""The pictures, as PNGs: the same figures give the same bytes, and curves can be told apart in grey."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font
from numpy.typing import NDArray

from truefit.core.text import one_line
from truefit.evaluation.metrics import Predictor

# The trained model's, of what it is held against, and of rows: they differ in lightness as well, and lines in style.
MODEL, INK, ROWS = "#d95f02", "0.1", "0.7"
LONGEST_LABEL = 25  # characters of a name, with which "actual - predicted NAME" fits beside a picture
FARTHEST = 1000.0  # a level so far below a loss curve would press it flat


def draw_figures(
    history: pd.DataFrame,
    levels: Mapping[str, float],
    features: NDArray[Any],
    predictions: pd.DataFrame,
    best: Predictor,
    names: list[str],
    unit: str,
) -> dict[str, bytes]:
    """Return the PNGs loss.png, fit.png (one feature) or predicted.png, and residuals.png, by these names.

    `levels` holds at most two losses to compare the curves with; `features` [N, F] and `predictions` are the sampled test
    rows; `best` is the least-squares fit; `names` holds the features' names and the target's; `unit` is the losses' in words,
    with braces for the target's name.
    """
    names = [_drawable(name) for name in names]
    figures = {"loss.png": _loss_curves(history, levels, unit.format(names[-1]))}
    if features.shape[1] == 1:
        figures["fit.png"] = _fit(features, predictions, best, names)
    else:
        figures["predicted.png"] = _predicted_against_actual(predictions, names[-1])
    figures["residuals.png"] = _residuals(predictions, names[-1])
    return {name: _as_png(figure) for name, figure in figures.items()}


def rerun_picture(recorded: pd.DataFrame, again: pd.DataFrame) -> bytes:
    """Return a PNG of the losses of a run and its rerun, indexed by epoch, and below them of their difference."""
    figure = Figure(figsize=(6.4, 6.0), layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=[2, 1])
    above.set(title="Loss by epoch, recorded and run again", ylabel="mean loss of a row", yscale="log")
    below.set(xlabel="epoch", ylabel="run again - recorded")
    for name, color, style in [("train_loss", INK, "-"), ("validation_loss", MODEL, "--")]:
        label, marker = name.replace("_loss", ""), "." if len(again) == 1 else ""
        above.plot(recorded[name], color=color, linewidth=5, alpha=0.3, label=f"{label}, recorded")
        above.plot(again[name], color=color, linestyle=style, marker=marker, label=f"{label}, again")
        below.plot(again[name] - recorded[name], color=color, linestyle=style, marker=marker, label=label)
    for axes in (above, below):
        axes.grid(alpha=0.3)
        axes.legend()
    return _as_png(figure)


def _drawable(name: str) -> str:
    """Return a name on one line, in which escapes stand for what matplotlib's own font has no glyph for."""
    # Not by the fonts of the machine, on which the bytes of a picture would then depend.
    font = get_font(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"))
    return one_line(name, LONGEST_LABEL, font.get_charmap())


def _axes(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_parse_math(False)  # a column's name may hold dollars
    return figure, axes


def _loss_curves(history: pd.DataFrame, levels: Mapping[str, float], unit: str) -> Figure:
    figure, axes = _axes("Loss by epoch", "epoch", f"mean loss of a row,\n{unit}")
    marker = "." if len(history) == 1 else ""  # a line of one point is no line
    axes.plot(history["epoch"], history["train_loss"], color=INK, marker=marker, label="train")
    axes.plot(history["epoch"], history["validation_loss"], color=MODEL, linestyle="--", marker=marker, label="validation")
    axes.set_yscale("log")
    lowest = float(history[["train_loss", "validation_loss"]].to_numpy().min())
    # Levels may lie on each other and on the curves: thin dots on a broad pale line, both below the curves.
    looks = [(INK, ":", 1.5, 1.9), ("0.8", "-", 5, 1.8)]
    for (label, level), (color, style, width, zorder) in zip(levels.items(), looks, strict=False):
        if level > lowest / FARTHEST:
            axes.axhline(level, color=color, linestyle=style, linewidth=width, zorder=zorder, label=f"{label} ({level:.4g})")
    axes.legend()
    return figure


def _fit(features: NDArray[Any], predictions: pd.DataFrame, best: Predictor, names: list[str]) -> Figure:
    figure, axes = _axes("Fit on test rows", names[0], names[-1])
    order = features[:, 0].argsort()
    axes.scatter(features[:, 0], predictions["actual"], s=10, color=ROWS, label="test rows")
    axes.plot(features[order, 0], predictions["predicted"].to_numpy()[order], color=MODEL, linewidth=3, label="model")
    axes.plot(features[order, 0], best(features[order]), color=INK, linestyle=":", label="least squares")
    axes.legend()
    return figure


def _predicted_against_actual(predictions: pd.DataFrame, target: str) -> Figure:
    figure, axes = _axes("Predicted against actual, test rows", f"actual {target}", f"predicted {target}")
    axes.scatter(predictions["actual"], predictions["predicted"], s=10, color=MODEL, label="test rows")
    middle = float(predictions["actual"].mean())
    axes.axline((middle, middle), slope=1, color=INK, linestyle=":", label="predicted = actual")
    axes.legend()
    return figure


def _residuals(predictions: pd.DataFrame, target: str) -> Figure:
    figure, axes = _axes("Residuals, test rows", f"predicted {target}", f"actual - predicted {target}")
    axes.scatter(predictions["predicted"], predictions["residual"], s=10, color=MODEL)
    axes.axhline(0, color=INK, linestyle=":")
    return figure


def _as_png(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    return content.getvalue()
