"""Checkpoints: what they keep, what they refuse, and that a training goes on from any of them to the same bits."""

import hashlib
import io
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_columns import ALL_KINDS, rows_of_all_kinds
from helpers_data import prepare
from helpers_training import CPU, PLAIN, normal_line, same_bits, write_prepared
from workspace import ROOT

from truefit.core import errors
from truefit.core.errors import StoppedError, TruefitError
from truefit.data import batches
from truefit.data.dataset import open_verified
from truefit.model.files import read_tensors
from truefit.training.checkpoint import Checkpoints, CheckpointSettings, fingerprint
from truefit.training.loop import train
from truefit.training.progress import Epoch, Outcome
from truefit.training.settings import TrainSettings

NEVER = CheckpointSettings(epochs=None, seconds=None)


def opened(folder: Path, **settings: Any) -> Checkpoints:
    return Checkpoints(folder, CheckpointSettings.model_validate({"epochs": None, "seconds": None, **settings}))


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.checkpoint"))


def saved(folder: Path, count: int) -> list[Path]:
    """Leave a folder as a killed training does, with its latest checkpoints of `count`."""
    with pytest.raises(KeyboardInterrupt), opened(folder) as checkpoints:
        for number in range(count):
            checkpoints.save({"number": number, "tensor": torch.full([3], number)})
        raise KeyboardInterrupt
    return files(folder)


# --- what is on the disk


def test_the_latest_checkpoint_is_the_one_loaded(tmp_path: Path) -> None:
    saved(tmp_path / "a", 3)
    with opened(tmp_path / "a") as checkpoints:
        state = read_tensors(checkpoints.load())
    assert state["number"] == 2
    assert state["tensor"].tolist() == [2, 2, 2]


def test_a_new_training_has_none(tmp_path: Path) -> None:
    with opened(tmp_path / "a") as checkpoints:
        assert checkpoints.load() == b""


def test_the_latest_two_are_kept(tmp_path: Path) -> None:
    assert [path.name for path in saved(tmp_path / "a", 4)] == ["00000003.checkpoint", "00000004.checkpoint"]


def test_a_resumed_training_numbers_on(tmp_path: Path) -> None:
    saved(tmp_path / "a", 2)
    assert [path.name for path in saved(tmp_path / "a", 1)] == ["00000002.checkpoint", "00000003.checkpoint"]


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "digest"])
def test_a_damaged_checkpoint_is_told_and_the_one_before_it_taken(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    *_, last = saved(tmp_path / "a", 2)
    content = bytearray(last.read_bytes())
    if damage == "flip":
        content[-100] ^= 1
    elif damage == "digest":
        content[3] ^= 1
    else:
        content = content[: len(content) // 2 if damage == "cut" else 0]
    last.write_bytes(content)
    with opened(tmp_path / "a") as checkpoints:
        state = read_tensors(checkpoints.load())
    assert state["number"] == 0
    assert capsys.readouterr().err == (
        f"warning: {last}: damaged: its digest is not that of its content; going on from what was saved before it\n"
    )


def test_with_both_damaged_the_training_begins_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in saved(tmp_path / "a", 2):
        path.write_bytes(b"x")
    with opened(tmp_path / "a") as checkpoints:
        assert checkpoints.load() == b""
    assert capsys.readouterr().err.count("warning: ") == 2


class Malicious:
    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.place),))


@pytest.mark.parametrize("archive", [True, False])
def test_a_planted_checkpoint_with_a_right_digest_is_refused_without_running(
    tmp_path: Path, archive: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    *_, last = saved(tmp_path / "a", 2)
    buffer = io.BytesIO()
    (torch.save if archive else pickle.dump)({"number": 7, "tensor": Malicious(tmp_path / "planted")}, buffer)
    last.write_bytes(hashlib.sha256(buffer.getvalue()).hexdigest().encode() + b"\n" + buffer.getvalue())
    with opened(tmp_path / "a") as checkpoints:
        state = read_tensors(checkpoints.load())
    assert state["number"] == 0
    assert not (tmp_path / "planted").exists()
    assert "damaged, or not a state_dict" in capsys.readouterr().err


def test_files_have_the_mode_that_the_umask_gives(tmp_path: Path) -> None:
    former = os.umask(0o027)
    try:
        *_, last = saved(tmp_path / "a", 1)
    finally:
        os.umask(former)
    assert last.stat().st_mode & 0o777 == 0o640


# --- when it is over


@pytest.mark.parametrize("error", [None, TruefitError("the loss is not finite")])
def test_checkpoints_are_removed_when_the_training_is_over(tmp_path: Path, error: Exception | None) -> None:
    try:
        with opened(tmp_path / "a") as checkpoints:
            checkpoints.save({})
            if error:
                raise error
    except TruefitError:
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("disk full"), StoppedError(15, "here"), ZeroDivisionError()])
def test_checkpoints_are_kept_when_it_may_go_on(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), opened(tmp_path / "a") as checkpoints:
        checkpoints.save({})
        raise error
    assert len(files(tmp_path / "a")) == 1


def test_checkpoints_of_a_training_killed_while_it_removed_them_go_with_the_next_training(tmp_path: Path) -> None:
    """Fault 11."""
    saved(tmp_path / "killed", 2)
    (tmp_path / "killed").rename(tmp_path / "killed.over")
    saved(tmp_path / "another", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["another"]


def test_a_second_training_with_the_fingerprint_is_told_why_it_cannot_run(tmp_path: Path) -> None:
    with opened(tmp_path / "a"):
        with pytest.raises(TruefitError) as caught, opened(tmp_path / "a"):
            pass
        with opened(tmp_path / "b"):
            pass
    assert str(caught.value) == (
        f"{tmp_path / 'a'}: a training with the same settings, table and code is running; wait until it has ended"
    )


def test_a_killed_training_holds_nobody_back(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from truefit.training.checkpoint import *\n"
        "held = Checkpoints(Path(sys.argv[1]), CheckpointSettings()).__enter__(); print('held', flush=True); time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", code, str(tmp_path / "a")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(TruefitError, match="is running"), opened(tmp_path / "a"):
            pass
        process.kill()
    with opened(tmp_path / "a"):
        pass


# --- when it is time


def test_due_after_every_so_many_epochs(tmp_path: Path) -> None:
    checkpoints = opened(tmp_path, epochs=3)
    assert [number for number in range(1, 10) if checkpoints.due(number)] == [3, 6, 9]
    assert not checkpoints.due()


def test_due_after_so_many_seconds_also_inside_an_epoch(tmp_path: Path) -> None:
    with opened(tmp_path / "a", seconds=0.05) as checkpoints:
        assert not checkpoints.due()
        time.sleep(0.06)
        assert checkpoints.due()
        assert checkpoints.due(1)
        checkpoints.save({})
        assert not checkpoints.due()


def test_never_due_where_nothing_is_set(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, NEVER)
    assert not checkpoints.due()
    assert not checkpoints.due(1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_due_when_a_signal_asks_for_it(tmp_path: Path, number: signal.Signals) -> None:
    checkpoints = Checkpoints(tmp_path, NEVER)
    former = signal.getsignal(number)
    try:
        with pytest.raises(KeyboardInterrupt), checkpoints.deferred_signals:
            signal.raise_signal(number)
            assert checkpoints.due()
            assert checkpoints.signal == number
            signal.raise_signal(number)  # the second is not held back
    finally:
        assert signal.getsignal(number) == former


def test_a_signal_that_came_too_late_for_a_checkpoint_is_not_lost(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Checkpoints(tmp_path, NEVER).deferred_signals:
        signal.raise_signal(signal.SIGINT)


# --- the fingerprint


def test_the_fingerprint_is_the_same_for_the_same_and_another_for_anything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, other = TrainSettings().model_dump(), TrainSettings(seed=43).model_dump()
    same = fingerprint(CPU, settings, "table")
    assert re.fullmatch("[0-9a-f]{64}", same)
    assert fingerprint(CPU, TrainSettings().model_dump(), "table") == same
    others = [
        fingerprint(CPU, other, "table"),
        fingerprint(CPU, settings, "another table"),
        fingerprint(torch.device("meta"), settings, "table"),
    ]
    monkeypatch.setattr(torch, "__version__", "0.0")
    others.append(fingerprint(CPU, settings, "table"))
    assert len({same, *others}) == 5


# --- going on


class StopEach(Checkpoints):
    """Stops the training at every place where it could pause, one after the other."""

    calls = 0

    def due(self, ended_epoch: int | None = None) -> bool:
        self.calls += 1
        # Not at the first: what a resumed training begins with is a chunk or an end of an epoch of its own.
        self.deferred_signals.first = signal.SIGTERM
        return True


def stopped_everywhere(table: Path, folder: Path, settings: TrainSettings) -> tuple[Outcome, int, list[Epoch]]:
    """Train with a stop at every pause; return the outcome, the number of stops, and the epochs told of at the end."""
    for stops in range(1000):
        told: list[Epoch] = []
        try:
            with StopEach(folder, NEVER) as checkpoints:
                return (
                    train(open_verified(table, "train", "validation"), settings, CPU, told.append, checkpoints),
                    stops,
                    told,
                )
        except StoppedError:
            continue
    raise AssertionError("it never ends")


SETTINGS: dict[str, dict[str, Any]] = {
    "numpy": {"engine": "numpy"},
    "numpy unscaled": {"engine": "numpy", **PLAIN},
    "autograd": {"engine": "autograd", "schedule": {"name": "step", "step_size": 2}},
    "autograd unscaled": {"engine": "autograd", **PLAIN},
    "momentum": {"optimizer": {"lr": 0.02, "momentum": 0.9, "nesterov": True}, "clip_norm": 0.5, "shuffle": "block"},
    "momentum unscaled": {"optimizer": {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.01}, **PLAIN},
    "adam": {"optimizer": {"name": "adam", "lr": 0.05}, "schedule": {"name": "plateau", "patience": 0, "factor": 0.5}},
    "adamw": {
        "optimizer": {"name": "adamw", "lr": 0.02, "weight_decay": 0.1},
        "loss": {"name": "huber", "reduction": "sum"},
        "scale": {"features": "standard", "target": "none"},
    },
    "compiled": {
        "engine": "compiled",
        "compile": {"batches": 2},
        "model": {"name": "mlp", "hidden": [5], "dropout": 0.3},
        "optimizer": {"name": "adam", "lr": 0.05},
        "epochs": 1,
    },
    "dropout": {
        "model": {"name": "mlp", "hidden": [5, 4], "dropout": 0.3},
        "optimizer": {"name": "adam", "lr": 0.05},
        "early_stopping": {"patience": 2},
    },
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_training_stopped_at_every_place_ends_with_the_same_bits(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "CHUNK_BATCHES", 3)
    write_prepared(tmp_path / "table", normal_line(100, [2.0, -1.0]), normal_line(30, [2.0, -1.0], seed=1), dtype="float32")
    settings = TrainSettings.model_validate({"batch_size": 7, "epochs": 6, "optimizer": {"lr": 0.05}} | SETTINGS[name])
    whole = train(open_verified(tmp_path / "table", "train", "validation"), settings, CPU, lambda _: None)
    resumed, stops, told = stopped_everywhere(tmp_path / "table", tmp_path / "a", settings)
    assert stops == len(whole.epochs) * 7  # 14 whole batches in 5 chunks, the short one, and the epoch's end
    assert same_bits(resumed.final_state, whole.final_state)
    assert same_bits(resumed.best_state, whole.best_state)
    assert same_bits(resumed.kept_state, whole.kept_state)
    assert resumed.best_epoch == whole.best_epoch
    assert resumed.history().equals(whole.history())
    assert told == resumed.epochs
    assert not (tmp_path / "a").exists()


def test_a_training_on_columns_of_all_kinds_ends_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "CHUNK_BATCHES", 3)
    content = rows_of_all_kinds().to_csv(index=False)
    prepare(tmp_path, content, columns=ALL_KINDS, missing={"features": "fill"}, split={"column": "s"})
    settings = TrainSettings.model_validate({"batch_size": 4, "epochs": 2, "model": {"name": "mlp", "hidden": [5]}})
    whole = train(open_verified(tmp_path / "prepared", "train", "validation"), settings, CPU, lambda _: None)
    resumed, stops, _ = stopped_everywhere(tmp_path / "prepared", tmp_path / "a", settings)
    assert stops > 2
    assert same_bits(resumed.final_state, whole.final_state)
    assert resumed.history().equals(whole.history())


def test_an_epochs_seconds_are_those_of_all_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "CHUNK_BATCHES", 3)
    write_prepared(tmp_path / "table", normal_line(100), normal_line(30, seed=1))
    settings = TrainSettings(batch_size=7, epochs=1)
    began = time.perf_counter()
    with pytest.raises(StoppedError), StopEach(tmp_path / "a", NEVER) as checkpoints:
        train(open_verified(tmp_path / "table", "train", "validation"), settings, CPU, lambda _: None, checkpoints)
    first = time.perf_counter() - began
    with opened(tmp_path / "a") as checkpoints:
        state = read_tensors(checkpoints.load())
    assert 0 < state["progress"]["position"]["seconds"] < first
    state["progress"]["position"]["seconds"] = 1000.0
    with pytest.raises(KeyboardInterrupt), opened(tmp_path / "a") as checkpoints:
        checkpoints.save(state)
        raise KeyboardInterrupt
    with opened(tmp_path / "a") as checkpoints:
        (epoch,) = train(
            open_verified(tmp_path / "table", "train", "validation"), settings, CPU, lambda _: None, checkpoints
        ).epochs
    assert 1000 < epoch.epoch_seconds < 1000 + 60
    assert epoch.train_rows_per_second < 100 / 1000


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_status_of_a_stopped_training_names_its_signal(
    number: int, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> None:
        raise StoppedError(number, "after 3 of 5 epochs")

    assert errors.run(main) == status
    assert capsys.readouterr().err == f"error: stopped by {signal.Signals(number).name} after 3 of 5 epochs\n"
