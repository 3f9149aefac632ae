"""Stage evaluate: the model against least squares, on the test rows."""

if __name__ == "__main__":  # before the imports that take seconds
    from truefit.core.beginning import end_at_signals

    end_at_signals()

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from truefit.core import errors
from truefit.core.code import code_digest, read_code
from truefit.core.config import Params
from truefit.core.files import write_bytes, write_json
from truefit.core.terminal import say
from truefit.data.dataset import open_verified
from truefit.evaluation.figures import draw_figures
from truefit.evaluation.least_squares import least_squares
from truefit.evaluation.metrics import line_predictor, model_predictor
from truefit.evaluation.note import describe
from truefit.evaluation.report import (
    EvaluateSettings,
    compute_metrics,
    generating_settings,
    loss_levels,
    loss_unit,
    sample_predictions,
    summary,
)
from truefit.model.files import MODEL_JSON, load_model
from truefit.tracking.names import EVALUATED_CODE_TAG, EXCESS_MSE, FIGURES, NOTE_TAG, TEST_PREFIX
from truefit.tracking.run import Run, TrackSettings
from truefit.tracking.store import Store
from truefit.training.device import configure
from truefit.training.progress import read_history
from truefit.training.settings import trained_with

UI = "http://127.0.0.1:5000"  # `make ui`


def main() -> None:
    """Write metrics, predictions and pictures, and add them to the run that trained the model."""
    arguments = parse()
    results: Path = arguments.results
    params, store = Params(), Store()
    settings, track = params.section("evaluate", EvaluateSettings), params.section("track", TrackSettings)
    configure(threads=1)  # so that the figures do not depend on the number of cores
    train, test = open_verified(arguments.table, "train", "test")
    table = test.table
    model, description = load_model(results, table)
    training, truth = trained_with(description, results / MODEL_JSON), generating_settings(table, arguments.synthetic, params)
    fit = least_squares(train)
    metrics = compute_metrics(test, model, fit.line, truth)
    features, predictions = sample_predictions(test, model_predictor(model, getattr(torch, table.dtype)), settings.sample)
    history, levels = read_history(results / "history.csv"), loss_levels(training, fit, truth)
    unit = loss_unit(training, table.weight is not None)
    figures = draw_figures(history, levels, features, predictions, line_predictor(fit.line), table.names, unit)
    write_json(results / "metrics.json", metrics)
    write_bytes(results / "predictions.csv", predictions.to_csv(index=False).encode())
    for name, content in figures.items():
        write_bytes(results / "figures" / name, content)
    with store.evaluation_run(track, description.state_dict_sha256) as run:
        log_evaluation(run, metrics, figures, describe(table, training, metrics))
    say(str(run), *summary(metrics).split("\n"))
    _, picture, _ = figures
    print_next(run, store, track.experiment, picture)


def parse() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path, help="the folder of the prepared table, such as data/prepared")
    parser.add_argument("results", type=Path, help="the folder of the model, for its evaluation too, such as results")
    parser.add_argument("synthetic", type=Path, help="the CSV of stage generate, whose true line is known")
    return parser.parse_args()


def log_evaluation(run: Run, metrics: dict[str, Any], figures: dict[str, bytes], note: str) -> None:
    """Add the test metrics, the pictures and the description to the run."""
    logged = {f"{TEST_PREFIX}{name}": value for name, value in metrics["test"].items()} | {EXCESS_MSE: metrics["excess_mse"]}
    # Where it is not that of the training, the scores are of other code.
    run.set_tags({EVALUATED_CODE_TAG: code_digest(read_code()), NOTE_TAG: note})
    run.log_metrics({name: value for name, value in logged.items() if value is not None}, step=0)
    run.log_artifacts({f"{FIGURES}/{name}": content for name, content in figures.items()})


def print_next(run: Run, store: Store, experiment: str, picture: str) -> None:
    """Print what to type next, with a run that MLflow has, or one that waits in its journal; and where its picture is."""
    if run.run_id is None:
        say("next: truefit sync             send the run, once its store can be reached")
        return
    # A server has its own UI, which `make ui` would not start.
    remote = store.uri.startswith("http")
    say(f"next: {'' if remote else 'make ui                  then '}look at the run's pictures in MLflow:")
    place = f"experiments/{store.experiment(experiment)}/runs/{run.run_id}/artifacts/{FIGURES}/{picture}"
    # Without the last part, MLflow 3 shows the pages for language models to a browser that is new to it.
    say(f"      {store.redacted_uri.rstrip('/') if remote else UI}/#/{place}?workflowType=machine_learning")
    if run.joined:  # what an evaluation alone has cannot be run again
        say(f"      truefit rerun {run.run_id[:8]}   run it again, and compare every bit")


if __name__ == "__main__":
    sys.exit(errors.run(main))
