"""Latency and bandwidth between all pairs of ranks, as messages and sums over them see it.

Every rank calls `measure_links`. The pairs meet in rounds, like the players of a tournament:
after n − 1 rounds (n of an odd number) each has met each other once. All pairs of a round talk
at the same time, which is how traffic of jobs loads the links, and which keeps 128 ranks at
127 rounds instead of 8,128.

What arrives is compared with what was sent, so a link that corrupts data fails here.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import DistError
from torch.distributed.distributed_c10d import PrefixStore, ProcessGroupGloo, Store

from realloc.core.errors import InvalidInput, Unavailable
from realloc.transfer.gloo import first_line
from realloc.transfer.rendezvous import connect_store

_SMALL_REPEATS = 20
_LARGE_REPEATS = 3
_MOST_BYTES = 1 << 30
_PERIOD = 1021


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterWorld:
    """The ranks that measure, and where they meet."""

    measurement_id: str
    store_host: str
    store_port: int
    rank: int
    num_ranks: int
    message_bytes: int
    timeout_seconds: float
    """Longest wait for a peer."""

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.num_ranks:
            raise InvalidInput.at("rank", f"is {self.rank} of {self.num_ranks}")
        if not 0 < self.message_bytes <= _MOST_BYTES:
            raise InvalidInput.at("message_bytes", f"is {self.message_bytes}; 1 to {_MOST_BYTES}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSample:
    """One pair, as this rank measured it."""

    peer: int
    latency_seconds: float
    bytes_per_second: float
    all_reduce_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkMeasurement:
    """What one rank measured."""

    links: tuple[LinkSample, ...]
    all_reduce_seconds: float
    """Over all ranks; 0 for a single one."""
    backend: str


def rounds_of_pairs(num_ranks: int) -> Iterator[list[tuple[int, int]]]:
    """Rounds in which every pair meets once; nobody is in two pairs of a round.

    The circle method: one player stays, the others move on by one place.
    """
    players: list[int | None] = [*range(num_ranks)]
    if num_ranks % 2:
        players.append(None)  # whoever meets nobody waits
    half = len(players) // 2
    for _ in range(len(players) - 1):
        pairs = zip(players[:half], reversed(players[half:]), strict=True)
        yield [(min(a, b), max(a, b)) for a, b in pairs if a is not None and b is not None]
        players = [players[0], players[-1], *players[1:-1]]


def measure_links(world: MeterWorld, *, host: str, device: torch.device) -> LinkMeasurement:
    """Measure in groups of their own, beside any default world, which are gone afterwards.

    Args:
        host: address of this process that the others can connect to.
        device: what the buffers are on; decides between gloo and NCCL.

    Raises:
        Unavailable: a peer did not come, fell silent, or sent something else.
    """
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        store = PrefixStore(
            world.measurement_id,
            connect_store(world.store_host, world.store_port, world.timeout_seconds),
        )
        groups = _Groups(store, host, device, world.timeout_seconds)
        with groups.open("all", world.rank, range(world.num_ranks)) as everybody:
            meter = _Meter(world, groups, everybody)
            links = meter.links()
            seconds = meter.sum_all()
            meter.meet()  # nobody leaves while others still talk
        return LinkMeasurement(links=links, all_reduce_seconds=seconds, backend=backend)
    except (DistError, RuntimeError) as error:
        raise Unavailable(f"rank {world.rank}: {first_line(error)}") from error


class _Groups:
    """Makes process groups over a store; each is closed by its context."""

    def __init__(
        self, store: Store, host: str, device: torch.device, timeout_seconds: float
    ) -> None:
        self.device = device
        self._store = store
        self._host = host
        self._timeout = timedelta(seconds=timeout_seconds)

    @contextmanager
    def open(self, name: str, rank: int, ranks: Sequence[int]) -> Iterator[Any]:
        """The group of some ranks, this one among them; all of them open it, and once: the
        addresses of a first group of this name would stay in the store."""
        make = self._nccl if self.device.type == "cuda" else self._gloo
        group = make(PrefixStore(name, self._store), ranks.index(rank), len(ranks))
        try:
            yield group
        finally:
            group.abort()

    def _gloo(self, store: Store, rank: int, size: int) -> Any:
        options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]  # not in torch's stubs
        options._devices = [ProcessGroupGloo.create_device(hostname=self._host)]
        options._timeout = self._timeout
        return ProcessGroupGloo(store, rank, size, options)

    def _nccl(self, store: Store, rank: int, size: int) -> Any:
        from torch.distributed.distributed_c10d import ProcessGroupNCCL  # absent without CUDA

        options = ProcessGroupNCCL.Options()
        options._timeout = self._timeout
        group = ProcessGroupNCCL(store, rank, size, options)
        group.eager_connect_single_device(self.device)
        return group


class _Meter:
    """Sends, receives and sums; buffers are made once."""

    def __init__(self, world: MeterWorld, groups: _Groups, everybody: Any) -> None:
        """``everybody``: the group of all ranks."""
        self._world = world
        self._groups = groups
        self._everybody = everybody
        count = max(1, world.message_bytes // 4)
        # Small whole numbers: their sums are exact, and swapped pieces are seen.
        self._pattern = torch.arange(count, device=groups.device).remainder(_PERIOD).float()
        self._large = self._pattern + world.rank
        self._small = self._large[:1].clone()

    def links(self) -> tuple[LinkSample, ...]:
        """This rank's pair of every round; a round begins when all have ended the last one."""
        rank, found = self._world.rank, []
        for pairs in rounds_of_pairs(self._world.num_ranks):
            mine = next((pair for pair in pairs if rank in pair), None)
            if mine is None:
                self.meet()
                continue
            with self._groups.open("pair-{}-{}".format(*mine), rank, mine) as group:
                found.append(self._pair(group, mine))
                self.meet()  # before the group closes: a peer may still be reading
        return tuple(found)

    def meet(self) -> None:
        """Wait for all ranks."""
        self._reduce(self._everybody, torch.zeros_like(self._small))

    def sum_all(self) -> float:
        """Seconds of an all-reduce over all ranks; 0 for a single one."""
        if self._world.num_ranks == 1:
            return 0.0
        return self._sum(self._everybody, range(self._world.num_ranks))

    def _pair(self, group: Any, pair: tuple[int, int]) -> LinkSample:
        latency = self._one_way(group, self._small, pair, _SMALL_REPEATS)
        seconds = self._one_way(group, self._large, pair, _LARGE_REPEATS)
        summed = self._sum(group, pair)
        return LinkSample(
            peer=sum(pair) - self._world.rank,
            latency_seconds=latency,
            bytes_per_second=self._large.nbytes / max(seconds - latency, 1e-9),
            all_reduce_seconds=summed,
        )

    def _one_way(
        self, group: Any, sent: torch.Tensor, pair: tuple[int, int], repeats: int
    ) -> float:
        """Half of the shortest round trip between the ranks of a pair."""
        mine = pair.index(self._world.rank)
        begins, other, peer = mine == 0, 1 - mine, pair[1 - mine]
        arrived = torch.empty_like(sent)
        shortest = float("inf")
        for _ in range(1 + repeats):  # the first one opens connections
            self._wait()
            began = time.perf_counter()
            for sends in (begins, not begins):
                self._finish(
                    group.send([sent], other, 0) if sends else group.recv([arrived], other, 0)
                )
            shortest = min(shortest, time.perf_counter() - began)
        self._compare(arrived, self._pattern + peer, f"a message of rank {peer}")
        return shortest / 2

    def _sum(self, group: Any, ranks: Sequence[int]) -> float:
        """Seconds of the fastest of some all-reduces."""
        shortest = float("inf")
        for _ in range(1 + _LARGE_REPEATS):
            total = self._large.clone()
            self._wait()
            began = time.perf_counter()
            self._reduce(group, total)
            shortest = min(shortest, time.perf_counter() - began)
        wanted = len(ranks) * self._pattern + sum(ranks)
        self._compare(total, wanted, f"the sum over ranks {list(ranks)}")
        return shortest

    def _reduce(self, group: Any, values: torch.Tensor) -> None:
        self._finish(group.allreduce([values]))

    def _finish(self, work: Any) -> None:
        """Wait until the data is there; a kernel that waits for a dead peer never ends itself."""
        if self._groups.device.type == "cuda":
            deadline = time.monotonic() + self._world.timeout_seconds
            while not work.is_completed():
                if time.monotonic() > deadline:
                    raise RuntimeError(f"timed out after {self._world.timeout_seconds:g} s")
        work.wait()

    def _wait(self) -> None:
        """Let what this device does for itself end before the clock starts."""
        if self._groups.device.type == "cuda":
            torch.cuda.synchronize()

    def _compare(self, arrived: torch.Tensor, wanted: torch.Tensor, what: str) -> None:
        if not torch.equal(arrived, wanted[: len(arrived)]):
            raise RuntimeError(f"{what} is not what was sent")
