"""A rank without a training: it gathers numbers until rank 0 says that it is enough, and ends as src/train.py's do.

Arguments: a folder where each rank writes its process id, the seconds it takes, the process group's timeout. A file
`fail.RANK` there with [text, status] makes that rank fail. With a file `save.RANK` that rank makes `saving.RANK` after the
last number, and ends when the former is gone.
"""

import json
import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import torch
import torch.distributed as dist

from truefit.core.beginning import end_at_signals
from truefit.core.terminal import say
from truefit.training.launch import LOST, end_with_parent

RANK = int(os.environ.get("RANK", "0"))
ASKED: list[int] = []


def main() -> None:
    end_at_signals()
    end_with_parent()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, (lambda number, _: ASKED.append(number)) if RANK == 0 else signal.SIG_IGN)
    try:
        dist.init_process_group("gloo", timeout=TIMEOUT)
        started = FOLDER / f".{RANK}"
        started.write_text(str(os.getpid()))
        started.rename(FOLDER / f"{RANK}.{os.environ['TORCHELASTIC_RESTART_COUNT']}")
        gather()
        dist.barrier()
        save()
    except RuntimeError as error:
        fail(str(error).partition("\n")[0], LOST)
    os._exit(0)


def gather() -> None:
    began = time.monotonic()
    own, of_all = torch.zeros(1), [torch.zeros(1) for _ in range(dist.get_world_size())]
    while not of_all[0]:
        own[0] = float(RANK == 0 and (time.monotonic() - began > SECONDS or bool(ASKED)))
        dist.all_gather(of_all, own)
        if (plan := FOLDER / f"fail.{RANK}").exists():
            fail(*json.loads(plan.read_text()))
        time.sleep(0.01)
    if ASKED:
        fail(f"stopped by {signal.Signals(ASKED[0]).name} and saved", 128 + ASKED[0])


def save() -> None:
    while (FOLDER / f"save.{RANK}").exists():
        (FOLDER / f"saving.{RANK}").touch()
        time.sleep(0.01)


def fail(text: str, status: int) -> NoReturn:
    if RANK == 0 and status != LOST:
        say(f"error: {text}", error=True)
    else:
        content = {"message": {"message": text, "extraInfo": {"timestamp": str(int(time.time()))}}}
        Path(os.environ["TORCHELASTIC_ERROR_FILE"]).write_text(json.dumps(content))
    os._exit(status)


if __name__ == "__main__":
    FOLDER, SECONDS, TIMEOUT = Path(sys.argv[1]), float(sys.argv[2]), timedelta(seconds=float(sys.argv[3]))
    main()
