"""Two results compared: what counts as equal, how far apart numbers are, and the verdict."""

import json
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from truefit.rerun.comparison import Report, Result, Row, Verdict, compare, different_inputs, judge, ulps

HISTORY = pd.DataFrame(
    {"train_loss": [0.5, 0.25, 0.125], "validation_loss": [0.6, 0.3, 0.2], "learning_rate": [0.1, 0.1, 0.05]},
    index=[1, 2, 3],
)
STATE = {"body.weight": torch.tensor([[2.0, 3.0]]), "body.bias": torch.tensor([1.0])}
RESULT = Result(
    inputs={
        "code": {"git.commit": "c"},
        "params": {"train.seed": "42", "train.threads": "1"},
        "data": {"csv.sha256": "a", "table.sha256": "b"},
        "environment": {
            **{"python": "3.11.2", "torch": "2.13.0", "numpy": "2.4.6", "mlflow": "3.17.2", "dvc": "3.67.1", "threads": "1"},
            "platform": "Linux-6.1.0-x86_64-with-glibc2.36",
        },
    },
    history=HISTORY,
    states={"best": STATE, "final": STATE},
    metrics={"test_mse": 0.01, "test_r2": 0.9, "excess_mse": 1e-9},
)


def with_loss(epoch: int, value: float) -> Result:
    history = HISTORY.copy()
    history.loc[epoch, "train_loss"] = value
    return replace(RESULT, history=history)


def with_state(state: Mapping[str, Tensor]) -> Result:
    return replace(RESULT, states={"best": STATE, "final": state})


def with_input(group: str, name: str, value: str) -> Result:
    return replace(RESULT, inputs={**RESULT.inputs, group: {**RESULT.inputs[group], name: value}})


def row(name: str, other: Result) -> Row:
    return next(row for row in compare(RESULT, other) if row.name == name)


def verdict(other: Result, tolerance: float = 1e-5) -> Verdict:
    return judge(compare(RESULT, other), different_inputs(RESULT, other), tolerance)[0]


def test_equal_results_are_identical_and_every_number_is_counted() -> None:
    assert [(row.name, row.compared, row.equal) for row in compare(RESULT, RESULT)] == [
        ("data digests", 2, 2),
        ("train_loss", 3, 3),
        ("validation_loss", 3, 3),
        ("learning_rate", 3, 3),
        ("state_dict best", 3, 3),
        ("state_dict final", 3, 3),
        ("test metrics", 3, 3),
    ]
    assert verdict(RESULT) is Verdict.IDENTICAL


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(with_loss(2, np.nextafter(0.25, 1)), id="one loss by its last bit"),
        pytest.param(replace(RESULT, history=HISTORY.drop(index=3)), id="an epoch less"),
        pytest.param(replace(RESULT, history=HISTORY.drop(columns="learning_rate")), id="a curve less"),
        pytest.param(
            with_state({**STATE, "body.bias": torch.tensor([np.nextafter(np.float32(1), 2)])}), id="a tensor's last bit"
        ),
        pytest.param(with_state({"body.weight": STATE["body.weight"]}), id="a tensor less"),
        pytest.param(with_state({**STATE, "more": torch.zeros(1)}), id="a tensor more"),
        pytest.param(with_state({**STATE, "empty": torch.zeros(0)}), id="an empty tensor more"),
        pytest.param(with_state({**STATE, "body.bias": torch.tensor([1.0], dtype=torch.float64)}), id="another dtype"),
        pytest.param(with_state({**STATE, "body.weight": torch.tensor([2.0, 3.0])}), id="another shape"),
        pytest.param(with_state({"body.weight": STATE["body.weight"], "bias": STATE["body.bias"]}), id="another name"),
        pytest.param(replace(RESULT, states={"best": STATE}), id="a state less"),
        pytest.param(replace(RESULT, metrics={**RESULT.metrics, "test_mse": 0.011}), id="a test metric"),
        pytest.param(replace(RESULT, metrics={"test_mse": 0.01, "test_r2": 0.9}), id="a test metric less"),
        pytest.param(with_input("data", "table.sha256", "z"), id="another table"),
    ],
)
def test_a_difference_in_the_same_environment_is_different(other: Result) -> None:
    assert verdict(other) is Verdict.DIFFERENT
    assert judge(compare(other, RESULT), different_inputs(other, RESULT), 1e-5)[0] is Verdict.DIFFERENT


def test_zero_and_negative_zero_differ_by_one_ulp_and_are_not_identical() -> None:
    left, right = (replace(RESULT, states={"best": {"a": torch.tensor([zero])}}) for zero in (0.0, -0.0))
    rows = compare(left, right)
    (found,) = (row for row in rows if row.ulps)
    assert (found.equal, found.ulps, found.relative) == (0, 1, 0.0)
    assert judge(rows, {}, 1e-5)[0] is Verdict.DIFFERENT


def test_first_epoch_is_the_earliest_of_all_curves() -> None:
    history = HISTORY.copy()
    history.loc[3, "train_loss"] = 0.2
    history.loc[2, "validation_loss"] = 0.4
    rows = compare(RESULT, replace(RESULT, history=history))
    assert [row.where for row in rows if row.where] == ["epoch 3", "epoch 2"]
    assert Report(Verdict.DIFFERENT, "r", rows=rows).first_epoch == 2


def test_differences_are_told_in_ulps_and_relative_to_the_larger() -> None:
    found = row("train_loss", with_loss(2, 0.2))
    assert found.relative == pytest.approx(0.2)
    assert found.ulps == int(np.float64(0.25).view(np.int64)) - int(np.float64(0.2).view(np.int64))
    state = {**STATE, "body.weight": torch.tensor([[2.0, 3.0 + 3e-6]])}
    assert row("state_dict final", with_state(state)).relative == pytest.approx(1e-6, rel=0.1)


def test_a_small_number_in_a_tensor_is_measured_by_its_largest() -> None:
    left = with_state({"w": torch.tensor([1.0, 1e-8])})
    right = with_state({"w": torch.tensor([1.0, 2e-8])})
    (found,) = (row for row in compare(left, right) if row.ulps)
    assert found.relative == pytest.approx(1e-8)


def test_a_score_near_zero_is_measured_by_one() -> None:
    assert row("test metrics", replace(RESULT, metrics={**RESULT.metrics, "excess_mse": 2e-9})).relative == pytest.approx(1e-9)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_never_close(value: float) -> None:
    other = with_state({**STATE, "body.bias": torch.tensor([value])})
    other = replace(other, inputs={**RESULT.inputs, "environment": {"torch": "2.13.0", "numpy": "1"}})
    assert verdict(other) is Verdict.DIFFERENT


@pytest.mark.parametrize(
    ("environment", "change", "expected"),
    [
        ({}, 1e-9, Verdict.DIFFERENT),
        ({"numpy": "1"}, 1e-9, Verdict.CLOSE),
        ({"threads": "2"}, 1e-9, Verdict.CLOSE),
        ({"numpy": "1"}, 1e-3, Verdict.DIFFERENT),
        ({"torch": "2.12"}, 1e-9, Verdict.CLOSE),
        ({"torch": "2.12"}, 1e-3, Verdict.INCONCLUSIVE),
        ({"torch": "2.12"}, 0, Verdict.IDENTICAL),
        # Fault 5: what changes no bits excuses none.
        ({"platform": "Linux-6.1.1-x86_64-with-glibc2.36"}, 1e-9, Verdict.DIFFERENT),
        ({"platform": "Linux-6.1.0-9-amd64-x86_64-with-glibc2.36"}, 1e-9, Verdict.DIFFERENT),
        ({"platform": "Linux-6.1.0-x86_64-with-glibc2.41"}, 1e-9, Verdict.CLOSE),
        ({"platform": "Linux-6.1.0-aarch64-with-glibc2.36"}, 1e-9, Verdict.CLOSE),
        ({"platform": "macOS-15.1-arm64-arm-64bit"}, 1e-9, Verdict.CLOSE),
        ({"python": "3.11.9"}, 1e-9, Verdict.DIFFERENT),
        ({"python": "3.12.2"}, 1e-9, Verdict.CLOSE),
        ({"mlflow": "4", "dvc": "4"}, 1e-9, Verdict.DIFFERENT),
    ],
)
def test_close_needs_another_environment_and_the_tolerance(
    environment: dict[str, str], change: float, expected: Verdict
) -> None:
    other = with_loss(2, 0.25 * (1 + change))
    inputs = {**RESULT.inputs, "environment": {**RESULT.inputs["environment"], **environment}}
    assert verdict(replace(other, inputs=inputs)) is expected


def test_tolerance_is_the_largest_difference_that_is_close() -> None:
    other = replace(with_loss(2, 0.25 * (1 + 1e-3)), inputs=with_input("environment", "numpy", "1").inputs)
    assert verdict(other, 1e-2) is Verdict.CLOSE
    assert verdict(other, 1e-4) is Verdict.DIFFERENT


def test_another_torch_beyond_the_tolerance_is_the_reason() -> None:
    other = replace(with_loss(2, 0.3), inputs=with_input("environment", "torch", "2.14").inputs)
    reason = judge(compare(RESULT, other), different_inputs(RESULT, other), 1e-5)[1]
    assert reason == "it ran with torch 2.13.0, and torch 2.14 is installed"


def test_no_outputs_on_both_sides_is_no_match() -> None:
    nothing = replace(RESULT, history=HISTORY.iloc[:0], states={}, metrics={})
    verdict, reason = judge(compare(nothing, nothing), {}, 1e-5)
    assert (verdict, reason) == (
        Verdict.INCONCLUSIVE,
        "there is nothing to compare of train_loss, validation_loss, learning_rate, test metrics",
    )
    assert judge([], {}, 1e-5)[0] is Verdict.INCONCLUSIVE


def test_inputs_that_differ_are_named_by_group() -> None:
    fewer = {name: value for name, value in RESULT.inputs["environment"].items() if name not in ("numpy", "threads")}
    other = replace(RESULT, inputs={**with_input("params", "train.seed", "43").inputs, "environment": fewer})
    assert different_inputs(RESULT, other) == {
        "params": {"train.seed": ["42", "43"]},
        "environment": {"numpy": ["2.4.6", None], "threads": ["1", None]},
    }


def test_ulps_count_the_numbers_between() -> None:
    left = np.array([1, -1, 0, 5e-324, 1], np.float64)
    right = np.array([np.nextafter(1, 2), np.nextafter(-1, 0), 5e-324, -5e-324, 1], np.float64)
    assert list(ulps(left, right)) == [1, 1, 1, 3, 0]
    extremes = np.array([-np.finfo(np.float64).max, np.finfo(np.float64).max])
    assert int(ulps(extremes[:1], extremes[1:])[0]) > 2**63


def test_statuses_and_the_order_from_best_to_worst() -> None:
    assert [(str(verdict), verdict.status) for verdict in Verdict] == [
        ("identical", 0),
        ("close", 3),
        ("inconclusive", 4),
        ("error", 2),
        ("different", 1),
    ]


def test_report_as_json_holds_no_infinity() -> None:
    report = Report(Verdict.DIFFERENT, "r", "a", rows=compare(RESULT, replace(RESULT, states={"best": STATE})))
    content = json.loads(json.dumps(report.as_json(), allow_nan=False))
    assert content["verdict"] == "different"
    assert content["rows"][5]["relative"] is None
