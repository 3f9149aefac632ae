"""How good a model is on the test rows, how good it could have been, and how that is told."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from pydantic import Field

from truefit.core.config import Params, Settings
from truefit.core.text import one_line
from truefit.data.dataset import TableDataset
from truefit.data.generating import TARGET, GenerateSettings
from truefit.data.table import Table
from truefit.evaluation.least_squares import LeastSquaresFit
from truefit.evaluation.metrics import UNDEFINED, Array, Predictor, line_predictor, model_predictor, score
from truefit.model.models import Model
from truefit.training.losses import degree
from truefit.training.settings import TrainSettings

SHOWN_COEFFICIENTS = 8
LOG = "the target's logarithm"
MOST_PERCENT = 10  # times the mse of least squares, beyond which a percentage says nothing


class EvaluateSettings(Settings):
    """Section `evaluate`: how many test rows, evenly spaced, predictions.csv and the pictures show at most."""

    sample: int = Field(1000, ge=1)


def compute_metrics(test: TableDataset, model: Model, line: Array, truth: GenerateSettings | None) -> dict[str, Any]:
    """Return what metrics.json holds: the scores of the model and of the least-squares `line` [F + 1], and the true line.

    `excess_mse` is the model's mse over that of least squares, minus 1, and None where float64 has no such number; parameters
    are in the data's units; `weight` names the column of the rows' weights, where there is one. Raises TruefitError for a test
    row whose target or prediction is not finite, or as good as that.
    """
    table = test.table
    ours = score(test, model_predictor(model, getattr(torch, table.dtype)))
    best = score(test, line_predictor(line), "least squares'")
    assert ours["mse"] is not None and best["mse"] is not None
    excess = ours["mse"] / best["mse"] - 1 if best["mse"] > 0 else math.inf
    content: dict[str, Any] = {
        "test": ours,
        "least_squares": best,
        "excess_mse": excess if math.isfinite(excess) else None,
    }
    if table.weight is not None:
        content["weight"] = table.weight.name
    if (own := model.line()) is not None:
        content["parameters"] = _line(own[0], table.features, own[1])
        if model.scale.settings.target == "log":
            content["parameters"]["of"] = LOG
    if truth is not None:
        true = dict(zip(truth.features, truth.coefficients, strict=True))
        content["truth"] = _line(truth.intercept, table.features, [true[name] for name in table.features])
        content["truth"]["noise_mse"] = truth.noise_std**2
    return content


def loss_levels(training: TrainSettings, fit: LeastSquaresFit, truth: GenerateSettings | None) -> dict[str, float]:
    """Return what the curves of an mse in the target's unit may be held against; least squares minimises no other."""
    if training.loss.name != "mse" or training.scale.target == "log":
        return {}
    levels = {"least squares, training rows": fit.train_mse}
    return levels if truth is None else levels | {"noise floor": truth.noise_std**2}


def loss_unit(training: TrainSettings, weighted: bool = False) -> str:
    """Return the unit of the losses in words, with braces for the target's name.

    >>> loss_unit(TrainSettings()).format("price"), loss_unit(TrainSettings(), weighted=True).format("price")
    ('in the unit of price, squared', 'in the unit of price, squared, weighted')
    """
    unit = "log({})" if training.scale.target == "log" else "{}"
    return f"in the unit of {unit}" + ", squared" * (degree(training.loss) == 2) + ", weighted" * weighted


def generating_settings(table: Table, synthetic_csv: Path, params: Params) -> GenerateSettings | None:
    """Return the settings that drew the table's data; None where it is not the whole of the synthetic CSV, in any order."""
    if Path(table.csv.path) != synthetic_csv:
        return None
    settings = params.section("generate", GenerateSettings)
    return settings if (set(table.features), table.target) == (set(settings.features), TARGET) else None


def sample_predictions(test: TableDataset, predict: Predictor, sample: int) -> tuple[Array, pd.DataFrame]:
    """Return at most `sample` evenly spaced test rows: features [N, F], and row, actual, predicted and residual."""
    count = min(sample, len(test))
    index = torch.arange(count) * len(test) // count
    features, target = (values.double().numpy() for values in test[index])
    predicted, actual = predict(features), target[:, 0]
    columns = {"row": index.numpy(), "actual": actual, "predicted": predicted, "residual": actual - predicted}
    return features, pd.DataFrame(columns)


def summary(content: dict[str, Any]) -> str:
    """Return the lines for a terminal, from what metrics.json holds."""
    lines = [f"{'':14}" + "".join(f"{name:>12}" for name in content["test"])]
    for title, scores in [("model", content["test"]), ("least squares", content["least_squares"])]:
        lines += [f"{title:14}" + "".join(f" {number(value):>11}" for value in scores.values())]
    if (excess := percentage(content)) is not None:
        lines += [f"excess mse over least squares: {excess:+.3%}"]
    lines += remarks(content)
    for title, part in [("learned", "parameters"), ("true", "truth")]:
        if part in content:
            lines += [f"{title}: {formula(content[part])}"]
    return "\n".join(lines)


def percentage(content: dict[str, Any]) -> float | None:
    """Return the excess mse in metrics.json where a percentage tells it, and None where one of `remarks` does."""
    excess: float | None = content["excess_mse"]
    return excess if excess is not None and excess + 1 <= MOST_PERCENT else None


def remarks(content: dict[str, Any], show: Callable[[str], str] = one_line) -> list[str]:
    """Return what the scores in metrics.json do not tell by themselves, each in a line, with names as `show` has them."""
    test, best, excess = content["test"], content["least_squares"], content["excess_mse"]
    lines = []
    if excess is None and best["mse"] > 0:
        lines += ["excess mse is undefined: the mse over that of least squares is beyond float64"]
    elif excess is None:
        lines += ["excess mse is undefined: the mse of least squares is 0"]
    elif percentage(content) is None:
        lines += [f"the mse is {excess + 1:.3g} times that of least squares"]
    if test["r2"] is not None and test["r2"] < 0:
        lines += ["the model is worse than predicting the mean of the test rows' targets for each row, since r2 is below 0"]
    if "weight" in content:
        lines += [f"all scores and losses are weighted by '{show(content['weight'])}'"]
    return lines + [f"{name} is undefined: {why}" for name, why in UNDEFINED.items() if test[name] is None]


def number(value: float | None) -> str:
    """Return a score as text: `-` where it is undefined.

    >>> number(0.0093928271), number(None)
    ('0.00939283', '-')
    """
    return "-" if value is None else format(value, ".6g")


def formula(line: dict[str, Any], show: Callable[[str], str] = one_line) -> str:
    """Return a line's formula, cut after SHOWN_COEFFICIENTS terms, with names as `show` has them.

    >>> formula({"intercept": 1.0, "coefficients": {"x1": 2.0, "x2": -0.5}})
    '1 +2·x1 -0.5·x2'
    """
    coefficients = list(line["coefficients"].items())
    terms = "".join(f" {value:+.6g}·{show(name)}" for name, value in coefficients[:SHOWN_COEFFICIENTS])
    text = f"{line['intercept']:.6g}{terms}{' + …' if len(coefficients) > SHOWN_COEFFICIENTS else ''}"
    return f"exp({text})" if line.get("of") == LOG else text


def _line(intercept: float, features: list[str], coefficients: list[float]) -> dict[str, Any]:
    return {"intercept": intercept, "coefficients": dict(zip(features, coefficients, strict=True))}
