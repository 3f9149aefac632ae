"""Two results compared bit by bit, and the verdict that follows from it."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from truefit.evaluation.metrics import UNIT_SCALE
from truefit.tracking.names import TEST_PREFIX

_IDLE = ("mlflow", "dvc")  # packages that take no part in any number

Differing = dict[str, dict[str, list[str | None]]]  # of the inputs: by group and name, the two values


class Verdict(StrEnum):
    """What a comparison says, from the best to the worst; an error, where there was none, is worse than to know nothing.

    `status` is the command's exit status.
    """

    IDENTICAL = "identical"
    CLOSE = "close"
    INCONCLUSIVE = "inconclusive"
    ERROR = "error"
    DIFFERENT = "different"

    @property
    def status(self) -> int:
        """Return 0, 3, 4, 2 or 1."""
        return {"identical": 0, "close": 3, "inconclusive": 4, "error": 2, "different": 1}[self]


@dataclass(frozen=True)
class Result:
    """What a training started from, by groups, and ended with; `history` has a column a curve, and the epochs as its index.

    `record_checked` says that its record is the one of its digest; runs from before there was one have none.
    """

    inputs: Mapping[str, Mapping[str, str]]
    history: pd.DataFrame
    states: Mapping[str, Mapping[str, Tensor]]
    metrics: Mapping[str, float]
    record_checked: bool = True


@dataclass(frozen=True)
class Row:
    """How many numbers of a kind were compared, and how far they are apart at most; `where` names the first that differs.

    `relative` is the difference over the larger of the two; for a tensor, over its largest number.
    """

    name: str
    compared: int
    equal: int
    ulps: int = 0
    relative: float = 0.0
    where: str | None = None
    first_epoch: int | None = None


@dataclass(frozen=True)
class Report:
    """What came of a rerun; `recorded` and `again` are MLflow run ids."""

    verdict: Verdict
    recorded: str
    again: str | None = None
    reason: str | None = None
    tolerance: float | None = None
    rows: list[Row] = field(default_factory=list)
    inputs: Differing = field(default_factory=dict)
    record_checked: bool = True

    @property
    def first_epoch(self) -> int | None:
        """The first epoch whose losses or learning rate differ."""
        return min((row.first_epoch for row in self.rows if row.first_epoch is not None), default=None)

    def as_json(self) -> dict[str, Any]:
        """Return what JSON can hold; a difference that has no size is null."""
        content = asdict(self) | {"first_epoch": self.first_epoch}
        for row in content["rows"]:
            row["relative"] = row["relative"] if np.isfinite(row["relative"]) else None
        return content


def compare(recorded: Result, again: Result) -> list[Row]:
    """Return how far two results are apart: digests of the data, curves, tensors and test metrics."""
    digests = _row("data digests", recorded.inputs["data"], again.inputs["data"])
    names = dict.fromkeys([*recorded.history, *again.history])
    curves = [_curve(str(name), recorded.history, again.history) for name in names]
    kinds = {**recorded.states, **again.states}
    states = [_row(f"state_dict {kind}", recorded.states.get(kind, {}), again.states.get(kind, {})) for kind in kinds]
    return [digests, *curves, *states, _row("test metrics", recorded.metrics, again.metrics)]


def judge(rows: list[Row], inputs: Differing, tolerance: float) -> tuple[Verdict, str | None]:
    """Return the verdict on compared rows and `inputs` that differ, and the reason of one that is inconclusive.

    Close is within the tolerance, and from an environment that may give other bits. Beyond it, with another version of torch,
    nobody can say whether the code or torch is to blame.
    """
    empty = [row.name for row in rows if row.compared == 0]
    if empty or not rows:
        return Verdict.INCONCLUSIVE, f"there is nothing to compare of {', '.join(empty) or 'both runs'}"
    if all(row.where is None for row in rows):
        return Verdict.IDENTICAL, None
    environment = _decisive(inputs.get("environment", {}))
    if environment and all(row.relative <= tolerance for row in rows):
        return Verdict.CLOSE, None
    if "torch" in environment:
        recorded, installed = environment["torch"]
        return Verdict.INCONCLUSIVE, f"it ran with torch {recorded}, and torch {installed} is installed"
    return Verdict.DIFFERENT, None


def _decisive(environment: Mapping[str, list[str | None]]) -> dict[str, list[str | None]]:
    """Return those differences of the environment that can change bits."""
    return {name: values for name, values in environment.items() if len({_decisive_part(name, value) for value in values}) > 1}


def _decisive_part(name: str, value: str | None) -> str | None:
    """Return as much of a tag's value as can change bits.

    >>> _decisive_part("platform", "Linux-6.1.0-13-amd64-x86_64-with-glibc2.36")
    'x86_64-with-glibc2.36'
    """
    if value is None or name in _IDLE:
        return None
    if name == "python":  # its patch level changes none
        return re.sub(r"^(\d+\.\d+).*", r"\1", value)
    # The machine, and the C library with its exp and log; not the kernel.
    return re.sub(r"^Linux-.*?-([^-]+(?:-with.*)?)$", r"\1", value) if name == "platform" else value


def different_inputs(recorded: Result, again: Result) -> Differing:
    """Return the inputs that differ."""
    differing: Differing = {}
    for group, before in recorded.inputs.items():
        after = again.inputs[group]
        for name in sorted({*before, *after}):
            if before.get(name) != after.get(name):
                differing.setdefault(group, {})[name] = [before.get(name), after.get(name)]
    return differing


def ulps(left: NDArray[Any], right: NDArray[Any]) -> NDArray[np.uint64]:
    """Return how many floats lie from each of `left` to that of `right`, of the same type and shape.

    The bits of floats of one sign are in the order of the numbers, so that their difference counts them (Bruce Dawson,
    "Comparing floating point numbers", 2012); those of negative ones are turned round here.
    """
    unsigned = np.dtype(f"u{left.dtype.itemsize}")
    sign = unsigned.type(1 << (8 * unsigned.itemsize - 1))
    places = [np.where(bits & sign, ~bits, bits | sign) for bits in (left.view(unsigned), right.view(unsigned))]
    return (np.maximum(*places) - np.minimum(*places)).astype(np.uint64)


def _curve(name: str, recorded: pd.DataFrame, again: pd.DataFrame) -> Row:
    curves = [history[name].dropna().to_dict() if name in history else {} for history in (recorded, again)]
    row = _row(name, *curves)
    return row if row.where is None else replace(row, where=f"epoch {row.where}", first_epoch=int(row.where))


def _row(name: str, left: Mapping[Any, Any], right: Mapping[Any, Any]) -> Row:
    """Compare numbers, tensors or texts by their keys; what has no counterpart of its type and shape is infinitely far."""
    compared = equal = most = 0
    far, where = 0.0, None
    for key in {**left, **right}:
        x, y = (np.asarray(side[key]) if key in side else None for side in (left, right))
        compared += max(array.size for array in (x, y) if array is not None)
        if x is None or y is None or x.dtype != y.dtype or x.shape != y.shape or (x.dtype.kind == "U" and x != y):
            far, where = np.inf, where or str(key)
        elif x.dtype.kind == "U":
            equal += 1
        else:
            distance = ulps(x.reshape(-1), y.reshape(-1))
            equal += int((distance == 0).sum())
            if distance.any():
                most, where = max(most, int(distance.max())), where or str(key)
                least = 1.0 if str(key).removeprefix(TEST_PREFIX) in UNIT_SCALE else 0.0
                far = max(far, _relative(x, y, least))
    return Row(name, compared, equal, most, far, where)


def _relative(left: NDArray[Any], right: NDArray[Any], least: float) -> float:
    """Return the largest difference over the largest number or `least`, infinite where what differs is not finite."""
    x, y = left.astype(np.float64), right.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        difference = abs(x - y)[(ulps(left, right) != 0) & (x != y)]
        relative = difference / max(abs(x).max(), abs(y).max(), least)
    return float(np.nan_to_num(relative, nan=np.inf, posinf=np.inf).max(initial=0.0))
