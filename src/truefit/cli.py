"""`truefit`: commands beside the pipeline's stages.

Reads and writes what the called module says.
"""

import sys

import click

from truefit import errors
from truefit.errors import TrackingError
from truefit.tracking import Store


@click.group()
def commands() -> None:
    """Commands beside the pipeline, which `dvc repro` runs."""


@commands.command()
def sync() -> None:
    """Send runs that MLflow does not have yet, or not whole, to the store that they are for."""
    unsent = 0
    for journal, result in Store().sync():
        if isinstance(result, Exception):
            unsent += 1
            click.echo(f"{journal.header.name}: {result}", err=True)
        else:
            click.echo(f"{journal.header.name}: sent to MLflow run {result.run_id}")
    if unsent:
        raise TrackingError(f"{unsent} runs could not be sent; they are kept")


def main() -> None:
    """Run the command of the arguments; exit as the stages do."""
    sys.exit(errors.run(_run))


def _run() -> None:
    try:
        commands(standalone_mode=False)
    except click.Abort:  # what click makes of Ctrl-C
        raise KeyboardInterrupt from None
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
