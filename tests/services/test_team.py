"""Two people and one server: what one has trained the other takes up and finds the same, and no secret is seen.

The services are real, and set up by the commands of docs/team.md.
"""

import os
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from helpers_server import TRAIN, complaints, wait_for_epochs
from helpers_services import Person, Ssh, Team
from helpers_stages import Stages
from helpers_torture import TORTURE
from mlflow.entities import Run
from workspace import Workspace

EPOCHS = 24

pytestmark = pytest.mark.xdist_group("services")


def runs(team: Team, experiment: str) -> list[Run]:
    """Return the runs of an experiment, the latest first."""
    found = team.client.get_experiment_by_name(experiment)
    assert found is not None
    return list(team.client.search_runs([found.experiment_id], order_by=["attributes.start_time DESC"]))


def same_text(text: str) -> str:
    """Return the text without what differs between two runs: ids, numbers, places and what is as wide as these."""
    return re.sub(r"\b[0-9a-f]{8,32}\b|[\d.+-]+|(?<=again in )\S+| +", " ", text)


@pytest.fixture(scope="module")
def trained(team: Team, alice: Person) -> Run:
    """The run of Alice's training, whose results she has shared."""
    alice.set_params(train__optimizer__lr=0.02)
    # Another second than that of the clone: of a file of the same size and second, git knows by its index that it must look
    # into it, until DVC, which stages dvc.lock, has written the index without that.
    params = alice.path / "params.yaml"
    later = params.stat().st_mtime + 2
    os.utime(params, (later, later))
    (share,) = team.page.blocks("Train, and share it")
    alice.follow(share)
    (run,) = runs(team, "truefit")
    return run


@pytest.fixture(scope="module")
def taken_up(team: Team, trained: Run, bob: Person) -> tuple[str, str]:
    """What Bob's commands printed, and what they do on the page."""
    take, shown, _, _ = team.page.blocks("Take it up")
    return bob.follow(take), shown


def test_what_one_has_trained_another_has_without_training(
    team: Team, bob: Person, trained: Run, taken_up: tuple[str, str]
) -> None:
    printed, shown = taken_up
    assert shown in printed
    assert (trained.data.tags["mlflow.user"], trained.info.status) == ("alice", "FINISHED")
    assert trained.data.metrics["test_mse"] == bob.json("results/metrics.json")["test"]["mse"]
    assert bob.run("git", "status", "--porcelain").stdout == ""
    # Also where he comes to the same settings by himself, and not by her dvc.lock.
    bob.run("git", "checkout", "--quiet", "HEAD~1", "--", "dvc.lock")
    shutil.rmtree(bob.path / ".dvc/cache/files")
    again = bob.run("dvc", "repro", "--pull", "train").stdout
    assert "Stage 'train' is cached - skipping run, checking out outputs" in again
    assert "Running stage" not in again
    bob.run("git", "checkout", "--quiet", "HEAD", "--", ".")
    assert len(runs(team, "truefit")) == 1


def test_what_one_has_trained_another_runs_again_to_the_same_bits(
    team: Team, bob: Person, trained: Run, taken_up: tuple[str, str]
) -> None:
    _, _, rerun, shown = team.page.blocks("Take it up", cbdfcce6=trained.info.run_id[:8])
    printed = bob.follow(rerun)
    assert same_text(printed) == same_text(shown)
    again, before = runs(team, "truefit")
    assert [one.data.tags["rerun.verdict"] for one in (again, before)] == ["identical", "identical"]
    assert [one.data.tags["mlflow.user"] for one in (again, before)] == ["bob", "alice"]


def test_data_go_over_ssh(team: Team, alice: Person, bob: Person, trained: Run, ssh: Ssh) -> None:
    put, get = team.page.blocks("Data behind ssh")
    for person in (alice, bob):
        key = Path(person.environment["HOME"], ".ssh/id_ed25519")
        key.parent.mkdir()
        person.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
        with ssh.authorized.open("a") as keys:
            keys.write(key.with_suffix(".pub").read_text())
    alice.follow(put)
    alice.run("git", "commit", "--quiet", "--all", "--message", "Keep the data behind ssh too")
    alice.run("git", "push", "--quiet")
    bob.run("git", "pull", "--quiet")
    shutil.rmtree(bob.path / ".dvc/cache")
    shutil.rmtree(bob.path / "data/prepared")
    bob.follow(get)
    assert "Data and pipelines are up to date" in bob.run("dvc", "status").stdout


@pytest.mark.parametrize("killed", [False, True] if TORTURE else [True])
def test_trainings_at_once_are_each_one_whole_run_also_where_the_server_dies(
    team: Team, alice: Person, bob: Person, stages: Stages, tmp_path: Path, killed: bool
) -> None:
    """Fault 13: they all create the experiment. In `make torture` 16 of them; here three."""
    number = 16 if TORTURE else 3
    experiment = f"{number} at once, {killed=}"
    people = ([alice, bob] * number)[:number]
    clones = [copy_of(team, person, tmp_path / str(index), experiment) for index, person in enumerate(people)]
    for stage, *arguments in (["generate", "data/synthetic.csv"], ["prepare", "data/prepared"]):
        assert stages.run(clones[0].path, stage, *arguments) == (0, "")
    for clone in clones[1:]:
        shutil.copytree(clones[0].path / "data/prepared", clone.path / "data/prepared")
    pipe = subprocess.PIPE
    processes = [
        subprocess.Popen(TRAIN, cwd=clone.path, env=clone.environment, stdout=pipe, stderr=pipe, text=True) for clone in clones
    ]
    if killed:
        wait_for_epochs(clones[0], processes[0], EPOCHS // 3)
        team.server.kill()
        team.server.start()
    for process in processes:
        written, complained = process.communicate()
        alice.printed += written + complained
        assert process.returncode == 0, complained
        # Also where it is not killed, a machine that is busy with so many may let a request wait too long.
        assert all(line.endswith("`truefit sync` sends it") for line in complaints(complained))
    for clone in clones:
        assert stages.run(clone.path, "truefit", "sync", limit=0, **clone.environment) == (0, "")
        alice.printed += stages.printed

    found = runs(team, experiment)
    assert len(found) == number
    assert {run.info.status for run in found} == {"FINISHED"}
    assert Counter(run.data.tags["mlflow.user"] for run in found) == {"alice": number - number // 2, "bob": number // 2}
    for run in found:
        for name in ("train_loss", "validation_loss", "learning_rate", "epoch_seconds", "train_rows_per_second"):
            steps = sorted(metric.step for metric in team.client.get_metric_history(run.info.run_id, name))
            assert steps == list(range(1, EPOCHS + 1)), name


def copy_of(team: Team, person: Person, path: Path, experiment: str) -> Workspace:
    """Return another clone of somebody's, with settings of an experiment."""
    person.run("git", "clone", "--quiet", str(team.repository), str(path))
    clone = Workspace(path, copy=False)
    clone.environment = person.environment | {"PYTHONPATH": str(path / "src")}
    clone.set_params(
        generate__rows=5_000, train__engine="numpy", train__batch_size=1, train__epochs=EPOCHS, track__experiment=experiment
    )
    return clone


@pytest.mark.parametrize("command", [TRAIN[1:], ("truefit", "rerun")])
def test_a_wrong_password_is_one_line_without_it(
    team: Team, alice: Person, trained: Run, stages: Stages, command: tuple[str, ...]
) -> None:
    stage, *arguments = command
    wrong = {"MLFLOW_TRACKING_PASSWORD": "a-wrong-password"}
    done = stages.run(alice.path, Path(stage).stem, *arguments, limit=0, **alice.environment | wrong)
    assert done.status == 2
    (shown,) = team.page.blocks("When it does not work")
    assert done.line == shown.lstrip()
    assert "a-wrong-password" not in done.line


def test_no_secret_is_anywhere_but_where_it_was_put(
    team: Team, alice: Person, bob: Person, trained: Run, taken_up: tuple[str, str]
) -> None:
    """In nothing that was printed, in no clone and no git object, in no run, tag or artifact, and in no data."""
    secrets = [secret.encode() for secret in team.secrets.values()]
    printed = "".join(person.printed for person in (team.admin, alice, bob))
    history = alice.run("git", "log", "--all", "--patch").stdout
    places = {"printed": printed, "git": history, "database": team.dump()}
    texts = {name: text.encode() for name, text in places.items()}
    own = [".dvc/config.local"]  # where `dvc remote modify --local` puts the store's key
    for folder in (alice.path, bob.path, team.store.folder / "s3"):
        files = [path for path in folder.rglob("*") if path.is_file() and not path.match(own[0])]
        texts |= {str(path): path.read_bytes() for path in files}
    assert len(texts) > 300
    assert {name for name, text in texts.items() for secret in secrets if secret in text} == set()
    assert all((person.path / own[0]).read_bytes().count(team.secrets["S3_SECRET"].encode()) == 1 for person in (alice, bob))
