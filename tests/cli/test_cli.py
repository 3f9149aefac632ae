"""The command `truefit`: how it exits."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from workspace import ROOT

from truefit.cli.main import commands, main
from truefit.tracking.journal import Journal
from truefit.tracking.records import Header

COMMAND = [sys.executable, "-c", "from truefit.cli.main import main; main()"]


def environment(root: Path, uri: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "MLFLOW_"))}
    return kept | {"PYTHONPATH": str(ROOT / "src"), "DVC_ROOT": str(root), "MLFLOW_TRACKING_URI": uri}


@pytest.mark.parametrize("arguments", [["sink"], ["sync", "more"]])
def test_arguments_that_it_does_not_know_are_refused_with_the_way_to_help(tmp_path: Path, arguments: list[str]) -> None:
    done = subprocess.run([*COMMAND, *arguments], env=environment(tmp_path, ""), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--help' for help." in done.stderr
    assert "Traceback" not in done.stderr


def test_sync_with_nothing_to_send_prints_nothing_and_makes_no_store(tmp_path: Path) -> None:
    done = subprocess.run([*COMMAND, "sync"], env=environment(tmp_path, ""), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not (tmp_path / "mlflow.db").exists()


def test_interrupted_sync_exits_as_an_interrupted_stage_and_keeps_the_run(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        uri = f"http://127.0.0.1:{server.getsockname()[1]}"
        header = Header(key="0" * 32, store=uri, experiment="e", name="n", start_time=5, tags={})
        (tmp_path / ".truefit/runs").mkdir(parents=True)
        Journal.create(tmp_path / ".truefit/runs", header, [], {}).close()
        process = subprocess.Popen(
            [*COMMAND, "sync"], env=environment(tmp_path, uri), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        connection, _ = server.accept()  # and give no answer
        with connection:
            process.send_signal(signal.SIGINT)
            _, complaint = process.communicate(timeout=60)
    assert (process.returncode, complaint) == (130, "\nerror: stopped by SIGINT\n")  # below the ^C of a terminal
    assert (tmp_path / ".truefit/runs" / f"{header.key}.sqlite").exists()


@pytest.mark.parametrize(
    "arguments", [[], *([name] for name in commands.commands)], ids=lambda names: " ".join(names) or "truefit"
)
def test_help_has_an_example_of_a_command_that_is_there(arguments: list[str]) -> None:
    shown = CliRunner().invoke(commands, [*arguments, "--help"]).output
    examples = re.findall(r"^ {6}(?:[A-Z_]+=\S+ )?truefit (.+)$", shown, re.MULTILINE)
    assert examples
    for name, *rest in map(str.split, examples):
        assert [name] == (arguments or ["rerun"])
        commands.commands[name].make_context(name, rest)


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ([], "one of --run and --model is needed, and not both"),
        (["--run", "a", "--model", "b"], "one of --run and --model is needed, and not both"),
        (["--model", "b", "--experiment", "c"], "--experiment goes with --run"),
        (["--model", "b", "--separator", "ab"], "found 'ab', allowed: ',', ';', '\\t', '|', ' '"),
        (
            ["--model", "nothing"],
            "error: nothing/model.json: cannot be read: No such file or directory",
        ),
    ],
)
def test_predict_without_a_model_that_it_can_take_is_one_line_and_status_2(
    arguments: list[str], fault: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("truefit.training.device.configure", lambda **_: None)  # which would last
    monkeypatch.setattr(sys, "argv", ["truefit", "predict", *arguments, "in.csv", "out.csv"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(fault)
    assert list(tmp_path.iterdir()) == []
