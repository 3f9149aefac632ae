"""The whole pipeline, run by DVC in a clone: what it prints, writes and records, and that it does so again."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers_stages import Stages
from mlflow import MlflowClient
from mlflow.entities import Run
from ruamel.yaml import YAML
from sklearn.datasets import load_diabetes
from test_torture import drop_torn_lock, kill, start, until_begun
from workspace import Workspace, put_store

from truefit.core.config import flatten
from truefit.data.dataset import TableDataset
from truefit.evaluation.figures import draw_figures
from truefit.evaluation.least_squares import least_squares
from truefit.evaluation.metrics import METRICS, line_predictor
from truefit.evaluation.report import loss_unit
from truefit.training.settings import TrainSettings

ARGUMENTS = {
    "generate": ["data/synthetic.csv"],
    "prepare": ["data/prepared"],
    "train": ["data/prepared", "results"],
    "evaluate": ["data/prepared", "results", "data/synthetic.csv"],
}

# One worker takes all tests of a group, since they share a clone; the groups run side by side.
shared_clone = pytest.mark.xdist_group("shared clone")
own_clone = pytest.mark.xdist_group("own clone")


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, str]:
    """A clone after its first `dvc repro`, committed, and what that printed."""
    workspace = Workspace(tmp_path_factory.mktemp("clone"), store=False)
    printed = workspace.run("dvc", "repro").stdout
    workspace.commit()
    return workspace, printed


@pytest.fixture(scope="module")
def clone(reproduced: tuple[Workspace, str]) -> Workspace:
    """The reproduced clone, for tests that only look at it: giving it back takes half a second."""
    return reproduced[0]


@pytest.fixture
def workspace(reproduced: tuple[Workspace, str]) -> Iterator[Workspace]:
    """The reproduced clone, given back as it was committed."""
    workspace = reproduced[0]
    yield workspace
    restore(workspace)


def restore(workspace: Workspace) -> None:
    workspace.run("git", "checkout", "--quiet", "HEAD", "--", ".")
    workspace.run("dvc", "checkout", "--quiet", "--force")


@pytest.fixture(scope="module")
def experiments(reproduced: tuple[Workspace, str], stages: Stages) -> dict[str, Run]:
    """The runs of two experiments, by their names: one in the clone, and one in a workspace that is gone when it ends.

    The second has the bits of the default settings.
    """
    workspace = reproduced[0]
    before = len(workspace.runs())
    workspace.run("dvc", "exp", "run", "--set-param", "train.optimizer.lr=0.02", "--name", "slow", PATH=stages.path)
    restore(workspace)
    temporary = ["--temp", "--set-param", "train.threads=2", "--name", "temporary"]
    workspace.run("dvc", "exp", "run", *temporary, PATH=stages.path)
    return {run.data.tags["dvc.exp"]: run for run in workspace.runs()[:-before]}


@shared_clone
def test_repro_prints_the_test_metrics_against_the_optimum(reproduced: tuple[Workspace, str]) -> None:
    workspace, printed = reproduced
    metrics = workspace.json("results/metrics.json")
    for title, key in [("model", "test"), ("least squares", "least_squares")]:
        figures = re.search(rf"^{title} +(.+)$", printed, re.MULTILINE)
        assert figures is not None
        expected = [metrics[key][name] for name in METRICS]
        assert [float(figure) for figure in figures[1].split()] == pytest.approx(expected, rel=1e-5)
    assert f"excess mse over least squares: {metrics['excess_mse']:+.3%}" in printed
    (run,) = re.findall(r"^MLflow run '.+', (\w{32})$", printed[printed.index("evaluate.py") :], re.MULTILINE)
    place = rf"http://127\.0\.0\.1:5000/#/experiments/1/runs/{run}/artifacts/figures/fit\.png\?workflowType=machine_learning"
    assert re.search(rf"^next: make ui  .+\n +{place}\n +truefit rerun {run[:8]}  .+$", printed, re.MULTILINE)


@shared_clone
def test_repro_writes_what_the_design_names(clone: Workspace) -> None:
    metrics = clone.json("results/metrics.json")
    assert list(metrics) == ["test", "least_squares", "excess_mse", "parameters", "truth"]
    assert metrics["truth"] == {"intercept": 1.0, "coefficients": {"x1": 2.0}, "noise_mse": pytest.approx(0.01)}
    assert metrics["parameters"]["intercept"] == pytest.approx(1, abs=0.05)
    assert metrics["parameters"]["coefficients"]["x1"] == pytest.approx(2, abs=0.05)
    history = pd.read_csv(clone.path / "results/history.csv")
    assert list(history.columns) == ["epoch", "train_loss", "validation_loss", "learning_rate"]
    assert list(history["epoch"]) == list(range(1, 51))
    assert len(pd.read_csv(clone.path / "results/predictions.csv")) == 100


@shared_clone
def test_losses_are_pictured_against_the_optimum_only_where_they_are_an_mse(workspace: Workspace, stages: Stages) -> None:
    results, table = workspace.path / "results", workspace.path / "data/prepared"
    predictions, history = pd.read_csv(results / "predictions.csv"), pd.read_csv(results / "history.csv")
    optimum = least_squares(TableDataset(table, "train"))
    against = {"least squares, training rows": optimum.train_mse, "noise floor": 0.1**2}
    rest = (
        np.zeros((len(predictions), 1)),
        predictions,
        line_predictor(optimum.line),
        ["x1", "y"],
        loss_unit(TrainSettings()),
    )
    with_lines, without = (draw_figures(history, levels, *rest)["loss.png"] for levels in (against, {}))
    assert (results / "figures/loss.png").read_bytes() == with_lines != without
    # As a model that was trained with this loss says of itself, whatever params.yaml has meanwhile.
    description = workspace.json("results/model.json")
    description["training"]["loss"]["name"] = "huber"
    (results / "model.json").write_text(json.dumps(description))
    run_stages(stages, workspace.path, "evaluate")
    assert (results / "figures/loss.png").read_bytes() == without


@shared_clone
def test_second_repro_runs_no_stage_and_adds_no_run(clone: Workspace) -> None:
    before = len(clone.runs())
    printed = clone.run("dvc", "repro").stdout
    assert printed.count("didn't change, skipping") == len(ARGUMENTS)
    assert "Running stage" not in printed
    assert len(clone.runs()) == before


@shared_clone
def test_only_code_that_decides_numbers_makes_a_stage_stale(workspace: Workspace) -> None:
    workspace.add_comment("tracking", "rerun", "cli")
    bytecode = workspace.path / "src/truefit/core/__pycache__/added.pyc"
    bytecode.parent.mkdir(exist_ok=True)
    bytecode.write_bytes(b"of a module that a later stage was the first to import")
    assert json.loads(workspace.run("dvc", "status", "--json").stdout) == {}
    workspace.add_comment("training")
    assert list(json.loads(workspace.run("dvc", "status", "--json").stdout)) == ["train", "evaluate"]


@shared_clone
def test_repro_that_is_killed_while_it_trains_goes_on_to_the_committed_bits_in_one_run(
    reproduced: tuple[Workspace, str], tmp_path: Path, stages: Stages
) -> None:
    """In another clone of what was committed; killed anywhere, also in and between its other stages: `make torture`."""
    first = reproduced[0]
    first.run("git", "clone", "--quiet", ".", str(tmp_path / "clone"))
    workspace = Workspace(tmp_path / "clone", copy=False)
    put_store(workspace.path / "mlflow.db")
    process = start(workspace, "dvc", "repro")
    until_begun(workspace, process)
    assert kill(process)
    drop_torn_lock(workspace)
    printed = workspace.run("dvc", "repro", PATH=stages.path).stdout
    assert re.findall(r"Running stage '(\w+)'", printed) == ["train", "evaluate"]
    workspace.run("git", "diff", "--exit-code", "HEAD")
    for name in ("model.pt", "history.csv", "predictions.csv"):
        assert (workspace.path / "results" / name).read_bytes() == (first.path / "results" / name).read_bytes()
    assert not list(workspace.path.glob("**/.*.tmp"))
    assert not list((workspace.path / ".truefit/runs").iterdir())
    (run,) = workspace.runs()
    assert run.info.status == "FINISHED"
    assert run.data.tags["git.dirty"] == "false"
    assert run.data.tags["git.commit"] == first.run("git", "rev-parse", "HEAD").stdout.strip()
    assert run.data.tags["state_dict.sha256"] == first.runs()[-1].data.tags["state_dict.sha256"]
    assert run.data.metrics["test_mse"] == first.runs()[-1].data.metrics["test_mse"]


@shared_clone
def test_run_holds_params_metrics_tags_and_artifacts(clone: Workspace) -> None:
    run = clone.runs()[-1]
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "linear sgd lr=0.05 batch=16 torch"
    written = flatten(YAML(typ="safe").load(clone.path / "params.yaml"))
    assert {key: run.data.params[key] for key in written} == {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in written.items()
    }
    by_epoch = {"train_loss", "validation_loss", "learning_rate", "epoch_seconds", "train_rows_per_second"}
    assert set(run.data.metrics) == by_epoch | {"test_mse", "test_rmse", "test_mae", "test_r2", "excess_mse"}
    history = pd.read_csv(clone.path / "results/history.csv")
    for name in ("train_loss", "validation_loss", "learning_rate"):
        logged = clone.client.get_metric_history(run.info.run_id, name)
        assert [(metric.step, metric.value) for metric in logged] == list(zip(history["epoch"], history[name], strict=True))
    metrics = clone.json("results/metrics.json")
    assert run.data.metrics["test_mse"] == metrics["test"]["mse"]
    assert run.data.metrics["excess_mse"] == metrics["excess_mse"]
    artifacts = {
        artifact.path
        for folder in ("state_dict", "figures", "record")
        for artifact in clone.client.list_artifacts(run.info.run_id, folder)
    }
    # The patch is there where dvc.lock was behind the code when the first repro began.
    assert artifacts - {"record/diff.patch"} == {
        *("state_dict/best.pt", "state_dict/final.pt", "state_dict/model.json"),
        *("figures/loss.png", "figures/fit.png", "figures/residuals.png"),
        *("record/params.yaml", "record/dvc.yaml", "record/dvc.lock", "record/environment.json"),
    }


@shared_clone
def test_predictions_of_a_run_are_those_of_the_model_in_results(workspace: Workspace, stages: Stages) -> None:
    run = workspace.runs()[-1]
    expected = "data/out.csv: 1000 rows, each with a prediction of 'y'\n"

    found = []
    for model in (["--model", "results"], ["--run", run.info.run_id[:12]]):
        done = stages.run(workspace.path, "truefit", "predict", *model, "data/synthetic.csv", "data/out.csv")
        assert (done, stages.printed) == ((0, ""), expected)
        found.append((workspace.path / "data/out.csv").read_bytes())

    assert found[0] == found[1]
    written = pd.read_csv(workspace.path / "data/out.csv")
    parameters = workspace.json("results/metrics.json")["parameters"]
    line = parameters["intercept"] + parameters["coefficients"]["x1"] * written["x1"]
    assert list(written.columns) == ["x1", "y", "prediction"]
    assert written["prediction"].to_numpy() == pytest.approx(line.to_numpy(), rel=1e-6)


@shared_clone
def test_run_names_the_digests_of_what_it_read_and_wrote(clone: Workspace) -> None:
    run = clone.runs()[-1]
    table, tags = clone.json("data/prepared/table.json"), run.data.tags
    assert tags["csv.sha256"] == table["csv"]["sha256"]
    assert tags["state_dict.sha256"] == clone.json("results/model.json")["state_dict_sha256"]
    assert re.fullmatch(r"[0-9a-f]{64}", tags["table.sha256"])
    assert run.inputs is not None
    (dataset,) = (given.dataset for given in run.inputs.dataset_inputs)
    assert (dataset.name, dataset.digest) == ("synthetic.csv", table["csv"]["sha256"][:36])
    assert "dvc.exp" not in tags
    for name in ("python", "torch", "numpy", "mlflow", "dvc", "threads", "cpu_capability", "device"):
        assert tags[name]


@shared_clone
def test_training_with_the_same_bits_is_evaluated_again(clone: Workspace, experiments: dict[str, Run]) -> None:
    first, again = clone.runs()[-1], experiments["temporary"]
    assert again.info.run_id != first.info.run_id
    assert (first.data.params["train.threads"], again.data.params["train.threads"]) == ("1", "2")
    assert again.data.tags["state_dict.sha256"] == first.data.tags["state_dict.sha256"]
    assert again.data.metrics["test_mse"] == first.data.metrics["test_mse"]


@shared_clone
def test_dvc_tells_metrics_params_and_plots_apart(workspace: Workspace, experiments: dict[str, Run]) -> None:
    workspace.run("dvc", "exp", "apply", "slow")
    params = json.loads(workspace.run("dvc", "params", "diff", "--json").stdout)
    assert params["params.yaml"] == {"train.optimizer.lr": {"old": 0.05, "new": 0.02, "diff": pytest.approx(-0.03)}}
    changed = json.loads(workspace.run("dvc", "metrics", "diff", "--json").stdout)["results/metrics.json"]
    shown = json.loads(workspace.run("dvc", "metrics", "show", "--json").stdout)[""]["data"]["results/metrics.json"]["data"]
    assert changed["test.mse"]["new"] == shown["test"]["mse"] != changed["test.mse"]["old"]
    workspace.run("dvc", "plots", "show", "--out", "plots")
    page = (workspace.path / "plots/index.html").read_text()
    assert "Loss by epoch" in page
    assert "validation_loss" in page
    assert "Predicted against actual" in page
    assert len(list((workspace.path / "plots").rglob("*.png"))) == 3
    workspace.run("git", "clean", "--quiet", "--force", "-d", "plots")


@shared_clone
def test_experiments_give_a_run_and_a_row_each(clone: Workspace, experiments: dict[str, Run]) -> None:
    changed = {
        name: (run.data.params["train.optimizer.lr"], run.data.params["train.threads"]) for name, run in experiments.items()
    }
    assert changed == {"slow": ("0.02", "1"), "temporary": ("0.05", "2")}
    shown = json.loads(clone.run("dvc", "exp", "show", "--json").stdout)
    rows = {row["name"]: row["revs"][0]["data"] for entry in shown for row in entry["experiments"] or []}
    assert set(rows) == set(experiments)
    mse = {name: row["metrics"]["results/metrics.json"]["data"]["test"]["mse"] for name, row in rows.items()}
    assert mse == {name: run.data.metrics["test_mse"] for name, run in experiments.items()}
    assert mse["slow"] != mse["temporary"]
    for run in experiments.values():
        assert run.info.status == "FINISHED"
        assert run.info.run_name.endswith(f"({run.data.tags['dvc.exp']})")
        assert (clone.path / "mlartifacts" / run.info.run_id / "artifacts/state_dict/final.pt").exists()


def run_stages(stages: Stages, folder: Path, *names: str) -> None:
    """Run stages as dvc.yaml would."""
    for name in names:
        done = stages.run(folder, name, *ARGUMENTS[name])
        assert done.status == 0, done.line


@own_clone
def test_own_csv_needs_only_params(tmp_path: Path, stages: Stages) -> None:
    workspace = Workspace(tmp_path)
    frame = load_diabetes(as_frame=True).frame
    frame.to_csv(tmp_path / "diabetes.csv", index=False)
    descent = {"train__batch_size": "all", "train__optimizer__momentum": 0.9, "train__epochs": 300}
    workspace.set_params(prepare__csv="diabetes.csv", **descent)
    # That DVC runs the other two as well is seen in the next test.
    printed = workspace.run("dvc", "repro", "prepare", PATH=stages.path).stdout
    assert re.findall(r"Running stage '(\w+)'", printed) == ["prepare"]
    run_stages(stages, tmp_path, "prepare", "train", "evaluate")
    metrics = workspace.json("results/metrics.json")
    assert abs(metrics["test"]["r2"] - metrics["least_squares"]["r2"]) < 0.01
    assert metrics["least_squares"]["r2"] > 0.3
    assert list(metrics["parameters"]["coefficients"]) == list(frame.columns[:-1])
    assert "truth" not in metrics
    assert (tmp_path / "results/figures/predicted.png").exists()

    frame["part"] = ["train", "train", "train", "validation", "test"] * 88 + ["train", "train"]
    frame.to_csv(tmp_path / "diabetes.csv", index=False)
    workspace.set_params(prepare__split__column="part")
    run_stages(stages, tmp_path, "prepare", "train", "evaluate")
    table, metrics = workspace.json("data/prepared/table.json"), workspace.json("results/metrics.json")
    assert table["rows"] == {"train": 266, "validation": 88, "test": 88}
    assert ([column["name"] for column in table["columns"]], table["target"]) == (list(frame.columns[:-2]), "target")
    assert abs(metrics["test"]["r2"] - metrics["least_squares"]["r2"]) < 0.01
    assert [run.info.status for run in workspace.runs()] == ["FINISHED", "FINISHED"]


@own_clone
def test_the_page_on_a_file_met_for_the_first_time_shows_what_its_commands_print(tmp_path: Path, stages: Stages) -> None:
    workspace = Workspace(tmp_path)
    workspace.environment["PATH"] = stages.path
    section = (tmp_path / "docs/table.md").read_text().partition("## A file that you meet")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    columns, settings, changes, scores, new, predicted = [block for language, block in blocks if language != "sh"]
    copy, inspect, repro, predict = [line for language, block in blocks if language == "sh" for line in block.splitlines()]
    (tmp_path / "new.csv").write_text(new)

    workspace.run(*shlex.split(copy))
    printed = workspace.run(*shlex.split(inspect)).stdout
    assert columns in printed
    assert settings in printed
    assert changes in printed
    printed = workspace.run(*shlex.split(repro)).stdout
    assert re.findall(r"Running stage '(\w+)'", printed) == ["prepare", "train", "evaluate"]
    # Another processor may round otherwise.
    assert re.sub(r"[\d.+-]+", "0", scores) in re.sub(r"[\d.+-]+", "0", printed)
    workspace.run(*shlex.split(predict))
    shown, written = (
        np.array(re.findall(r"([\d.]+)$", text, re.MULTILINE), float)
        for text in (predicted, (tmp_path / "predicted.csv").read_text())
    )
    np.testing.assert_allclose(written, shown, rtol=0.05)


@shared_clone
def test_failing_training_leaves_a_failed_run_with_its_reason(workspace: Workspace, stages: Stages) -> None:
    workspace.set_params(train__optimizer__lr=1e4)
    failed = workspace.run("dvc", "repro", status=255, PATH=stages.path)
    run = workspace.runs()[0]
    assert run.info.status == "FAILED"
    reason = run.data.tags["failure"]
    assert re.match(r"epoch 1, batch \d+: the training loss is not finite; try train.optimizer.lr: 0.\d+$", reason)
    assert f"error: {reason}\n" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not (workspace.path / "results/model.pt").exists()


@own_clone
def test_auto_takes_the_compiled_engine_for_many_steps_and_the_run_says_so(tmp_path: Path, stages: Stages) -> None:
    workspace = Workspace(tmp_path)
    workspace.set_params(train__engine="auto", train__batch_size=1, train__optimizer__lr=0.001, train__epochs=125)
    workspace.set_params(train__compile__batches=4, train__compile__cpp_wrapper=False)  # compiled sooner
    run_stages(stages, tmp_path, "generate", "prepare", "train")
    assert "engine: compiled, since for 100,000 steps compiling pays" in stages.printed
    assert re.search(r"^compiled in [\d.]+ s$", stages.printed, re.MULTILINE)
    (run,) = workspace.runs()
    assert run.data.params["train.engine"] == "auto"
    assert run.data.tags["engine"] == "compiled"
    assert float(run.data.tags["compile_seconds"]) > 0
    assert "lr=0.001 batch=1 compiled" in run.info.run_name
    assert any((tmp_path / ".truefit/inductor").iterdir())


@shared_clone
def test_tracking_uri_of_the_environment_wins(workspace: Workspace, stages: Stages, tmp_path: Path) -> None:
    before = len(workspace.runs())
    elsewhere = f"sqlite:///{tmp_path / 'elsewhere.db'}"
    done = stages.run(workspace.path, "train", *ARGUMENTS["train"], MLFLOW_TRACKING_URI=elsewhere)
    assert done.status == 0, done.line
    client = MlflowClient(elsewhere)
    experiment = client.get_experiment_by_name("truefit")
    assert experiment is not None
    assert len(client.search_runs([experiment.experiment_id])) == 1
    assert len(workspace.runs()) == before
