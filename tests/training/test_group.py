"""One training in 1, 2 and 4 real processes has the same bits, also killed and gone on with by another number of them."""

import os
import re
import signal
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_group import Ended, run_alone, run_cases
from helpers_training import normal_line, same_bits, train_with, weighted_rows, write_prepared
from torch import nn
from torch._C._distributed_c10d import HashStore

from truefit.core.errors import GroupError, TruefitError
from truefit.data.shards import Cut, ordered_sum
from truefit.training.engines import make_sharded
from truefit.training.engines.base import StepSettings
from truefit.training.engines.compiled_engine import Graph
from truefit.training.group import ALONE, Group

MLP = {"name": "mlp", "hidden": [13, 7], "dropout": 0.3}
ADAM = {"name": "adam", "lr": 0.02, "weight_decay": 0.01}
SGD = {"name": "sgd", "lr": 0.05, "momentum": 0.9, "nesterov": True}
STOPPING = {"patience": 2, "min_delta": 0.001}
# 191 training rows are 7 batches of 27, whose shards have 6 and 7 rows, and a last one of 2, half of whose shards have none.
SETTINGS: dict[str, dict[str, Any]] = {
    "linear": {"optimizer": SGD},
    "linear-clip": {"optimizer": ADAM | {"lr": 0.1}, "clip_norm": 0.5, "loss": {"name": "huber", "reduction": "sum"}},
    "mlp-stopping": {"model": MLP, "optimizer": SGD, "early_stopping": STOPPING, "epochs": 12},
    "mlp-adam": {"model": MLP, "optimizer": ADAM, "epochs": 5, "clip_norm": 0.5, "shuffle": "block"},
    "mlp-short": {
        "model": MLP,
        "optimizer": ADAM,
        "batch_size": 83,
        "epochs": 9,
        "schedule": {"name": "plateau", "patience": 0},
    },
}
COMPILED: dict[str, dict[str, Any]] = {
    "mlp": {"engine": "compiled", "model": MLP, "optimizer": ADAM, "clip_norm": 0.5, "batch_size": 28},
    "linear": {"engine": "compiled", "optimizer": SGD, "clip_norm": 0.1, "compile": {"cpp_wrapper": False}},
    "mlp-sgd": {"engine": "compiled", "model": MLP, "optimizer": SGD, "early_stopping": STOPPING},
}
LONG = os.environ.get("TRUEFIT_TORTURE") == "1"


def write_odd(folder: Path, dtype: Any, weighted: bool) -> str:
    """Write rows of three features that no number of shards divides, and return their folder."""
    rows = [normal_line(count, (2.0, -1.0, 0.5), seed=count) for count in (191, 43)]
    if weighted:
        rows = [weighted_rows(part, np.random.default_rng(0).uniform(0, 3, len(part))) for part in rows]
    write_prepared(folder, rows[0], rows[1], dtype=dtype, weighted=weighted)
    return str(folder)


def cases_in(folder: Path, chosen: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    tables = [
        write_odd(folder / f"{dtype}-{weighted}", dtype, weighted)
        for dtype in ("float32", "float64")
        for weighted in (False, True)
    ]
    # Each with one of the tables, or at length with all; making a graph takes long.
    chosen = chosen if LONG or chosen is SETTINGS else {"mlp": chosen["mlp"]}
    return [
        {"table": table, "settings": {"shards": 4, "batch_size": 27, "epochs": 3, **settings}}
        for number, settings in enumerate(chosen.values())
        for table in (tables if LONG else [tables[number % 4]])
    ]


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Ended]:
    """How all cases end in 1, 2 and 4 processes.

    After the last of 2 and of 4 comes a training that is killed in 2 processes, goes on in 4, and is killed there. After the
    last of one process comes that training without a break, and then the end of the one that was killed.
    """
    folder = tmp_path_factory.mktemp("cases")
    cases, compiled = cases_in(folder, SETTINGS), cases_in(folder, COMPILED)
    whole = {
        "table": write_odd(folder / "resumed", "float32", weighted=True),
        "settings": {"shards": 4, "batch_size": 27, "epochs": 6, "model": MLP, "optimizer": ADAM},
    }
    resumed = whole | {"checkpoints": str(folder / "checkpoints")}
    return {
        2: run_cases([*cases, *compiled, resumed | {"kill_after": 2}], folder, [{}] * 2),
        4: run_cases([*cases, *(compiled if LONG else []), resumed | {"kill_after": 4}], folder, [{}] * 4),
        1: run_alone([*cases, *compiled, whole, resumed]),
    }


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.xdist_group("compiled")
def test_several_processes_end_with_the_bits_of_one(ended: dict[int, Ended], processes: int) -> None:
    (*alone, _, _), several = ended[1].bits, ended[processes].bits
    assert len({bits["final"] for bits in alone}) == len(alone)
    assert len(several) >= len(SETTINGS)
    assert several == (alone[: len(SETTINGS)] if processes == 4 and not LONG else alone)


@pytest.mark.xdist_group("compiled")
def test_a_training_goes_on_with_another_number_of_processes_to_the_same_bits(ended: dict[int, Ended]) -> None:
    *_, whole, resumed = ended[1].bits
    assert resumed == whole
    assert [ended[processes].statuses[0] for processes in (2, 4)] == [-signal.SIGKILL] * 2


@pytest.mark.xdist_group("compiled")
def test_a_process_that_is_killed_ends_the_others_at_once_with_a_line(ended: dict[int, Ended]) -> None:
    assert ended[2].statuses == [-signal.SIGKILL, os.EX_SOFTWARE]
    lost = r"error: lost another process of the training: rank 0 on .* closed the connection\n"
    assert re.fullmatch(lost, ended[2].told[1])
    assert ended[4].statuses == [-signal.SIGKILL, *[os.EX_SOFTWARE] * 3]


def test_a_process_that_rounds_otherwise_ends_the_training_with_its_host_and_rank(tmp_path: Path) -> None:
    case = {"table": write_odd(tmp_path / "table", "float32", weighted=False), "settings": {"shards": 2, "model": MLP}}
    ended = run_cases([case], tmp_path, [{}, {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "SSE2"}])
    host = re.escape(socket.gethostname())
    assert re.fullmatch(
        rf"error: epoch \d+: found other parameters on host {host} \(rank 1\) than on host {host}, "
        r"allowed: hosts that round alike, of one kind of CPU and with one torch\n",
        ended.told[0],
    )
    assert ended.statuses == [2, 2]


def test_the_others_end_when_the_training_has_ended_well_while_the_first_has_yet_to_save(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, statuses = HashStore(), list[int]()
    monkeypatch.setattr("truefit.training.group.leave", statuses.append)
    first, other = (Group(rank, 2, store, timeout=5) for rank in (0, 1))
    first.end_with_first(well=False)
    assert not store.check(["end"])
    with pytest.raises(TruefitError, match=r"^the disk is full$"), first:
        first.end_with_first()
        other.end_with_first()
        assert statuses == [0]
        raise TruefitError("the disk is full")


def test_one_shard_takes_the_steps_that_the_engine_torch_takes_without(tmp_path: Path) -> None:
    table = write_odd(tmp_path, "float64", weighted=False)
    one, four = (train_with(Path(table), model=MLP | {"dropout": 0.0}, batch_size=27, epochs=2, shards=n) for n in (1, 4))
    for name, tensor in one.final_state.items():
        torch.testing.assert_close(four.final_state[name], tensor, rtol=1e-9, atol=1e-12)
    assert not same_bits(one.final_state, four.final_state)


def test_an_engine_goes_on_at_a_batch_whose_first_shard_has_no_rows() -> None:
    rows, step = torch.randn(29, 4, generator=torch.Generator().manual_seed(1)), StepSettings()
    x, y = rows[:, :3], rows[:, 3:]
    whole, before, after = (
        make_sharded("torch", nn.Linear(3, 1), step, torch.device("cpu"), ALONE, Cut(4, own=4), Graph(1, 27, False))
        for _ in range(3)
    )
    state = before.training_state()
    whole.load_training_state(state)
    whole.train_chunk(x, y, 27)
    before.train_chunk(x[:27], y[:27], 27)
    after.load_training_state(before.training_state())
    after.train_chunk(x[27:], y[27:], 27)
    assert same_bits(after.state_dict(), whole.state_dict())


def test_a_number_of_shards_has_its_own_bits_and_repeats_them(tmp_path: Path) -> None:
    table = Path(write_odd(tmp_path, "float32", weighted=False))
    two, four, again = (train_with(table, model=MLP, batch_size=27, epochs=2, shards=shards) for shards in (2, 4, 4))
    assert same_bits(four.final_state, again.final_state)
    assert not same_bits(two.final_state, four.final_state)


def test_more_shards_than_a_batch_has_rows_are_refused(tmp_path: Path) -> None:
    write_prepared(tmp_path, normal_line(5), normal_line(3))
    with pytest.raises(TruefitError, match=r"^train.shards: found 8, allowed: a power of two up to the rows of a batch, 5$"):
        train_with(tmp_path, shards=8, batch_size="all")


def test_processes_that_do_not_divide_the_shards_are_refused() -> None:
    with pytest.raises(GroupError, match=r"^train.shards: found 2 for 4 processes, allowed: a number that they divide, such"):
        Group(rank=1, size=4).cut(2)


@pytest.mark.parametrize("rows", [0, 1, 3, 8, 27])
@pytest.mark.parametrize("batch_size", [1, 4, 27])
def test_the_shards_of_all_processes_are_the_chunk_and_do_not_depend_on_their_number(rows: int, batch_size: int) -> None:
    chunk = torch.arange(rows)
    batches = chunk.split(batch_size)
    expected = [shard.tolist() for batch in batches for (shard,) in Cut(4, 0, 4).parts(len(batch), batch)]
    for own in (1, 2):
        found: dict[int, list[list[int]]] = {}
        for first in range(0, 4, own):
            cut, at = Cut(4, first, own), 0
            mine = cut.rows(chunk, batch_size)
            for number, batch in enumerate(batches):
                bounds = cut.bounds(len(batch))
                part = mine[at : at + bounds[-1] - bounds[0]]
                found.setdefault(number, []).extend(shard.tolist() for (shard,) in cut.parts(len(batch), part))
                at += len(part)
            assert at == len(mine)
        assert [shard for shards in found.values() for shard in shards] == expected


def test_the_ordered_sum_of_halves_is_the_ordered_sum() -> None:
    parts = list(torch.randn(8, 1000, generator=torch.Generator().manual_seed(0)))
    whole = ordered_sum(parts)
    assert torch.equal(whole, ordered_sum([ordered_sum(parts[:4]), ordered_sum(parts[4:])]))
    assert not torch.equal(whole, torch.stack(parts).sum(0))
