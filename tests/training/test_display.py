"""What a training shows on stderr: a bar on a terminal; elsewhere nothing, or a line now and then."""

import os
import pty
import re
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from helpers_training import CPU, normal_line, write_prepared

from truefit.data.dataset import open_verified
from truefit.training import display
from truefit.training.display import progress
from truefit.training.loop import train
from truefit.training.progress import Epoch
from truefit.training.settings import TrainSettings


def epoch(number: int, seconds: float = 2.0) -> Epoch:
    """Return an epoch with losses of its own."""
    return Epoch(number, 1.0 / number, 2.0 / number, 0.1, seconds, 51_200.4)


@contextmanager
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Give the list whose only item is what tqdm's clock says."""
    now = [100.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    yield now


def take_epochs(monkeypatch: pytest.MonkeyPatch, epochs: int, taken: int, seconds: float) -> None:
    """Show so many of the epochs, each when so many seconds have gone by; the epochs say 2 of themselves."""
    with clock(monkeypatch) as now, progress(epochs) as show:
        for number in range(1, taken + 1):
            now[0] += seconds
            show(epoch(number))


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch, columns: int = 100) -> Iterator[list[str]]:
    """Make stderr a terminal; the list holds what was drawn on it, one after the other, when the block has ended."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, columns))
    drawn: list[str] = []
    with os.fdopen(theirs, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        yield drawn
    text = b""
    with suppress(OSError):  # which says that all was read that was written before the closing
        while more := os.read(ours, 1_000_000):
            text += more
    os.close(ours)
    drawn += text.decode().split("\r")


def test_a_terminal_gets_a_bar_with_epoch_time_left_losses_and_speed_and_no_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display, "DRAW_SECONDS", 0.0)
    monkeypatch.setattr(display, "LINE_SECONDS", 0.0)
    with terminal(monkeypatch) as drawn, progress(100) as show:
        show(epoch(1))
        show(epoch(2))
    empty, *bars, blank, end = drawn[1:]
    assert re.fullmatch(r"\| +\| epoch 0/100", empty)
    assert [re.sub(r"^\|\S* *\| ", "", bar) for bar in bars] == [
        "epoch 1/100, 3:18 left, train 1, validation 2, 51,200 rows/s",
        "epoch 2/100, 3:16 left, train 0.5, validation 1, 51,200 rows/s",
    ]
    assert (blank.strip(), end) == ("", "")  # nothing is left of it


def test_a_narrow_terminal_gets_what_counts_most_on_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display, "DRAW_SECONDS", 0.0)
    with terminal(monkeypatch, columns=40) as drawn, progress(100) as show:
        show(epoch(1))
    assert max(map(len, drawn)) <= 40
    assert any("epoch 1/100, 3:18 left, train 1" in bar for bar in drawn)


def test_a_log_gets_lines_no_closer_than_the_bound_and_none_of_a_short_training(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    take_epochs(monkeypatch, epochs=5000, taken=300, seconds=0.25)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["epoch 120 of 5000", "epoch 240 of 5000"]
    take_epochs(monkeypatch, epochs=119, taken=119, seconds=0.25)
    assert capsys.readouterr() == ("", "")


def test_a_line_has_losses_speed_and_the_time_that_the_other_epochs_take(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(display, "LINE_SECONDS", 0.0)
    with progress(100) as show:
        show(epoch(1, seconds=2.0))
        show(epoch(2, seconds=4.0))
        show(epoch(3, seconds=600.0))
    assert capsys.readouterr().err.splitlines() == [
        "epoch 1 of 100: train loss 1, validation loss 2, 51,200 rows/s, 3:18 left",
        "epoch 2 of 100: train loss 0.5, validation loss 1, 51,200 rows/s, 4:54 left",
        "epoch 3 of 100: train loss 0.3333, validation loss 0.6667, 51,200 rows/s, 5:26:34 left",
    ]


def test_epochs_before_an_interruption_make_no_lines_and_do_not_shorten_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with clock(monkeypatch) as now, progress(100) as show:
        for number in range(1, 51):
            show(epoch(number, seconds=60.0))
        now[0] += 60.0
        show(epoch(51, seconds=60.0))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("epoch 51 of 100: ")
    assert line.endswith(", 49:00 left")


def test_time_between_the_epochs_counts_for_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    take_epochs(monkeypatch, epochs=10, taken=5, seconds=10.0)
    assert capsys.readouterr().err.endswith(", 1:10 left\n")


def test_a_training_shows_its_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_prepared(tmp_path, normal_line(40), normal_line(5))
    datasets, settings = open_verified(tmp_path, "train", "validation"), TrainSettings(epochs=3)
    monkeypatch.setattr(display, "DRAW_SECONDS", 0.0)
    with (
        terminal(monkeypatch) as drawn,
        progress(settings.epochs) as show,
    ):
        outcome = train(datasets, settings, CPU, show)
    last = outcome.epochs[-1]
    assert f"train {last.train_loss:.4g}, validation {last.validation_loss:.4g}" in "".join(drawn)
