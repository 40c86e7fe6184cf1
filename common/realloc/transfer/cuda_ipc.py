"""Processes that share one GPU, or GPUs that reach each other's memory, by CUDA IPC.

The GPU twin of `shared_memory`: a sender packs into a segment of device memory, the receiver
opens the segment once and unpacks straight from it. NCCL refuses two processes of one device
in a communicator; these need none.

Written after torch's own sharing of CUDA storages; run only where there is a GPU.
"""

import json

import torch
from torch.distributed.distributed_c10d import Store

from realloc.transfer.lending import LendingCommunicator
from realloc.transfer.links import connect_links


class CudaSegments:
    """See `Segments`: device memory, opened elsewhere by its IPC handle."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def allocate(self, size_bytes: int) -> torch.Tensor:
        return torch.empty(size_bytes, dtype=torch.uint8, device=self._device)

    def export(self, segment: torch.Tensor) -> tuple[bytes, int | None]:
        # Ours to keep: the communicator holds every segment until it closes, so the counter
        # of references that torch adds to the handle never decides about its life.
        handle = segment.untyped_storage()._share_cuda_()  # type: ignore[no-untyped-call]  # not in torch's stub
        fields = [{"hex": field.hex()} if isinstance(field, bytes) else field for field in handle]
        offset = segment.storage_offset()
        return json.dumps(
            {"handle": fields, "offset": offset, "size": segment.nbytes}
        ).encode(), None

    def open(self, description: bytes, descriptor: int | None) -> torch.Tensor:
        given = json.loads(description)
        handle = [
            bytes.fromhex(field["hex"]) if isinstance(field, dict) else field
            for field in given["handle"]
        ]
        torch.cuda.init()  # type: ignore[no-untyped-call]  # the same
        storage = torch.UntypedStorage._new_shared_cuda(*handle)
        whole = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
        return whole[given["offset"] : given["offset"] + given["size"]]

    def finish_copies(self) -> None:
        torch.cuda.current_stream(self._device).synchronize()


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
