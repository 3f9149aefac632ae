"""How long an epoch takes on many hosts, by a cost model: put in your own numbers.

A step costs each process its own rows, its own shards, the exchange of sums and the move. Beside that a thread draws the
order of all rows and reads the own ones, so an epoch takes as long as the longer of both sides. The defaults of a model are
CPU times of one core, measured by processes.py; those of network and disk are assumptions. docs/scale.md has what follows, and
what is left out.

Usage: python benchmarks/simulate.py [--model NAME] [--batch N] [--exchange NAME] [--rows N …] [--hosts N …] [--latency S] …
"""

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

BLOCK_ROWS, BUFFER_ROWS, CHUNK_ROWS = 4096, 64 * 4096, 65_536  # as in src/truefit/data/batches.py
VALIDATION, FORWARD = 1 / 8, 1 / 3  # of the training rows; of what a row costs with its gradient


@dataclass(frozen=True)
class Costs:
    """What things cost, in seconds, bytes, and bytes a second."""

    numbers: int = 18  # of a gradient, and the loss behind it
    row: float = 12.5e-9  # forward and backward
    shard: float = 102e-6  # each of a process's own, besides its rows
    step: float = 175e-6  # the move, and Python
    order: float = 18e-9  # of a row of the whole table, on each process
    read: float = 46e-9  # and scale an own row that is in memory
    add: float = 0.2e-9  # two numbers of two vectors that are in the cache
    call: float = 170e-6  # of gloo, by two processes with a core each, besides its messages
    row_bytes: int = 68
    latency: float = 50e-6  # of a message between hosts
    network: float = 1.25e9  # between hosts: 10 Gbit/s
    inner_latency: float = 20e-6  # of a message inside a host
    inner: float = 2.1e9
    disk: float = 2e9  # of a host, which has its own copy of the table, in order
    pages: float = 1e5  # a second, of anywhere
    page: int = 4096  # bytes that are read for a row, or for all of its neighbours
    memory: float = 100e9  # of a host, for what it has read
    prepare: float = 1.5e-6  # of a row, by one core; measured with 5 columns: 0.43 µs
    cores: int = 16
    processes: int = 8  # of a host; each has another core for its reading


MLP = Costs(numbers=70_402, row=5.5e-6, shard=309e-6, step=120e-6)
MODELS = {
    "linear": Costs(),
    "linear-compiled": Costs(row=9.2e-9, shard=40e-6, step=98e-6),
    "mlp": MLP,
    "mlp-compiled": replace(MLP, row=4.7e-6, shard=142e-6, step=177e-6),
}


@dataclass(frozen=True)
class Choice:
    """How a training does it: `exchange` is `doubling`, which truefit has, or one of two others: see `exchange_seconds`.

    With `streams`, which truefit has not, each shard shuffles blocks of its own: a process draws and reads no others.
    """

    batch: int = 65_536
    shuffle: str = "block"
    exchange: str = "doubling"
    streams: bool = False


def exchange_seconds(costs: Costs, hosts: int, kind: str = "doubling") -> float:
    """Return the time in which all W processes have the sum of their vectors of n bytes.

    A message of m bytes takes latency + m / bandwidth (R. W. Hockney, "The communication challenge for MPP", Parallel
    Computing 20, 1994). `doubling` exchanges n with the process 1, 2, 4, … away; `halving` n/2, n/4, …, and then all of it
    back (R. Thakur, R. Rabenseifner and W. Gropp, "Optimization of collective communication operations in MPICH", IJHPCA 19,
    2005). Both add neighbours first, and are a call for each message. The `ring` all-reduce is one call, of 2(W - 1) rounds of
    n / W (P. Patarasuk and X. Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations", JPDC 69, 2009),
    and adds in an order that depends on W.
    """
    size, n = hosts * costs.processes, 4 * costs.numbers
    adding = costs.numbers * costs.add
    if size == 1:
        return 0.0
    if kind == "ring":
        return costs.call + 2 * (size - 1) * _message(costs, n / size, hosts > 1) + (1 - 1 / size) * adding
    seconds = 0.0
    for level in range(round(math.log2(size))):
        part, back = (1.0, 1) if kind == "doubling" else (math.ldexp(1.0, -level - 1), 2)
        between = 2**level >= costs.processes  # then all processes of a host send at once
        message = _message(costs, part * n * (costs.processes if between else 1), between)
        seconds += back * (costs.call + message) + part * adding
    return seconds


def _message(costs: Costs, size: float, between: bool) -> float:
    return costs.latency + size / costs.network if between else costs.inner_latency + size / costs.inner


def order_bytes(rows: int, shuffle: str) -> int:
    """Return what each process holds of the order: with `full` this epoch's permutation and the next one's."""
    return 2 * rows * (4 if rows < 2**31 else 8) if shuffle == "full" else 8 * (rows // BLOCK_ROWS + 2 * BUFFER_ROWS)


def read_bytes(costs: Costs, rows: int, hosts: int) -> float:
    """Return what a host reads of so many rows, nearly in order: of k rows in a page none is its own at (1 - 1/hosts)^k."""
    return rows * costs.row_bytes * (1 - math.pow(1 - 1 / hosts, costs.page / costs.row_bytes))


def epoch(costs: Costs, rows: int, hosts: int, choice: Choice) -> dict[str, float]:
    """Return the parts of an epoch of so many training rows, in seconds, with one shard for each process."""
    size, steps = hosts * costs.processes, math.ceil(rows / choice.batch)
    read = rows * (1 + VALIDATION)
    per_host = read * costs.row_bytes / hosts if choice.streams else read_bytes(costs, math.ceil(read), hosts)
    disk = 0.0 if per_host < costs.memory else per_host / costs.disk
    if choice.shuffle == "full" and disk:
        disk = rows / hosts / costs.pages
    # After each chunk the first process tells the others whether to save, or to stop.
    told = 0.0 if size == 1 else (costs.call + 2 * math.log2(size) * costs.latency) * rows / max(choice.batch, CHUNK_ROWS)
    return {
        "rows": rows / size * (1 + VALIDATION * FORWARD) * costs.row,
        "shards": steps * (costs.shard + costs.step),
        "exchange": steps * exchange_seconds(costs, hosts, choice.exchange) + told,
        "order": rows / (size if choice.streams else 1) * costs.order,
        "own rows": read / size * costs.read,
        "disk": disk,
    }


def longest(parts: dict[str, float]) -> tuple[float, str]:
    """Return how long an epoch takes, and what bounds it: the largest part of the longer side."""
    sides = [("rows", "shards", "exchange"), ("order", "own rows", "disk")]
    longer = max(sides, key=lambda side: sum(parts[name] for name in side))
    return sum(parts[name] for name in longer), max(longer, key=parts.__getitem__)


def table(costs: Costs, rows: int, every: list[int], choice: Choice) -> Iterator[str]:
    """Give the lines of a table: an epoch on each number of hosts, against one process alone."""
    alone, _ = longest(epoch(replace(costs, processes=1), rows, 1, choice))
    yield f"one process: {alone / 3600:.3g} h\n"
    yield "| hosts | processes | hours an epoch | times as fast as one process | efficiency | bound by |"
    yield "|---|---|---|---|---|---|"
    for hosts in every:
        size = hosts * costs.processes
        took, bound = longest(epoch(costs, rows, hosts, choice))
        cells = (f"{took / 3600:.3g}", f"{alone / took:.3g}", f"{100 * alone / took / size:.2g} %", bound)
        yield f"| {hosts} | {size} | {' | '.join(cells if size <= choice.batch else ('', '', '', 'more shards than rows'))} |"


def main() -> None:
    """Read the numbers, and print a table for each number of rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", choices=MODELS, default="mlp")
    parser.add_argument("--rows", type=float, nargs="+", default=[1e9, 1e11], help="training rows")
    parser.add_argument("--hosts", type=int, nargs="+", default=[1, 4, 16, 64, 256, 1024], help="powers of two")
    parser.add_argument("--batch", type=int, default=65_536)
    parser.add_argument("--shuffle", choices=("block", "full"), default="block")
    parser.add_argument("--exchange", choices=("doubling", "halving", "ring"), default="doubling")
    parser.add_argument("--streams", action="store_true")
    for field in fields(Costs):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), help="in seconds or bytes")
    given = vars(parser.parse_args())
    costs = replace(
        MODELS[given["model"]], **{one.name: given[one.name] for one in fields(Costs) if given[one.name] is not None}
    )
    choice = Choice(given["batch"], given["shuffle"], given["exchange"], given["streams"])
    for rows in map(int, given["rows"]):
        print(f"\n{rows:,} rows of {costs.row_bytes} bytes, {given['model']}; {choice}")
        print(f"{order_bytes(rows, choice.shuffle) / 1e9:.3g} GB a process for the order;", end=" ")
        print(f"prepare: {rows * 10 / 8 * costs.prepare / costs.cores / 3600:.2g} h on {costs.cores} cores;", end=" ")
        print("\n".join(table(costs, rows, given["hosts"], choice)))


if __name__ == "__main__":
    main()
