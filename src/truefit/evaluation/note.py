"""The description of a run, as MLflow shows it: what was trained, on what, with what result, and how to run it again.

Reads and writes nothing. Guarantees that a name from outside is text in the markdown, and that all fits into a tag of MLflow.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any

from truefit.data.table import Table
from truefit.training.loop import TrainSettings

SHOWN_NAMES = 8  # features, at most
_SHOWN_CHARACTERS = 40  # of a name


def describe(table: Table, settings: TrainSettings, report: dict[str, Any]) -> str:
    """Return the markdown for a model that was trained with the settings, whose scores `report` holds as metrics.json does."""
    features = _joined(map(escape_markdown, table.features[:SHOWN_NAMES]), len(table.features))
    rows = table.rows
    parts = [
        f"A **{_model(settings)}** of **{escape_markdown(table.target)}** from {features}. {_training(settings)}",
        f"Data: **{escape_markdown(table.csv.path)}**, {sum(rows.values())} rows: {rows['train']} to train, "
        f"{rows['validation']} to validate, {rows['test']} to test. SHA-256 `{table.csv.sha256[:12]}…`.",
        _result(report),
    ]
    if "parameters" in report:
        parts.append(f"Learned: {escape_markdown(table.target)} = {formula(report['parameters'], escape_markdown)}")
    if "truth" in report:
        noise = f"noise of variance {report['truth']['noise_mse']:.6g}"
        parts.append(f"True: {escape_markdown(table.target)} = {formula(report['truth'], escape_markdown)}, and {noise}")
    parts.append("Run it again and compare every number: `truefit rerun RUN_ID`, with the Run ID that this page shows.")
    return "\n\n".join(parts)


def formula(line: dict[str, Any], spell_name: Callable[[str], str] = str) -> str:
    """Return a line's formula, from `intercept` and `coefficients`, with as many terms as are shown."""
    coefficients = list(line["coefficients"].items())
    terms = "".join(f" {value:+.6g}·{spell_name(name)}" for name, value in coefficients[:SHOWN_NAMES])
    return f"{line['intercept']:.6g}{terms}{' + …' if len(coefficients) > SHOWN_NAMES else ''}"


def escape_markdown(name: str) -> str:
    """Return markdown that shows the name, cut where it is long, and does nothing else.

    What markdown, HTML or a search for addresses could take for its own becomes a character reference.
    """
    short = name if len(name) <= _SHOWN_CHARACTERS else f"{name[: _SHOWN_CHARACTERS - 1]}…"
    line = re.sub(r"\s", " ", short)
    return re.sub(r"(?<=www)\.|[^\w\s./-]|_", lambda found: f"&#{ord(found[0])};", line, flags=re.IGNORECASE)


def _joined(names: Iterable[str], count: int) -> str:
    shown = [f"**{name}**" for name in names]
    return ", ".join(shown) + (f" and {count - len(shown)} more" if count > len(shown) else "")


def _model(settings: TrainSettings) -> str:
    model = settings.model
    return f"{model.name} model" + (f" [{', '.join(map(str, model.hidden))}]" if model.hidden else "")


def _training(settings: TrainSettings) -> str:
    size, limit = settings.batch_size, "at most " if settings.early_stopping.patience else ""
    batch = "all rows a step" if size == "all" else f"{size} row{'s' if size > 1 else ''} a step"
    engine = settings.engine if settings.engine != "auto" else "auto (the tag `engine` says which)"
    optimizer = f"{settings.optimizer.name} with learning rate {settings.optimizer.lr:g}"
    return f"Engine {engine}, loss {settings.loss.name}, {optimizer}, {batch}, {limit}{settings.epochs} epochs."


def _result(report: dict[str, Any]) -> str:
    """Return a table of the scores, and how far the model is from the optimum."""
    names = list(report["test"])
    rows = [
        f"| {title} | {' | '.join('-' if scores[name] is None else format(scores[name], '.6g') for name in names)} |"
        for title, scores in [("this model", report["test"]), ("least squares", report["least_squares"])]
    ]
    table = "\n".join([f"| test rows | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|", *rows])
    excess = report["excess_mse"]
    if excess is None:
        return table
    side = "above" if excess >= 0 else "below"
    return f"{table}\n\nIts mse is **{abs(excess):.3%} {side}** that of least squares, the best line for the training rows."
