"""`truefit rerun`: recorded runs, run again in a real clone, and judged; and that it leaves nothing but the verdict."""

import io
import json
import shutil
import signal
import sqlite3
import tempfile
import time
from contextlib import closing
from pathlib import Path

import pytest
import torch
from helpers_data import numbered_csv
from helpers_rerun import (
    COMMAND,
    NEW,
    artifact,
    check_identical,
    copy_run,
    interrupted_rerun,
    rerun,
    temporary_files,
    traces,
)
from helpers_torture import TORTURE
from mlflow.entities import Metric, Run
from test_torture import TRAININGS, configure, kill, start, until_begun
from workspace import Workspace

from truefit.cli.rerunning import describe
from truefit.core.errors import TrackingError
from truefit.rerun.comparison import Report, Result, Verdict, compare, different_inputs, judge
from truefit.rerun.publishing import publish
from truefit.rerun.records import find, read_result, trainings
from truefit.rerun.run_again import run_again
from truefit.tracking.store import Store

pytestmark = pytest.mark.xdist_group("rerun")
long = pytest.mark.skipif(not TORTURE, reason="many seconds long: `make torture`")


@pytest.fixture
def store(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The clone's store, as the command sees it."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("DVC_ROOT", str(workspace.path))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary_files(workspace)))
    return Store()


def test_uncommitted_changes_are_recorded(workspace: Workspace, recorded: Run) -> None:
    assert recorded.data.tags["git.dirty"] == "true"
    patch = artifact(workspace, recorded, "record/diff.patch")
    assert b"+  epochs: 4 " in patch
    assert b"+    from truefit.new import SHIFT\n" in patch
    assert b"+SHIFT = 1\n" in patch


@long
def test_run_from_a_dirty_tree_is_identical_after_its_changes_are_stashed(workspace: Workspace, recorded: Run) -> None:
    """In the clone where it was made; in that of another, with more checks, in test_trust.py."""
    before = traces(workspace)
    report = rerun(workspace)
    assert traces(workspace) == before
    check_identical(workspace, recorded, report)


def test_the_latest_training_is_not_a_rerun(workspace: Workspace, store: Store, recorded: Run) -> None:
    copy_run(workspace, recorded, tags={"rerun.of": recorded.info.run_id})
    assert find(store, None, "truefit").info.run_id == recorded.info.run_id
    assert list(trainings(store, "truefit")) == [recorded.info.run_id]


def test_run_is_found_by_id_beginning_and_name(workspace: Workspace, store: Store, recorded: Run) -> None:
    run_id = recorded.info.run_id
    for reference in (run_id, run_id[:8], recorded.info.run_name):
        assert find(store, reference, "truefit").info.run_id == run_id


@pytest.mark.parametrize(
    ("reference", "experiment", "error"),
    [
        ("nope", "truefit", "experiment 'truefit': has no run with the id or name 'nope'"),
        ("""a'"b""", "truefit", "experiment 'truefit': has no run with the id or name 'a\\'\"b'"),
        ("nope", "other", "experiment 'other': not found, allowed: 'truefit', 'Default'"),
        ("f" * 32, "truefit", "Run with id=ffffffffffffffffffffffffffffffff not found"),
    ],
)
def test_run_that_is_not_there_is_an_error(store: Store, reference: str, experiment: str, error: str) -> None:
    with pytest.raises(TrackingError) as caught:
        find(store, reference, experiment)
    assert error in str(caught.value)


def judged(store: Store, run: Run, workspace: Workspace) -> Report:
    """Return the report on a run, which must leave no trace of its own."""
    before = traces(workspace)
    report = run_again(store, run, 1e-5).report
    assert traces(workspace) == before
    return report


def test_name_of_several_runs_is_refused_with_their_ids(workspace: Workspace, store: Store, recorded: Run) -> None:
    ids = {copy_run(workspace, recorded, tags={"git.commit": None}).info.run_id for _ in range(2)}
    with pytest.raises(
        TrackingError, match=r"^experiment 'truefit': 'a copy' is any of several runs, allowed: one of "
    ) as caught:
        find(store, "a copy", "truefit")
    assert any(run_id in str(caught.value) for run_id in ids)


def changed_bit(content: bytes) -> bytes:
    """Return a state_dict with the last bit of a number changed, and whole otherwise."""
    state = torch.load(io.BytesIO(content), weights_only=True)
    state["body.bias"] = torch.nextafter(state["body.bias"], torch.tensor(9.0))
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def flipped_bit(content: bytes) -> bytes:
    """Return a file with one bit flipped, in padding that no reader looks at."""
    place = len(content) // 2
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize(
    "name",
    [
        "record/params.yaml",
        "record/dvc.yaml",
        "record/dvc.lock",
        "record/diff.patch",
        "state_dict/best.pt",
        "state_dict/final.pt",
    ],
)
def test_missing_artifact_is_inconclusive(workspace: Workspace, store: Store, recorded: Run, name: str) -> None:
    report = judged(store, copy_run(workspace, recorded, artifacts={name: None}), workspace)
    assert (report.verdict, report.reason) == (Verdict.INCONCLUSIVE, f"its artifact {name} is missing")


def test_no_outputs_at_all_is_inconclusive(workspace: Workspace, store: Store, recorded: Run) -> None:
    nothing = copy_run(
        workspace, recorded, without=lambda _: True, artifacts={"state_dict/best.pt": None, "state_dict/final.pt": None}
    )
    report = judged(store, nothing, workspace)
    assert (report.verdict, report.reason) == (Verdict.INCONCLUSIVE, "its artifact state_dict/best.pt is missing")
    assert report.again is None
    name = publish(store, report, "a copy", None)
    run = workspace.client.get_run(nothing.info.run_id)
    assert run.data.tags["rerun.verdict"] == "inconclusive"
    assert "rerun.by" not in run.data.tags
    assert json.loads(artifact(workspace, run, f"{name}.json"))["reason"] == report.reason


def test_flipped_bit_in_a_stored_state_is_inconclusive(workspace: Workspace, store: Store, recorded: Run) -> None:
    content = artifact(workspace, recorded, "state_dict/best.pt")
    damaged = copy_run(workspace, recorded, artifacts={"state_dict/best.pt": flipped_bit(content)})
    assert str(judged(store, damaged, workspace).reason).startswith("its artifact state_dict/best.pt is damaged")
    content = artifact(workspace, recorded, "state_dict/final.pt")
    states = {f"state_dict/{kind}.pt": changed_bit(content) for kind in ("best", "final")}
    whole = {"best.pt.sha256": None, "final.pt.sha256": None}
    report = judged(store, copy_run(workspace, recorded, artifacts=states, tags=whole), workspace)
    assert report.reason == "neither of its states has the digest in its tag state_dict.sha256"


@pytest.mark.parametrize("name", ["train_loss", "validation_loss", "learning_rate"])
def test_removed_epoch_is_inconclusive(workspace: Workspace, store: Store, recorded: Run, name: str) -> None:
    def removed(metric: Metric) -> bool:
        return bool(metric.key == name and metric.step == 2)

    report = judged(store, copy_run(workspace, recorded, without=removed), workspace)
    assert (report.verdict, report.reason) == (Verdict.INCONCLUSIVE, f"its metric {name} has no value at epoch 2")


def test_epoch_with_two_values_is_inconclusive(workspace: Workspace, store: Store, recorded: Run) -> None:
    copy = copy_run(workspace, recorded)
    workspace.client.log_metric(copy.info.run_id, "train_loss", 0.5, step=3)
    assert judged(store, copy, workspace).reason == "its metric train_loss has two values at epoch 3"


@pytest.mark.parametrize("status", ["RUNNING", "FAILED", "KILLED"])
def test_unfinished_run_is_inconclusive(workspace: Workspace, store: Store, recorded: Run, status: str) -> None:
    report = judged(store, copy_run(workspace, recorded, status=status), workspace)
    assert (report.verdict, report.reason) == (Verdict.INCONCLUSIVE, f"it did not finish: its status is {status}")


def test_run_without_an_evaluation_is_inconclusive(workspace: Workspace, store: Store, recorded: Run) -> None:
    def of_the_test(metric: Metric) -> bool:
        return metric.key.startswith("test_") or metric.key == "excess_mse"

    copy = copy_run(workspace, recorded, without=of_the_test)
    assert judged(store, copy, workspace).reason == "it has no test metrics: stage evaluate did not end"


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        (
            {"git.commit": "0" * 40},
            f"its commit {'0' * 40} is neither in this repository nor in its artifact record/commits.bundle",
        ),
        ({"git.commit": None}, "it has no tag git.commit, which every training sets"),
        ({"state_dict.sha256": None}, "it has no tag state_dict.sha256, which every training sets"),
        ({"git.commit": "--all"}, "its tag git.commit is no commit: --all"),
        ({"changed": "truefit/models.py"}, "these files changed while it ran: truefit/models.py"),
        (
            {"code.sha256": "0" * 64},
            "the code in src that ran is not in its record: its digest is not that of its tag code.sha256",
        ),
    ],
)
def test_record_that_cannot_be_rebuilt_is_inconclusive(
    workspace: Workspace, store: Store, recorded: Run, tags: dict[str, str | None], reason: str
) -> None:
    report = judged(store, copy_run(workspace, recorded, tags=tags), workspace)
    assert (report.verdict, report.reason, report.again) == (Verdict.INCONCLUSIVE, reason, None)


def test_changed_code_line_in_the_record_is_inconclusive(workspace: Workspace, store: Store, recorded: Run) -> None:
    patch = artifact(workspace, recorded, "record/diff.patch")
    assert b"+SHIFT = 1" in patch
    changed = {"record/diff.patch": patch.replace(b"+SHIFT = 1", b"+SHIFT = 2")}
    unchecked = {"record.sha256": None}  # as in a run from before there was a digest over the record
    report = judged(store, copy_run(workspace, recorded, artifacts=changed, tags=unchecked), workspace)
    assert str(report.reason).startswith("the code in src that ran is not in its record")
    torn = {"record/diff.patch": patch[:200]}
    report = judged(store, copy_run(workspace, recorded, artifacts=torn, tags=unchecked), workspace)
    assert str(report.reason).startswith("its artifact record/diff.patch does not apply: error: ")


@pytest.mark.parametrize("name", ["params.yaml", "dvc.yaml", "dvc.lock", "diff.patch", "environment.json", "added"])
def test_changed_record_is_inconclusive(workspace: Workspace, store: Store, recorded: Run, name: str) -> None:
    before = b"" if name == "added" else artifact(workspace, recorded, f"record/{name}")
    copy = copy_run(workspace, recorded, artifacts={f"record/{name}": before + b"\n"})
    reason = "its record is damaged: the digest of record/ is not that of its tag record.sha256"
    assert judged(store, copy, workspace).reason == reason


@pytest.mark.parametrize(
    "tags", [{"git.incomplete": "src/weights.bin"}, {"git.omitted": "src/weights.bin", "record.sha256": None}]
)
def test_files_that_the_record_lacks_are_named(
    workspace: Workspace, store: Store, recorded: Run, tags: dict[str, str | None]
) -> None:
    report = judged(store, copy_run(workspace, recorded, tags=tags), workspace)
    assert report.reason == "uncommitted files are not in its record: src/weights.bin"


@long
def test_changed_code_line_gives_a_different_result_from_the_first_epoch(
    workspace: Workspace, store: Store, recorded: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    patch = artifact(workspace, recorded, "record/diff.patch").replace(b"+SHIFT = 1", b"+SHIFT = 2")
    # Without the tag, as if the record itself were of that code.
    copy = copy_run(
        workspace,
        recorded,
        artifacts={"record/diff.patch": patch},
        tags={"code.sha256": None, "record.sha256": None, "numpy": "1.0"},
    )
    done = run_again(store, copy, 1e-5, keep=True)
    report = done.report
    assert (report.verdict, report.first_epoch) == (Verdict.DIFFERENT, 1)
    assert {row.name for row in report.rows if row.equal < row.compared} == {
        *("train_loss", "validation_loss", "state_dict best", "state_dict final", "test metrics")
    }
    assert set(report.inputs) == {"code", "environment"}
    assert done.kept is not None
    assert (done.kept / "src/truefit/new.py").read_text() == "SHIFT = 2\n"
    text = "\n".join(describe(done))
    assert f"a copy, {copy.info.run_id}: different\n" in text
    assert "first epoch that differs: 1\n" in text
    assert "environment: numpy 1.0 -> " in text
    assert f"kept: {done.kept}; `rm -rf '{done.kept.parent}'; git worktree prune` removes it" in text
    workspace.run("git", "worktree", "remove", "--force", str(done.kept))


@pytest.mark.parametrize("number", [signal.SIGINT, *([signal.SIGTERM] if TORTURE else [])])
def test_interrupted_rerun_leaves_no_worktree_and_no_run(workspace: Workspace, recorded: Run, number: signal.Signals) -> None:
    before = traces(workspace)
    tags, runs = workspace.client.get_run(recorded.info.run_id).data.tags, {run.info.run_id for run in workspace.runs()}

    def rows() -> int:
        """Return how many runs the database has, without the long way through MLflow."""
        with closing(sqlite3.connect(workspace.path / "mlflow.db")) as database:
            return int(database.execute("SELECT count(*) FROM runs").fetchone()[0])

    known = rows()

    def training() -> bool:
        return rows() > known

    status, complaint = interrupted_rerun(workspace, recorded.info.run_id, number, training)
    assert status == 128 + number
    assert complaint.startswith(f"error: stopped by {number.name}")
    assert traces(workspace) == before
    assert {run.info.run_id for run in workspace.runs()} == runs
    assert workspace.client.get_run(recorded.info.run_id).data.tags == tags
    assert list((workspace.path / ".truefit/runs").glob("*")) == []


def test_code_that_changes_while_it_trains_is_warned_of_and_makes_the_run_inconclusive(
    workspace: Workspace, store: Store
) -> None:
    workspace.set_params(train__epochs=200)
    process = start(workspace, "python", "src/train.py", "data/prepared", "results")
    until_begun(workspace, process)
    stage = workspace.path / "src/generate.py"
    code = stage.read_text()
    stage.write_text(code + "# another line\n")
    _, complaint = process.communicate(timeout=120)
    assert process.returncode == 0, complaint
    assert complaint.splitlines()[-1] == (
        "warning: changed while the training ran: generate.py; train again for a run that `truefit rerun` can judge"
    )
    stage.write_text(code)
    run = workspace.runs()[0]
    workspace.run("git", "checkout", "--quiet", "HEAD", "--", ".")
    report = judged(store, run, workspace)
    assert (report.verdict, report.reason) == (Verdict.INCONCLUSIVE, "these files changed while it ran: generate.py")


@long
def test_another_seed_gives_a_different_result(workspace: Workspace, store: Store, recorded: Run) -> None:
    params = artifact(workspace, recorded, "record/params.yaml")
    before, _, after = params.partition(b"train:  ")
    changed = before + b"train:  " + after.replace(b"seed: 42", b"seed: 43", 1)
    copy = copy_run(workspace, recorded, artifacts={"record/params.yaml": changed}, tags={"record.sha256": None})
    report = judged(store, copy, workspace)
    assert (report.verdict, report.first_epoch) == (Verdict.DIFFERENT, 1)
    assert {row.name for row in report.rows if row.equal == row.compared} == {"data digests", "learning_rate"}


@long
def test_history_with_a_last_epoch_less_is_different(workspace: Workspace, store: Store, recorded: Run) -> None:
    copy = copy_run(workspace, recorded, without=lambda metric: bool(metric.step == 4))
    report = judged(store, copy, workspace)
    assert (report.verdict, report.first_epoch) == (Verdict.DIFFERENT, 4)


@long
def test_every_engine_model_and_schedule_and_a_resumed_training_are_identical(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    for name, settings in TRAININGS.items():
        few = {"epochs": min(settings["epochs"], 12)}
        configure(workspace, "all", {**settings, **few}, track__run_name=name)
        workspace.run("dvc", "repro")
    configure(workspace, "all", {"epochs": 400}, track__run_name="resumed", checkpoint__epochs=1)
    process = start(workspace, "dvc", "repro")
    while not any(tmp_path.glob(".truefit/checkpoints/*/*.checkpoint")):
        assert process.poll() is None
    assert kill(process)
    (tmp_path / ".dvc/tmp/rwlock").unlink(missing_ok=True)
    workspace.run("dvc", "repro")
    names = [run.info.run_name for run in workspace.runs("all")]
    assert sorted(names) == sorted([*TRAININGS, "resumed"])
    reports = rerun(workspace, "--all", "--experiment", "all")
    assert {report["verdict"] for report in reports} == {"identical"}
    assert len(reports) == len(TRAININGS) + 1


@long
def test_grid_of_queued_experiments_is_identical(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    workspace.run("dvc", "repro")
    workspace.commit()
    workspace.set_params(train__epochs=7)  # which is not committed
    grid = ["--set-param", "train.optimizer.lr=0.01,0.03,0.1", "--set-param", "train.engine=numpy,torch"]
    workspace.run("dvc", "exp", "run", "--queue", *grid)
    workspace.run("dvc", "queue", "start", "--jobs", "2")
    latest = time.monotonic() + 600
    while sum("test_mse" in run.data.metrics for run in workspace.runs()) < 7:
        assert time.monotonic() < latest
        time.sleep(1)
    workspace.run("git", "checkout", "--quiet", "HEAD", "--", ".")
    before = traces(workspace)
    done = workspace.run(*COMMAND, "--all", PYTHONPATH=str(tmp_path / "src"))
    assert traces(workspace) == before
    assert done.stdout.endswith("\nidentical: 7, close: 0, inconclusive: 0, error: 0, different: 0\n")
    assert sum(run.data.tags.get("rerun.verdict") == "identical" for run in workspace.runs()) == 14


@long
def test_own_csv_of_a_project_in_a_subfolder_of_a_shallow_clone_is_pulled_and_identical(tmp_path: Path) -> None:
    first = Workspace(tmp_path / "first/größere Preise", top=tmp_path / "first")
    (first.path / "data/own.csv").write_bytes(numbered_csv(300).encode())
    first.run("dvc", "add", "data/own.csv")
    first.run("dvc", "remote", "add", "--default", "store", "../../remote")
    first.run("dvc", "push")
    first.set_params(prepare__csv="data/own.csv", train__scale__target="log")
    first.commit()
    first.run("git", "clone", "--quiet", "--depth", "1", f"file://{tmp_path}/first", str(tmp_path / "second"))
    workspace = Workspace(tmp_path / "second/größere Preise", copy=False)
    workspace.run("dvc", "pull", "data/own.csv")
    (workspace.path / "src/truefit/new.py").write_text(NEW)
    workspace.run("dvc", "repro", "evaluate")
    workspace.run("git", "stash", "--include-untracked")
    shutil.rmtree(workspace.path / ".dvc/cache")
    (workspace.path / "data/own.csv").unlink()
    before = traces(workspace)
    report = rerun(workspace)
    assert traces(workspace) == before
    assert (report["verdict"], report["reason"], report["inputs"]) == ("identical", None, {})
    shutil.rmtree(tmp_path / "remote")
    assert rerun(workspace, status=4)["reason"].startswith("its data are gone: DVC does not have data/own.csv: ")
    (workspace.path / "data/own.csv").write_text(numbered_csv(300).replace("7.25", "7.5", 1))
    assert rerun(workspace, status=4)["reason"].startswith("its data are gone: DVC does not have data/own.csv: ")
    (workspace.path / "data/own.csv").write_text(numbered_csv(300))
    shutil.rmtree(workspace.path / ".dvc/cache", ignore_errors=True)
    assert rerun(workspace)["verdict"] == "identical"


@long
def test_another_number_of_threads_is_not_identical_where_it_changes_bits(workspace: Workspace, store: Store) -> None:
    model = {"name": "mlp", "hidden": [64, 64]}
    results = []
    for threads in (1, 2):
        optimizer = {"name": "adam", "lr": 0.01}
        settings = {"model": model, "optimizer": optimizer, "batch_size": "all", "epochs": 5, "threads": threads}
        configure(workspace, "threads", settings, generate__rows=50_000)
        workspace.run("dvc", "repro")
        run = workspace.runs("threads")[0]
        result = read_result(store, run, workspace.path.parent / f"threads{threads}")
        assert isinstance(result, Result)
        results.append(result)
    inputs, rows = different_inputs(*results), compare(*results)
    assert inputs["environment"] == {"threads": ["1", "2"]}
    assert inputs["params"] == {"train.threads": ["1", "2"]}
    assert any(row.equal < row.compared for row in rows)  # else the test needs another model
    assert judge(rows, inputs, 1e-3)[0] is Verdict.CLOSE
    assert judge(rows, inputs, 0)[0] is Verdict.DIFFERENT
