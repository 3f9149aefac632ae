"""Signals that ask to stop: an error at once, or after a block that is not to be interrupted."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from workspace import ROOT

from truefit.core.beginning import STOPPING
from truefit.core.errors import StoppedError
from truefit.core.signals import Deferred, stoppable


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """Whatever the shell has made of them, and as they were afterwards."""
    former = {number: signal.signal(number, signal.SIG_DFL) for number in STOPPING}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in former.items():
        signal.signal(number, handler)


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in STOPPING]


def test_first_signal_stops_and_those_after_it_do_not_disturb_the_cleaning_up() -> None:
    with (
        stoppable("before the verdict"),
        pytest.raises(StoppedError, match=r"^stopped by SIGTERM before the verdict$") as caught,
    ):
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.status == 143
    with stoppable("here"):
        with pytest.raises(StoppedError):
            signal.raise_signal(signal.SIGINT)
        for number in STOPPING:
            signal.raise_signal(number)
        with Deferred():
            signal.raise_signal(signal.SIGINT)


def test_signal_waits_for_the_end_of_a_block_that_defers_it() -> None:
    reached = False
    with stoppable("here"), pytest.raises(StoppedError, match="SIGINT"), Deferred():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        reached = True
    assert reached


def test_signal_waits_for_the_end_of_the_outermost_block() -> None:
    reached = False
    with stoppable("here"), pytest.raises(StoppedError), Deferred():
        with Deferred():
            signal.raise_signal(signal.SIGINT)
        reached = True
    assert reached


def test_second_signal_ends_a_block_that_allows_it_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), Deferred(second_ends=True) as deferred:
        signal.raise_signal(signal.SIGTERM)
        assert deferred.first == signal.SIGTERM
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("the block must have ended")


def test_deferred_signal_is_not_lost_where_nothing_else_handles_it() -> None:
    with pytest.raises(KeyboardInterrupt), Deferred():
        signal.raise_signal(signal.SIGINT)


def test_block_that_fails_ends_with_its_own_error() -> None:
    with stoppable("here"), pytest.raises(ZeroDivisionError), Deferred():
        signal.raise_signal(signal.SIGINT)
        raise ZeroDivisionError


def test_hangup_that_is_ignored_as_under_nohup_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with stoppable("here"):
        signal.raise_signal(signal.SIGHUP)
        with Deferred():
            signal.raise_signal(signal.SIGHUP)


def test_signals_are_what_they_were_afterwards() -> None:
    before = handlers()
    with stoppable("here"):
        assert all(now != former for now, former in zip(handlers(), before, strict=True))
        inside = handlers()
        with Deferred():
            assert all(now != former for now, former in zip(handlers(), inside, strict=True))
        assert handlers() == inside
        with pytest.raises(StoppedError):
            signal.raise_signal(signal.SIGINT)
    assert handlers() == before


def test_in_another_thread_which_no_signal_interrupts_nothing_is_deferred() -> None:
    def work() -> list[int]:
        with stoppable("here"), Deferred():
            return [1]

    before = handlers()
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(work).result() == [1]
    assert handlers() == before


@pytest.fixture
def asked_to_stop_while_it_imports(tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Run Python with arguments so that it gets a signal as it imports `module`; return its status, and what it printed."""

    def run(arguments: list[str], module: str, number: signal.Signals, **variables: str) -> tuple[int, str]:
        (tmp_path / f"{module}.py").write_text(f"import os, time\nos.kill(os.getpid(), {number})\ntime.sleep(60)\n")
        environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT / 'src'}"} | variables
        done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr.removeprefix("\n")  # which click puts behind ^C

    return run


STAGES = [str(ROOT / f"src/{name}.py") for name in ("generate", "prepare", "train", "evaluate")]


@pytest.mark.parametrize(
    ("arguments", "module"),
    [*(([stage], "argparse") for stage in STAGES), (["-c", "from truefit.cli.main import main; main()", "sync"], "pydantic")],
    ids=["generate", "prepare", "train", "evaluate", "truefit"],
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_stage_or_a_command_imports_ends_it_with_one_line(
    asked_to_stop_while_it_imports: Callable[..., tuple[int, str]], arguments: list[str], module: str, number: signal.Signals
) -> None:
    ended = asked_to_stop_while_it_imports(arguments, module, number)
    assert ended == (128 + number, f"error: stopped by {number.name}\n")


def test_of_several_ranks_that_import_the_first_tells_it(
    asked_to_stop_while_it_imports: Callable[..., tuple[int, str]],
) -> None:
    assert asked_to_stop_while_it_imports([STAGES[2]], "argparse", signal.SIGTERM, RANK="1") == (143, "")
