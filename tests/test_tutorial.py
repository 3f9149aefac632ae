"""docs/tutorial.md comes out as it stands where the default pipeline has run, and tools/run_page.py runs a page as it says."""

import inspect
import os
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from helpers_stages import Stages
from torch._inductor.runtime.cache_dir_utils import cache_dir
from workspace import ROOT, Workspace

TUTORIAL = (ROOT / "docs/tutorial.md").read_text()
OUTPUT = re.compile(r"(?<=^```text\n).*?(?=^```$)", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[+-]\d+)?")


def run_page(folder: Path, page: str, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "page.md").write_text(page)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, str(ROOT / "tools/run_page.py"), "page.md", *options]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def words(text: str) -> list[str]:
    """Return what stands between the numbers, blanks aside, which follow the numbers' lengths."""
    return [" ".join(part.split()) for part in NUMBER.split(text)]


def test_the_tutorial_comes_out_as_it_stands(tmp_path: Path, stages: Stages) -> None:
    workspace = Workspace(tmp_path)
    for stage, *arguments in (
        ["generate", "data/synthetic.csv"],
        ["prepare", "data/prepared"],
        ["train", "data/prepared", "results"],
    ):
        assert stages.run(tmp_path, stage, *arguments) == (0, "")
    picture = tmp_path / "results/tutorial-loss.png"
    # What other tests have compiled need not be compiled again.
    (tmp_path / ".truefit/inductor").symlink_to(cache_dir())
    (command,) = re.findall(r"^```sh\n(.+)\n```$", TUTORIAL, re.MULTILINE)
    done = workspace.run(*shlex.split(command), PATH=stages.path)
    assert done.stderr == ""
    assert OUTPUT.sub("", done.stdout) == OUTPUT.sub("", TUTORIAL)
    for found, shown in zip(OUTPUT.findall(done.stdout), OUTPUT.findall(TUTORIAL), strict=True):
        assert words(found) == words(shown)
        # Another CPU rounds float32 otherwise; the engines' curves stay within 1e-6 of each other.
        assert [*map(float, NUMBER.findall(found))] == pytest.approx([*map(float, NUMBER.findall(shown))], rel=1e-4)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_page_comes_out_with_what_its_blocks_print_in_one_session(tmp_path: Path) -> None:
    silent, printing, wrong = "```python\nx = 2\n```\n", "```python\nprint(x)\nx + 1\n```\n", "```python\nx * 2\n```\n"
    stale = f"# A\n\n{silent}\n```text\nnothing\n```\n\n{printing}\n{wrong}\n```text\n5\n```\n"
    true = f"# A\n\n{silent}\n{printing}\n```text\n2\n3\n```\n\n{wrong}\n```text\n4\n```\n"
    assert run_page(tmp_path, stale).stdout == true
    assert (tmp_path / "page.md").read_text() == stale
    done = run_page(tmp_path, stale, "--write")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "page.md").read_text() == true


def test_a_block_that_names_an_object_becomes_its_source_and_is_not_run(tmp_path: Path) -> None:
    method = textwrap.dedent(inspect.getsource(Stages.ask))
    begun, ended = "```python helpers_stages:Stages.ask\n", "```\n"
    changed = begun + method.replace("stdin.flush()", "stdin.close()") + ended
    page = "\n".join([changed, begun + ended, f"{begun}raise SystemExit\n{ended}"])
    assert changed not in (done := run_page(tmp_path, page)).stdout
    assert done.stdout == "\n".join([begun + method + ended] * 3)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("x = 1\n1 / 0", "ZeroDivisionError: division by zero"),
        ("x = (1,", "SyntaxError: page.md:5: the block ends in the middle of a statement"),
        # As typed into Python, where an empty line ends what is indented.
        ("def f():\n    pass\nf()", "SyntaxError: invalid syntax"),
    ],
)
def test_a_block_that_fails_ends_the_run_and_is_named_by_its_line(tmp_path: Path, code: str, error: str) -> None:
    done = run_page(tmp_path, f"# A\n\n```python\n{code}\n```\n")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == error
    assert re.search(r"page\.md[:\"]", done.stderr)
