"""The processes of one training, and what they tell each other: sums in one fixed order, the first one's decisions, its end.

A process is one of several where torch's launcher, torchrun, started it. The first, of rank 0, alone writes files, records and
messages, and takes signals. Nothing that comes from another process is unpickled.
"""

import hashlib
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType
from typing import Self, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from truefit.core.errors import GroupError, LostError, TruefitError, leave
from truefit.core.text import one_line
from truefit.data.shards import WHOLE, Cut
from truefit.training.rank import begin_rank, end_with, is_rank

_END = "end"  # the key under which a process that ends the training says why, and the first that it went well
_POLL_SECONDS = 0.2
_LAST_WORD_SECONDS = 3.0  # for the reason of a connection that is lost already
T = TypeVar("T")


class Group:
    """The processes of a training, in the order of their ranks; by default this one alone.

    `hosts` has the name of the machine of each. As a context, of several, it ends the processes that are not the first with
    their errors.
    """

    def __init__(self, rank: int = 0, size: int = 1, store: Store | None = None, timeout: float = 60.0) -> None:
        self.rank, self.size, self._store, self._timeout = rank, size, store, timeout
        self.hosts = [socket.gethostname()]
        self._pairs: list[dist.ProcessGroup] = []  # of this process and another, for each level of the tree of sums
        self._both = self._left = self._right = torch.empty(0)  # the sums of a pair, and each
        self._over = False

    @property
    def is_first(self) -> bool:
        """Whether this process writes what the training is to leave behind."""
        return self.rank == 0

    @property
    def local_size(self) -> int:
        """The number of this machine's processes, or of those that its launcher started."""
        return 1 if self.size == 1 else int(os.environ["LOCAL_WORLD_SIZE"])

    @property
    def local_rank(self) -> int:
        """The place of this process among them."""
        return 0 if self.size == 1 else int(os.environ["LOCAL_RANK"])

    @property
    def host_count(self) -> int:
        """The number of machines, or of launchers, of which each started as many processes."""
        return self.size // self.local_size

    def cut(self, shards: int) -> Cut:
        """Return which of so many shards of a batch are this process's; raises GroupError where they cannot be shared out."""
        if shards % self.size:
            found = f"train.shards: found {shards} for {self.size} processes"
            raise GroupError(f"{found}, allowed: a number that they divide, such as {self.size}, or fewer launch.processes")
        own = shards // self.size
        return WHOLE if shards == 1 else Cut(shards, self.rank * own, own)

    def sum(self, tensor: Tensor) -> None:
        """Make of the vector [n] the sum of those of all processes, added as `data.shards.ordered_sum` would their list.

        At each level of the tree each process adds its sum and that of its neighbour, which is of as many vectors: recursive
        doubling, R. Thakur, R. Rabenseifner and W. Gropp, "Optimization of Collective Communication Operations in MPICH"
        (2005), section 4.5.
        """
        if self._both.numel() != 2 * len(tensor) or self._both.dtype != tensor.dtype:
            self._both = tensor.new_empty(2 * len(tensor))  # kept, since the memory of a new one is slow at its first use
            self._left, self._right = self._both.chunk(2)
        with self._connected():
            for pair in self._pairs:
                dist.all_gather_single(self._both, tensor, group=pair)
                torch.add(self._left, self._right, out=tensor)

    def gather(self, tensor: Tensor) -> Tensor:
        """Return the tensors [W, …] of all processes, which have one shape and type."""
        if self.size == 1:
            return tensor[None]
        every = tensor.new_empty(self.size, *tensor.shape)
        with self._connected():
            dist.all_gather_single(every.view(-1), tensor.contiguous().view(-1))
        return every

    def first(self, content: bytes) -> bytes:
        """Return what the first process has as `content`."""
        if self.size == 1:
            return content
        length = torch.tensor([len(content)])
        with self._connected():
            dist.broadcast(length, 0)
            received = torch.empty(int(length), dtype=torch.uint8)
            if self.is_first and content:
                received = torch.frombuffer(bytearray(content), dtype=torch.uint8)
            dist.broadcast(received, 0)
        return received.numpy().tobytes()

    def texts(self, text: str) -> list[str]:
        """Return the texts of all processes."""
        content = text.encode()
        longest = int(self.gather(torch.tensor([len(content)])).max())
        padded = torch.frombuffer(bytearray(content.ljust(longest, b"\0") or b"\0"), dtype=torch.uint8)
        return [bytes(row.tolist()).rstrip(b"\0").decode() for row in self.gather(padded)]

    def pair(self) -> None:
        """Connect this process with those whose sums it is to have."""
        for level in range(self.size.bit_length() - 1):
            both = sorted([self.rank, self.rank ^ 1 << level])
            if both[1] < self.size:  # as always where the processes are a power of two, which others are refused for
                timeout = timedelta(seconds=self._timeout)
                self._pairs.append(dist.new_group(both, timeout, use_local_synchronization=True))

    def meet(self, where: str) -> None:
        """Wait until all processes have come to a place in the code, which has a name of its own, however long each takes.

        Between two exchanges nobody may take longer than the timeout. Raises GroupError where the training has ended.
        """
        store = self._store
        if store is None:
            return
        with self._connected():
            _answer(lambda: store.add(where, 1), self._timeout)
            while _answer(lambda: store.add(where, 0), self._timeout) < self.size:
                if reason := self._end_told(self._timeout):
                    raise GroupError(reason)
                time.sleep(_POLL_SECONDS)

    def require_same(self, facts: Mapping[str, str]) -> None:
        """Raise GroupError, naming the machine and the fact, unless all processes have the same."""
        if self.size == 1:
            return
        each: list[dict[str, str]] = [json.loads(text) for text in self.texts(json.dumps(facts))]
        for host, others in zip(self.hosts, each, strict=True):
            for name in {**each[0], **others}:
                if (found := others.get(name)) != (allowed := each[0].get(name)):
                    here = f"host {host}: {name}: found {one_line(str(found))}"
                    way_out = "bring both to the same commit, settings, table (`dvc pull`) and torch"
                    raise GroupError(f"{here}, allowed: {one_line(str(allowed))}, as on host {self.hosts[0]}; {way_out}")

    def require_same_state(self, state: Mapping[str, Tensor], when: str) -> None:
        """Raise GroupError, naming the machine, unless all processes have the same parameters, bit by bit."""
        if self.size == 1:
            return
        digest = hashlib.sha256()
        for tensor in state.values():
            digest.update(tensor.contiguous().numpy().data)
        every = self.gather(torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8))
        for rank, other in enumerate(every):
            if not torch.equal(other, every[0]):
                found = f"found other parameters on host {self.hosts[rank]} (rank {rank}) than on host {self.hosts[0]}"
                raise GroupError(f"{when}: {found}, allowed: hosts that round alike, of one kind of CPU and with one torch")

    def end_with_first(self, well: bool = True) -> None:
        """Return at once in the first process, which tells of an end that went `well`; any other waits for its word, and ends.

        From then on the others are not needed: what is left, such as to save, is the first one's alone. Raises GroupError with
        the reason of a training that has failed.
        """
        if self._store is None:
            return
        if self.is_first:
            if well:
                self._tell_others("")
                self._over = True
            return
        with self._connected():
            while (reason := self._end_told(self._timeout)) is None:
                time.sleep(_POLL_SECONDS)
        if reason:
            raise GroupError(reason)
        leave(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._store is None:
            return
        if isinstance(error, TruefitError) and not isinstance(error, LostError) and not self._over:
            self._tell_others(f"the training ended on host {socket.gethostname()}: {error}")
        if isinstance(error, TruefitError) and not (self.is_first and not isinstance(error, LostError)):
            end_with(error)

    def _tell_others(self, reason: str) -> None:
        store = self._store
        assert store is not None
        with self._connected():
            _answer(lambda: store.compare_set(_END, "", reason), self._timeout)

    @contextmanager
    def _connected(self) -> Iterator[None]:
        """Raise LostError, with the reason that another process has told, for a connection that is lost."""
        try:
            yield
        except RuntimeError as error:  # torch's, of which dist.DistError is a kind, and gloo's
            raise LostError(self._told() or f"lost another process of the training: {_first_line(error)}") from None

    def _told(self) -> str:
        try:
            return self._end_told(_LAST_WORD_SECONDS) or ""
        except RuntimeError:
            return ""

    def _end_told(self, seconds: float) -> str | None:
        """Return why the training has ended, an empty text where it went well, or None: nobody has told of an end."""
        store = self._store
        assert store is not None
        return _answer(lambda: store.get(_END).decode() if store.check([_END]) else None, seconds)


ALONE = Group()


def join_group(device: torch.device, timeout: float) -> Group:
    """Return the group that torch's launcher started this process for, or one of this process alone.

    A process, or a connection, that does not answer for `timeout` seconds is lost. Raises LostError where not all come.
    """
    if not is_rank() or int(os.environ["WORLD_SIZE"]) == 1:
        return Group()
    begin_rank()
    seconds = timedelta(seconds=timeout)
    backend = "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    try:
        store, rank, size = next(rendezvous("env://", timeout=seconds))
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=seconds)
        group = Group(rank, size, store, timeout)
        group.hosts = group.texts(socket.gethostname())
        group.pair()
    except RuntimeError as error:
        end_with(LostError(f"found no other process of the training for {timeout:g} s: {_first_line(error)}"))
    except LostError as error:
        end_with(error)
    return group


def _answer(ask: Callable[[], T], seconds: float) -> T:
    """Return what the store answers; raises RuntimeError where there is no answer: over a link that is down torch waits on."""
    answer: Future[T] = Future()

    def work() -> None:
        try:
            answer.set_result(ask())
        except RuntimeError as error:
            answer.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        return answer.result(seconds)
    except TimeoutError:
        raise RuntimeError(f"the first host has not answered for {seconds:g} s") from None


def _first_line(error: Exception) -> str:
    """Return what gloo, or the store, says of a connection, without the line of its source and its advice."""
    return re.sub(r"^\[\S+\] |\. This is typically.*", "", str(error).strip().partition("\n")[0])
