"""The rooms of src/truefit: stages name those that they import, imports point one way, and a new module needs no entry."""

import re
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from workspace import ROOT, copy_working_tree

from truefit.core.code import DECISIVE

STAGES = ("generate", "prepare", "train", "evaluate")

# One worker, which need not import the stages twice.
pytestmark = pytest.mark.xdist_group("rooms")


@cache
def imports(stage: str, root: Path = ROOT) -> tuple[frozenset[str], str]:
    """Return the files below `root`/src that importing a stage loads, and whether it loads torch and mlflow."""
    code = f"""
import importlib, sys
importlib.import_module({stage!r})
print("torch" in sys.modules, "mlflow" in sys.modules)
print(*sorted(m.__file__ for m in sys.modules.values() if getattr(m, "__file__", None)), sep="\\n")
"""
    command = [sys.executable, "-c", code]
    heavy, *files = subprocess.run(command, cwd=root / "src", check=True, capture_output=True, text=True).stdout.splitlines()
    source = root / "src"
    return frozenset(str(Path(file).relative_to(root)) for file in files if Path(file).is_relative_to(source)), heavy


def named_sources(stage: str, root: Path = ROOT) -> set[str]:
    """Return the deps of a stage that are code."""
    return {name for name in YAML(typ="safe").load(root / "dvc.yaml")["stages"][stage]["deps"] if name.startswith("src/")}


def needed_sources(files: Iterable[str]) -> set[str]:
    """Return what a stage that imports these files must name: its script, and the rooms but for that which only remembers."""
    rooms = {re.sub(r"(?<=src/truefit/)(\w+)/.*", r"\1", name) for name in files}
    return rooms - {"src/truefit/tracking", "src/truefit/__init__.py"}  # the package's own file holds a docstring alone


@pytest.mark.parametrize("stage", STAGES)
def test_stage_depends_on_the_rooms_that_it_imports(stage: str) -> None:
    imported, heavy = imports(stage)
    if stage == "evaluate":
        # It completes the run of each training, so it runs again with it, also where the model's bits stay the same.
        imported |= imports("train")[0]
    assert named_sources(stage) == needed_sources(imported)
    # The first two stages start without the heavy imports, and importing a stage opens no store.
    assert heavy == f"{stage in ('train', 'evaluate')} False"


def test_a_checkpoint_is_of_the_code_that_the_stage_train_depends_on() -> None:
    assert named_sources("train") == {f"src/{name}" for name in DECISIVE}


def test_generate_and_prepare_import_no_torch_mlflow_or_pandas(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    for stage, output in [("generate", "data/synthetic.csv"), ("prepare", "data/prepared")]:
        command = [sys.executable, "-X", "importtime", str(ROOT / f"src/{stage}.py"), output]
        run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        imported = {line.rpartition("|")[2].strip() for line in run.stderr.splitlines()}
        assert (tmp_path / output).exists(), run.stderr
        assert "truefit.ingest" in imported
        assert not imported & {"torch", "mlflow", "pandas"}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the working tree with one more module, which another one imports."""
    tree = tmp_path_factory.mktemp("tree")
    copy_working_tree(tree)
    (tree / "src/truefit/training/added.py").write_text('"""A module that nobody expected."""\n\nimport truefit.data.table\n')
    with (tree / "src/truefit/training/loop.py").open("a") as importing:
        importing.write("\nimport truefit.training.added\n")
    return tree


def check(tree: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run one of `make check`'s commands in a tree."""
    script = str(Path(sys.executable).parent / command[0])
    environment = {"PATH": str(Path(sys.executable).parent), "PYTHONPATH": str(tree / "src")}
    return subprocess.run([script, *command[1:]], cwd=tree, env=environment, capture_output=True, text=True, check=False)


def test_a_module_added_to_a_room_needs_no_other_file_touched(tree: Path) -> None:
    for command in (["lint-imports"], ["python", "tools/check_docs.py"]):
        done = check(tree, *command)
        assert done.returncode == 0, done.stdout
    imported, _ = imports("train", tree)
    assert "src/truefit/training/added.py" in imported
    assert named_sources("train", tree) == needed_sources(imported)


def test_an_import_upwards_is_refused(tree: Path) -> None:
    module = tree / "src/truefit/core/added.py"
    module.write_text('"""A module in the wrong room."""\n\nimport truefit.training.loop\n')
    done = check(tree, "lint-imports")
    module.unlink()
    assert done.returncode == 1
    assert "truefit.core is not allowed to import truefit.training" in done.stdout
    assert "truefit.core.added -> truefit.training.loop" in done.stdout
