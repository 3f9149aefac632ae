"""`truefit`: commands beside the pipeline's stages."""

import io
import math
import sys
from pathlib import Path
from typing import get_args

import click

from truefit.core import errors
from truefit.core.beginning import end_at_signals
from truefit.core.errors import SettingsError, TrackingError
from truefit.core.signals import stoppable
from truefit.core.terminal import say, say_json
from truefit.core.text import one_line


@click.group()
def commands() -> None:
    """Commands beside the pipeline, which `dvc repro` runs.

    For example, this runs the latest training again, and says whether the result is the same:

        truefit rerun
    """


@commands.command()
@click.option("--forget", metavar="RUN", help="Give up the run of this MLflow id, key or name: what waits of it is not sent.")
def sync(forget: str | None) -> None:
    """Send runs that MLflow does not have yet, or not whole, to the store that they are for.

    They wait in .truefit/runs/, and a stage that could not send one says so. For example, for those of a server:

        MLFLOW_TRACKING_URI=http://127.0.0.1:5000 truefit sync

    Without the variable, those of this repository's own store are sent. The exit status is 0 when none is left, else 2.
    What waits for a store that is gone, or for a run that is not to come back, is given up with --forget.
    """
    from truefit.tracking.store import Store

    store = Store()
    if forget is not None:
        given_up = store.forget(forget)
        say(f"{given_up.header.name}: given up, with all that {given_up.path.name} held")
        return
    unsent = 0
    for journal, result in store.sync():
        name = journal.header.name
        if isinstance(result, Exception):
            unsent += 1
            say(f"{name}: {result}", error=True)
        else:
            say(f"{name}: sent to MLflow run {result.run_id}")
            if result.skipped:
                skipped = one_line(", ".join(result.skipped), longest=1000)
                say(f"{name}: refused by the store, and left out: {skipped}", error=True)
    if unsent:
        raise TrackingError(f"{unsent} runs could not be sent; they are kept")


@commands.command(name="rerun")
@click.argument("run", required=False)
@click.option("--experiment", help="The MLflow experiment of RUN.  [default: track.experiment in params.yaml]")
@click.option("--all", "every", is_flag=True, help="Run each of your finished trainings again, and end with the worst status.")
@click.option("--trust", is_flag=True, help="Run RUN, given by its id, also where it is another's: that executes its code.")
@click.option(
    "--tolerance",
    type=click.FloatRange(0, 1),
    default=1e-5,  # float32 has seven digits
    show_default=True,
    help="Up to this relative difference, a result from another environment counts as close.",
)
@click.option("--keep", is_flag=True, help="Leave the worktree where the pipeline ran.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def rerun_command(
    run: str | None, experiment: str | None, every: bool, trust: bool, tolerance: float, keep: bool, as_json: bool
) -> None:
    """Run a recorded run again, from its record alone, and say whether the result is the same.

    RUN is an MLflow run id, the beginning of one, or a run's name; without it, the latest finished training of this
    repository that is yours is taken. For example:

        truefit rerun 42711d48

    A rerun executes the code in the record. A run of another user or repository, or whose commit is not in the history of
    this one, needs its id and --trust; whose it is, and which files its changes touch, is told first.

    The training has the processes and hosts of `launch` in params.yaml here, whatever it had then: they decide no result.
    Where its train.shards are not for as many, it has one.

    The exit status is the verdict: 0 identical, every number has the same bits; 3 close, within the tolerance and from another
    environment; 1 different; 4 inconclusive, it could not be run again or not be compared; 2 is an error.
    """
    # Here, as in each command, since torch takes seconds to import, and `truefit --help` needs none of it.
    from truefit.cli.rerunning import rerun, rerun_all
    from truefit.rerun.records import find, trainings
    from truefit.tracking.store import Store

    if math.isnan(tolerance):
        raise click.BadParameter("nan is not in the range 0<=x<=1.", param_hint="'--tolerance'")
    if every and run:
        raise click.UsageError("--all takes no RUN")
    if trust and not run:
        raise click.UsageError("--trust takes a RUN")
    store, where = Store(), experiment or default_experiment()
    with stoppable("before the verdict"):
        if every:
            status = rerun_all(store, trainings(store, where), tolerance, keep, as_json)
        else:
            found = find(store, run, where)
            # Anyone may give a run any name.
            trusted = trust and run is not None and found.info.run_id.startswith(run)
            status = rerun(store, found, trusted, tolerance, keep, as_json)
    sys.exit(status)


@commands.command()
@click.argument("address", metavar="HOST:PORT")
def join(address: str) -> None:
    """Take part in a training of several hosts, whose first one runs `dvc repro` and listens at HOST:PORT.

    In the same folder of a shared file system, it helps stage prepare before, and `truefit predict`, with folders of parts.

    Run it in a clone at the same commit, with the same section launch in params.yaml and the same table. For example:

        truefit join 10.0.0.1:29500

    It waits for the training, without end, and ends with it: with status 0 where it ended well, else 2. Ctrl-C asks the whole
    training to stop, from where `dvc repro` on the first host goes on; a second one ends this host's part at once.
    """
    from truefit.cli.joining import take_part

    sys.exit(take_part(address))


@commands.command(name="predict")
@click.argument("source", metavar="IN", type=click.Path(path_type=Path))
@click.argument("target", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--run", help="An MLflow run id, the beginning of one, or a run's name: the model that it trained.")
@click.option("--experiment", help="The MLflow experiment of --run.  [default: track.experiment in params.yaml]")
@click.option("--model", "folder", type=click.Path(path_type=Path), help="A folder with model.pt and model.json.")
@click.option(
    "--separator", help="What stands between the cells of a CSV.  [default: as in the CSV that the model was trained on]"
)
@click.option(
    "--errors",
    "on_error",
    type=click.Choice(["refuse", "blank"]),
    default="refuse",
    show_default=True,
    help="Whether a bad cell stops it, or leaves the prediction of its row empty.",
)
@click.option("--column", metavar="NAME", default="prediction", show_default=True, help="The column that OUT has more.")
def predict_command(
    source: Path,
    target: Path,
    run: str | None,
    experiment: str | None,
    folder: Path | None,
    separator: str | None,
    on_error: str,
    column: str,
) -> None:
    """Write OUT: the text of IN as it is, and one more column with the predictions, in the data's own units.

    IN is a CSV or a Parquet file, and OUT becomes one of the same kind; of Parquet, the columns keep their types.
    Or IN is a folder of such parts, and OUT becomes a folder with one for each, of its name but for an ending such as .gz,
    all of them or none. A folder OUT that is there already is replaced if it is empty, or all in it was written so; else it
    is refused.
    The model comes from a recorded run, anyone's, or from a folder: to load it executes nothing of either. For example:

        truefit predict --run 42711d48 new.csv predicted.csv

        truefit predict --model results new.csv predicted.csv

    The model's columns are found by their names, in any order; other columns may hold anything. A CSV is
    read as the CSV was that the model was trained on, and missing values are filled where they were, and so is a column
    that lacks. A cell that stage prepare would refuse is refused here, by file, line and column, with exit status 2; OUT
    is not written then. With --errors blank, its row has no prediction, and stderr tells how many such cells each
    column has. It also tells how many values are none that the model knows, which count as '(other)'.
    """
    from truefit.cli.predicted import Predicted
    from truefit.cli.prediction import predict
    from truefit.cli.prediction_parts import predict_parts
    from truefit.ingest.csv_format import Separator
    from truefit.model.files import open_model
    from truefit.rerun.records import find, read_model
    from truefit.tracking.store import Store
    from truefit.training.device import configure

    if (run is None) == (folder is None):
        raise click.UsageError("one of --run and --model is needed, and not both")
    if folder and experiment:
        raise click.UsageError("--experiment goes with --run")
    if separator not in (None, *get_args(Separator)):
        allowed = ", ".join(map(repr, get_args(Separator)))
        raise click.BadParameter(f"found {separator!r}, allowed: {allowed}", param_hint="'--separator'")
    configure(threads=1)
    if folder:
        model, description = open_model(folder)
    else:
        store = Store()
        model, description = read_model(store, find(store, run, experiment or default_experiment()))
    settings = separator, column, on_error == "blank"
    if source.is_dir():
        parts = predict_parts(model, description, source, target, *settings)  # type: ignore[arg-type]
        done, where = Predicted.of_parts(parts), f" in {len(parts)} {'part' if len(parts) == 1 else 'parts'}"
    else:
        done, where = predict(model, description, source, target, *settings), ""  # type: ignore[arg-type]
    for warning in done.warnings():
        say(f"{source}: {warning}", error=True)
    which = f"{done.rows - done.blank} of them" if done.blank else "each"
    say(f"{target}: {done.rows} rows{where}, {which} with a prediction of '{one_line(description.target)}'")


@commands.command(name="inspect")
@click.argument("source", metavar="FILE", type=click.Path(path_type=Path))
@click.option(
    "--target",
    metavar="NAME",
    help="The column to predict.  [default: the last but for params.yaml's weight and split column]",
)
@click.option("--write", is_flag=True, help="Put the settings into params.yaml, whose comments stay.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def inspect_command(source: Path, target: str | None, write: bool, as_json: bool) -> None:
    """Say what is in FILE, column by column, and which settings it takes.

    FILE is a CSV of any size and format, which may be compressed, or a Parquet file; or a folder of such parts, of which
    prepare.parts in params.yaml may name some. For example:

        truefit inspect cars.csv --target price

    Found are its format, the kinds of its columns, missing values and what is odd; then come the sections prepare and train as
    they should be in params.yaml, each setting with its reason. With --write they are put there, all or none.
    """
    from truefit.cli import inspecting
    from truefit.core.config import PARAMS, Params
    from truefit.ingest.inspection import inspect
    from truefit.ingest.recommend import recommend

    # A file that cannot be changed is told before the CSV is read.
    known = Params(PARAMS) if write or PARAMS.exists() else None
    params = known.values if known else {}
    found = inspect(source, target, inspecting.roles(params), inspecting.parts(params))
    absent = inspecting.absent(params, found)
    if write and absent:
        raise SettingsError(f"{PARAMS}: {absent[0]}")
    advice = recommend(found, str(source))
    changes = inspecting.write_params(PARAMS, advice) if write else None
    if as_json:
        say_json(inspecting.as_json(found, advice, absent, changes))
        return
    say(*inspecting.as_lines(found, advice, absent))
    if changes is not None:
        say("", f"{PARAMS}: {len(changes)} settings changed", *(f"  {line}" for line in inspecting.change_lines(changes)))


def default_experiment() -> str:
    """Return the MLflow experiment that params.yaml names."""
    from truefit.core.config import PARAMS, Params
    from truefit.tracking.connection import repository_root
    from truefit.tracking.run import TrackSettings

    return Params(repository_root() / PARAMS).section("track", TrackSettings).experiment


def main() -> None:
    """Run the command of the arguments; exit as the stages do."""
    end_at_signals()
    sys.exit(errors.run(_run))


def _run() -> None:
    try:
        commands(standalone_mode=False)
    except click.Abort:  # what click makes of Ctrl-C
        raise KeyboardInterrupt from None
    except click.ClickException as error:
        error.show(told := io.StringIO())
        say(*told.getvalue().splitlines(), error=True)
        sys.exit(error.exit_code)
