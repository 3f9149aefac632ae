"""A process that predicts parts for another: `python -m truefit.cli.part_predictor MODEL`, the model's folder."""

import sys
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from truefit.cli.prediction import predict
from truefit.core.errors import StoppedError, TruefitError, lines_of
from truefit.core.terminal import guard_tracebacks
from truefit.core.workers import work
from truefit.ingest.csv_format import Separator
from truefit.model.files import ModelDescription, open_model
from truefit.training.device import configure


class PartTask(NamedTuple):
    """A part to be predicted, and where to; the settings are those of `predict`."""

    source: str
    target: str
    separator: Separator | None
    column: str
    blanks: bool


def predict_part(model: nn.Module, description: ModelDescription, task: PartTask) -> dict[str, Any]:
    """Predict a part; return what was written, or the lines of an error that a user can cause."""
    source, target = Path(task.source), Path(task.target)
    try:
        done = predict(model, description, source, target, task.separator, task.column, task.blanks, part=True)
    except StoppedError:
        raise
    except (TruefitError, OSError, MemoryError, RuntimeError) as error:
        return {"fault": lines_of(error)}
    return {"done": done}


def main() -> None:
    """Predict the parts that come by the standard input."""
    guard_tracebacks()
    configure(threads=1)
    model, description = open_model(Path(sys.argv[1]))
    work(lambda task: predict_part(model, description, PartTask(*task)))


if __name__ == "__main__":
    main()
