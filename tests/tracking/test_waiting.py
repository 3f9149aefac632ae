"""Runs that wait in their journals: of dead processes, for a store that is gone, refused for ever, damaged, given up."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from helpers_tracking import TABLE, client, complete, digest_of, execute, fetch, origin, refuse, stored, waiting
from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun

from truefit.cli.main import commands
from truefit.core.config import Params
from truefit.core.errors import SettingsError, StoppedError, TrackingError
from truefit.data.columns.number import Number
from truefit.tracking import finding
from truefit.tracking.journal import Journal
from truefit.tracking.names import DIGEST_TAG
from truefit.tracking.provenance import Origin
from truefit.tracking.records import Header, Metrics, Values, now
from truefit.tracking.run import TrackSettings
from truefit.tracking.sending import Sender
from truefit.tracking.store import Store

pytestmark = pytest.mark.usefixtures("environment")

METRICS = [Metrics(step=step, time=1_000_000 + step, values={"loss": 1 / step}) for step in (1, 2)]


def sync(track: TrackSettings) -> dict[str, object]:
    """Send what waits, and return what came of the experiment's journals, by their names."""
    return {journal.header.name: result for journal, result in Store().sync() if journal.header.experiment == track.experiment}


def stop(track: TrackSettings, word: str) -> str:
    """Interrupt a training that has metrics, and return its run in the store; its journal stays."""
    with pytest.raises(KeyboardInterrupt), Store().training_run(track, word, digest_of(track, word), origin) as run:
        run.log_metrics({"loss": 1.0}, 1)
        run.log_artifacts({"record/a.txt": b"content"})
        raise KeyboardInterrupt
    assert run.run_id is not None
    return run.run_id


def leave(root: Path, track: TrackSettings, **changes: object) -> Journal:
    """Leave a journal as a process does that was killed."""
    word = str(changes.get("name", "dead"))
    given: dict[str, object] = {
        "key": digest_of(track, word)[:32],
        "store": None,
        "experiment": track.experiment,
        "name": word,
        "tags": {},
    }
    header = Header.model_validate({**given, "start_time": 1_000_000, **changes})
    tags = Values(kind="tags", values={DIGEST_TAG: digest_of(track, "model")})
    journal = Journal.create(root / ".truefit/runs", header, [tags], {"record/a.txt": b"content"})
    for metrics in METRICS:
        journal.append(metrics)
    journal.close()
    return journal


def checkpoint(root: Path, track: TrackSettings, word: str) -> Path:
    folder = root / ".truefit/checkpoints" / digest_of(track, word)
    folder.mkdir(parents=True)
    return folder


def only(root: Path, track: TrackSettings) -> MlflowRun:
    (run,) = stored(root, track.experiment)
    return run


# --- of processes that died (fault 11)


def test_evaluation_that_was_killed_is_sent_once_and_its_own_run_ends_as_killed(root: Path, track: TrackSettings) -> None:
    """Fault 11."""
    leave(root, track, completes=digest_of(track, "model"))
    assert list(sync(track)) == ["dead"]
    run = only(root, track)
    assert (run.info.status, run.info.end_time, run.data.metrics) == ("KILLED", 1_000_002, {"loss": 0.5})
    assert run.data.tags["failure"] == "its process was killed"
    assert sync(track) == {}
    assert waiting(root, track) == []


def test_evaluation_that_was_killed_does_not_end_the_run_of_its_training(root: Path, track: TrackSettings) -> None:
    """Fault 11."""
    trained = complete(track, "model")
    leave(root, track, completes=digest_of(track, "model"), start_time=now())
    assert list(sync(track)) == ["dead"]
    assert fetch(root, trained).info.status == "FINISHED"
    assert waiting(root, track) == []


def test_training_that_was_killed_is_told_so_and_goes_on_as_long_as_its_checkpoint_is_there(
    root: Path, track: TrackSettings
) -> None:
    """Fault 11."""
    folder = checkpoint(root, track, "dead")
    leave(root, track, fingerprint=digest_of(track, "dead"))
    assert list(sync(track)) == ["dead"]
    assert only(root, track).info.status == "KILLED"
    assert sync(track) == {}
    with (
        pytest.raises(StoppedError),
        Store().training_run(track, "dead", digest_of(track, "dead"), origin) as run,
    ):
        run.log_metrics({"loss": 7.0}, 2)
        run.log_metrics({"loss": 3.0}, 3)
        raise StoppedError(15, "after 3 of 9 epochs")
    history = client(root).get_metric_history(only(root, track).info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 1.0), (2, 0.5), (3, 3.0)]
    assert len(waiting(root, track)) == 1
    folder.rmdir()
    assert list(sync(track)) == ["dead"]
    assert only(root, track).info.status == "KILLED"
    assert waiting(root, track) == []


def test_next_stage_clears_what_dead_processes_left(root: Path, track: TrackSettings) -> None:
    """Fault 11."""
    leave(root, track, completes=digest_of(track, "model"))
    complete(track, "next")
    assert waiting(root, track) == []
    assert sorted((run.info.run_name, run.info.status) for run in stored(root, track.experiment)) == [
        ("dead", "KILLED"),
        ("next", "FINISHED"),
    ]


def test_journal_that_is_being_written_is_not_taken_for_a_dead_ones(root: Path, track: TrackSettings) -> None:
    """Fault 11."""
    with Store().training_run(track, "alive", digest_of(track, "f"), origin) as run:
        sync(track)
        assert only(root, track).info.status == "RUNNING"
        assert "failure" not in only(root, track).data.tags
    run.end()
    assert only(root, track).info.status == "FINISHED"


# --- for a run that is gone (fault 8)


def test_run_that_the_store_lost_is_sent_again_from_the_beginning(root: Path, track: TrackSettings) -> None:
    """Fault 8."""
    checkpoint(root, track, "name")
    lost = stop(track, "name")
    before = client(root).get_run(lost).data
    client(root)._tracking_client.store._hard_delete_run(lost)
    assert list(sync(track)) == ["name"]
    run = only(root, track)
    assert run.info.run_id != lost
    assert (run.info.status, run.data.metrics) == ("KILLED", before.metrics)
    assert run.data.tags.items() >= {key: value for key, value in before.tags.items() if "mlflow" not in key}.items()
    assert (root / f"mlartifacts/{run.info.run_id}/artifacts/record/a.txt").read_bytes() == b"content"


def test_run_in_the_bin_is_told_with_the_way_back(root: Path, track: TrackSettings) -> None:
    """Fault 8."""
    deleted = stop(track, "name")
    client(root).delete_run(deleted)
    (fault,) = sync(track).values()
    assert str(fault) == (
        f"MLflow run {deleted} is deleted; `mlflow runs restore --run-id {deleted}` brings it back, "
        f"`truefit sync --forget {deleted}` gives up what it does not have"
    )
    client(root).restore_run(deleted)
    assert list(sync(track)) == ["name"]
    assert only(root, track).info.status == "KILLED"
    assert waiting(root, track) == []


def test_run_that_waits_can_be_given_up_by_its_id_key_or_name(root: Path, track: TrackSettings) -> None:
    """Fault 8."""
    for number in (1, 2, 3):
        word = f"{track.experiment} {number}"
        checkpoint(root, track, word)
        leave(root, track, name=word, fingerprint=digest_of(track, word), start_time=number)
    sync(track)
    by_id = next(run.info.run_id for run in stored(root, track.experiment) if run.info.start_time == 1)
    first, second, third = waiting(root, track)
    for which, journal in ((by_id, first), (second.header.key, second), (third.header.name, third)):
        done = CliRunner().invoke(commands, ["sync", "--forget", which], catch_exceptions=False)
        assert done.output == f"{journal.header.name}: given up, with all that {journal.path.name} held\n"
        assert journal.header.key not in [one.header.key for one in waiting(root, track)]
    assert waiting(root, track) == []
    with pytest.raises(TrackingError, match=f"^{by_id}: 0 runs of this MLflow id, key or name wait in {root}"):
        Store().forget(by_id)


def test_run_to_give_up_must_be_named_unambiguously_and_not_be_written(root: Path, track: TrackSettings) -> None:
    """Fault 8."""
    name = f"twice {track.experiment}"
    for number in (1, 2):
        leave(root, track, name=name, key=str(number) * 32)
    with pytest.raises(TrackingError, match=f"2 runs of .*, by their keys {'1' * 32}, {'2' * 32}$"):
        Store().forget(name)
    with Store().training_run(track, "alive", digest_of(track, "f"), origin):
        (*_, alive) = waiting(root, track)
        with pytest.raises(TrackingError, match=r"being written by another process$"):
            Store().forget(alive.header.key)


# --- refused for ever (fault 9)


def test_dataset_of_twenty_thousand_columns_is_cut_to_what_mlflow_takes(
    root: Path, track: TrackSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fault 9."""
    wide = TABLE.model_copy(update={"columns": [Number(name=f"column {number}") for number in range(20_000)]})
    with Store().training_run(track, "wide", digest_of(track, "f"), lambda: Origin({}, {}, wide, {})) as run:
        pass
    run.end()
    found = only(root, track)
    assert (found.info.status, waiting(root, track), capsys.readouterr().err) == ("FINISHED", [], "")
    assert found.inputs is not None
    schema = json.loads(str(found.inputs.dataset_inputs[0].dataset.schema))["mlflow_colspec"]
    assert len(schema) + int(found.data.tags["dataset.columns.omitted"]) == 20_001
    assert "truefit.skipped" not in found.data.tags


def test_what_the_store_refuses_is_left_out_tagged_and_told(
    root: Path, track: TrackSettings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fault 9."""
    params = {"good": 1, "prepare.columns.price (€)": "number", "good too": 2}
    skipped = "param prepare.columns.price (€), tag no:?tag"
    with monkeypatch.context() as patch:
        patch.setattr(Sender, "send", refuse)
        complete(track, "later", params=params, tags={"no:?tag": "1", "own": "tag"})
    capsys.readouterr()
    done = CliRunner().invoke(commands, ["sync"], catch_exceptions=False)
    assert f"later: refused by the store, and left out: {skipped}\n" in done.stderr
    run = complete(track, "now", params=params, tags={"no:?tag": "1", "own": "tag"})
    assert capsys.readouterr().err == f"warning: MLflow run {run.run_id}: the store refuses {skipped}; left out\n"
    for found in stored(root, track.experiment):
        assert (found.info.status, found.data.params) == ("FINISHED", {"good": "1", "good too": "2"})
        assert (found.data.tags["truefit.skipped"], found.data.tags["own"]) == (skipped, "tag")
    assert waiting(root, track) == []


def test_run_that_is_deleted_while_it_is_sent_loses_nothing_as_if_refused(
    root: Path, track: TrackSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Faults 8 and 9: a store refuses records of a run in the bin with the same error as those that it never takes."""
    deleted = stop(track, "name")
    (journal,) = waiting(root, track)
    journal.append(METRICS[1])
    journal.close()
    client(root).delete_run(deleted)
    really, first = finding.is_there, iter([True])
    monkeypatch.setattr("truefit.tracking.sending.is_there", lambda *given: next(first, False) or really(*given))
    assert "is deleted" in str(sync(track)["name"])
    client(root).restore_run(deleted)
    assert list(sync(track)) == ["name"]
    assert "truefit.skipped" not in only(root, track).data.tags
    assert only(root, track).data.metrics == {"loss": 0.5}


def test_names_that_are_made_are_as_long_as_a_database_takes(
    root: Path, track: TrackSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 9."""
    monkeypatch.setenv("DVC_EXP_NAME", "olive-tree")
    name = fetch(root, complete(track, "n" * 300)).info.run_name
    assert name == f"{'n' * 237} (olive-tree)"
    assert len(name) == 250


@pytest.mark.parametrize(("key", "most"), [("run_name", 250), ("experiment", 256)])
def test_names_longer_than_a_database_takes_are_refused(tmp_path: Path, key: str, most: int) -> None:
    """Fault 9."""
    path = tmp_path / "params.yaml"
    path.write_text(f"track: {{{key}: {'n' * most}}}")
    assert getattr(Params(path).section("track", TrackSettings), key) == "n" * most
    path.write_text(f"track: {{{key}: {'n' * (most + 1)}}}")
    with pytest.raises(SettingsError, match=rf"track\.{key}: found 'n+…, allowed: at most {most} characters$"):
        Params(path).section("track", TrackSettings)


# --- damaged (fault 10)


def test_damaged_journal_stops_neither_a_training_nor_the_others(
    root: Path, track: TrackSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fault 10."""
    leave(root, track, fingerprint=digest_of(track, "model"))
    (journal,) = waiting(root, track)
    execute(journal.path, "UPDATE record SET json = '{}' WHERE number = 3")
    run = complete(track, "model")
    assert fetch(root, run).info.status == "FINISHED"
    warned = capsys.readouterr().err
    key = journal.header.key
    assert re.fullmatch(rf"warning: .*/{key}\.sqlite: damaged: record 3: .*; it is set aside as {key}\.damaged\n", warned)
    assert sync(track) == {}
    assert (root / f".truefit/runs/{key}.damaged").exists()


def test_artifact_that_is_damaged_sets_its_run_aside_and_the_others_are_sent(
    root: Path, track: TrackSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fault 10."""
    journal = leave(root, track, name="spoiled", completes=digest_of(track, "other"))
    leave(root, track, name="good", completes=digest_of(track, "model"))
    execute(journal.path, "UPDATE part SET bytes = X'00'")
    assert list(sync(track)) == ["good"]
    assert "the digest of record/a.txt is not that of its bytes; it is set aside as" in capsys.readouterr().err
    assert waiting(root, track) == []


def test_artifacts_whose_own_store_cannot_be_reached_wait(
    track: TrackSettings, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The library for it raises what it likes, or is not installed."""
    complete(TrackSettings(experiment="another, so that there is a store"), "name")
    shutil.copy(root / "mlflow.db", tmp_path / "runs.db")
    uri = f"sqlite:///{tmp_path / 'runs.db'}"
    s3 = {"MLFLOW_S3_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "s3cret"}
    for name, value in {"MLFLOW_TRACKING_URI": uri, "AWS_MAX_ATTEMPTS": "1", "AWS_DEFAULT_REGION": "nowhere", **s3}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    MlflowClient(uri).create_experiment(track.experiment, "s3://bucket/runs")
    with Store().training_run(track, "name", digest_of(track, "name"), origin) as run:
        run.log_artifacts({"figures/fit.png": b"picture"})
    run.end()
    (warning,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning")]
    assert re.search(r": artifact \S+: \w+: .*; \S+ keeps run 'name': `truefit sync` sends it$", warning)
    assert len(waiting(tmp_path, track)) == 1


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_no_file_under_a_journals_name_is_set_aside(
    track: TrackSettings, root: Path, make: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Fault 10."""
    odd = root / f".truefit/runs/{'2' * 32}.sqlite"
    odd.parent.mkdir(parents=True, exist_ok=True)
    make(odd)
    complete(track, "name")
    assert f"warning: {odd}: is no regular file; it is set aside as {'2' * 32}.damaged" in capsys.readouterr().err
    assert not odd.exists()
    for aside in odd.parent.glob("2*"):
        aside.rmdir() if aside.is_dir() else aside.unlink()
