"""`truefit lr-range`: the curve, what it suggests and when it does not, the run of its own, and that nothing else changes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from helpers_training import CPU, Rows, global_streams, normal_line, tensors, write_prepared
from mlflow import MlflowClient
from mlflow.entities import Run
from ruamel.yaml import YAML
from workspace import ROOT

from truefit.cli.lr_range import lr_range
from truefit.cli.main import commands
from truefit.core.errors import TableError, TrackingError, TruefitError
from truefit.data.batches import ShuffledChunks
from truefit.data.dataset import TableDataset
from truefit.rerun.records import find as find_run
from truefit.rerun.records import unfit
from truefit.tracking.journal import pending
from truefit.tracking.names import DIGEST_TAG
from truefit.tracking.store import Store
from truefit.training.loop import build_engine
from truefit.training.lr_range import DIVERGED, MARGIN, WINDOW, Finding, find, range_test
from truefit.training.settings import TrainSettings

COMMAND = [sys.executable, "-c", "from truefit.cli.main import main; main()", "lr-range"]
RATES = np.geomspace(1e-6, 10, 200).tolist()
ALL: dict[str, Any] = {"batch_size": "all"}
MLP: dict[str, Any] = {"model": {"name": "mlp", "hidden": [8], "dropout": 0.3}, "optimizer": {"name": "adam"}}


def curve(folder: Path, rows: Rows, rates: list[float] = RATES, **settings: Any) -> pd.DataFrame:
    """Return the curve of a range test on these training rows."""
    write_prepared(folder, rows, rows[:4])
    dataset = TableDataset(folder, "train")
    return pd.DataFrame(list(range_test(dataset, TrainSettings.model_validate(settings), CPU, rates)))


def found(folder: Path, rows: Rows, rates: list[float] = RATES, **settings: Any) -> Finding:
    return find(curve(folder, rows, rates, **settings), rates)


# --- the curve


def test_descent_on_a_quadratic_diverges_beyond_the_largest_stable_rate_and_the_suggestion_is_below_it(tmp_path: Path) -> None:
    # The loss of all rows is a quadratic with the Hessian 2 XᵀX/N; gradient descent on it is stable up to 2/λmax.
    rows = normal_line(200, (2.0, -1.0, 0.5))
    design = np.column_stack([np.ones(200), rows[:, :-1]])
    stable = 2 / np.linalg.eigvalsh(2 * design.T @ design / 200).max()
    finding = found(tmp_path, rows, **ALL)
    assert finding.diverged is not None
    assert finding.suggested is not None
    # A step is 8 % of the rate, and the parameters take some to leave the optimum, where they had nearly arrived.
    assert stable < finding.diverged < 10 * stable
    assert stable / 10 < finding.suggested < stable
    assert finding.suggested == pytest.approx(finding.lowest / MARGIN, rel=0.05)  # rounded to two digits


def test_each_step_is_one_of_gradient_descent_with_its_rate(tmp_path: Path) -> None:
    rows = normal_line(50)
    steps = curve(tmp_path, rows, RATES[100:120], **ALL)
    engine = build_engine(TableDataset(tmp_path, "train"), TrainSettings.model_validate(ALL), CPU)
    start = engine.state_dict()
    line = np.array([start["linear.bias"].item(), start["linear.weight"].item()])
    design, losses = np.column_stack([np.ones(50), rows[:, 0]]), []
    for rate in RATES[100:120]:
        error = design @ line - rows[:, 1]
        losses.append((error**2).mean())
        line -= rate * 2 * design.T @ error / 50
    assert list(steps["loss"]) == pytest.approx(losses, rel=1e-12)
    assert list(steps["untrained_loss"]) == pytest.approx([losses[0]] * 20, rel=1e-12)
    assert list(steps["learning_rate"]) == RATES[100:120]
    assert list(steps["step"]) == list(range(1, 21))


def test_smoothed_loss_is_a_mean_whose_weights_add_up_to_one(tmp_path: Path) -> None:
    steps = curve(tmp_path, normal_line(64), batch_size=8)
    weights = 0.9 ** np.arange(30)[::-1]
    expected = (weights * steps["loss"][:30]).sum() / weights.sum()
    assert steps["smoothed_loss"][29] == pytest.approx(expected, rel=1e-12)
    assert steps["smoothed_loss"][0] == pytest.approx(steps["loss"][0], rel=1e-12)


@pytest.mark.parametrize("shuffle", ["full", "block"])
def test_batches_come_in_the_order_of_a_trainings_epochs(tmp_path: Path, shuffle: Any) -> None:
    rows = normal_line(10)
    # With a rate of next to nothing, a batch's loss depends on its rows alone.
    steps = curve(tmp_path, rows, [1e-12] * 9, batch_size=4, shuffle=shuffle, seed=5)
    untrained = build_engine(TableDataset(tmp_path, "train"), TrainSettings(seed=5), CPU)
    sampler = ShuffledChunks(10, 4, 5, shuffle)
    expected: list[float] = []
    for epoch in (1, 2, 3):
        sampler.set_epoch(epoch)
        order = [rows[batch.numpy()] for batch in torch.cat(list(sampler)).split(4)]
        expected += [untrained.validation_loss(*tensors(batch)) / len(batch) for batch in order]
    assert list(steps["loss"]) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("engine", ["numpy", "autograd"])
def test_engines_give_the_same_curve_to_rounding(tmp_path: Path, engine: str) -> None:
    rows = normal_line(64, (1.0, -2.0))
    by_torch, other = (curve(tmp_path, rows, engine=name, batch_size=8, standardize=True) for name in ("torch", engine))
    # float64; beyond the stable rate, differences grow as the loss does.
    assert len(by_torch) == len(other)
    assert other.to_numpy() == pytest.approx(by_torch.to_numpy(), rel=1e-9)


@pytest.mark.parametrize("settings", [{}, MLP])
def test_same_settings_give_the_same_bits_and_leave_the_global_streams(tmp_path: Path, settings: dict[str, Any]) -> None:
    before = global_streams()
    one, other = (curve(tmp_path, normal_line(64), **settings) for _ in range(2))
    assert global_streams() == before
    pd.testing.assert_frame_equal(one, other, check_exact=True)


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 1},
        {"batch_size": 4},
        {"standardize": True},
        {"clip_norm": 0.01},
        {"loss": {"name": "l1"}},
        {"loss": {"reduction": "sum"}},
        {"optimizer": {"momentum": 0.9}},
        {"optimizer": {"weight_decay": 1.0}},
        {"model": {"name": "mlp", "hidden": [4]}},
    ],
    ids=str,
)
def test_a_setting_of_the_training_changes_the_curve(tmp_path: Path, changed: dict[str, Any]) -> None:
    one, other = (curve(tmp_path, normal_line(64) * 3, **settings) for settings in ({}, changed))
    assert list(one["loss"][:100]) != list(other["loss"][:100])


def test_dropout_draws_other_masks_at_each_step(tmp_path: Path) -> None:
    # Rows that are all alike, or their order alone would change what the same mask does.
    steps = curve(tmp_path, np.repeat(normal_line(1), 64, axis=0), [1e-300] * 12, **ALL, **MLP)
    assert len(set(steps["loss"].round(9))) == 12
    assert list(steps["untrained_loss"]) == pytest.approx([steps["untrained_loss"][0]] * 12, rel=1e-12)


# --- its end


def test_test_ends_at_the_first_smoothed_loss_of_four_times_the_lowest(tmp_path: Path) -> None:
    steps = curve(tmp_path, normal_line(64), batch_size=8)
    lowest = steps["smoothed_loss"][WINDOW - 1 :].cummin()
    high = steps["smoothed_loss"][WINDOW - 1 :] > DIVERGED * lowest
    assert len(steps) < len(RATES)
    assert list(high) == [False] * (len(high) - 1) + [True]


def test_a_lucky_first_batch_does_not_end_it(tmp_path: Path) -> None:
    rows = normal_line(64)
    rows[::2, -1] += 100  # single rows have losses far apart
    assert len(curve(tmp_path, rows, [1e-9] * 50, batch_size=1)) == 50


def test_loss_that_is_not_finite_is_left_out(tmp_path: Path) -> None:
    steps = curve(tmp_path, normal_line(64), [1e80] * 20, **ALL)
    assert 1 < len(steps) < WINDOW
    assert np.isfinite(steps.to_numpy()).all()
    finding = find(steps, [1e80] * 20)
    assert (
        str(finding) == "loss: lowest at 1e+80, diverges at 1e+80\nno suggestion: the loss does not fall; try a lower --from"
    )


@pytest.mark.parametrize(
    ("start", "end", "advice"),
    [
        (1e-12, 1e-9, "the loss does not fall; try a higher --to"),
        (5.0, 10.0, "the loss does not fall; try a lower --from"),
        (1e-6, 0.01, "the loss falls to the end; try a higher --to"),
        (0.2, 10.0, "the loss is lowest too near the first rate; try a lower --from"),
    ],
)
def test_there_is_no_suggestion_without_a_lowest_loss_inside(tmp_path: Path, start: float, end: float, advice: str) -> None:
    rates = np.geomspace(start, end, 100).tolist()
    finding = found(tmp_path, normal_line(64), rates, batch_size=8)
    assert (finding.suggested, finding.advice) == (None, advice)


@pytest.mark.parametrize("seed", range(5))
def test_noise_of_single_rows_is_no_fall(tmp_path: Path, seed: int) -> None:
    rates = np.geomspace(1e-12, 1e-9, 200).tolist()
    finding = found(tmp_path, normal_line(64, noise=3.0), rates, batch_size=1, seed=seed)
    assert finding.advice == "the loss does not fall; try a higher --to"


# --- the command


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the settings, a prepared table, and an MLflow store, which takes seconds to make."""
    root = tmp_path_factory.mktemp("repository")
    shutil.copy(ROOT / "params.yaml", root)
    shutil.copy(ROOT / ".gitignore", root)
    (root / ".dvc").mkdir()
    write_prepared(
        root / "data/prepared", normal_line(100), normal_line(20, seed=1), dtype="float32", csv="data/synthetic.csv"
    )
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    for command in (
        ["init", "--quiet"],
        ["add", "params.yaml", ".gitignore"],
        [*identity, "commit", "--quiet", "-m", "state"],
    ):
        subprocess.run(["git", *command], cwd=root, check=True)
    return root


@pytest.fixture(autouse=True)
def _in_the_repository(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith(("DVC_", "MLFLOW_TRACKING"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(repository)
    monkeypatch.setattr("truefit.cli.lr_range.configure", lambda *_: None)  # which would last
    yield
    shutil.copy(ROOT / "params.yaml", repository)


def set_params(**values: Any) -> None:
    yaml = YAML()
    params = yaml.load(Path("params.yaml"))
    for key, value in values.items():
        section, name = key.split("__")
        params[section][name] = value
    yaml.dump(params, Path("params.yaml"))


def runs(repository: Path) -> list[Run]:
    client = MlflowClient(f"sqlite:///{repository / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("truefit")
    return [] if experiment is None else list(client.search_runs([experiment.experiment_id]))


def test_command_prints_the_suggestion_and_writes_curve_and_picture(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path for path in repository.rglob("*") if not path.relative_to(repository).parts[0].startswith((".", "ml"))}
    (repository / "data/deeper").mkdir()
    monkeypatch.chdir(repository / "data/deeper")
    done = CliRunner().invoke(commands, ["lr-range"], catch_exceptions=False)
    run = runs(repository)[0]
    suggested = run.data.metrics["suggested_lr"]
    assert re.sub(r"at [\d.]+", "at …", done.output) == (
        f"MLflow run 'lr-range linear sgd batch=16 torch', {run.info.run_id}\n"
        "curve: ../../results/lr_range.png, ../../results/lr_range.csv\n"
        "loss: lowest at …, diverges at …\n"
        f"suggested train.optimizer.lr: {suggested:g}\n"
        f"next: dvc exp run -S train.optimizer.lr={suggested:g}   train with it\n"
    )
    monkeypatch.chdir(repository)
    (repository / "data/deeper").rmdir()
    after = {path for path in repository.rglob("*") if not path.relative_to(repository).parts[0].startswith((".", "ml"))}
    assert {str(path.relative_to(repository)) for path in after - before} == {
        *("results", "results/lr_range.csv", "results/lr_range.png")
    }
    written = pd.read_csv(repository / "results/lr_range.csv")
    assert list(written.columns) == ["step", "learning_rate", "loss", "smoothed_loss", "untrained_loss"]
    assert (repository / "results/lr_range.png").read_bytes().startswith(b"\x89PNG")
    status = subprocess.run(["git", "status", "--porcelain"], check=True, capture_output=True, text=True).stdout
    assert "results" not in status
    assert not (repository / ".truefit/checkpoints").exists()


def test_run_holds_the_curve_the_origin_and_a_description(repository: Path) -> None:
    finding, named, _ = lr_range(None, np.geomspace(1e-5, 5, 120).tolist())
    assert named.run_id is not None
    client = MlflowClient(f"sqlite:///{repository / 'mlflow.db'}")
    run = client.get_run(named.run_id)
    params, tags = run.data.params, run.data.tags
    assert (run.info.status, run.info.run_name) == ("FINISHED", "lr-range linear sgd batch=16 torch")
    assert {key: params[f"lr_range.{key}"] for key in ("from", "to", "steps")} == {
        "from": "1e-05",
        "to": "5.0",
        "steps": "120",
    }
    assert (params["train.batch_size"], params["prepare.csv"]) == ("16", "data/synthetic.csv")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert tags["git.commit"] == commit
    assert {"csv.sha256", "table.sha256", "code.sha256", "engine", "torch", "platform"} <= set(tags)
    assert DIGEST_TAG not in tags
    assert tags["mlflow.note.content"] == (
        "Learning-rate range test of a linear model with sgd, 120 steps from 1e-05 to 5. "
        f"Outcome: {str(finding).replace(chr(10), '; ')}."
    )
    assert run.inputs is not None
    assert [given.dataset.name for given in run.inputs.dataset_inputs] == ["synthetic.csv"]
    written = pd.read_csv("results/lr_range.csv")
    for metric, column in [
        ("learning_rate", "learning_rate"),
        ("lr_range_loss", "loss"),
        ("lr_range_smoothed_loss", "smoothed_loss"),
    ]:
        logged = [(value.step, value.value) for value in client.get_metric_history(named.run_id, metric)]
        assert logged == list(zip(written["step"], written[column], strict=True))
    artifacts = repository / f"mlartifacts/{named.run_id}/artifacts"
    for place, name in [("figures", "lr_range.png"), ("lr_range", "lr_range.csv")]:
        assert (artifacts / place / name).read_bytes() == (repository / "results" / name).read_bytes()
    assert (artifacts / "record/params.yaml").read_bytes() == (repository / "params.yaml").read_bytes()
    assert list(pending(repository / ".truefit/runs")) == []


def test_record_made_in_a_subfolder_holds_nothing_of_data(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = repository / "data/secret.csv"
    secret.write_text("name\nAlice\n")
    (repository / "notes.txt").write_text("new\n")
    (repository / "src").mkdir()
    monkeypatch.chdir(repository / "src")
    _, named, _ = lr_range(None, RATES)
    patch = (repository / f"mlartifacts/{named.run_id}/artifacts/record/diff.patch").read_text()
    assert "notes.txt" in patch
    assert "Alice" not in patch
    for path in (secret, repository / "notes.txt"):
        path.unlink()
    (repository / "src").rmdir()


@pytest.mark.parametrize(
    ("changed", "wanted", "found"),
    [
        ({"csv": "data/houses.csv"}, "csv: found 'data/houses.csv'", "'data/synthetic.csv'"),
        ({"dtype": "float64"}, "dtype: found 'float64'", "'float32'"),
        ({"target": "x1"}, "target: found 'x1'", "'y'"),
        ({"features": ["x2"]}, "features: found ['x2']", "['x1']"),
    ],
)
def test_a_table_prepared_by_other_settings_is_refused_but_where_it_is_named(
    repository: Path, changed: dict[str, Any], wanted: str, found: str
) -> None:
    set_params(**{f"prepare__{key}": value for key, value in changed.items()})
    before = len(runs(repository))
    with pytest.raises(TableError) as refused:
        lr_range(None, RATES)
    advice = "by which data/prepared was prepared; `dvc repro prepare` prepares it anew"
    assert str(refused.value) == f"params.yaml: prepare.{wanted}, allowed: {found}, {advice}"
    assert len(runs(repository)) == before
    lr_range(Path("data/prepared"), RATES)
    assert not any(key.startswith("prepare.") for key in runs(repository)[0].data.params)


def test_range_test_is_no_training_for_a_rerun(repository: Path) -> None:
    _, named, _ = lr_range(None, RATES)
    store = Store()
    with pytest.raises(TrackingError, match="has no run of a training"):
        find_run(store, None, "truefit")
    assert unfit(find_run(store, named.run_id, "truefit")) == "it is a learning-rate range test, which trains no model"


def test_named_trainings_keep_their_name_to_themselves(repository: Path) -> None:
    set_params(track__run_name="mine")
    assert lr_range(None, RATES)[1].name == "lr-range mine"


@pytest.mark.parametrize("engine", ["auto", "compiled"])
def test_engines_that_compile_leave_it_to_torch(engine: str, repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    set_params(train__engine=engine)
    lr_range(None, RATES[::2])
    assert capsys.readouterr().out == "engine: torch, since single steps gain nothing from compiling\n"
    run = runs(repository)[0]
    assert (run.data.params["train.engine"], run.data.tags["engine"]) == (engine, "torch")


def test_first_loss_that_is_not_finite_leaves_a_failed_run(repository: Path, tmp_path: Path) -> None:
    write_prepared(tmp_path, normal_line(100) * 1e30, normal_line(20), dtype="float32")
    with pytest.raises(TruefitError) as caught:
        lr_range(tmp_path, RATES)
    run = runs(repository)[0]
    assert str(caught.value) == "step 1: the training loss is not finite before any step; are the table's numbers too large?"
    assert (run.info.status, run.data.tags["failure"]) == ("FAILED", str(caught.value))


def test_table_that_is_not_there_is_an_error_that_says_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(TableError) as caught:
        lr_range(tmp_path, RATES)
    assert str(caught.value) == (
        f"{tmp_path}/table.json: cannot be read: No such file or directory; `dvc repro prepare` writes it"
    )


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["--from", "1", "--to", "1"], "--from must be below --to"),
        (["--from", "0"], "0.0 is not in the range 0<x<=1000000000.0."),
        (["--to", "inf"], "inf is not in the range 0<x<=1000000000.0."),
        (["--to", "nan"], "--from must be below --to"),
        (["--steps", "49"], "49 is not in the range 50<=x<=100000."),
    ],
)
def test_options_that_cannot_be_are_refused(arguments: list[str], fault: str) -> None:
    done = CliRunner().invoke(commands, ["lr-range", *arguments])
    assert done.exit_code == 2
    assert done.output.strip().endswith(fault)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_leaves_a_killed_run_with_its_reason_and_no_journal(repository: Path, number: signal.Signals) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = [*COMMAND, "--from", "1e-9", "--to", "1e-8", "--steps", "100000"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    latest = time.monotonic() + 120
    while not any(b'"step":20,' in path.read_bytes() for path in Path(".truefit/runs").glob("*/journal.jsonl")):
        assert process.poll() is None
        assert time.monotonic() < latest
        time.sleep(0.02)
    process.send_signal(number)
    printed, complaint = process.communicate(timeout=120)
    reason = f"stopped by {number.name} before the end of the range test"
    assert (process.returncode, printed, complaint) == (128 + number, "", f"error: {reason}\n")
    run = runs(repository)[0]
    assert (run.info.status, run.data.tags["failure"]) == ("KILLED", reason)
    assert list(pending(repository / ".truefit/runs")) == []
    assert json.loads(run.data.params["lr_range.steps"]) == 100000
