"""What leaves for the terminal: no secret, and nothing that a terminal obeys."""

import ast
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from truefit.core.terminal import guard_log, say

SRC = Path(__file__).parents[2] / "src"


def test_each_line_is_one_line_without_secrets_and_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    say("a\x1b]0;title\x07\r", "größe\n\u202eb", "http://me:s3cret@h")
    say("\x9b2J", error=True)
    assert capsys.readouterr() == ("a\\x1b]0;title\\x07\\r\ngröße\\n\\u202eb\nhttp://h\n", "\\x9b2J\n")


@pytest.mark.parametrize("thread", [False, True], ids=["main thread", "another"])
def test_a_traceback_holds_no_secret_and_no_control_character(thread: bool) -> None:
    """Faults 15 and 16: a library's own error may hold the address as it was given."""
    script = (
        "import sys, threading\n"
        "from truefit.core import errors\n"
        "def fail(): raise ValueError('invalid: http://me:s3' + 'cret@h \\x1b[2J')\n"
        "def main():\n"
        f"    threading.Thread(target=fail).start() if {thread} else fail()\n"
        "sys.exit(errors.run(main))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env={"PYTHONPATH": str(SRC)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == (0 if thread else 1)
    assert "Traceback (most recent call last):\n" in done.stderr
    assert done.stderr.endswith("\nValueError: invalid: http://h \\x1b[2J\n")
    assert "cret" not in done.stderr.replace("'cret@h \\\\x1b[2J'", "")


def test_what_a_library_logs_holds_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    """Fault 15: MLflow logs errors of a database with all that is in them."""
    logger, handler = logging.getLogger("test of the terminal"), logging.StreamHandler(sys.stderr)
    logger.addHandler(handler)
    guard_log(logger.name)
    guard_log(logger.name)
    error = ValueError("postgresql://me:s3cret@h/runs")
    logger.error("cannot open: %s\n\x1b[2J", error, exc_info=error)
    logger.removeHandler(handler)
    printed = capsys.readouterr().err
    assert printed == "cannot open: postgresql://h/runs\n\\x1b[2J\nValueError: postgresql://h/runs\n"


def test_nothing_is_printed_but_by_the_terminals_own_functions() -> None:
    """Faults 15 and 16."""
    found = []
    for path in SRC.rglob("*.py"):
        if path == SRC / "truefit/rerun/bring.py":  # a process of its own, whose output a rerun reads
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                escaped = called == "tqdm.write" and ast.unparse(node.args[0]).startswith("shown(")
                if called in ("print", "click.echo", "click.secho", "tqdm.write", "sys.stdout.write", "sys.stderr.write"):
                    found += [] if escaped or path == SRC / "truefit/core/terminal.py" else [f"{path}: {called}"]
    assert found == []
