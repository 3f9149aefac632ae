"""Which trainings of this clone ended with a model: an evaluation belongs to one of these, whoever else trained the same."""

from collections.abc import Mapping
from pathlib import Path

from filelock import FileLock
from pydantic import TypeAdapter, ValidationError

from truefit.core.files import write_bytes
from truefit.core.terminal import say
from truefit.tracking.names import EXPERIMENT_TAG, RERUN_KEY_TAG
from truefit.tracking.records import Checked, Header, Key

KEPT = 100  # trainings of one model


class Trained(Checked):
    """The run of a training, by its key, in an experiment of a store; with the DVC experiment or rerun that it was part of."""

    key: Key
    store: str | None
    experiment: str
    part_of: str


_TRAININGS = TypeAdapter(list[Trained])


def remember(folder: Path, digest: str, header: Header) -> None:
    """Keep that the training ended with the model of this digest."""
    with FileLock(folder.with_suffix(".lock")):
        of_others = [training for training in _read(folder / digest) if training.key != header.key]
        trained = Trained(key=header.key, store=header.store, experiment=header.experiment, part_of=_part_of(header.tags))
        write_bytes(folder / digest, _TRAININGS.dump_json([*of_others, trained][-KEPT:]))


def latest(folder: Path, digest: str, store: str | None, experiment: str, tags: Mapping[str, str]) -> str | None:
    """Return the key of the latest training with that model, in that store and experiment, or None.

    If possible it is of the same DVC experiment or rerun as the `tags` are.
    """
    there = [one for one in _read(folder / digest) if (one.store, one.experiment) == (store, experiment)]
    found = [one for one in there if one.part_of == _part_of(tags)] or there
    return found[-1].key if found else None


def _read(path: Path) -> list[Trained]:
    try:
        return _TRAININGS.validate_json(path.read_bytes())
    except FileNotFoundError:
        return []
    except ValidationError as error:
        say(f"warning: {path}: damaged: {error.errors(include_url=False)[0]['msg']}; not used", error=True)
        return []


def _part_of(tags: Mapping[str, str]) -> str:
    return f"{tags.get(EXPERIMENT_TAG, '')} {tags.get(RERUN_KEY_TAG, '')}"
