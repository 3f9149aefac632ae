"""Stage evaluate: the model against the optimum, on the test rows."""

import argparse
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from truefit.core import errors
from truefit.core.code import code_digest, read_code
from truefit.core.config import Params
from truefit.core.files import atomic_path, write_json
from truefit.data.dataset import TableDataset, open_verified
from truefit.evaluation.figures import write_figures
from truefit.evaluation.note import describe, formula
from truefit.evaluation.report import (
    EvaluateSettings,
    Optimum,
    least_squares,
    line_predictor,
    loss_levels,
    model_predictor,
    report,
    sample_predictions,
    truth_of,
)
from truefit.model.files import load_model
from truefit.model.models import MLP, Linear
from truefit.tracking.names import NOTE_TAG
from truefit.tracking.run import Run, TrackSettings
from truefit.tracking.store import Store
from truefit.training.device import configure
from truefit.training.loop import TrainSettings

UI = "http://127.0.0.1:5000"  # `make ui`


def main() -> None:
    """Write metrics, predictions and pictures, and add them to the run that trained the model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path, help="the folder of the prepared table, such as data/prepared")
    parser.add_argument("results", type=Path, help="the folder of the model, for its evaluation too, such as results")
    parser.add_argument("synthetic", type=Path, help="the CSV of stage generate, whose true line is known")
    arguments = parser.parse_args()
    results: Path = arguments.results
    params = Params()
    settings = params.section("evaluate", EvaluateSettings)
    trained_with = params.section("train", TrainSettings)
    track, store = params.section("track", TrackSettings), Store()
    # One thread, so that the figures do not depend on the number of cores.
    configure(threads=1)
    train, test = open_verified(arguments.table, "train", "test")
    model, description = load_model(results, test.table)
    optimum = least_squares(train)
    truth = truth_of(test.table, arguments.synthetic)
    content = report(test, model, optimum.line, truth)
    write_json(results / "metrics.json", content)
    levels = loss_levels(trained_with.loss.name, optimum, truth)
    pictures = write_sample(test, model, optimum, levels, settings.sample, results)
    with store.evaluation_run(track, description.state_dict_sha256) as run:
        log_evaluation(run, content, pictures, describe(test.table, trained_with, content))
    print(run)
    print_summary(content)
    print_next(run, store, track.experiment, pictures[1].name)


def write_sample(
    test: TableDataset, model: Linear | MLP, optimum: Optimum, levels: dict[str, float], sample: int, results: Path
) -> list[Path]:
    """Write predictions.csv and the pictures, of the sampled test rows and of the losses; return the pictures' paths."""
    features, predictions = sample_predictions(test, model_predictor(model, getattr(torch, test.table.dtype)), sample)
    with atomic_path(results / "predictions.csv") as temporary:
        predictions.to_csv(temporary, index=False)
    history, best = pd.read_csv(results / "history.csv"), line_predictor(optimum.line)
    return write_figures(results / "figures", history, levels, features, predictions, best, test.table.columns)


def log_evaluation(run: Run, content: dict[str, Any], pictures: list[Path], note: str) -> None:
    """Add the test metrics, the pictures and the description to the run."""
    metrics = {f"test_{name}": value for name, value in content["test"].items()} | {"excess_mse": content["excess_mse"]}
    # Where it is not that of the training, the scores are of other code.
    run.set_tags({"evaluated.code.sha256": code_digest(read_code()), NOTE_TAG: note})
    run.log_metrics({name: value for name, value in metrics.items() if value is not None}, step=0)
    run.log_artifacts({f"figures/{path.name}": path.read_bytes() for path in pictures})


def print_summary(content: dict[str, Any]) -> None:
    """Print the model's scores above those of least squares, and a linear model's line above the true one."""
    names = list(content["test"])
    print(f"{'':14}" + "".join(f"{name:>12}" for name in names))
    for title, scores in [("model", content["test"]), ("least squares", content["least_squares"])]:
        print(f"{title:14}" + "".join(f"{'-' if scores[name] is None else format(scores[name], '.6g'):>12}" for name in names))
    if content["excess_mse"] is not None:
        print(f"excess mse over least squares: {content['excess_mse']:+.3%}")
    for title in ("parameters", "truth"):
        if title in content:
            print(f"{'learned' if title == 'parameters' else 'true'}: {formula(content[title])}")


def print_next(run: Run, store: Store, experiment: str, picture: str) -> None:
    """Print what to type next, with a run that MLflow has, or one that waits in its journal; and where its picture is."""
    if run.run_id is None:
        print("next: truefit sync             send the run, once its store can be reached")
        return
    # A server has its own UI, which `make ui` would not start.
    remote = store.uri.startswith("http")
    print(f"next: {'' if remote else 'make ui                  then '}look at the run's pictures in MLflow:")
    place = f"experiments/{store.experiment(experiment)}/runs/{run.run_id}/artifacts/figures/{picture}"
    # Without the last part, MLflow 3 shows the pages for language models to a browser that is new to it.
    print(f"      {store.redacted_uri.rstrip('/') if remote else UI}/#/{place}?workflowType=machine_learning")
    print(f"      truefit rerun {run.run_id[:8]}   run it again, and compare every bit")


if __name__ == "__main__":
    sys.exit(errors.run(main))
