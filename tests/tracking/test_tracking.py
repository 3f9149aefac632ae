"""The MLflow store: where it is, what a run holds, how it ends, how it goes on, and what is refused."""

import json
import random
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
from helpers_model import download_model
from helpers_stages import Stages
from helpers_torture import TORTURE
from helpers_tracking import (
    TABLE,
    TRAINING,
    client,
    complete,
    digest_of,
    evaluated,
    fetch,
    origin,
    refuse,
    start,
    stored,
    waiting,
)

from truefit.core.errors import StoppedError, TrackingError, TruefitError
from truefit.model import serving
from truefit.tracking.journal import Journal, pending
from truefit.tracking.names import DIGEST_TAG
from truefit.tracking.provenance import Origin
from truefit.tracking.records import Sent
from truefit.tracking.run import Run, TrackSettings
from truefit.tracking.sending import Sender
from truefit.tracking.store import Store
from truefit.tracking.uploading import Uploader

pytestmark = pytest.mark.usefixtures("environment")


def test_store_and_artifacts_lie_in_the_main_repositorys_root(
    root: Path, track: TrackSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = complete(track, "name", artifacts={"folder/file.txt": b"content"})
    assert (root / f"mlartifacts/{run.run_id}/artifacts/folder/file.txt").read_bytes() == b"content"
    assert list(tmp_path.iterdir()) == []


def test_run_ends_finished_with_all_its_metrics(root: Path, track: TrackSettings) -> None:
    with Store().training_run(track, "name", digest_of(track, "f"), lambda: origin(tags={"own": "tag"})) as run:
        for step in range(1, 1501):
            run.log_metrics({"loss": 1 / step, "other": 0}, step)
    found = fetch(root, run)
    assert (found.info.status, found.info.run_name, found.data.tags["own"]) == ("FINISHED", "name", "tag")
    for key, first in [("loss", 1.0), ("other", 0.0)]:
        history = client(root).get_metric_history(found.info.run_id, key)
        assert [(metric.step, metric.value) for metric in history] == [(step, first / step) for step in range(1, 1501)]
    run.end()
    assert waiting(root, track) == []


def test_metrics_are_sent_while_the_training_runs_and_not_one_by_one(
    root: Path, track: TrackSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("truefit.tracking.uploading.FLUSH_SECONDS", 0.5)
    store = Store()
    with store.training_run(track, "name", digest_of(track, "f"), origin) as run:
        while not (found := stored(root, track.experiment)) or found[0].info.status != "RUNNING":
            time.sleep(0.05)
        before = store.sender.answered
        for step in range(1, 301):
            run.log_metrics({"loss": float(step)}, step)
        while stored(root, track.experiment)[0].data.metrics != {"loss": 300.0}:
            time.sleep(0.05)
        # One batch, or two where the uploader wakes while they are written; the origin may have been under way before.
        assert store.sender.answered <= before + 5


def test_many_metrics_are_acknowledged_in_parts(track: TrackSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("truefit.tracking.sending.METRICS_A_BATCH", 10)
    store = Store()
    with store.training_run(track, "name", digest_of(track, "f"), origin) as run:
        for step in range(1, 301):
            run.log_metrics({"loss": 1.0}, step)
    assert store.sender.answered >= 30


def test_error_leaves_the_run_failed_with_its_reason_and_its_metrics(root: Path, track: TrackSettings) -> None:
    with pytest.raises(TruefitError), Store().training_run(track, "name", digest_of(track, "f"), origin) as run:
        run.log_metrics({"loss": 1.0}, 1)
        raise TruefitError("epoch 2, batch 1: the reason")
    found = fetch(root, run)
    assert found.info.status == "FAILED"
    assert found.data.tags["failure"] == "epoch 2, batch 1: the reason"
    assert found.data.metrics == {"loss": 1.0}


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (StoppedError(signal.SIGTERM, "after 2 of 9 epochs"), "stopped by SIGTERM after 2 of 9 epochs"),
    ],
)
def test_interrupt_leaves_the_run_killed(root: Path, track: TrackSettings, error: BaseException, reason: str) -> None:
    with pytest.raises(type(error)), Store().training_run(track, "name", digest_of(track, "f"), origin) as run:
        raise error
    found = fetch(root, run)
    assert (found.info.status, found.data.tags["failure"]) == ("KILLED", reason)


def test_run_keeps_the_time_at_which_it_began_and_ended(root: Path, track: TrackSettings) -> None:
    before = time.time()
    with Store().training_run(track, "name", digest_of(track, "f"), origin) as run:
        begun = time.time()
        time.sleep(1)
        over = time.time()
    found = fetch(root, run).info
    assert before * 1000 - 1 <= found.start_time <= begun * 1000
    assert over * 1000 - 1 <= found.end_time <= time.time() * 1000


def test_more_params_than_the_store_takes_at_once(root: Path, track: TrackSettings) -> None:
    params = {f"section.key{number}": number for number in range(250)}
    run = complete(track, "name", params={**params, "list": [1.5, 2], "none": None, "word": "as it is", "flag": True})
    logged = fetch(root, run).data.params
    assert len(logged) == 254
    assert (logged["list"], logged["none"], logged["word"], logged["flag"]) == ("[1.5, 2]", "null", "as it is", "true")


def test_dataset_has_the_digest_of_the_whole_csv(root: Path, track: TrackSettings) -> None:
    inputs = fetch(root, complete(track, "name")).inputs
    assert inputs is not None
    (dataset,) = (given.dataset for given in inputs.dataset_inputs)
    assert (dataset.name, dataset.digest) == ("own.csv", "0123456789abcdef0123456789abcdef0123")
    assert json.loads(str(dataset.source)) == {"uri": "data/own.csv"}
    assert [column["name"] for column in json.loads(str(dataset.schema))["mlflow_colspec"]] == ["a", "b", "c"]
    assert json.loads(str(dataset.profile))["num_rows"] == 10


def test_name_comes_from_the_settings_or_carries_the_experiments(
    root: Path, track: TrackSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "olive-tree")
    found = fetch(root, complete(track, "name"))
    assert (found.info.run_name, found.data.tags["dvc.exp"]) == ("name (olive-tree)", "olive-tree")
    named = TrackSettings(experiment=track.experiment, run_name="mine")
    assert fetch(root, complete(named, "name")).info.run_name == "mine"


def test_training_goes_on_with_the_run_of_its_fingerprint(root: Path, track: TrackSettings) -> None:
    def no_origin() -> Origin:
        raise AssertionError("the run has its origin already")

    with (
        pytest.raises(StoppedError),
        Store().training_run(track, "name", digest_of(track, "f"), lambda: origin({"lr": 0.1}, {"own": "tag"})) as first,
    ):
        run_metrics(first, [1, 2])
        raise StoppedError(signal.SIGTERM, "after 2 epochs")
    killed = fetch(root, first)
    with Store().training_run(track, "name", digest_of(track, "f"), no_origin) as second:
        run_metrics(second, [1, 2, 3])
    second.end()
    found = fetch(root, second)
    assert [run.info.run_id for run in stored(root, track.experiment)] == [killed.info.run_id]
    assert (found.info.status, found.info.start_time) == ("FINISHED", killed.info.start_time)
    assert found.info.end_time > killed.info.end_time
    assert "failure" not in found.data.tags
    assert (found.data.params, found.data.tags["own"]) == ({"lr": "0.1"}, "tag")
    history = client(root).get_metric_history(found.info.run_id, "loss")
    assert [metric.step for metric in history] == [1, 2, 3]
    assert waiting(root, track) == []


def run_metrics(run: Run, steps: list[int]) -> None:
    for step in steps:
        run.log_metrics({"loss": 1 / step}, step)


def test_several_metrics_of_one_step_are_all_kept(root: Path, track: TrackSettings) -> None:
    with Store().training_run(track, "name", digest_of(track, "f"), origin) as run:
        run.log_metrics({"loss": 1.0}, 1)
        run.log_metrics({"other": 2.0}, 1)
    assert fetch(root, run).data.metrics == {"loss": 1.0, "other": 2.0}


def test_resumed_training_is_running_and_of_the_experiment_that_resumes_it(
    root: Path, track: TrackSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt), Store().training_run(track, "name", digest_of(track, "f"), origin):
        raise KeyboardInterrupt
    monkeypatch.setenv("DVC_EXP_NAME", "olive-tree")
    with Store().training_run(track, "name", digest_of(track, "f"), origin):
        while stored(root, track.experiment)[0].info.status != "RUNNING" or "dvc.exp" not in tags_of(root, track):
            time.sleep(0.05)
        assert "failure" not in tags_of(root, track)
    assert tags_of(root, track)["dvc.exp"] == "olive-tree"


def tags_of(root: Path, track: TrackSettings) -> dict[str, str]:
    (found,) = stored(root, track.experiment)
    return dict(found.data.tags)


def test_training_of_another_fingerprint_or_after_one_that_is_over_is_a_run_of_its_own(
    root: Path, track: TrackSettings
) -> None:
    with pytest.raises(KeyboardInterrupt), Store().training_run(track, "stopped", digest_of(track, "f"), origin):
        raise KeyboardInterrupt
    with Store().training_run(track, "other", digest_of(track, "g"), origin) as run:
        pass
    run.end()
    with pytest.raises(TruefitError), Store().training_run(track, "failed", digest_of(track, "h"), origin):
        raise TruefitError("which would come again")
    for _ in range(2):
        with Store().training_run(track, "done", digest_of(track, "h"), origin) as run:
            pass
        run.end()
    names = sorted(run.info.run_name for run in stored(root, track.experiment))
    assert names == ["done", "done", "failed", "other", "stopped"]


def test_training_begins_although_the_run_before_it_is_sent_in_this_moment(
    root: Path, track: TrackSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Sender, "send", refuse)
        complete(track, "model")
    assert len(waiting(root, track)) == 1

    def pending_until_now(runs: Path) -> list[Journal]:
        found = pending(runs)
        for journal in found:
            if journal.header.experiment == track.experiment:
                Store().sender.send(journal)  # as a `truefit sync` beside it may
        return found

    monkeypatch.setattr("truefit.tracking.store.pending", pending_until_now)
    complete(track, "model")
    assert len(stored(root, track.experiment)) == 2


def test_sending_everything_again_adds_nothing(root: Path, track: TrackSettings) -> None:
    given = origin({"lr": 0.1}, {"own": "tag"}, {"record/a.txt": b"content"})
    with pytest.raises(KeyboardInterrupt), Store().training_run(track, "again", digest_of(track, "f"), lambda: given) as run:
        run_metrics(run, list(range(1, 1201)))
        run.log_artifacts({"state_dict/b.pt": b"more"})
        raise KeyboardInterrupt
    before = fetch(root, run)
    assert before.info.status == "KILLED"
    assert before.inputs is not None
    assert len(before.inputs.dataset_inputs) == 1
    history = client(root).get_metric_history(before.info.run_id, "loss")
    assert [metric.step for metric in history] == list(range(1, 1201))
    (journal,) = waiting(root, track)
    for _ in range(2):
        journal.acknowledge(Sent())
        assert Store().sender.send(journal).run_id == run.run_id
    assert len(stored(root, track.experiment)) == 1
    assert fetch(root, run).to_dictionary() == before.to_dictionary()
    assert [vars(metric) for metric in client(root).get_metric_history(before.info.run_id, "loss")] == [
        vars(metric) for metric in history
    ]


def test_evaluation_joins_the_latest_run_of_its_model(root: Path, track: TrackSettings) -> None:
    first, latest = complete(track, "model"), complete(track, "model")
    ended = fetch(root, latest).info.end_time
    complete(track, "another model")
    with Store().evaluation_run(track, digest_of(track, "model")) as run:
        run.log_metrics({"test_mse": 0.25}, 0)
        run.log_artifacts({"figures/loss.png": b"picture"})
    assert (run.run_id, run.name) == (latest.run_id, "model")
    found = fetch(root, run)
    assert (found.info.status, found.data.metrics) == ("FINISHED", {"test_mse": 0.25})
    assert found.info.end_time == ended
    assert (root / f"mlartifacts/{run.run_id}/artifacts/figures/loss.png").read_bytes() == b"picture"
    assert fetch(root, first).data.metrics == {}


def test_evaluation_prefers_the_run_of_its_own_experiment(track: TrackSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "mine")
    mine = complete(track, "model")
    monkeypatch.setenv("DVC_EXP_NAME", "anothers")
    other = complete(track, "model")
    monkeypatch.setenv("DVC_EXP_NAME", "mine")
    assert evaluated(track, "model") == mine.run_id
    monkeypatch.delenv("DVC_EXP_NAME")
    assert evaluated(track, "model") == other.run_id


def test_evaluation_prefers_the_run_of_its_own_rerun(track: TrackSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    def context(key: str) -> None:
        monkeypatch.setenv("MLFLOW_RUN_CONTEXT", json.dumps({"rerun.of": "r", "rerun.key": key}))

    plain = complete(track, "model")
    context("mine")
    mine = complete(track, "model")
    context("anothers")
    complete(track, "model")
    context("mine")
    assert evaluated(track, "model") == mine.run_id
    monkeypatch.delenv("MLFLOW_RUN_CONTEXT")
    assert evaluated(track, "model") == plain.run_id


def test_evaluations_of_two_clones_that_train_the_same_join_the_run_of_their_own(
    track: TrackSettings, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 2."""
    complete(TrackSettings(experiment="another, so that there is a store"), "name")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root / 'mlflow.db'}")
    trained = []
    for clone in ("one", "two"):
        monkeypatch.setenv("DVC_ROOT", str(tmp_path / clone))
        trained.append(complete(track, "model").run_id)
    joined = []
    for clone in ("one", "two"):
        monkeypatch.setenv("DVC_ROOT", str(tmp_path / clone))
        joined.append(evaluated(track, "model"))
    assert joined == trained
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "one that pulled the model"))
    assert evaluated(track, "model") == trained[-1]


def test_evaluation_of_a_training_whose_run_is_in_the_bin_waits_for_it_and_joins_no_other(
    root: Path, track: TrackSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    """Faults 2 and 8."""
    complete(track, "model")
    mine = str(complete(track, "model").run_id)
    client(root).delete_run(mine)
    assert evaluated(track, "model") is None
    assert f"`mlflow runs restore --run-id {mine}`" in capsys.readouterr().err
    client(root).restore_run(mine)
    sent = [result for journal, result in Store().sync() if journal.header.experiment == track.experiment]
    assert [isinstance(result, Sent) and result.run_id for result in sent] == [mine]


def test_evaluation_finds_its_training_in_an_experiment_that_was_renamed(root: Path, track: TrackSettings) -> None:
    mine = complete(track, "model")
    experiment = client(root).get_experiment_by_name(track.experiment)
    assert experiment is not None
    client(root).rename_experiment(experiment.experiment_id, f"{track.experiment} of last year")
    assert evaluated(track, "model") == mine.run_id


def test_an_evaluation_of_a_colleagues_model_adds_nothing_to_her_run_nor_to_a_rerun(
    root: Path, track: TrackSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the model came from DVC's cache, this clone has no training of it."""
    monkeypatch.setenv("LOGNAME", "alice")
    hers = complete(track, "shared")
    monkeypatch.setenv("MLFLOW_RUN_CONTEXT", json.dumps({"rerun.of": hers.run_id, "rerun.key": "f" * 32}))
    again = complete(track, "shared")
    monkeypatch.delenv("MLFLOW_RUN_CONTEXT")
    (root / ".truefit/trained" / digest_of(track, "shared")).unlink()
    assert evaluated(track, "shared") == hers.run_id
    monkeypatch.setenv("LOGNAME", "bob")
    assert evaluated(track, "shared") not in (hers.run_id, again.run_id, None)


@pytest.mark.parametrize("planted", [b"\x80\x04\x95", b'[{"key": "../../x"}]', b"{}"])
def test_a_planted_list_of_trainings_is_not_used_and_named(
    root: Path, track: TrackSettings, planted: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    run = complete(track, "model")
    path = root / ".truefit/trained" / digest_of(track, "model")
    path.write_bytes(planted)
    assert evaluated(track, "model") == run.run_id
    assert capsys.readouterr().err.startswith(f"warning: {path}: damaged: ")


# --- a stage that is killed after its run had ended (fault 7)


def train_again(track: TrackSettings, steps: list[int]) -> Run:
    with Store().training_run(track, "model", digest_of(track, "f"), origin) as run:
        run_metrics(run, steps)
        run.log_artifacts({"state_dict/final.pt": b"state"})
        run.set_tags({DIGEST_TAG: digest_of(track, "model")})
    return run


@pytest.mark.parametrize("moment", ["before a part is sent", "when all was sent"])
def test_training_whose_stage_did_not_end_is_the_same_run_when_it_is_executed_again(
    root: Path, track: TrackSettings, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Fault 7."""
    (root / ".truefit/checkpoints" / digest_of(track, "f")).mkdir(parents=True)
    with monkeypatch.context() as patch:
        if moment == "before a part is sent":
            patch.setattr(Sender, "send", refuse)
            patch.setattr(Uploader, "finish", interrupt)
        with suppress(KeyboardInterrupt):
            train_again(track, [1, 2])
    list(Store().sync())
    assert [run.info.status for run in stored(root, track.experiment)] == ["FINISHED"]
    again = train_again(track, [1, 2])
    again.end()
    (found,) = stored(root, track.experiment)
    assert (found.info.run_id, found.info.status) == (again.run_id, "FINISHED")
    assert "failure" not in found.data.tags
    assert [metric.step for metric in client(root).get_metric_history(found.info.run_id, "loss")] == [1, 2]
    assert waiting(root, track) == []
    assert evaluated(track, "model") == again.run_id
    train_again(track, [1, 2]).end()
    assert len(stored(root, track.experiment)) == 2


def interrupt(_: Uploader) -> None:
    raise KeyboardInterrupt


def test_run_that_is_ended_while_the_store_is_away_is_sent_later_and_not_gone_on_with(
    root: Path, track: TrackSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Sender, "send", refuse)
        train_again(track, [1]).end()
    train_again(track, [1]).end()
    assert len(waiting(root, track)) == 1
    list(Store().sync())
    assert waiting(root, track) == []
    assert [run.info.status for run in stored(root, track.experiment)] == ["FINISHED", "FINISHED"]


def test_secrets_in_the_address_of_the_git_remote_are_not_recorded(
    root: Path, track: TrackSettings, tmp_path: Path, stages: Stages
) -> None:
    for command in (["init", "--quiet"], ["remote", "add", "origin", "https://user:hun@ter2@example.org/a.git"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    commit = ["-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "--quiet", "--allow-empty", "--message", "one"]
    subprocess.run(["git", *commit], cwd=tmp_path, check=True)
    # In a process of its own: MLflow asks git once in each, about the repository of the script.
    stage = tmp_path / "stage.py"
    stage.write_text(TRAINING.replace("TrackSettings()", f"TrackSettings(experiment={track.experiment!r})"))
    assert stages.run(tmp_path, str(stage.with_suffix("")), DVC_ROOT=str(root)) == (0, "")
    (run,) = stored(root, track.experiment)
    assert run.data.tags["mlflow.source.git.repoURL"] == "https://example.org/a.git"
    assert not any("ter2" in value for value in run.data.tags.values())


def test_evaluation_without_a_run_opens_one_of_its_own(root: Path, track: TrackSettings) -> None:
    digest = digest_of(track, "model")
    with pytest.raises(TruefitError), Store().training_run(track, "name", digest, origin) as failed:
        failed.set_tags({DIGEST_TAG: digest})
        raise TruefitError("a failed run has no model to evaluate")
    with Store().evaluation_run(track, digest) as run:
        run.log_metrics({"test_mse": 0.25}, 0)
    found = fetch(root, run)
    assert found.info.run_name == f"evaluation of {digest[:8]}"
    assert (found.info.status, found.data.tags[DIGEST_TAG]) == ("FINISHED", digest)
    assert found.data.metrics == {"test_mse": 0.25}


def test_evaluations_made_while_the_store_was_away_join_the_trainings_before_them(
    root: Path, track: TrackSettings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The same model trained and evaluated twice, and nothing of it sent.
    with monkeypatch.context() as patch:
        patch.setattr(Sender, "send", refuse)
        for _ in range(2):
            complete(track, "model")
            with Store().evaluation_run(track, digest_of(track, "model")) as run:
                run.log_metrics({"test_mse": 0.25}, 0)
    assert capsys.readouterr().err.count("`truefit sync` sends it\n") == 4
    assert len([journal for journal, _ in Store().sync() if journal.header.experiment == track.experiment]) == 4
    found = stored(root, track.experiment)
    assert [run.data.metrics for run in found] == [{"test_mse": 0.25}, {"test_mse": 0.25}]
    for run_found in found:
        assert len(client(root).get_metric_history(run_found.info.run_id, "test_mse")) == 1


def test_evaluation_sends_the_training_that_waits_and_joins_it(
    root: Path, track: TrackSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Sender, "send", refuse)
        complete(track, "model")
        complete(track, "another model")
    with Store().evaluation_run(track, digest_of(track, "model")) as run:
        run.log_metrics({"test_mse": 0.25}, 0)
    (found,) = stored(root, track.experiment)
    assert (found.info.run_id, found.info.run_name, found.data.metrics) == (run.run_id, "model", {"test_mse": 0.25})
    assert [journal.header.name for journal in waiting(root, track)] == ["another model"]


@pytest.mark.filterwarnings("ignore")  # mlflow's own, of its types and of pandas
def test_a_model_recorded_before_an_interruption_and_again_after_it_can_be_sent(
    root: Path, track: TrackSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = {name: name.encode() for name in ("model.pt", "model.json")}

    def record(run: Run) -> None:
        run.log_model(serving, saved, TABLE)

    with monkeypatch.context() as patch:
        patch.setattr(Sender, "send", refuse)
        with (
            pytest.raises(StoppedError),
            Store().training_run(track, "name", digest_of(track, "f"), origin) as run,
        ):
            record(run)
            raise StoppedError(signal.SIGTERM, "before the end")
        with Store().training_run(track, "name", digest_of(track, "f"), origin) as run:
            record(run)
        run.end()
    (journal,) = waiting(root, track)
    sent = Store().sender.send(journal)
    assert sent.run_id is not None
    packed = download_model(client(root), client(root).get_run(sent.run_id), tmp_path)
    assert (packed / "data/model/model.pt").read_bytes() == b"model.pt"
    assert (packed / "MLmodel").exists()
    assert waiting(root, track) == []


def test_server_that_is_away_is_a_warning_without_its_password(
    track: TrackSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    run = complete(track, "name", artifacts={"record/a.txt": b"content"})
    (journal,) = waiting(tmp_path, track)
    warned = capsys.readouterr().err
    assert warned.startswith("warning: MLflow store http://127.0.0.1:9: ")
    assert warned.endswith(f"; {journal.path} keeps run 'name': `truefit sync` sends it\n")
    assert warned.count("\n") == 1
    assert str(run) == f"MLflow run 'name', which waits in {journal.path}"
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or b"secret" not in path.read_bytes()
    assert "secret" not in warned
    ((_, result),) = Store().sync()
    assert str(result).startswith("MLflow store http://127.0.0.1:9: ")
    assert "secret" not in str(result)


def test_journal_for_another_store_is_refused(track: TrackSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    complete(track, "name")
    for address in ("", "http://127.0.0.1:10"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        ((journal, result),) = Store().sync()
        assert str(result) == "is for the store http://127.0.0.1:9; see MLFLOW_TRACKING_URI"
        assert journal.path.exists()
    assert not (tmp_path / "mlflow.db").exists()


def test_deleted_experiment_is_refused_with_the_way_back(root: Path, track: TrackSettings) -> None:
    complete(track, "name")
    experiment = client(root).get_experiment_by_name(track.experiment)
    assert experiment is not None
    client(root).delete_experiment(experiment.experiment_id)
    for begin in (
        Store().evaluation_run(track, digest_of(track, "d")),
        Store().training_run(track, "n", digest_of(track, "f"), origin),
    ):
        with pytest.raises(TrackingError) as caught, begin:
            pass
        assert str(caught.value) == (
            f"MLflow store sqlite:///{root / 'mlflow.db'}: {track.experiment!r} is deleted; "
            f"`mlflow experiments restore --experiment-id {experiment.experiment_id}`, or change track.experiment"
        )
    assert waiting(root, track) == []


def test_moved_repository_is_refused_before_its_artifacts_go_elsewhere(
    root: Path, track: TrackSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete(track, "name")
    shutil.copy(root / "mlflow.db", tmp_path / "mlflow.db")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    with pytest.raises(TrackingError) as caught:
        complete(track, "name")
    assert str(caught.value) == (
        f"MLflow store sqlite:///{tmp_path / 'mlflow.db'}: {track.experiment!r} keeps its artifacts in "
        f"file://{root / 'mlartifacts'}; move the repository back, or change track.experiment"
    )


def test_experiment_made_in_the_ui_is_taken_with_its_own_folder(root: Path, track: TrackSettings) -> None:
    complete(TrackSettings(experiment="another, so that there is a store"), "name")
    client(root).create_experiment(track.experiment, f"file://{root / 'mlartifacts'}/7")
    run = complete(track, "name", artifacts={"record/file.txt": b"content"})
    assert (root / f"mlartifacts/7/{run.run_id}/artifacts/record/file.txt").read_bytes() == b"content"


def test_store_whose_driver_is_not_installed_is_named(track: TrackSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "mssql+pymssql://user:secret@127.0.0.1:9/x")
    with pytest.raises(TrackingError) as caught:
        complete(track, "name")
    assert str(caught.value).startswith("MLflow store mssql+pymssql://127.0.0.1:9/x: its driver is not installed: No module")


def test_store_that_is_no_database_is_refused(track: TrackSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    (tmp_path / "mlflow.db").write_bytes(b"no database" * 1000)
    with pytest.raises(TrackingError, match=r"^MLflow store sqlite:///.*/mlflow\.db: .*file is not a database"):
        complete(track, "name")
    assert waiting(tmp_path, track) == []


def test_store_that_fails_as_well_does_not_hide_the_reason(
    root: Path,
    track: TrackSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    complete(TrackSettings(experiment="another, so that there is a store"), "name")
    shutil.copy(root / "mlflow.db", tmp_path / "mlflow.db")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    with (
        pytest.raises(TruefitError, match="the reason"),
        Store().training_run(track, "name", digest_of(track, "f"), origin) as run,
    ):
        run.log_metrics({"loss": 1.0}, 1)
        (tmp_path / "mlflow.db").write_bytes(b"no database any more" * 1000)
        raise TruefitError("the reason")
    (journal,) = waiting(tmp_path, track)
    assert capsys.readouterr().err.endswith(f"; {journal.path} keeps run 'name': `truefit sync` sends it\n")


def test_processes_of_two_clones_may_open_a_fresh_store_at_once(tmp_path: Path, stages: Stages) -> None:
    """Fault 13: the second is of another clone, which shares it by its address."""
    own, other = tmp_path / "own", tmp_path / "other"
    (tmp_path / "stage.py").write_text(TRAINING)
    started = []
    for folder, store in ((own, ""), (other, f"sqlite:///{own / 'mlflow.db'}")):
        folder.mkdir()
        started.append(stages.start(folder, str(tmp_path / "stage"), MLFLOW_TRACKING_URI=store))
    errors = [process.communicate()[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], errors
    assert "warning" not in "".join(errors)
    found = stored(own, "truefit")
    assert [(run.info.status, run.data.metrics) for run in found] == [("FINISHED", {"loss": 0.5})] * 2
    assert [list((root / ".truefit/runs").iterdir()) for root in (own, other)] == [[], []]


def test_kill_while_the_store_is_created_leaves_nothing_that_the_next_start_cannot_open(
    track: TrackSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    delays = random.Random(seed)
    for _ in range(4 if TORTURE else 1):
        process = start(tmp_path)
        while not (tmp_path / ".mlflow.db.tmp").exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(delays.uniform(0, 0.5))  # creating the tables takes a second and more
        assert not (tmp_path / "mlflow.db").exists()
        process.kill()
        process.communicate()
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    complete(track, "name")
    assert [run.info.status for run in stored(tmp_path, track.experiment)] == ["FINISHED"]
    assert stored(tmp_path, "truefit") == []  # none of the killed ones had begun its journal
    assert not list(tmp_path.glob(".mlflow.db*"))
