"""The documents say what is: check_docs.py and Sphinx find faults, and commands, figures and examples are real."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click
import pytest
from dvc.cli import parse_args
from helpers_settings import SECTIONS
from mlflow.experiments import commands as commands_of_mlflow_experiments
from mlflow.models.cli import commands as commands_of_mlflow_models

from truefit.cli.main import commands as commands_of_truefit

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


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


FAULTS = {
    "`make nothing`": "the Makefile has no target nothing",
    "```sh\ngit pull && make nothing\n```": "the Makefile has no target nothing",
    "`src/truefit/nothing.py`": "there is no path src/truefit/nothing.py",
    "`nothing.yaml`": "there is no path nothing.yaml",
    "set train.optimizer.nothing to 1": "params.yaml has no key train.optimizer.nothing",
    "```sh\ndvc exp run -S train.nothing=1\n```": "params.yaml has no key train.nothing",
}


def test_check_docs_names_each_fault_by_file_and_line(tree: Path) -> None:
    readme, expected = README, []
    for planted, fault in FAULTS.items():
        line = len(readme.splitlines()) + (2 if planted.startswith("```") else 1)
        expected.append(f"README.md:{line}: {fault}")
        readme += f"{planted}\n"
    (tree / "README.md").write_text(readme)
    # A stage and a room that no page names; a module without a word, and one more, which needs no page.
    pipeline = tree / "dvc.yaml"
    pipeline.write_text(pipeline.read_text().replace("stages:\n", "stages:\n  deploy:\n    cmd: 'true'\n"))
    (tree / "src/truefit/attic").mkdir()
    (tree / "src/truefit/attic/__init__.py").write_text('"""A room."""\n')
    (tree / "src/truefit/core/seeds.py").write_text("import hashlib\n")
    (tree / "src/truefit/training/nothing_new.py").write_text('"""A module of a room."""\n')
    status, printed = check_docs(tree)
    assert status == 1
    assert sorted(printed.splitlines()) == sorted(
        [
            *expected,
            "docs/pipeline.md:1: found nothing about the stage deploy",
            "docs/architecture.md:1: found no row for the room attic",
            "src/truefit/core/seeds.py:1: found no docstring at the top",
        ]
    )


def make_site(tree: Path) -> tuple[int, str]:
    """Make the site as `make docs` does; return the exit status, and the warnings."""
    command = re.search(r"^\t(sphinx-build .+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert command
    done = subprocess.run([sys.executable, "-m", "sphinx", *command[1].split()[1:]], cwd=tree, capture_output=True, text=True)
    assert done.stdout == ""
    return done.returncode, done.stderr


def test_the_site_is_made_without_a_warning_and_is_whole_without_a_network(tree: Path) -> None:
    assert make_site(tree) == (0, "")
    site = tree / "docs/_build"
    pages = [site / "index.html", site / "search.html", *sorted((site / "docs").glob("*.html"))]
    assert len(pages) == 2 + len([*(tree / "docs").glob("*.md")])
    for page in pages:
        text = page.read_text()
        # What a browser loads with a page: scripts, styles and pictures. A link may lead elsewhere.
        assert not re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"(?:https?:)?//[^>]*>", text), page
        assert "docs/resilience.html" in text or page.parent.name == "docs"
    # The search's index, which a browser reads from the disk as well.
    assert "rwlock" in (site / "searchindex.js").read_text()


def test_the_site_has_no_link_that_leads_nowhere_and_no_page_outside_its_contents(tree: Path) -> None:
    (tree / "docs/outside.md").write_text(
        "# Outside\n\n[a](nothing.md) ![a](images/nothing.png) [a](#nothing) [a](settings.md#nothing) [a](../params.yml)\n"
        "[b](#outside) [b](architecture.md#the-datas-way) [b](../README.md#your-own-table) [b](../params.yaml)\n"
    )
    status, warnings = make_site(tree)
    assert status == 1
    assert sorted(re.findall(r"docs/outside\.md:?3?: WARNING: .*", warnings)) == sorted(
        [
            "docs/outside.md: WARNING: document isn't included in any toctree [toc.not_included]",
            "docs/outside.md:3: WARNING: 'myst' cross-reference target not found: 'nothing.md' [myst.xref_missing]",
            "docs/outside.md:3: WARNING: image file not readable: docs/images/nothing.png [image.not_readable]",
            "docs/outside.md:3: WARNING: 'myst' cross-reference target not found: 'nothing' [myst.xref_missing]",
            "docs/outside.md:3: WARNING: local id not found in doc 'docs/settings': 'nothing' [myst.xref_missing]",
            "docs/outside.md:3: WARNING: 'myst' cross-reference target not found: '../params.yml' [myst.xref_missing]",
        ]
    )


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


def shell_commands() -> list[str]:
    """Return the lines of all shell blocks of the documents."""
    blocks = [
        block for page in PAGES for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    ]
    return [line for block in blocks for line in block.splitlines()]


def test_the_documents_shell_commands_are_ones_that_their_programs_take() -> None:
    commands = shell_commands()
    assert {"make repro", "dvc repro --force", "dvc metrics diff", "dvc params diff", "dvc plots show"} <= {*commands}
    for part in [part for command in commands for part in command.split(" && ")]:
        program, *arguments = shlex.split(part)
        known = ".", "cd", "curl", "dvc", "git", "make", "mlflow", "python", "truefit", "rm"
        # Those of docs/team.md, which tests/services runs, as it does the server's command.
        assert program in (*known, "chmod", "createdb", "createuser", "export", "mkdir", "rclone")
        if arguments[0] == "--env-file":
            continue
        if program == "truefit":
            command = commands_of_truefit.commands[arguments[0]]
            command.make_parser(click.Context(command)).parse_args(arguments[1:])  # raises for an unknown option
        if program == "dvc":
            parse_args(arguments)  # raises for an option or a command that DVC does not have
        if program == "mlflow":
            group, command_of_group, *options = arguments
            groups = {"models": commands_of_mlflow_models, "experiments": commands_of_mlflow_experiments}
            groups[group].commands[command_of_group].make_context(command_of_group, options)
        if program == "make":
            subprocess.run(["make", "--dry-run", *arguments], cwd=ROOT, check=True, capture_output=True)
        if program == "python":
            assert arguments[0] == "-c" or (ROOT / arguments[0]).is_file()


def test_the_readme_is_short() -> None:
    assert 8_000 <= len(README) <= 10_000


def test_the_objects_of_the_structure_are_classes_of_the_library() -> None:
    named = {*re.findall(r"`([A-Z]\w+)`", (ROOT / "docs/structure.md").read_text())}
    sources = "".join(path.read_text() for path in (ROOT / "src/truefit").rglob("*.py"))
    assert len(named) >= 12
    assert named - {*re.findall(r"^class (\w+)", sources, re.MULTILINE)} == set()


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
