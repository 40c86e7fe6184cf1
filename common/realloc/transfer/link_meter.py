"""Latency and bandwidth between all pairs of ranks, as messages and sums over them see it.

Every rank calls `measure_links`. The pairs meet in rounds, like the players of a tournament:
after n − 1 rounds (n of an odd number) each has met each other once. All pairs of a round talk
at the same time, which is how traffic of jobs loads the links, and which keeps 128 ranks at
127 rounds instead of 8,128.

What arrives is compared with what was sent, so a link that corrupts data fails here.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore  # where torch declares its type

from realloc.core.errors import InvalidInput, Unavailable
from realloc.transfer.rendezvous import connect_store

_SMALL_REPEATS = 20
_LARGE_REPEATS = 3
_MOST_BYTES = 1 << 30


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


def measure_links(world: MeterWorld, device: torch.device) -> LinkMeasurement:
    """Measure in a process group of its own, which is gone afterwards.

    Raises:
        Unavailable: a peer did not come, fell silent, or sent something else.
    """
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(
            backend,
            store=PrefixStore(
                world.measurement_id,
                connect_store(world.store_host, world.store_port, world.timeout_seconds),
            ),
            rank=world.rank,
            world_size=world.num_ranks,
            timeout=timedelta(seconds=world.timeout_seconds),
        )
        meter = _Meter(world, device)
        links = tuple(meter.links())
        return LinkMeasurement(links=links, all_reduce_seconds=meter.sum_all(), backend=backend)
    except (dist.DistError, RuntimeError) as error:
        raise Unavailable(f"rank {world.rank}: {str(error).splitlines()[0]}") from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


class _Meter:
    """Sends, receives and sums; buffers are made once."""

    def __init__(self, world: MeterWorld, device: torch.device) -> None:
        self._world = world
        self._device = device
        self._timeout = timedelta(seconds=world.timeout_seconds)
        count = max(1, world.message_bytes // 4)
        self._large = torch.full((count,), float(world.rank), device=device)
        self._small = torch.full((1,), float(world.rank), device=device)

    def links(self) -> Iterator[LinkSample]:
        """This rank's pair of every round; a round begins when all have ended the last one."""
        rank = self._world.rank
        for pairs in rounds_of_pairs(self._world.num_ranks):
            dist.all_reduce(torch.zeros(1, device=self._device))
            mine = [pair for pair in pairs if rank in pair]
            for low, high in mine:
                yield self._pair(low, high)

    def sum_all(self) -> float:
        """Seconds of an all-reduce over all ranks."""
        if self._world.num_ranks == 1:
            return 0.0
        return self._sum(None, range(self._world.num_ranks))

    def _pair(self, low: int, high: int) -> LinkSample:
        first, peer = self._world.rank == low, low + high - self._world.rank
        latency = self._one_way(self._small, peer, first, _SMALL_REPEATS)
        seconds = self._one_way(self._large, peer, first, _LARGE_REPEATS)
        group = dist.new_group([low, high], timeout=self._timeout, use_local_synchronization=True)
        try:
            summed = self._sum(group, (low, high))
        finally:
            dist.destroy_process_group(group)
        size = self._large.numel() * self._large.element_size()
        return LinkSample(
            peer=peer,
            latency_seconds=latency,
            bytes_per_second=size / max(seconds - latency, 1e-9),
            all_reduce_seconds=summed,
        )

    def _one_way(self, sent: torch.Tensor, peer: int, first: bool, repeats: int) -> float:
        """Half of the shortest round trip."""
        arrived = torch.empty_like(sent)
        shortest = float("inf")
        for _ in range(1 + repeats):  # the first one opens connections
            self._wait()
            began = time.perf_counter()
            for sends in (first, not first):
                if sends:
                    dist.send(sent, peer)
                else:
                    dist.recv(arrived, peer)
            self._wait()
            shortest = min(shortest, time.perf_counter() - began)
        self._compare(arrived, float(peer), peer)
        return shortest / 2

    def _sum(self, group: dist.ProcessGroup | None, ranks: "range | tuple[int, ...]") -> float:
        shortest = float("inf")
        for _ in range(1 + _LARGE_REPEATS):
            total = self._large.clone()
            self._wait()
            began = time.perf_counter()
            dist.all_reduce(total, group=group)
            self._wait()
            shortest = min(shortest, time.perf_counter() - began)
        self._compare(total, float(sum(ranks)), ranks)
        return shortest

    def _compare(self, arrived: torch.Tensor, wanted: float, who: object) -> None:
        if not bool((arrived == wanted).all()):
            raise RuntimeError(f"what came from {who} is not what was sent")

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
