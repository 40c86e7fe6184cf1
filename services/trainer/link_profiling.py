"""Times collectives, messages and host copies on the backend that jobs use."""

import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from statistics import median

import torch
import torch.distributed as dist

from realloc.cost.profile import LinkKind, LinkSample
from realloc.transfer.rendezvous import connect_store

SIZES = tuple(4**power for power in range(5, 13))
"""Bytes: 1 KiB to 16 MiB."""
_REPEATS = 7
_TIMEOUT_SECONDS = 60.0


def profile_links(rank: int, num_ranks: int, host: str, port: int) -> list[LinkSample]:
    """Time groups of 2, 4, … ranks of a world; each rank returns what it saw.

    Collective over the world, whose store is served at the address.
    """
    device = _device()
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=connect_store(host, port, _TIMEOUT_SECONDS),
        rank=rank,
        world_size=num_ranks,
        timeout=timedelta(seconds=_TIMEOUT_SECONDS),
    )
    try:
        samples: list[LinkSample] = []
        size = 2
        while size <= num_ranks:
            group = dist.new_group(list(range(size)))
            if rank < size:
                assert isinstance(group, dist.ProcessGroup)
                samples += _all_reduces(group, size, device)
            size *= 2
        if rank < 2 and num_ranks > 1:
            samples += _messages(rank, device)
        dist.barrier()
        return samples
    finally:
        dist.destroy_process_group()


def profile_host_copies() -> list[LinkSample]:
    """Time copies from this process's device to the host's memory and back."""
    device = _device()
    samples = []
    for size in SIZES[3:]:
        away = torch.zeros(size, dtype=torch.uint8, device=device)
        here = torch.zeros(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
        for target, source in ((here, away), (away, here)):
            copy = partial(target.copy_, source)
            samples.append(_sample(LinkKind.HOST_COPY, 1, size, copy, device))
    return samples


def _all_reduces(
    group: dist.ProcessGroup, num_ranks: int, device: torch.device
) -> list[LinkSample]:
    samples = []
    for size in SIZES:
        numbers = torch.zeros(size // 4, device=device)
        samples.append(
            _sample(
                LinkKind.ALL_REDUCE,
                num_ranks,
                size,
                partial(dist.all_reduce, numbers, group=group),
                device,
            )
        )
    return samples


def _messages(rank: int, device: torch.device) -> list[LinkSample]:
    """Back and forth between ranks 0 and 1; half of it is one message."""
    samples = []
    for size in SIZES:
        numbers = torch.zeros(size // 4, device=device)

        def both_ways(numbers: torch.Tensor = numbers) -> None:
            for sender in (0, 1):
                if rank == sender:
                    dist.send(numbers, 1 - rank)
                else:
                    dist.recv(numbers, 1 - rank)

        both = _sample(LinkKind.MESSAGE, 2, size, both_ways, device)
        samples.append(
            LinkSample(kind=both.kind, ranks=2, size_bytes=size, seconds=both.seconds / 2)
        )
    return samples


def _sample(
    kind: LinkKind, ranks: int, size: int, work: Callable[[], object], device: torch.device
) -> LinkSample:
    def timed() -> float:
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    timed()
    seconds = median(timed() for _ in range(_REPEATS))
    return LinkSample(kind=kind, ranks=ranks, size_bytes=size, seconds=seconds)


def _device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
