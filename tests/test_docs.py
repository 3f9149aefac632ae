"""The documents say what is: tools/check_docs.py finds faults, and the README's commands and figures are real."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from dvc.cli import parse_args
from helpers_settings import SECTIONS
from mlflow.models.cli import commands as commands_of_mlflow_models

from truefit.cli.main import commands as commands_of_truefit

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def check_docs(root: Path) -> tuple[int, str]:
    done = subprocess.run([sys.executable, ROOT / "tools/check_docs.py", root], capture_output=True, text=True)
    assert done.stderr == ""
    return done.returncode, done.stdout


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    # The files that a clean checkout has, without what a run writes.
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    for name in listed.stdout.rstrip("\0").split("\0"):
        if (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_check_docs_passes_on_the_tree_without_what_a_run_writes(tree: Path) -> None:
    status, output = check_docs(tree)
    assert re.fullmatch(r"docs: \d+ documents and \d+ modules, no faults\n", output)
    assert status == 0


@pytest.mark.parametrize(
    ("planted", "fault"),
    [
        ("[a](docs/nothing.md)", "the link docs/nothing.md leads nowhere"),
        ("![a](docs/images/nothing.png)", "the link docs/images/nothing.png leads nowhere"),
        ("[a](#nothing)", "the link #nothing leads nowhere"),
        ("[a](docs/architecture.md#nothing)", "the link docs/architecture.md#nothing leads nowhere"),
        ("`make nothing`", "the Makefile has no target nothing"),
        ("```sh\ngit pull && make nothing\n```", "the Makefile has no target nothing"),
        ("`src/truefit/nothing.py`", "there is no path src/truefit/nothing.py"),
        ("`nothing.yaml`", "there is no path nothing.yaml"),
        ("set train.optimizer.nothing to 1", "params.yaml has no key train.optimizer.nothing"),
        ("```sh\ndvc exp run -S train.nothing=1\n```", "params.yaml has no key train.nothing"),
    ],
)
def test_check_docs_names_a_fault_by_file_and_line(tree: Path, planted: str, fault: str) -> None:
    readme = tree / "README.md"
    line = len(readme.read_text().splitlines()) + (2 if planted.startswith("```") else 1)
    readme.write_text(f"{README}{planted}\n")
    assert check_docs(tree) == (1, f"README.md:{line}: {fault}\n")


def test_check_docs_accepts_a_link_to_a_heading(tree: Path) -> None:
    (tree / "README.md").write_text(f"{README}[a](#your-own-csv) [b](docs/architecture.md#the-data's-way)\n")
    assert check_docs(tree)[1].endswith("the link docs/architecture.md#the-data's-way leads nowhere\n")
    (tree / "README.md").write_text(f"{README}[a](#your-own-csv) [b](docs/architecture.md#the-datas-way)\n")
    assert check_docs(tree)[0] == 0


def test_check_docs_wants_each_stage_in_the_readme(tree: Path) -> None:
    pipeline = tree / "dvc.yaml"
    pipeline.write_text(pipeline.read_text().replace("stages:\n", "stages:\n  deploy:\n    cmd: 'true'\n"))
    assert check_docs(tree) == (1, "README.md:1: found nothing about the stage deploy\n")


def test_check_docs_wants_the_readmes_tree_to_be_that_of_src(tree: Path) -> None:
    (tree / "src/truefit/seeds.py").rename(tree / "src/truefit/sown.py")
    status, output = check_docs(tree)
    line = README[: README.index("files.py seeds.py")].count("\n") + 1
    assert f"README.md:{line}: the tree names src/truefit/seeds.py, which is not there\n" in output
    assert re.search(r"README\.md:\d+: the tree lacks src/truefit/sown\.py\n", output)
    assert status == 1


def test_check_docs_wants_a_docstring_in_each_module(tree: Path) -> None:
    (tree / "src/truefit/seeds.py").write_text("import hashlib\n")
    assert check_docs(tree) == (1, "src/truefit/seeds.py:1: found no docstring at the top\n")


def test_the_readme_shows_the_metrics_of_the_default_run() -> None:
    # The committed ones: those in the working tree may be an experiment's.
    committed = subprocess.run(["git", "show", "HEAD:results/metrics.json"], cwd=ROOT, check=True, capture_output=True)
    metrics = json.loads(committed.stdout)
    # What is shown has six digits, and a percentage three after the point.
    for title, scores in [("model", metrics["test"]), ("least squares", metrics["least_squares"])]:
        assert numbers_after(rf"^{title} ") == pytest.approx(list(scores.values()), rel=1e-5)
    assert numbers_after("^excess mse over least squares: ") == pytest.approx([100 * metrics["excess_mse"]], abs=6e-4)
    for title, line in [("learned", metrics["parameters"]), ("true", metrics["truth"])]:
        expected = [line["intercept"], *line["coefficients"].values()]
        assert numbers_after(f"^{title}: ") == pytest.approx(expected, rel=1e-5)


def test_the_readmes_shell_commands_are_ones_that_their_programs_take() -> None:
    commands = [
        line for block in re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL) for line in block.splitlines()
    ]
    assert {"make repro", "dvc repro --force", "dvc metrics diff", "dvc params diff", "dvc plots show"} <= {*commands}
    for part in [part for command in commands for part in command.split(" && ")]:
        program, *arguments = shlex.split(part)
        assert program in (".", "cd", "curl", "dvc", "git", "make", "mlflow", "python", "truefit", "rm")
        if program == "truefit":
            assert arguments[0] in commands_of_truefit.commands
        if program == "dvc":
            parse_args(arguments)  # raises for an option or a command that DVC does not have
        if program == "mlflow":
            group, command, *options = arguments
            assert group == "models"
            commands_of_mlflow_models.commands[command].make_context(command, options)
        if program == "make":
            subprocess.run(["make", "--dry-run", *arguments], cwd=ROOT, check=True, capture_output=True)


def test_the_comments_in_params_yaml_list_the_choices_that_there_are() -> None:
    listed = choices_in_comments((ROOT / "params.yaml").read_text())
    assert listed["train.engine"] == ["numpy", "autograd", "torch", "compiled", "auto"]
    for key, choices in listed.items():
        if allowed := allowed_values(key):
            assert choices == allowed, key


def numbers_after(start: str) -> list[float]:
    """Return the numbers of the README's first line that begins so."""
    found = re.search(rf"{start}(.*)$", README, re.MULTILINE)
    assert found, start
    return [float(number) for number in re.findall(r"(?<![\w·])[+-]?\d+(?:\.\d+)?(?:e[+-]\d+)?", found[1])]


def choices_in_comments(text: str) -> dict[str, list[str]]:
    """Return the keys whose comment lists choices, as in `# a | b (b's own keys), over …`, and the choices."""
    choices: dict[str, list[str]] = {}
    path: list[str] = []
    for line in text.splitlines():
        if found := re.match(r"( *)(\w+):[^#]*(?:#(.*))?$", line):
            path = [*path[: len(found[1]) // 2], found[2]]
            comment = re.sub(r"\(.*?\)", "", found[3] or "").partition(",")[0].rpartition(": ")[2]
            if "|" in comment:
                choices[".".join(path)] = [part.split()[0] for part in comment.split("|")]
    return choices


def allowed_values(key: str) -> list[Any]:
    """Return the literals that a setting may have, or nothing where it takes more than these."""
    section, *names = key.split(".")
    annotation: Any = SECTIONS[section]
    for name in names:
        annotation = annotation.model_fields[name].annotation
    return list(get_args(annotation)) if get_origin(annotation) is Literal else []


def test_setup_fills_its_own_environment_whichever_is_active() -> None:
    command = ["make", "--dry-run", "--always-make", "setup"]
    printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    installs = [line for line in printed.splitlines() if "uv pip install" in line]
    assert len(installs) == 2
    assert all("--python .venv/bin/python" in line for line in installs)
