"""Endpoints of one host that share memory: the CPU twin of CUDA IPC.

Segments are anonymous files (memfd) whose descriptors travel over the links: no name in
/dev/shm, nothing left behind when a process dies, no other user can open them.
"""

import mmap
import os
import weakref

import torch
from torch.distributed.distributed_c10d import Store

from realloc.transfer.communicator import Memory
from realloc.transfer.lending import LendingCommunicator
from realloc.transfer.links import connect_links

SEGMENT_BYTES = 1 << 30
"""Of address space; a page takes memory once it is written. A segment costs each process that
opens it a mapping, and its owner a file: parameters must share."""
_ALIGNMENT = 64


class SharedMemorySegments:
    """See `Segments`. What `allocate` gave can be lent over every connection of the process."""

    def __init__(self) -> None:
        self._files: dict[int, int] = {}
        self._last: torch.Tensor | None = None
        self._used = 0

    def allocate(self, size_bytes: int) -> torch.Tensor:
        if self._last is None or self._used + size_bytes > self._last.nbytes:
            pages = -(-size_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
            self._last, self._used = self._new(max(pages, SEGMENT_BYTES)), 0
        first = self._used
        self._used += -(-size_bytes // _ALIGNMENT) * _ALIGNMENT
        return self._last[first : first + size_bytes]

    def lends(self, memory: torch.Tensor) -> bool:
        return memory.untyped_storage().data_ptr() in self._files

    def export(self, memory: torch.Tensor) -> tuple[bytes, int | None]:
        storage = memory.untyped_storage()
        return str(storage.nbytes()).encode(), self._files[storage.data_ptr()]

    def open(self, description: bytes, descriptor: int | None) -> torch.Tensor:
        assert descriptor is not None, "a segment came without its file"
        return torch.frombuffer(mmap.mmap(descriptor, int(description)), dtype=torch.uint8)

    @property
    def memory(self) -> Memory:
        return Memory.LENT

    def fence(self) -> None:
        """The CPU's copies are done when they return."""

    def _new(self, size_bytes: int) -> torch.Tensor:
        descriptor = os.memfd_create("realloc-segment")
        os.ftruncate(descriptor, size_bytes)
        memory = mmap.mmap(descriptor, size_bytes)
        segment = torch.frombuffer(memory, dtype=torch.uint8)
        self._files[segment.data_ptr()] = descriptor
        # The mapping goes with the last tensor in it, and then nobody here needs the file.
        weakref.finalize(memory, _close, self._files, segment.data_ptr())
        return segment


def _close(files: dict[int, int], address: int) -> None:
    os.close(files.pop(address))


def connect_shared_memory(
    *,
    store: Store,
    group_id: str,
    endpoint: int,
    num_endpoints: int,
    timeout_seconds: float,
    peers: tuple[int, ...] | None = None,
    segments: SharedMemorySegments | None = None,
) -> LendingCommunicator:
    """Connect to the peers of this host (all endpoints, if not told otherwise).

    Args:
        segments: where memory that is to be lent was allocated; None: only the connection's own.

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
        segments=segments or SharedMemorySegments(),
        device=torch.device("cpu"),
    )
