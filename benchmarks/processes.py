"""What a step costs in one process and in two, what an exchange costs, and what each process does for each row of the table.

A table of 16 features, one thread a process, chunks in memory. In two processes of this machine take turns: the engine torch
alone, with 2 threads, and with 4 shards; compiled alone; both with 4 shards in two processes; and torch's own DDP. While
one process is alone, the other waits. The rest is what simulate.py takes: CPU seconds of a row, a shard and a step, of the
order of the rows and of reading them; and the seconds of an exchange by the length of the sums.

Usage: python benchmarks/processes.py [--rounds N] [--batches N] [--order-rows N]
"""

import gc
import os
import socket
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import torch
import torch.distributed as dist
from measure import Figure, arguments, figure, over, save, take_turns, timed
from torch import nn

from truefit.core.errors import GARBAGE_AFTER
from truefit.data.batches import Shuffle, ShuffledChunks, make_loader, transformed
from truefit.data.dataset import TableDataset, open_verified
from truefit.data.generating import GenerateSettings
from truefit.data.shards import Cut
from truefit.ingest.prepare import PrepareSettings, write_table
from truefit.ingest.synthetic import write_csv
from truefit.training.build import build_engine, untrained_model
from truefit.training.device import configure
from truefit.training.engines.sharded_engine import ShardedEngine
from truefit.training.group import Group, join_group
from truefit.training.losses import make_loss
from truefit.training.optimizers import make_optimizer
from truefit.training.settings import TrainSettings

CPU = torch.device("cpu")
FEATURES, SHARDS, PROCESSES = 16, 4, 2
CASES = [("linear", 256), ("linear", 4096), ("linear", 65_536), ("mlp", 256), ("mlp", 4096)]
LENGTHS = (18, 4096, 70_402, 1_000_000)  # of the sums: 18 and 70,402 are those of the models
GATHERS, STEPS = 300, 16  # timed at once
ROW_BYTES = 4 * (FEATURES + 1)
# The bounds of two processes: over DDP's time, and how many times as fast as one.
LARGEST = ("mlp", 4096)
MOST_OVER_DDP, LEAST_FASTER = 1.0, 1.6


def settings_of(model: str, batch: int, shards: int = 1, engine: str = "torch") -> TrainSettings:
    """Return the settings of a case."""
    named = {"name": model, "hidden": [256, 256] if model == "mlp" else []}
    optimizer = {"name": "adam", "lr": 0.001} if model == "mlp" else {"name": "sgd", "lr": 0.01}
    both = {"engine": engine, "device": "cpu", "batch_size": batch, "shards": shards}
    return TrainSettings.model_validate({"model": named, "optimizer": optimizer, **both})


def stepper(rows: TableDataset, settings: TrainSettings, batches: int, group: Group) -> Callable[[], None]:
    """Return a function that takes so many steps on rows in memory, of which it has those of the process."""
    model, size = untrained_model([rows], settings), settings.batch_rows(len(rows))
    own = group.cut(settings.shards).rows(torch.arange(batches * size), size)
    features, target = model.scale(rows.read(own))  # views, as the loader gives them
    engine = build_engine(model, rows, settings, CPU, group)
    engine.begin_epoch(1, settings.optimizer.lr)

    def work() -> None:
        if isinstance(engine, ShardedEngine):
            engine.train_chunk(features, target, size, batches * size)
        else:
            engine.train_chunk(features, target, size)

    return work


def ddp_stepper(rows: TableDataset, settings: TrainSettings, batches: int, group: Group) -> Callable[[], None]:
    """Return the same with DistributedDataParallel, which averages over the processes."""
    model, size = untrained_model([rows], settings), settings.batch_rows(len(rows))
    own = Cut(group.size, group.rank).rows(torch.arange(batches * size), size)
    parts = [part.split(size // group.size) for part in model.scale(rows.read(own))]
    body, loss = nn.parallel.DistributedDataParallel(model.body), make_loss(settings.loss)
    optimizer = make_optimizer(list(body.parameters()), settings.optimizer)

    def work() -> None:
        losses = []
        for features, target in zip(*parts, strict=True):
            optimizer.zero_grad()
            value = loss(body(features), target) * (group.size / size)
            value.backward()
            optimizer.step()
            losses.append(value.detach())
        torch.stack(losses)

    return work


def threaded(work: Callable[[], object]) -> Callable[[], None]:
    """Return a function that does the work with 2 threads."""

    def threads() -> None:
        torch.set_num_threads(2)
        work()
        torch.set_num_threads(1)

    return threads


def together(work: Callable[[], object]) -> Callable[[], float]:
    """Return a function that gives the seconds from when all processes begin until all have done the work.

    They do it once before that, since one of them may have waited for long.
    """

    def seconds() -> float:
        work()
        dist.barrier()
        started = time.perf_counter()
        work()
        dist.barrier()
        return time.perf_counter() - started

    return seconds


def steps(rows: TableDataset, given: Namespace, group: Group) -> Iterator[Figure]:
    """Time the steps of each case."""
    for model, batch in CASES:
        plain, cut = settings_of(model, batch), settings_of(model, batch, SHARDS)
        graph, compiled = (settings_of(model, batch, shards, "compiled") for shards in (1, SHARDS))
        count = max(4, given.batches * 256 // batch) if model == "mlp" else given.batches
        count = min(count, len(rows) // batch)
        competitors = {
            "two processes": together(stepper(rows, cut, count, group)),
            "two processes, compiled": together(stepper(rows, compiled, count, group)),
            "DDP, two processes": together(ddp_stepper(rows, plain, count, group)),
        }
        alone = {"one process": plain, "one process, 4 shards": cut, "one process, compiled": graph}
        for who, settings in alone.items():
            work = stepper(rows, settings, count, Group()) if group.is_first else lambda: None
            competitors[who] = together(work)
            if settings is plain:
                competitors["one process, 2 threads"] = together(threaded(work))
        seconds = take_turns(competitors, given.rounds)
        name = f"processes, {model}{' [256, 256]' if model == 'mlp' else ''}, batch {batch}"
        for who, times in seconds.items():
            yield figure(name, who, "µs a step", np.array(times) / count * 1e6)
        faster = LEAST_FASTER if (model, batch) == LARGEST else None
        yield figure(name, "two over one", "×", over(seconds, "one process", "two processes"), least=faster)
        ratio = over(seconds, "two processes", "DDP, two processes")
        yield figure(name, "time of two over DDP's", "×", ratio, most=MOST_OVER_DDP)


def lines(rows: TableDataset, given: Namespace) -> Iterator[Figure]:
    """Tell from the CPU time of one process's steps what a row costs, a shard besides its rows, and a step besides these."""
    for model in ("linear", "mlp"):
        for engine in ("torch", "compiled"):
            works = {
                f"{batch} rows, {shards} shards": cpu_timed(
                    stepper(rows, settings_of(model, batch, shards, engine), STEPS, Group())
                )
                for batch, shards in ((256, 2), (4096, 2), (256, 16))
            }
            few, many, cut = (np.array(each) / STEPS for each in take_turns(works, given.rounds).values())
            row, shard = (many - few) / (4096 - 256), (cut - few) / (16 - 2)
            group = f"processes, {model}, {engine}"
            yield figure(group, "a row", "ns", row * 1e9)
            yield figure(group, "a shard besides its rows", "µs", shard * 1e6)
            yield figure(group, "a step besides its shards", "µs", (few - 256 * row - 2 * shard) * 1e6)


def cpu_timed(work: Callable[[], object]) -> Callable[[], float]:
    """Return a function that does the work and gives the CPU seconds of it, which others on the machine hardly change."""

    def seconds() -> float:
        started = time.process_time()
        work()
        return time.process_time() - started

    return seconds


def sums(group: Group) -> Iterator[Figure]:
    """Time single sums over all processes, as a step takes them, and single all-reduces, by their length."""
    for length in LENGTHS:
        vector = torch.zeros(length)
        works: dict[str, Callable[[], object]] = {
            "sum": partial(group.sum, vector),
            "all_reduce": partial(dist.all_reduce, vector),
        }
        for name, work in works.items():
            dist.barrier()
            seconds = [timed(work)() for _ in range(GATHERS)]
            yield figure(f"processes, {name}", f"{length} numbers", "µs", np.array(seconds) * 1e6)


def rows_of_all(rows: TableDataset, given: Namespace) -> Iterator[Figure]:
    """Give the CPU time a row of the order, which each process draws whole, and of reading and scaling own rows."""
    scale, own = untrained_model([rows], settings_of("linear", 4096)).scale, Cut(64)

    def order(kind: Shuffle) -> None:
        for each in ShuffledChunks(given.order_rows, 4096, 42, kind, epochs=1, row_bytes=ROW_BYTES):
            own.rows(each, 4096)

    def read() -> None:
        for _ in make_loader(
            transformed(rows, transform=scale), ShuffledChunks(len(rows), 4096, 42, "block", row_bytes=ROW_BYTES)
        ):
            pass

    works = {kind: cpu_timed(partial(order, kind)) for kind in get_args(Shuffle)}
    for kind, times in take_turns(works, given.rounds).items():
        yield figure("processes, order", kind, "ns a row of the table", np.array(times) / given.order_rows * 1e9)
    times = take_turns({"read": cpu_timed(read)}, given.rounds)["read"]
    yield figure("processes, reading", "shuffle block, from memory", "ns a row", np.array(times) / len(rows) * 1e9)


def rank() -> None:
    """Be one of the processes; the first saves the figures."""
    given = options()
    configure(1)
    gc.set_threshold(GARBAGE_AFTER)  # as each process of a training has it
    with join_group(CPU, 600) as group:
        rows = open_verified(Path(given.table), "train")[0]
        if not group.is_first:
            sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 (until the process ends)
        figures = [*steps(rows, given, group), *sums(group)]
        if group.is_first:
            figures += [*lines(rows, given), *rows_of_all(rows, given)]
            save(given.out, "processes", figures)
        dist.barrier()
    os._exit(0)


def options() -> Namespace:
    """Return the command line's settings."""
    return arguments(__doc__, rounds=7, batches=64, order_rows=20_000_000, table="")


def main() -> None:
    """Make the table, and start the processes on it."""
    with tempfile.TemporaryDirectory() as temporary, socket.create_server(("127.0.0.1", 0)) as free:
        folder, port = Path(temporary), free.getsockname()[1]
        free.close()
        csv = folder / "data.csv"
        write_csv(GenerateSettings(rows=330_000, coefficients=(1.0, -2.0) * (FEATURES // 2)), csv)
        write_table(PrepareSettings(csv=str(csv)), folder)
        shared = {
            **os.environ,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(PROCESSES),
            "LOCAL_WORLD_SIZE": str(PROCESSES),
            "GLOO_SOCKET_IFNAME": "lo",
        }
        started = [
            subprocess.Popen(
                [sys.executable, __file__, *sys.argv[1:], "--table", temporary],
                env={**shared, "RANK": str(number), "LOCAL_RANK": str(number)},
            )
            for number in range(PROCESSES)
        ]
        statuses = [process.wait() for process in started]
        if any(statuses):
            raise SystemExit(f"the processes ended with {statuses}")


if __name__ == "__main__":
    rank() if "RANK" in os.environ else main()
