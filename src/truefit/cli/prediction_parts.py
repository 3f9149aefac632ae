"""`truefit predict` of a folder: its parts, each with the predictions, in another folder, which gets all of them or none.

Where there are cores, and enough to read, several processes predict a part each; other hosts' too, that come meanwhile.
"""

import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import TypeAdapter, ValidationError
from torch import nn
from tqdm import tqdm

from truefit.cli.part_predictor import PartTask, predict_part
from truefit.cli.predicted import Predicted
from truefit.cli.prediction import COLUMN, TITLE
from truefit.core.cores import usable_cores
from truefit.core.errors import TableError, TruefitError
from truefit.core.files import atomic_folder
from truefit.core.hosts import hosts_for
from truefit.core.launch import launch_here
from truefit.core.pool import Answer, Pool, Task
from truefit.core.signals import stoppable
from truefit.ingest.csv_format import Separator
from truefit.ingest.part_files import ALL, part_paths
from truefit.model.files import MODEL_JSON, MODEL_PT, ModelDescription, state_dict_bytes

MODULE = "truefit.cli.part_predictor"
# Of the parts for each process. One takes about two seconds to start, in which another predicts as much as this or more.
PROCESS_BYTES = 1 << 28
CONTAINERS = (".gz", ".zst", ".bz2", ".xz", ".zip")  # endings of names, which a part that is written as text loses
_PREDICTED = TypeAdapter(Predicted)
MARKER = ".truefit-predict"  # a file in what was written, with the names of the others


def predict_parts(
    model: nn.Module,
    description: ModelDescription,
    source: Path,
    target: Path,
    separator: Separator | None = None,
    column: str = COLUMN,
    blanks: bool = False,
) -> list[Predicted]:
    """Write each part of the folder `source` with the predictions to the folder `target`, as `predict` would.

    Raises TruefitError for a folder that cannot be read or be written to, and for the first fault in the parts' order; what
    was there stays then.
    """
    parts = part_paths(source, ALL)
    names = _names(parts)
    _require_replaceable(source, target)
    sizes = [part.stat().st_size for part in parts]
    processes = min(usable_cores(), len(parts), sum(sizes) // PROCESS_BYTES)
    with (
        stoppable(f"in predicting {source}"),
        atomic_folder(target if target.name else target.absolute()) as folder,
        tqdm(total=sum(sizes), desc=TITLE, unit="B", unit_scale=True, disable=None) as bar,
    ):
        tasks = [
            PartTask(str(part), str(folder / name), separator, column, blanks) for part, name in zip(parts, names, strict=True)
        ]
        done: dict[int, Predicted] = {}
        with _answers(model, description, tasks, processes, folder.parent) as answers:
            for number, answer in answers:
                if "fault" in answer:
                    raise TruefitError(*(line.replace(str(folder), str(target)) for line in answer["fault"]))
                done[number] = Predicted(*answer["done"])
                bar.update(sizes[number])
        if not any(part.rows for part in done.values()):
            raise TableError(f"{source}: found no rows in {len(parts)} parts, allowed: at least one")
        (folder / MARKER).write_bytes(b"\n".join(map(os.fsencode, names)))
    return [done[number] for number in range(len(parts))]


def _names(parts: Sequence[Path]) -> list[str]:
    """Return the names of what is written for parts; raises TableError for two that would have the same."""
    names = dict[str, Path]()
    for part in parts:
        name = part.stem if part.suffix.lower() in CONTAINERS else part.name
        if name in names:
            raise TableError(f"{part}: is to be written as {name!r}, as {names[name]}, allowed: different names")
        names[name] = part
    return list(names)


def _require_replaceable(source: Path, target: Path) -> None:
    if target.resolve().is_relative_to(source.resolve()):
        raise TableError(f"{target}: found the folder to be read, or one in it, allowed: another one")
    if not (target.exists() or target.is_symlink()):
        return
    if target.is_symlink() or not target.is_dir():
        raise TableError(f"{target}: found no folder, allowed: for the parts of {source}, an empty folder or a new name")
    marker = target / MARKER
    written = {MARKER, *map(os.fsdecode, marker.read_bytes().split(b"\n"))} if marker.is_file() else set()
    for found in sorted(path.name for path in target.iterdir()):
        if found not in written:
            allowed = "an empty folder, a new name, or a folder that it wrote, which is replaced"
            raise TableError(f"{target}: found {found!r}, which `truefit predict` did not write there, allowed: {allowed}")


@contextmanager
def _answers(
    model: nn.Module, description: ModelDescription, tasks: list[PartTask], processes: int, folder: Path
) -> Iterator[Iterator[tuple[int, dict[str, Any]]]]:
    """Give the answers to the tasks, with their numbers; of more faults than one, that of the lowest number comes first."""
    with ExitStack() as stack:
        own = Path(stack.enter_context(TemporaryDirectory(dir=folder, ignore_cleanup_errors=True)))
        hosts = hosts_for(stack, launch_here(), own, "predict") if len(tasks) > 1 else None
        if processes < 2 and hosts is None:
            yield ((number, predict_part(model, description, task)) for number, task in enumerate(tasks))
            return
        (own / MODEL_PT).write_bytes(state_dict_bytes(model.state_dict()))
        (own / MODEL_JSON).write_text(json.dumps(description.model_dump(mode="json")))
        threads = max(1, usable_cores() // max(1, processes))  # Arrow's, that read
        pool = Pool(stack, max(1, processes), threads, [MODULE, str(own)], hosts)
        yield _side_by_side(pool, tasks, partial(_value, model, description))


def _side_by_side(
    pool: Pool, tasks: list[PartTask], value_of: Callable[[PartTask, Answer], dict[str, Any]]
) -> Iterator[tuple[int, dict[str, Any]]]:
    left, running = deque(enumerate(tasks)), set[int]()
    faults = dict[int, dict[str, Any]]()
    while left or running:
        while pool.is_free and left:
            number, task = left.popleft()
            pool.begin(Task(number, task))
            running.add(number)
        for answer in pool.answers(None):
            running.remove(answer.key)
            value = value_of(tasks[answer.key], answer)
            if "fault" in value:
                faults[answer.key] = value
                left.clear()
            else:
                yield answer.key, value
        # The parts before it have been begun with, and one of them may have a fault of its own.
        if faults and min(running, default=len(tasks)) > min(faults):
            yield min(faults), faults[min(faults)]
            return


def _value(model: nn.Module, description: ModelDescription, task: PartTask, answer: Answer) -> dict[str, Any]:
    """Return what was answered; where another host wrote nothing, what is written here: the fault may be that host's alone."""
    if answer.ended is not None:
        advice = "run again; if memory was short, on fewer cores: `taskset -c 0 truefit predict …`"
        return {"fault": [f"{task.source}: the process that predicted it was ended {answer.ended}; {advice}"]}
    if answer.host is None:
        value: dict[str, Any] = answer.value
        return value
    try:
        return {"done": _PREDICTED.validate_python(answer.value["done"])}
    except (KeyError, TypeError, ValidationError):
        return predict_part(model, description, task)
