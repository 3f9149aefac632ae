"""The description of a run, as MLflow shows it: what was trained, on what, with what result, and how to run it again."""

import re
from typing import Any

from truefit.core.text import one_line
from truefit.data.table import Table
from truefit.evaluation.report import formula, number, percentage, remarks
from truefit.training.settings import TrainSettings

SHOWN_NAMES = 8  # features, at most


def describe(table: Table, settings: TrainSettings, metrics: dict[str, Any]) -> str:
    """Return the markdown; `metrics` is the content of metrics.json."""
    target, rows = escape_markdown(table.target), table.rows
    features = ", ".join(f"**{escape_markdown(name)}**" for name in table.features[:SHOWN_NAMES])
    more = len(table.features) - SHOWN_NAMES
    features += f" and {more} more" if more > 0 else ""
    parts = [
        f"A **{_model(settings)}** of **{target}** from {features}. {_training(settings)}",
        f"Data: **{escape_markdown(table.csv.path)}**, {sum(rows.values())} rows: {rows['train']} to train, "
        f"{rows['validation']} to validate, {rows['test']} to test. SHA-256 `{table.csv.sha256[:12]}…`.",
        _result(metrics),
    ]
    if "parameters" in metrics:
        parts.append(f"Learned: {target} = {formula(metrics['parameters'], escape_markdown)}")
    if "truth" in metrics:
        noise = f"noise of variance {metrics['truth']['noise_mse']:.6g}"
        parts.append(f"True: {target} = {formula(metrics['truth'], escape_markdown)}, and {noise}")
    parts.append("Run it again and compare every number: `truefit rerun RUN_ID`, with the Run ID that this page shows.")
    return "\n\n".join(parts)


def escape_markdown(name: str) -> str:
    """Return markdown that shows the name as `one_line` does, and does nothing else.

    >>> escape_markdown("<b>price*</b>")
    '&#60;b&#62;price&#42;&#60;/b&#62;'
    """
    # All that markdown, HTML or a search for addresses could take for its own.
    return re.sub(r"(?<=www)\.|[^\w\s./-]|_", lambda found: f"&#{ord(found[0])};", one_line(name), flags=re.IGNORECASE)


def _model(settings: TrainSettings) -> str:
    model = settings.model
    return f"{model.name} model" + (f" [{', '.join(map(str, model.hidden))}]" if model.hidden else "")


def _training(settings: TrainSettings) -> str:
    size, limit = settings.batch_size, "at most " if settings.early_stopping.patience else ""
    batch = "all rows a step" if size == "all" else f"{size} row{'s' if size > 1 else ''} a step"
    engine = settings.engine if settings.engine != "auto" else "auto (the tag `engine` says which)"
    optimizer = f"{settings.optimizer.name} with learning rate {settings.optimizer.lr:g}"
    return f"Engine {engine}, loss {settings.loss.name}, {optimizer}, {batch}, {limit}{settings.epochs} epochs."


def _result(metrics: dict[str, Any]) -> str:
    names = list(metrics["test"])
    rows = [
        f"| {title} | {' | '.join(map(number, metrics[part].values()))} |"
        for title, part in [("this model", "test"), ("least squares", "least_squares")]
    ]
    table = "\n".join([f"| test rows | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|", *rows])
    told = [f"{line[0].upper()}{line[1:]}." for line in remarks(metrics, escape_markdown)]
    if (excess := percentage(metrics)) is not None:
        side = "above" if excess >= 0 else "below"
        told = [f"Its mse is **{abs(excess):.3%} {side}** that of least squares, the best line for the training rows.", *told]
    return f"{table}\n\n{' '.join(told)}"
