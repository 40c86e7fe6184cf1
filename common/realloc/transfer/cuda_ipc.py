"""Processes that share one GPU, or GPUs that reach each other's memory, by CUDA IPC.

The GPU twin of `shared_memory`, with one difference: device memory can be opened by others
wherever it was allocated. So the receiver copies straight out of the sender's parameters, and
only what the sender must cast passes through a segment. NCCL refuses two processes of one
device in a communicator; these need none.
"""

import json

import torch
from torch.distributed.distributed_c10d import Store

from realloc.core.errors import Unavailable
from realloc.transfer.communicator import Memory
from realloc.transfer.lending import LendingCommunicator
from realloc.transfer.links import connect_links


class StreamFence:
    """See `Fence`: a point in the current stream of a device."""

    def __init__(self, device: torch.device) -> None:
        self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch declares none
        self._event.record(torch.cuda.current_stream(device))

    def passed(self) -> bool:
        return bool(self._event.query())  # type: ignore[no-untyped-call]  # the same

    def wait(self) -> None:
        self._event.synchronize()


class CudaSegments:
    """See `Segments`: device memory, opened elsewhere by its IPC handle."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    @property
    def memory(self) -> Memory:
        return Memory.OPEN

    def allocate(self, size_bytes: int) -> torch.Tensor:
        return torch.empty(size_bytes, dtype=torch.uint8, device=self._device)

    def lends(self, memory: torch.Tensor) -> bool:
        return memory.device.type == self._device.type

    def export(self, memory: torch.Tensor) -> tuple[bytes, int | None]:
        # torch counts who has a segment open: memory that its owner frees meanwhile is kept
        # until the last of them has let go of it.
        _, *rest = memory.untyped_storage()._share_cuda_()  # type: ignore[no-untyped-call]  # not in torch's stub
        fields = [{"hex": field.hex()} if isinstance(field, bytes) else field for field in rest]
        return json.dumps({"device": device_uuid(self._device), "handle": fields}).encode(), None

    def open(self, description: bytes, descriptor: int | None) -> torch.Tensor:
        given = json.loads(description)
        handle = [
            bytes.fromhex(field["hex"]) if isinstance(field, dict) else field
            for field in given["handle"]
        ]
        torch.cuda.init()  # type: ignore[no-untyped-call]  # the same
        index = self._index_of(given["device"])
        storage = torch.UntypedStorage._new_shared_cuda(index, *handle)
        return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)

    def fence(self) -> StreamFence:
        return StreamFence(self._device)

    def _index_of(self, uuid: str) -> int:
        """A device's number in this process, which may see others than its peer does."""
        for index in range(torch.cuda.device_count()):
            if device_uuid(torch.device("cuda", index)) == uuid:
                return index
        raise Unavailable(
            f"the peer's GPU {uuid} is hidden from this process; let CUDA_VISIBLE_DEVICES name it"
        )


def device_uuid(device: torch.device) -> str:
    """What a GPU is called in every process."""
    return str(torch.cuda.get_device_properties(device).uuid)


def connect_cuda_ipc(
    *,
    store: Store,
    group_id: str,
    endpoint: int,
    num_endpoints: int,
    device: torch.device,
    timeout_seconds: float,
    peers: tuple[int, ...] | None = None,
) -> LendingCommunicator:
    """Connect to peers of this machine (all endpoints, if not told otherwise).

    Raises:
        Unavailable: not all of them came within the time.
    """
    if peers is None:
        peers = tuple(peer for peer in range(num_endpoints) if peer != endpoint)
    links = connect_links(
        store=store,
        group_id=f"cuda/{group_id}",
        endpoint=endpoint,
        peers=peers,
        timeout_seconds=timeout_seconds,
    )
    return LendingCommunicator(
        endpoint=endpoint,
        num_endpoints=num_endpoints,
        links=links,
        segments=CudaSegments(device),
        device=device,
    )
