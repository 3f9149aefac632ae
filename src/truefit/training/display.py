"""How far a training is, on stderr: a bar where that is a terminal, and elsewhere a plain line now and then."""

import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tqdm import tqdm

from truefit.core.terminal import say

if TYPE_CHECKING:
    from truefit.training.progress import Epoch

LINE_SECONDS = 30.0  # the least between two lines, and before the first
DRAW_SECONDS = 0.1  # the least between two drawings of the bar
# What counts least comes last, where a narrow terminal cuts.
BAR = "|{bar}| epoch {n_fmt}/{total_fmt}{postfix}"


@contextmanager
def progress(epochs: int) -> "Iterator[Callable[[Epoch], None]]":
    """Give the function to call after each of so many epochs; a bar goes as the block ends.

    The time left takes the epochs to come to be as long as the mean of those before, also before an interruption.
    """
    terminal = sys.stderr.isatty()
    file, interval = (sys.stderr, DRAW_SECONDS) if terminal else (io.StringIO(), LINE_SECONDS)
    seconds = last = 0.0
    # Looks at the clock each epoch: those of a resumed training before its checkpoint are over in an instant, and would
    # make the bar expect as many between two looks.
    with tqdm(total=epochs, bar_format=BAR, file=file, mininterval=interval, miniters=1, leave=False) as bar:

        def show(epoch: "Epoch") -> None:
            nonlocal seconds, last
            elapsed = bar.format_dict["elapsed"]
            # An epoch's own seconds, where it is one of before; else with what came between it and the last.
            seconds, last = seconds + max(epoch.epoch_seconds, elapsed - last), elapsed
            left = tqdm.format_interval(seconds / epoch.epoch * (epochs - epoch.epoch)).removeprefix("0") + " left"
            train, validation = f"{epoch.train_loss:.4g}", f"{epoch.validation_loss:.4g}"
            speed = f"{epoch.train_rows_per_second:,.0f} rows/s"
            bar.set_postfix_str(f"{left}, train {train}, validation {validation}, {speed}", refresh=False)
            if bar.update() and not terminal:
                losses = f"train loss {train}, validation loss {validation}"
                say(f"epoch {epoch.epoch} of {epochs}: {losses}, {speed}, {left}", error=True)

        yield show
