"""How the endpoints of a group reach each other, decided when they meet."""

import os
import tempfile
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import torch
from torch.distributed.distributed_c10d import Store

from realloc.core.errors import Unavailable
from realloc.transfer.communicator import Communicator
from realloc.transfer.composite import CompositeCommunicator
from realloc.transfer.cuda_ipc import connect_cuda_ipc
from realloc.transfer.gloo import GlooCommunicator
from realloc.transfer.nccl import NcclCommunicator
from realloc.transfer.shared_memory import SharedMemorySegments, connect_shared_memory


def connect_cpu(
    *,
    store: Store,
    group_id: str,
    endpoint: int,
    num_endpoints: int,
    host: str,
    place: str,
    timeout_seconds: float,
    segments: SharedMemorySegments | None = None,
) -> Communicator:
    """Connect parameters in host memory: shared memory within a place, gloo between places.

    Args:
        place: endpoints that name the same place share memory (see `device_place`); an
            empty one shares with nobody.
        segments: as `connect_shared_memory` takes them.

    Raises:
        Unavailable: not all endpoints came within the time.
    """
    places = exchange_places(store, group_id, endpoint, num_endpoints, place, timeout_seconds)
    near = tuple(
        peer
        for peer in range(num_endpoints)
        if peer != endpoint and place and places[peer] == place
    )
    if len(set(places)) == 1 and place:
        network: Communicator | None = None
    else:
        network = GlooCommunicator(
            store=store,
            group_id=group_id,
            endpoint=endpoint,
            num_endpoints=num_endpoints,
            host=host,
            timeout_seconds=timeout_seconds,
        )
    if network is not None and not near:
        return network
    shared = connect_shared_memory(
        store=store,
        group_id=group_id,
        endpoint=endpoint,
        num_endpoints=num_endpoints,
        peers=near,
        timeout_seconds=timeout_seconds,
        segments=segments,
    )
    if network is None:
        return shared
    routes = {
        peer: shared if peer in near else network
        for peer in range(num_endpoints)
        if peer != endpoint
    }
    return CompositeCommunicator(routes, staging=shared)


def connect_cuda(
    *,
    store: Store,
    group_id: str,
    endpoint: int,
    num_endpoints: int,
    device: torch.device,
    timeout_seconds: float,
) -> Communicator:
    """Connect parameters in device memory.

    The first endpoint of each device speaks NCCL; all endpoints of one machine that are not
    both such speak CUDA IPC.

    Raises:
        Unavailable: not all endpoints came within the time.
    """
    identity = str(torch.cuda.get_device_properties(device).uuid)
    place = f"{device_place(0)}|{identity}"
    places = exchange_places(store, group_id, endpoint, num_endpoints, place, timeout_seconds)
    first: dict[str, int] = {}
    for peer, other in enumerate(places):
        first.setdefault(other, peer)
    members = tuple(sorted(first.values()))
    machine = place.split("|")[0]
    by_nccl = [peer for peer in members if endpoint in members and peer != endpoint]
    by_ipc = tuple(
        peer
        for peer, other in enumerate(places)
        if peer != endpoint and peer not in by_nccl and other.split("|")[0] == machine
    )
    routes: dict[int, Communicator] = {}
    if by_nccl:
        nccl = NcclCommunicator(
            store=store,
            group_id=group_id,
            endpoint=endpoint,
            num_endpoints=num_endpoints,
            members=members,
            device=device,
            timeout_seconds=timeout_seconds,
        )
        routes |= dict.fromkeys(by_nccl, nccl)
    staging: Communicator = connect_cuda_ipc(
        store=store,
        group_id=group_id,
        endpoint=endpoint,
        num_endpoints=num_endpoints,
        device=device,
        peers=by_ipc,
        timeout_seconds=timeout_seconds,
    )
    routes |= dict.fromkeys(by_ipc, staging)
    return CompositeCommunicator(routes, staging=staging)


def exchange_places(
    store: Store,
    group_id: str,
    endpoint: int,
    num_endpoints: int,
    place: str,
    timeout_seconds: float,
) -> list[str]:
    """The place of every endpoint.

    Raises:
        Unavailable: not all endpoints said theirs within the time.
    """
    keys = [f"place/{group_id}/{peer}" for peer in range(num_endpoints)]
    store.set(keys[endpoint], place)
    try:
        store.wait(keys, timedelta(seconds=timeout_seconds))
        return [store.get(key).decode() for key in keys]
    except RuntimeError as error:
        raise Unavailable(
            f"endpoint {endpoint}: {_missing(store, keys)} did not come to transfer group "
            f"{group_id!r} within {timeout_seconds:g} s"
        ) from error


def _missing(store: Store, keys: Sequence[str]) -> str:
    """Endpoints whose keys are not there."""
    try:
        missing = [f"endpoint {peer}" for peer, key in enumerate(keys) if not store.check([key])]
    except RuntimeError:  # the store is gone
        missing = []
    return ", ".join(missing) or f"one of {len(keys)} endpoints"


def device_place(device: int) -> str:
    """Names a device of this machine so that only processes that can share memory name it
    alike: same kernel, same user, same temporary folder (two containers have two)."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    folder = os.stat(tempfile.gettempdir())
    return f"{boot}/{os.getuid()}/{folder.st_dev}/{folder.st_ino}/{device}"
