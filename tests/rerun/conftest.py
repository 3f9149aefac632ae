"""A recorded run for all tests that run one again: of code that was changed, a part of it committed, and nothing pushed."""

import pytest
from helpers_rerun import NEW
from mlflow.entities import Run
from workspace import Workspace

# A new file, and a changed line that uses it: the seeds of a training, and not those of its data.
BEFORE = "    return int(seed_sequence(seed, name, "
CHANGED = "    from truefit.new import SHIFT\n\n    return int(seed_sequence(seed + SHIFT, name, "


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A clone in which two processes used a changed and a new source file, gone again; its remote lacks its last commit."""
    folder = tmp_path_factory.mktemp("rerun")
    workspace, origin = Workspace(folder / "clone"), str(folder / "origin.git")
    workspace.run("git", "clone", "--quiet", "--bare", str(workspace.path), origin)
    workspace.run("git", "remote", "add", "-f", "origin", origin)
    workspace.add_comment("model")
    workspace.commit()
    seeds = workspace.path / "src/truefit/core/seeds.py"
    code = seeds.read_text()
    assert BEFORE in code
    seeds.write_text(code.replace(BEFORE, CHANGED))
    (workspace.path / "src/truefit/new.py").write_text(NEW)
    workspace.set_params(train__epochs=4, train__shards=2, launch__processes=2)
    status = workspace.run("git", "status", "--porcelain").stdout
    workspace.run("dvc", "repro")
    # Recording leaves no trace: the new file is still one that git does not know.
    assert "?? src/truefit/new.py" in status
    assert "?? src/truefit/new.py" in workspace.run("git", "status", "--porcelain").stdout
    workspace.run("git", "stash", "--include-untracked")
    return workspace


@pytest.fixture(scope="session")
def recorded(workspace: Workspace) -> Run:
    """The run of that clone."""
    return workspace.runs()[-1]
