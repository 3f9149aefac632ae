"""The settings with which a CSV that was inspected can be trained on, each with the reason."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from truefit.ingest.column_kinds import ONE_HOT, Column, shown
from truefit.ingest.column_statistics import least_and_greatest
from truefit.ingest.inspection import Inspection
from truefit.ingest.staging import COARSE, FLOAT32_BITS

DATE_FEATURES = 7
TRAINED = 0.8  # of the rows, by default
FEWEST_ROWS = 100  # for an mlp
# Training rows up to which: rows of a batch, epochs.
_BY_ROWS = ((1_000, 16, 300), (5_000, 32, 200), (20_000, 64, 100), (100_000, 128, 50), (1_000_000, 512, 20))
_MOST_ROWS = 2048, 10


class Advice(NamedTuple):
    """A setting by its dotted key, its value, and why."""

    key: str
    value: Any
    why: str


def recommend(found: Inspection, csv: str) -> list[Advice]:
    """Return the settings for the inspected CSV, at the path `csv`."""
    return [*_prepare(found, csv), *_train(found)]


def _prepare(found: Inspection, csv: str) -> Iterator[Advice]:
    yield Advice("prepare.csv", csv, f"{found.rows} rows of {len(found.columns)} columns")
    yield Advice("prepare.parts", found.parts, "those that were read" if found.path.is_dir() else "it is no folder")
    for key, value in found.form.model_dump().items():
        if key != "missing":
            yield Advice(f"prepare.format.{key}", value, found.why[key])
    yield Advice("prepare.format.missing", found.missing, found.why["missing"])
    yield Advice("prepare.features", None, "all columns but the target and those excluded")
    left_out = {column.name: column.left_out for column in found.columns if column.name and column.left_out}
    reasons = "; ".join(f"{name!r}: {reason}" for name, reason in left_out.items())
    unused = [name for name in left_out if name not in found.roles]
    yield Advice("prepare.exclude", unused, reasons or "no column is useless by its looks")
    yield Advice("prepare.target", found.target.name, found.why["target"])
    kinds = {column.name: column.setting for column in found.features if column.setting is not None}
    yield Advice("prepare.columns", kinds, "all others are numbers")
    gaps = [repr(column.name) for column in found.features if column.statistics.missing]
    why = f"gaps in {shown(gaps)}" if gaps else "no feature has a gap"
    yield Advice("prepare.missing.features", "fill" if gaps else "refuse", why)
    gaps_in_target = found.target.statistics.missing
    why = f"rows without it: {gaps_in_target}" if gaps_in_target else "each row has one"
    yield Advice("prepare.missing.target", "drop" if gaps_in_target else "refuse", why)
    if wide := [repr(column.name) for column in [*found.features, found.target] if _needs_float64(column)]:
        yield Advice("prepare.dtype", "float64", f"float32 would round {shown(wide)}")


def _train(found: Inspection) -> Iterator[Advice]:
    rows = int(TRAINED * (found.rows - found.target.statistics.missing))
    width = sum(map(_features, found.features))
    about = f"about {rows} training rows of {width} features"
    yield Advice("train.scale.features", "standard", "columns of different units")
    yield Advice("train.scale.target", "standard", "any unit of the target trains as well")
    if rows < FEWEST_ROWS:
        yield from _line(about)
        return
    batch, epochs = next(((batch, epochs) for most, batch, epochs in _BY_ROWS if rows <= most), _MOST_ROWS)
    model = {"name": "mlp", "hidden": [32, 32], "activation": "relu", "dropout": 0.0}
    yield from (Advice(f"train.model.{key}", value, f"{about}: enough for curves") for key, value in model.items())
    yield from _optimizer("adam", 0.001, "with adam and 0.001, columns need no rate of their own")
    yield Advice("train.batch_size", batch, about)
    yield Advice("train.epochs", epochs, "at most")
    yield Advice("train.early_stopping.patience", 15 if epochs >= 50 else 5, "ends it when the validation loss has settled")


def _line(about: str) -> Iterator[Advice]:
    model = {"name": "linear", "hidden": [], "activation": "relu", "dropout": 0.0}
    yield from (Advice(f"train.model.{key}", value, f"{about}: too few for more than a line") for key, value in model.items())
    yield from _optimizer("adam", 0.01, "with adam and 0.01, a line reaches least squares also where columns go together")
    yield Advice("train.batch_size", 16, about)
    yield Advice("train.epochs", 300, "a line is trained in an instant")
    yield Advice("train.early_stopping.patience", None, "a line does not overfit by training longer")


def _optimizer(name: str, rate: float, why: str) -> Iterator[Advice]:
    yield Advice("train.optimizer.name", name, why)
    yield Advice("train.optimizer.lr", rate, why)
    for key, value in {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0}.items():
        yield Advice(f"train.optimizer.{key}", value, "none")
    yield Advice("train.schedule.name", "cosine", "ends with small steps")


def _features(column: Column) -> int:
    """Return how many features a column becomes."""
    gaps = int(column.statistics.missing > 0)
    if column.kind == "category":
        return min(column.distinct, ONE_HOT) + 1 + gaps
    return (DATE_FEATURES if column.kind == "date" else 1) + gaps


def _needs_float64(column: Column) -> bool:
    """Say whether stage prepare would refuse the column's numbers in float32."""
    statistics = column.statistics
    if column.kind != "number" or not statistics.numbers:
        return False
    least, greatest = least_and_greatest(statistics)
    step = np.ldexp(1.0, int(np.frexp(max(-least, greatest))[1]) - FLOAT32_BITS)
    return statistics.needs_float64 or bool(step > COARSE * (greatest - least) > 0)
