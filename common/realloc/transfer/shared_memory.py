"""Endpoints of one host that share memory: the CPU twin of CUDA IPC.

Segments are anonymous files (memfd) whose descriptors travel over the links: no name in
/dev/shm, nothing left behind when a process dies, no other user can open them.
"""

import mmap
import os

import torch
from torch.distributed.distributed_c10d import Store

from realloc.transfer.communicator import Memory
from realloc.transfer.lending import LendingCommunicator
from realloc.transfer.links import connect_links


class SharedMemorySegments:
    """See `Segments`."""

    def __init__(self) -> None:
        self._files: dict[int, int] = {}

    def allocate(self, size_bytes: int) -> torch.Tensor:
        descriptor = os.memfd_create("realloc-segment")
        os.ftruncate(descriptor, size_bytes)
        segment = _mapped(descriptor, size_bytes)
        self._files[segment.data_ptr()] = descriptor
        return segment

    def export(self, segment: torch.Tensor) -> tuple[bytes, int | None]:
        return str(segment.nbytes).encode(), self._files[segment.data_ptr()]

    def open(self, description: bytes, descriptor: int | None) -> torch.Tensor:
        assert descriptor is not None, "a segment came without its file"
        return _mapped(descriptor, int(description))

    @property
    def memory(self) -> Memory:
        return Memory.LENT

    def fence(self) -> None:
        """The CPU's copies are done when they return."""

    def __del__(self) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)


def _mapped(descriptor: int, size_bytes: int) -> torch.Tensor:
    memory = mmap.mmap(descriptor, size_bytes)
    return torch.frombuffer(memory, dtype=torch.uint8)


def connect_shared_memory(
    *,
    store: Store,
    group_id: str,
    endpoint: int,
    num_endpoints: int,
    timeout_seconds: float,
    peers: tuple[int, ...] | None = None,
) -> LendingCommunicator:
    """Connect to the peers of this host (all endpoints, if not told otherwise).

    Raises:
        Unavailable: not all of them came within the time.
    """
    if peers is None:
        peers = tuple(peer for peer in range(num_endpoints) if peer != endpoint)
    links = connect_links(
        store=store,
        group_id=group_id,
        endpoint=endpoint,
        peers=peers,
        timeout_seconds=timeout_seconds,
    )
    return LendingCommunicator(
        endpoint=endpoint,
        num_endpoints=num_endpoints,
        links=links,
        segments=SharedMemorySegments(),
        device=torch.device("cpu"),
    )
