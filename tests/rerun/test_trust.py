"""Whose runs `truefit rerun` takes from a store that several people share, and what becomes of several verdicts."""

import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers_rerun import check_identical, rerun, traces
from helpers_stages import Done, Stages
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from workspace import Workspace, put_store

from truefit.cli import rerunning
from truefit.core.errors import TrackingError
from truefit.rerun import publishing, records, run_again
from truefit.rerun.comparison import Report, Result, Verdict
from truefit.rerun.records import find, trainings
from truefit.rerun.trust import Owner, origin
from truefit.tracking.names import RERUN_EXPERIMENT
from truefit.tracking.store import Store

pytestmark = pytest.mark.xdist_group("rerun")

PATCH = """diff --git a/src/evil.py b/src/evil.py
new file mode 100644
index 0000000..d95f3ad
--- /dev/null
+++ b/src/evil.py
@@ -0,0 +1,2 @@
+import os
+os.system("touch sprung")
"""


class Shared:
    """A clone with one commit and a store of its own, in which runs are made without a training."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "clone"
        (self.path / ".dvc").mkdir(parents=True)
        (self.path / "file").touch()
        self.uri = put_store(folder / "shared.db")
        self.client = MlflowClient(self.uri)
        self.experiments = {name: self.client.create_experiment(name, folder.as_uri()) for name in ("truefit", "other")}
        for command in (["init", "--quiet"], ["add", "file"], ["commit", "--quiet", "--message", "first"]):
            self.git(*command)
        self.head = self.git("rev-parse", "HEAD")
        self._made = 0

    def git(self, *arguments: str) -> str:
        """Run git in the clone; return what it prints."""
        person = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        done = subprocess.run(["git", *person, *arguments], cwd=self.path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    def make(
        self,
        tags: Mapping[str, str | None] | None = None,
        status: str = "FINISHED",
        experiment: str = "other",
        name: str = "a",
    ) -> str:
        """Return the id of a new run of alice's, but for tags that are given (None: left out); it is the latest."""
        self._made += 1
        own = {"mlflow.user": "alice", "git.root": self.head, "git.commit": self.head, **(tags or {})}
        given = {key: value for key, value in own.items() if value is not None}
        run = self.client.create_run(self.experiments[experiment], self._made, given, name)
        if status != "RUNNING":
            self.client.set_terminated(run.info.run_id, status)
        return str(run.info.run_id)

    def rerun(self, stages: Stages, *arguments: str, user: str = "alice") -> Done:
        """Run `truefit rerun` in the clone as a user."""
        command = ("truefit", "rerun", "--experiment", "truefit", *arguments)
        return stages.run(self.path, *command, MLFLOW_TRACKING_URI=self.uri, LOGNAME=user)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    return Shared(tmp_path_factory.mktemp("shared"))


@pytest.fixture
def store(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The shared store, as alice has it in her clone."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", shared.uri)
    monkeypatch.setenv("DVC_ROOT", str(shared.path))
    monkeypatch.setenv("LOGNAME", "alice")
    return Store()


@pytest.fixture(scope="module")
def own(shared: Shared) -> list[str]:
    """The ids of alice's two trainings, before later runs that are no finished trainings of hers in this repository."""
    ids = [shared.make(experiment="truefit", name=f"run {number}") for number in range(2)]
    for tags in (
        {"mlflow.user": "bob"},
        {"mlflow.user": None},
        {"git.root": "f" * 40},
        {"git.root": None},
        {"git.commit": None},
        {"rerun.of": ids[0]},
    ):
        shared.make(tags, experiment="truefit")
    for status in ("FAILED", "KILLED", "RUNNING"):
        shared.make(status=status, experiment="truefit")
    return ids


def test_without_a_run_only_finished_ones_of_this_user_and_repository_are_taken(store: Store, own: list[str]) -> None:
    """Faults 1 and 4."""
    assert find(store, None, "truefit").info.run_id == own[-1]
    assert list(trainings(store, "truefit")) == own


def test_nobody_elses_run_is_taken_where_there_is_none(stages: Stages, shared: Shared, own: list[str]) -> None:
    """Fault 1."""
    for arguments in ([], ["--all"]):
        done = shared.rerun(stages, *arguments, user="carol")
        assert done == (
            2,
            "error: experiment 'truefit': has no finished training of carol in this repository; `dvc repro` makes one, "
            "and `truefit rerun RUN --trust` runs another's again\n",
        )


def test_in_the_repositorys_own_store_runs_from_before_there_was_a_root_count(
    tmp_path: Path, shared: Shared, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Owner.here(store) == Owner("alice", shared.head)
    run = shared.client.get_run(shared.make({"git.root": None}))
    assert Owner("alice", None).stranger(run) is None
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    assert Owner.here(Store()) == Owner("alice", None)


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({}, None),
        ({"mlflow.user": "bob\x1b[2J"}, r"it is of bob\x1b[2J, not of alice"),
        ({"mlflow.user": None}, "it is of nobody, not of alice"),
        ({"git.root": None}, "it is of another repository: its tag git.root is not there, not "),
        ({"git.root": "f" * 40}, f"it is of another repository: its tag git.root is {'f' * 40}, not "),
        ({"git.commit": "f" * 40}, f"its commit {'f' * 40} is on no branch and no tag here"),
        ({"git.commit": "HEAD"}, "its commit HEAD is on no branch and no tag here"),
    ],
)
def test_a_run_is_a_strangers_by_its_user_its_repository_or_its_commit(
    shared: Shared, store: Store, tags: dict[str, str | None], reason: str | None
) -> None:
    """Fault 1."""
    found = Owner.here(store).stranger(shared.client.get_run(shared.make(tags)))
    assert found is None if reason is None else str(found).startswith(reason)


def test_a_commit_is_reachable_from_any_ref_and_not_when_only_its_object_is_there(shared: Shared, store: Store) -> None:
    """Fault 1."""
    side = shared.git("commit-tree", "-p", "HEAD", "-m", "side", "HEAD^{tree}")
    run = shared.client.get_run(shared.make({"git.commit": side}))
    assert Owner.here(store).stranger(run) == f"its commit {side} is on no branch and no tag here"
    shared.git("update-ref", "refs/exps/side", side)
    assert Owner.here(store).stranger(run) is None


def test_a_strangers_run_is_told_of_and_not_run_without_trust(stages: Stages, shared: Shared) -> None:
    """Fault 1."""
    run_id = shared.make({"mlflow.user": "mallory", "git.remote": "https://example.org/r"}, experiment="truefit", name="mine")
    shared.client.log_text(run_id, PATCH, "record/diff.patch")
    runs = len(shared.client.search_runs([shared.experiments["truefit"]]))
    told = (
        f"run {run_id}, mine: of mallory, from https://example.org/r\n"
        f"its code: commit {shared.head}\n"
        "its patch:\n  +2 -0 src/evil.py\n"
    )
    error = (
        f"error: run {run_id}: it is of mallory, not of alice; a rerun executes its code: "
        f"`truefit rerun {run_id} --trust`, if you would run that\n"
    )
    for arguments in ([run_id], ["mine"], ["mine", "--trust"]):  # anyone may give a run any name
        assert shared.rerun(stages, *arguments) == (2, told + error)
    trusted = shared.rerun(stages, run_id[:12], "--trust", "--json")
    assert (trusted.status, trusted.line) == (4, told)
    assert json.loads(stages.printed)["reason"] == "it has no tag git.dirty, which every training sets"
    assert len(shared.client.search_runs([shared.experiments["truefit"]])) == runs
    assert not list(shared.path.rglob("sprung"))


def test_a_user_without_a_name_has_the_runs_without_one_but_not_in_a_shared_store(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 1234")

    monkeypatch.setattr("getpass.getuser", nameless)
    with pytest.raises(TrackingError, match=r"^user: has no name here"):
        Owner.here(store)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    owner = Owner.here(Store())
    assert (owner, owner.where) == (Owner(None, None), "tags.`mlflow.user` IS NULL")


def test_trust_needs_a_run(stages: Stages, shared: Shared) -> None:
    assert "--trust takes a RUN" in shared.rerun(stages, "--trust").line


@pytest.mark.parametrize(
    ("patch", "told"),
    [
        (None, ["its patch: none"]),
        ("", ["its patch: empty"]),
        ("nonsense\n", ['its patch: cannot be read: error: No valid patches in input (allow with "--allow-empty")']),
        (PATCH.replace("src/evil.py", "src/größe\x1b.py"), ["its patch:", r'  +2 -0 "src/größe\033.py"']),
    ],
)
def test_what_a_patch_touches_is_told_without_applying_it(
    shared: Shared, store: Store, patch: str | None, told: list[str]
) -> None:
    """Fault 1."""
    run_id = shared.make({"mlflow.user": "bob"})
    if patch is not None:
        shared.client.log_text(run_id, patch, "record/diff.patch")
    assert origin(store, shared.client.get_run(run_id))[2:] == told
    assert not (shared.path / "src").exists()


def bundled(shared: Shared, folder: Path, files: int) -> tuple[str, Path]:
    """Return a commit with so many new files on top of the one here, as only a bundle has it, and that."""
    clone, name = folder / "mallory", "commits.bundle"
    shared.git("clone", "--quiet", "--no-local", str(shared.path), str(clone))
    for number in range(files):
        (clone / f"evil{number:03}.py").write_text("import os\n")
    shared.git("-C", str(clone), "add", "--all")
    shared.git("-C", str(clone), "commit", "--quiet", "--message", "second")
    shared.git("-C", str(clone), "bundle", "create", "--quiet", name, "HEAD", f"^{shared.head}")
    return shared.git("-C", str(clone), "rev-parse", "HEAD"), clone / name


@pytest.mark.parametrize("base", ["here", None, "there"])
def test_what_the_commits_of_a_bundle_change_is_told_of_a_base_that_is_here(
    tmp_path: Path, shared: Shared, store: Store, base: str | None
) -> None:
    commit, bundle = bundled(shared, tmp_path, 102)
    tag = {"here": shared.head, "there": commit, None: None}[base]
    run_id = shared.make({"git.commit": commit, "git.base": tag})
    shared.client.log_artifact(run_id, str(bundle), "record")
    before = sorted(path for path in shared.path.rglob("*"))
    lines = origin(store, shared.client.get_run(run_id))[1:]
    code = f"its code: commit {commit}, with record/commits.bundle, which is on no branch and no tag here"
    if base == "here":
        files = [f"  +1 -0 evil{number:03}.py" for number in range(100)]
        assert lines == [code, f"its commits, since {shared.head}:", *files, "  and 2 more", "its patch: none"]
    else:
        untold = f"what they build on, {tag or 'not recorded'}, is on no branch and no tag here"
        assert lines == [code, f"its commits: what they change cannot be told: {untold}", "its patch: none"]
    assert sorted(path for path in shared.path.rglob("*")) == before


def test_what_a_commit_changes_is_told_where_it_is_here_on_no_branch_and_not_where_it_is_nowhere(
    tmp_path: Path, shared: Shared, store: Store
) -> None:
    commit, bundle = bundled(shared, tmp_path, 1)
    shared.git("fetch", "--quiet", str(bundle.parent))
    for changed, told in {
        commit: [f"its commits, since {shared.head}:", "  +1 -0 evil000.py"],
        shared.git("commit-tree", "-m", "alone", "HEAD^{tree}"): ["they have no commit in common with HEAD"],
        "f" * 40: [f"its commit {'f' * 40} is not in this repository; `git fetch` may bring it"],
        "HEAD": ["HEAD is not a commit's whole hash"],
    }.items():
        lines = origin(store, shared.client.get_run(shared.make({"git.commit": changed})))[2:-1]
        assert lines == (told if len(told) > 1 else [f"its commits: what they change cannot be told: {told[0]}"])


def test_in_a_shallow_clone_no_run_of_a_shared_store_is_anyones(
    tmp_path: Path, stages: Stages, shared: Shared, store: Store, own: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clone = tmp_path / "clone"
    commit, _ = bundled(shared, tmp_path, 1)
    shared.git("clone", "--quiet", "--depth", "1", f"file://{tmp_path}/mallory", str(clone))
    (clone / ".dvc").mkdir()
    for arguments in ([], ["--all"]):
        command = ("truefit", "rerun", "--experiment", "truefit", *arguments)
        done = stages.run(clone, *command, MLFLOW_TRACKING_URI=shared.uri, LOGNAME="alice")
        assert done == (
            2,
            "error: git: this is a shallow clone, where no run can be told for this repository's; "
            "`git fetch --unshallow` brings the rest\n",
        )
    run = shared.client.get_run(shared.make({"git.root": commit, "git.commit": commit}))
    monkeypatch.setenv("DVC_ROOT", str(clone))
    assert "git fetch --unshallow" in str(Owner.here(store).stranger(run))
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert Owner.here(Store()) == Owner("alice", None)  # all runs of its own store are its own
    monkeypatch.setenv("MLFLOW_TRACKING_URI", shared.uri)
    shared.git("-C", str(clone), "fetch", "--quiet", "--unshallow")
    assert Owner.here(store) == Owner("alice", shared.head)
    assert find(store, None, "truefit").info.run_id == own[-1]


def test_one_error_is_reported_and_the_others_are_run_again_all_the_same(
    stages: Stages, shared: Shared, own: list[str]
) -> None:
    """Fault 4."""
    lost = shared.make({"git.commit": "f" * 40, "mlflow.user": "dan"}, experiment="truefit", name="lost")
    fine = shared.make({"mlflow.user": "dan"}, experiment="truefit", name="fine")
    done = shared.rerun(stages, "--all", user="dan")
    assert done.status == 2
    printed = stages.printed.splitlines()
    assert printed[0].startswith(f"lost, {lost}: error, since run {lost}: its commit {'f' * 40} is on no branch and no tag")
    assert printed[2:] == [
        f"fine, {fine}: inconclusive, since it has no tag git.dirty, which every training sets",
        "report: rerun/inconclusive-dan.json, of that run",
        "",
        "identical: 0, close: 0, inconclusive: 1, error: 1, different: 0",
    ]
    assert shared.rerun(stages, "--all", "--json", user="dan").status == 2
    assert [(report["recorded"], report["verdict"]) for report in json.loads(stages.printed)] == [
        (lost, "error"),
        (fine, "inconclusive"),
    ]


# --- verdicts of several people


def publish(shared: Shared, monkeypatch: pytest.MonkeyPatch, user: str, recorded: str, verdict: Verdict) -> str:
    """Publish a user's verdict, of a rerun unless it is inconclusive; return the name of its artifacts."""
    monkeypatch.setenv("LOGNAME", user)
    again = None if verdict is Verdict.INCONCLUSIVE else shared.make({"rerun.of": recorded, "mlflow.user": user})
    return publishing.publish(Store(), Report(verdict, recorded, again), "a", None)


def verdicts(shared: Shared, run_id: str) -> dict[str, str]:
    tags = shared.client.get_run(run_id).data.tags
    return {tag.removeprefix("rerun."): value for tag, value in tags.items() if tag.startswith("rerun.")}


@pytest.mark.usefixtures("store")
def test_an_inconclusive_verdict_replaces_none_and_those_of_several_people_stand(
    shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 3."""
    run_id = shared.make()
    steps = [
        ("al@b/c", Verdict.INCONCLUSIVE, "inconclusive", {"verdict.al_b_c": "inconclusive"}),
        ("al@b/c", Verdict.IDENTICAL, "identical", {"verdict.al_b_c": "identical"}),
        ("bob", Verdict.INCONCLUSIVE, "identical", {"verdict.al_b_c": "identical", "verdict.bob": "inconclusive"}),
        ("bob", Verdict.DIFFERENT, "different", {"verdict.al_b_c": "identical", "verdict.bob": "different"}),
        ("bob", Verdict.INCONCLUSIVE, "different", {"verdict.al_b_c": "identical", "verdict.bob": "different"}),
    ]
    names, by = [], None
    for user, verdict, latest, people in steps:
        names.append(publish(shared, monkeypatch, user, run_id, verdict))
        by = by if verdict is Verdict.INCONCLUSIVE else names[-1].removeprefix("rerun/")
        assert verdicts(shared, run_id) == {"verdict": latest, **people, **({"by": by} if by else {})}
    kept = {item.path for item in shared.client.list_artifacts(run_id, "rerun")}
    assert kept == {f"{name}.json" for name in names}
    assert len(kept) == 4


# --- a store that fails


@pytest.fixture
def done(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> run_again.Rerun:
    """A rerun that has just ended, in place of one."""
    run_id = shared.make()
    done = run_again.Rerun(Report(Verdict.IDENTICAL, run_id, shared.make({"rerun.of": run_id})), "a")
    monkeypatch.setattr(rerunning, "run_again", lambda *_: done)
    monkeypatch.setattr(publishing, "PAUSES", (0, 0, 0))
    return done


def failing(times: float, method: Callable[..., Any], error: Exception) -> Callable[..., Any]:
    """Return the method, but that it raises so many times first."""
    left = [times]

    def instead(*arguments: Any, **named: Any) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            raise error
        return method(*arguments, **named)

    return instead


@pytest.mark.parametrize("name", ["log_artifacts", "log_batch", "update_run"])
@pytest.mark.parametrize("error", [MlflowException("try later"), ConnectionError("refused")])
def test_a_request_that_fails_is_repeated_after_the_report_is_printed(
    name: str, error: Exception, shared: Shared, store: Store, done: run_again.Rerun,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Fault 12."""
    run = shared.client.get_run(done.report.recorded)
    method = getattr(MlflowClient, name)
    monkeypatch.setattr(MlflowClient, name, failing(2, method, error))
    assert rerunning.rerun(store, run, False, 1e-5, False, False) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"report: rerun/{done.report.again}.json, of both runs"
    assert verdicts(shared, done.report.recorded)["verdict"] == "identical"


def test_a_finished_rerun_stays_where_its_report_cannot_be_published(
    shared: Shared, store: Store, done: run_again.Rerun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fault 12."""
    run = shared.client.get_run(done.report.recorded)
    monkeypatch.setattr(MlflowClient, "log_artifacts", failing(99, MlflowClient.log_artifacts, MlflowException("no room")))
    assert rerunning.rerun(store, run, False, 1e-5, False, False) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith(f"a, {run.info.run_id}: identical\n")
    assert printed.err == (
        f"warning: MLflow store {shared.uri}: no room; the report is not in MLflow; "
        f"the rerun stays there as run {done.report.again}\n"
    )
    assert shared.client.get_run(str(done.report.again)).info.lifecycle_stage == "active"
    assert verdicts(shared, run.info.run_id) == {}


@pytest.mark.parametrize(("ended", "stage"), [(True, "active"), (False, "deleted")])
def test_only_a_rerun_that_has_not_ended_is_deleted_where_the_store_fails(
    ended: bool, stage: str, shared: Shared, store: Store,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Fault 12."""
    made = []

    def pipeline(attempt: Any, _: Path) -> None:
        made.append(shared.make({"rerun.key": attempt.key}))
        if not ended:
            raise TrackingError("away")

    def read(_: Store, run: Run, __: Path) -> Result | None:
        if run.info.run_id in made:
            raise TrackingError("away")
        return None

    monkeypatch.setattr(publishing, "PAUSES", (0,))
    monkeypatch.setattr(run_again._Attempt, "_run_pipeline", pipeline)
    monkeypatch.setattr(run_again, "read_result", read)
    with pytest.raises(TrackingError, match="away"):
        run_again.run_again(store, shared.client.get_run(shared.make()), 1e-5)
    assert shared.client.get_run(made[0]).info.lifecycle_stage == stage
    assert ("its run stays" in capsys.readouterr().err) is ended


class Recorded:
    """A worktree of code that knows a variable or not, whose `truefit sync` ends with these statuses."""

    def __init__(self, project: Path, names: str = "", statuses: Sequence[int] = ()) -> None:
        self.project = project
        self._names = names
        self.statuses = list(statuses)

    def read(self, _: str) -> str:
        return self._names

    def truefit(self, arguments: list[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        assert arguments == ["sync"]
        assert "MLFLOW_RUN_CONTEXT" in environment
        return subprocess.CompletedProcess(arguments, self.statuses.pop(0))


@pytest.mark.parametrize(("statuses", "sent"), [([], True), ([2, 0], True), ([2, 2, 2], False)])
def test_what_the_store_did_not_take_of_a_rerun_is_sent_again(
    tmp_path: Path, shared: Shared, store: Store, statuses: list[int], sent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 12."""
    monkeypatch.setattr(run_again, "PAUSES", (0, 0))
    if statuses:
        (tmp_path / ".truefit/runs/a").mkdir(parents=True)
    recorded: Any = Recorded(tmp_path, statuses=statuses)
    attempt = run_again._Attempt(store, shared.client.get_run(shared.make()), False)
    assert attempt._is_sent(recorded) is sent
    assert recorded.statuses == []


@pytest.mark.parametrize("knows", [True, False])
def test_code_from_before_goes_by_the_recorded_name_of_an_experiment_that_was_renamed(
    tmp_path: Path, shared: Shared, store: Store, knows: bool
) -> None:
    """Fault 6: as it did, and its run is found there."""
    recorded: Any = Recorded(tmp_path, RERUN_EXPERIMENT if knows else "")
    attempt = run_again._Attempt(store, shared.client.get_run(shared.make()), False)
    attempt._make_room(recorded, "other")
    assert attempt._experiments == [shared.experiments["other"]]
    attempt._make_room(recorded, f"former {knows}")
    made = shared.client.get_experiment_by_name(f"former {knows}")
    assert attempt._experiments == [shared.experiments["other"], *([made.experiment_id] if made else [])]
    assert (made is None) is knows


# --- many runs


def test_no_search_asks_for_more_runs_than_it_needs(
    shared: Shared, store: Store, own: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 18."""
    asked = []

    def search(client: MlflowClient, experiments: list[str], where: str, max_results: int = 1000, **named: Any) -> Any:
        asked.append(max_results)
        return original(client, experiments, where, max_results=max_results, **named)

    original = MlflowClient.search_runs
    monkeypatch.setattr(MlflowClient, "search_runs", search)
    for reference in (None, own[0], own[0][:8], "run 0"):
        find(store, reference, "truefit")
    next(trainings(store, "truefit"))
    run_again._Attempt(store, shared.client.get_run(own[0]), False)._new_runs()
    assert asked == [1, 6, 6, 6, 100, 10]  # the beginning of an id may be a name too


def test_all_own_trainings_are_given_once_over_pages_and_where_others_end_meanwhile(
    shared: Shared, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 18."""
    monkeypatch.setattr(records, "_PAGE", 2)
    shared.experiments["pages"] = shared.client.create_experiment("pages", shared.path.as_uri())
    late = shared.make(status="RUNNING", experiment="pages")
    ids = [shared.make(experiment="pages") for _ in range(5)]
    given = trainings(store, "pages")
    first = next(given)
    shared.client.set_terminated(late, "FINISHED")
    ids.append(shared.make(experiment="pages"))
    assert [first, *given] == ids


def test_of_very_many_runs_of_a_name_a_few_are_named(shared: Shared, store: Store) -> None:
    for _ in range(7):
        shared.make(name="same")
    with pytest.raises(TrackingError, match=r"'same' is any of several runs, allowed: one of (\w{32}, ){5}…$"):
        find(store, "same", "other")


# --- two clones, one store


def test_anothers_run_is_run_again_with_trust_as_its_child_in_its_experiment_of_any_name(
    workspace: Workspace, recorded: Run
) -> None:
    """Faults 1, 6, 19 and 20: the run of the other tests, as bob has it, in a clone without what was not pushed."""
    client, folder = workspace.client, workspace.path.parent
    workspace.run("git", "clone", "--quiet", str(folder / "origin.git"), str(folder / "bob"))
    bob = Workspace(folder / "bob", copy=False)
    bob.environment |= {"MLFLOW_TRACKING_URI": f"sqlite:///{workspace.path / 'mlflow.db'}", "LOGNAME": "bob"}
    bob.run("git", "cat-file", "-e", recorded.data.tags["git.commit"], status=1)
    client.rename_experiment(recorded.info.experiment_id, "renamed")
    before = traces(bob)
    report = rerun(bob, recorded.info.run_id, "--trust")
    assert traces(bob) == before
    assert client.get_experiment_by_name("truefit") is None
    client.rename_experiment(recorded.info.experiment_id, "truefit")
    check_identical(workspace, recorded, report)
    assert report["record_checked"] is True
    again = client.get_run(report["again"])
    assert again.info.experiment_id == recorded.info.experiment_id
    assert again.data.tags["mlflow.parentRunId"] == recorded.info.run_id
    assert again.data.tags["mlflow.user"] == "bob"
    tags = client.get_run(recorded.info.run_id).data.tags
    assert (tags["rerun.verdict"], tags["rerun.verdict.bob"], tags["rerun.by"]) == ("identical", "identical", report["again"])
