"""Stage train: the prepared table -> a trained model, as one MLflow run."""

import argparse
import hashlib
import os
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from truefit.core import errors
from truefit.core.code import read_code
from truefit.core.config import PARAMS, Params
from truefit.core.files import atomic_path, sha256
from truefit.data.dataset import TableDataset, open_verified
from truefit.data.table import Table
from truefit.model import serving
from truefit.model.files import MODEL_JSON, MODEL_PT, save_model, state_dict_bytes, state_dict_digest
from truefit.tracking.connection import repository_root
from truefit.tracking.names import CHANGED_TAG, DIGEST_TAG
from truefit.tracking.provenance import read_origin
from truefit.tracking.run import Run, TrackSettings
from truefit.tracking.store import Store
from truefit.training.checkpoint import Checkpoints, CheckpointSettings, fingerprint
from truefit.training.device import choose_device, configure
from truefit.training.display import progress
from truefit.training.engines import choose_engine
from truefit.training.loop import Epoch, Outcome, TrainSettings, train


def main() -> None:
    """Train the model of the settings on the prepared table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path, help="the folder of the prepared table, such as data/prepared")
    parser.add_argument("results", type=Path, help="the folder for the model and its history, such as results")
    arguments = parser.parse_args()
    code = code_in_use()
    params = Params()
    settings, track = params.section("train", TrainSettings), params.section("track", TrackSettings)
    every = params.section("checkpoint", CheckpointSettings)
    device = choose_device("cpu" if settings.engine == "numpy" else settings.device)
    configure(settings.threads)
    datasets, store = open_verified(arguments.table, "train", "validation"), Store()
    table = datasets[0].table
    as_written, settings = settings, with_engine(settings, len(datasets[0]), device)
    # Inductor unpickles what it finds in its cache; its own choice is a folder under /tmp, with a name that others can guess.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(repository_root() / ".truefit/inductor"))
    goal = track.model_dump(exclude={"largest_file_mb"})  # which decides no result
    key = fingerprint(device, settings.model_dump(), table.digest, goal, store.address)
    origin = partial(read_origin, params, as_written.model_dump(), settings.engine, table, device, track.largest_file)
    with (
        Checkpoints(repository_root() / ".truefit/checkpoints" / key, every) as checkpoints,
        store.training_run(track, run_name(settings), key, origin) as run,
    ):
        outcome = train_with_progress(datasets, settings, device, run, checkpoints)
        save_outcome(outcome, settings, table, arguments.results, run)
        if track.log_model:
            saved = [arguments.results / name for name in (MODEL_PT, MODEL_JSON)]
            run.log_model(serving, saved, example_rows(table), table.dtype)
        if changed := {name for name, _ in code.items() ^ code_in_use().items()}:
            run.set_tags({CHANGED_TAG: ", ".join(sorted(changed))[:5000]})
    last = outcome.epochs[-1]
    print(f"epoch {last.epoch}: train loss {last.train_loss:.6g}, validation loss {last.validation_loss:.6g}")
    print(run)


def code_in_use() -> dict[str, str]:
    """Return the digests of the code and of params.yaml as they are now."""
    return {**({str(PARAMS): sha256(PARAMS)} if PARAMS.is_file() else {}), **read_code()}


def with_engine(settings: TrainSettings, rows: int, device: torch.device) -> TrainSettings:
    """Return the settings with the engine chosen, and say which, where they leave it to the number of steps."""
    if settings.engine != "auto":
        return settings
    engine, reason = choose_engine(settings.steps(rows), device)
    print(f"engine: {engine}, since {reason}")
    return settings.model_copy(update={"engine": engine})


def run_name(settings: TrainSettings) -> str:
    """Return a name that tells runs apart: model, optimizer, learning rate, batch size and engine."""
    optimizer = settings.optimizer
    return f"{settings.model.name} {optimizer.name} lr={optimizer.lr:g} batch={settings.batch_size} {settings.engine}"


def train_with_progress(
    datasets: list[TableDataset], settings: TrainSettings, device: torch.device, run: Run, checkpoints: Checkpoints
) -> Outcome:
    """Train, logging each epoch and showing it on stderr."""
    with progress(settings.epochs) as show:

        def on_epoch(epoch: Epoch) -> None:
            metrics = {
                "train_loss": epoch.train_loss,
                "validation_loss": epoch.validation_loss,
                "learning_rate": epoch.learning_rate,
                "epoch_seconds": epoch.seconds,
                "train_rows_per_second": epoch.train_rows_per_second,
            }
            run.log_metrics(metrics, epoch.epoch)
            show(epoch)

        def on_compiled(seconds: float) -> None:
            run.set_tags({"compile_seconds": f"{seconds:.1f}"})
            tqdm.write(f"compiled in {seconds:.1f} s")

        return train(datasets, settings, device, on_epoch, checkpoints, on_compiled)


def save_outcome(outcome: Outcome, settings: TrainSettings, table: Table, results: Path, run: Run) -> None:
    """Write the model and its history; log both states under the digest of the one kept, and how to rebuild the model."""
    save_model(results, outcome.kept_state, settings.model, settings.standardize, table)
    with atomic_path(results / "history.csv") as temporary:
        outcome.history().to_csv(temporary, index=False)
    states = {"best.pt": state_dict_bytes(outcome.best_state), "final.pt": state_dict_bytes(outcome.final_state)}
    logged = {**states, MODEL_JSON: (results / MODEL_JSON).read_bytes()}
    run.log_artifacts({f"state_dict/{name}": content for name, content in logged.items()})
    digests = {f"{name}.sha256": hashlib.sha256(content).hexdigest() for name, content in states.items()}
    run.set_tags({DIGEST_TAG: state_dict_digest(outcome.kept_state), **digests})


def example_rows(table: Table) -> pd.DataFrame:
    """Return rows as an example of what the model takes: the features' means, and a standard deviation to either side.

    None of the table's own, which are not to leave the machine with each run.
    """
    width = len(table.features)
    mean, std = np.array(table.mean[:width]), np.array(table.std[:width])
    return pd.DataFrame([mean - std, mean, mean + std], columns=table.features)


if __name__ == "__main__":
    sys.exit(errors.run(main))
