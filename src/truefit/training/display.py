"""How far a training is, on stderr: a bar where that is a terminal, and elsewhere a plain line now and then.

Reads nothing; writes to stderr alone. Guarantees that a log gets no more than a line every LINE_SECONDS, and none of a
training that is shorter.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING

from tqdm import tqdm

if TYPE_CHECKING:
    from truefit.training.progress import Epoch

# From the start to the first plain line, and from each to the next, it is at least so many seconds.
LINE_SECONDS = 30.0
# A bar is drawn again no sooner than so many seconds after the last time.
DRAW_SECONDS = 0.1
# What counts least comes last, where a narrow terminal cuts.
BAR = "|{bar}| epoch {n_fmt}/{total_fmt}{postfix}"


@contextmanager
def progress(epochs: int) -> "Iterator[Callable[[Epoch], None]]":
    """Give the function to call after each of so many epochs; a bar goes as the block ends.

    The time left is that of the epochs to come, should each take as long as those before did on average, also before an
    interruption; early stopping may make it shorter.
    """
    seconds, last = 0.0, monotonic()
    due = last + LINE_SECONDS
    # Looks at the clock each epoch: those of a resumed training before its checkpoint are over in an instant, and would
    # make the bar expect as many between two looks.
    with tqdm(total=epochs, bar_format=BAR, mininterval=DRAW_SECONDS, miniters=1, leave=False, disable=None) as bar:

        def show(epoch: "Epoch") -> None:
            nonlocal seconds, last, due
            now = monotonic()
            # An epoch's own seconds, where it is one of before; else with what came between it and the last.
            seconds, last = seconds + max(epoch.seconds, now - last), now
            left = tqdm.format_interval(seconds / epoch.epoch * (epochs - epoch.epoch)).removeprefix("0") + " left"
            train, validation = f"{epoch.train_loss:.4g}", f"{epoch.validation_loss:.4g}"
            speed = f"{epoch.train_rows_per_second:,.0f} rows/s"
            bar.set_postfix_str(f"{left}, train {train}, validation {validation}, {speed}", refresh=False)
            bar.update()
            if bar.disable and now >= due:
                due = now + LINE_SECONDS
                losses = f"train loss {train}, validation loss {validation}"
                print(f"epoch {epoch.epoch} of {epochs}: {losses}, {speed}, {left}", file=sys.stderr, flush=True)

        yield show
