"""Stage train: the prepared table -> a trained model, as one MLflow run."""

if __name__ == "__main__":  # before the imports that take seconds
    from truefit.core.beginning import end_at_signals

    end_at_signals()

import argparse
import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from truefit.core import errors
from truefit.core.code import code_digest, read_code
from truefit.core.config import Params, flatten
from truefit.core.errors import SettingsError
from truefit.core.files import write_bytes
from truefit.core.launch import LaunchSettings
from truefit.core.terminal import say, shown
from truefit.core.text import as_yaml
from truefit.data.dataset import TableDataset, open_verified
from truefit.data.table import Table
from truefit.model import serving
from truefit.model.files import MODEL_JSON, save_model, state_dict_bytes, state_dict_digest
from truefit.tracking.connection import repository_root
from truefit.tracking.git import head_commit
from truefit.tracking.names import (
    CHANGED_TAG,
    COMPILE_SECONDS_TAG,
    DIGEST_TAG,
    HOSTS_TAG,
    MODEL_DESCRIPTION,
    PROCESSES_TAG,
    SHARDS_TAG,
    state_path,
    state_tag,
)
from truefit.tracking.provenance import changed_since, code_in_use, read_origin
from truefit.tracking.run import Run, TrackSettings
from truefit.tracking.store import Store
from truefit.training.build import build_engine, untrained_model, with_engine
from truefit.training.checkpoint import Checkpoints, CheckpointSettings, fingerprint
from truefit.training.device import choose_device, configure
from truefit.training.display import progress
from truefit.training.engines.compiled_engine import CompiledEngine
from truefit.training.engines.sharded_engine import CompiledShardedEngine
from truefit.training.group import Group, join_group
from truefit.training.loop import fit
from truefit.training.progress import Epoch, Outcome
from truefit.training.rank import is_rank
from truefit.training.settings import TrainSettings


def main() -> None:
    """Train the model of the settings on the prepared table: in this process, or in as many as `launch` says."""
    arguments, code, params = parse(), code_in_use(), Params()
    as_written, launch = params.section("train", TrainSettings), params.section("launch", LaunchSettings)
    device = choose_device(as_written.device_name)
    if launch.processes > 1 and not is_rank():
        # Imported here, since torch's launcher takes long to import, and no other process needs it.
        from truefit.training.supervision import start_ranks

        if as_written.shards % launch.processes:
            found = f"{params.path}: launch.processes: found {launch.processes}"
            allowed = f"a number that divides train.shards, {as_written.shards}; or set that to {launch.processes}"
            raise SettingsError(f"{found}, allowed: {allowed}")
        errors.leave(start_ranks([sys.executable, *sys.argv], launch))
    configure(as_written.threads)
    # Inductor unpickles what it finds in its cache; its own choice is a folder under /tmp, with a name that others can guess.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(repository_root() / ".truefit/inductor"))
    with join_group(device, launch.timeout) as group:
        # What lies on this machine its processes verify together.
        datasets = open_verified(arguments.table, "train", "validation", share=group.local_rank, of=group.local_size)
        group.meet("table")
        table = datasets[0].table
        settings, reason = with_engine(as_written, len(datasets[0]), device)
        if group.size > 1:
            group.require_same(what_decides(as_written, table))
        if not group.is_first:
            model = untrained_model(datasets, settings)
            fit(build_engine(model, datasets[0], settings, device, group), model, datasets, settings, device, group=group)
        if reason:
            say(reason)
        run = lead(group, datasets, settings, params, code, device, arguments.results)
    run.end()
    errors.leave(0)  # at once: even to free what this function holds takes long enough to be killed in


def lead(
    group: Group,
    datasets: Sequence[TableDataset],
    settings: TrainSettings,
    params: Params,
    code: Mapping[str, str],
    device: torch.device,
    results: Path,
) -> Run:
    """Train as the first process of the group, or the only one, which writes all that the training leaves behind."""
    store, table = Store(), datasets[0].table
    as_written, track = params.section("train", TrainSettings), params.section("track", TrackSettings)
    tracked = track.model_dump(exclude={"largest_file_mb"})  # a run of another experiment or name is another run
    identity = fingerprint(device, settings.model_dump(), table.digest, tracked, store.address)
    origin = partial(read_origin, params, as_written.model_dump(), settings.engine, table, device, track.largest_file)
    folder = repository_root() / ".truefit/checkpoints" / identity
    with (
        Checkpoints(folder, params.section("checkpoint", CheckpointSettings)) as checkpoints,
        store.training_run(track, settings.title, identity, origin) as run,
        progress(settings.epochs) as show,
    ):

        def on_epoch(epoch: Epoch) -> None:
            run.log_metrics(epoch.metrics(), epoch.epoch)
            show(epoch)

        run.set_tags({PROCESSES_TAG: str(group.size), HOSTS_TAG: str(group.host_count), SHARDS_TAG: str(settings.shards)})
        model = untrained_model(datasets, settings)
        engine = build_engine(model, datasets[0], settings, device, group)
        if isinstance(engine, CompiledEngine | CompiledShardedEngine):
            run.set_tags({COMPILE_SECONDS_TAG: f"{engine.compile_seconds:.1f}"})
            tqdm.write(shown(f"compiled in {engine.compile_seconds:.1f} s"))
        outcome = fit(engine, model, datasets, settings, device, on_epoch, checkpoints, group)
        save_outcome(outcome, as_written, table, results, run, track.log_model)
        if changed := changed_since(code):
            named = ", ".join(changed)[:5000]
            run.set_tags({CHANGED_TAG: named})
            advice = "train again for a run that `truefit rerun` can judge"
            tqdm.write(shown(f"warning: changed while the training ran: {named}; {advice}"), sys.stderr)
    last = outcome.epochs[-1]
    say(f"epoch {last.epoch}: train loss {last.train_loss:.6g}, validation loss {last.validation_loss:.6g}", str(run))
    return run


def what_decides(settings: TrainSettings, table: Table) -> dict[str, str]:
    """Return what has to be the same in each process of a training, by names that its user knows."""
    train = flatten({"train": settings.model_dump(mode="json")})
    texts = {key: value if isinstance(value, str) else as_yaml(value, sys.maxsize) for key, value in train.items()}
    code = code_digest(read_code())
    return {"commit": head_commit(), "code": code, "table": table.digest, "torch": torch.__version__, **texts}


def parse() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path, help="the folder of the prepared table, such as data/prepared")
    parser.add_argument("results", type=Path, help="the folder for the model and its history, such as results")
    return parser.parse_args()


def save_outcome(outcome: Outcome, settings: TrainSettings, table: Table, results: Path, run: Run, log_model: bool) -> None:
    """Write the model and its history; log both states under the digest of the one kept, and how to rebuild the model."""
    state, training = outcome.kept_state, settings.beside_the_model()
    files = save_model(results, state, settings.model, settings.scale, table, training)
    write_bytes(results / "history.csv", outcome.history().to_csv(index=False).encode())
    states = {"best": state_dict_bytes(outcome.best_state), "final": state_dict_bytes(outcome.final_state)}
    artifacts = {state_path(kind): content for kind, content in states.items()}
    run.log_artifacts(artifacts | {MODEL_DESCRIPTION: files[MODEL_JSON]})
    digests = {state_tag(kind): hashlib.sha256(content).hexdigest() for kind, content in states.items()}
    run.set_tags({DIGEST_TAG: state_dict_digest(state), **digests})
    if log_model:
        run.log_model(serving, files, table)


if __name__ == "__main__":
    sys.exit(errors.run(main))
