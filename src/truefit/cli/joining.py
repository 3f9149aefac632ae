"""`truefit join`: this host's part of a training that another one has begun, and of the stages before it."""

import os
import shlex
import sys
from pathlib import Path
from string import Template

from ruamel.yaml import YAML

from truefit.core.addresses import parse_address
from truefit.core.channel import Job
from truefit.core.config import PARAMS, Params
from truefit.core.errors import SettingsError, TruefitError
from truefit.core.helping import help_stages
from truefit.core.launch import LaunchSettings
from truefit.core.signals import stoppable

PIPELINE = Path("dvc.yaml")
# What processes of this host can do for another.
JOBS: dict[Job, str] = {"prepare": "truefit.ingest.part_reader", "predict": "truefit.cli.part_predictor"}


def take_part(address: str) -> int:
    """Run this host's ranks until the training at `HOST:PORT` has ended well; raises TruefitError for any other end."""
    first = parse_address(address)
    settings = Params().section("launch", LaunchSettings)
    if settings.hosts == 1:
        raise SettingsError(f"{PARAMS}: launch.hosts: found 1, allowed: as on the first host, 2 or more")
    command = train_command()
    with stoppable("while it waited for other hosts"):
        help_stages(first, settings.timeout, JOBS)
    # torch reads it when it is imported; what it says of addresses without a name, or on a failure, is told by errors of ours.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    from truefit.training.supervision import start_ranks

    return start_ranks(command, settings, first)


def train_command() -> list[str]:
    """Return the command of stage train in dvc.yaml, for this Python; raises TruefitError where there is none."""
    try:
        pipeline = YAML(typ="safe", pure=True).load(PIPELINE)
        values = {name: value for each in pipeline["vars"] for name, value in each.items()}
        _python, *arguments = shlex.split(Template(pipeline["stages"]["train"]["cmd"]).substitute(values))
    except OSError as error:
        raise TruefitError(f"{PIPELINE}: {error.strerror}; run it in a clone of the first host's repository") from None
    except (KeyError, TypeError, ValueError) as error:
        raise TruefitError(f"{PIPELINE}: stages.train.cmd: found no command, or a variable without a value: {error}") from None
    return [sys.executable, *arguments]
