"""How the endpoints of a group reach each other, decided when they meet."""

import os
import tempfile
from datetime import timedelta
from pathlib import Path

from torch.distributed.distributed_c10d import Store

from realloc.core.errors import Unavailable
from realloc.transfer.communicator import Communicator
from realloc.transfer.composite import CompositeCommunicator
from realloc.transfer.gloo import GlooCommunicator
from realloc.transfer.shared_memory import connect_shared_memory


def connect_cpu(
    *,
    store: Store,
    group_id: str,
    endpoint: int,
    num_endpoints: int,
    host: str,
    place: str,
    timeout_seconds: float,
) -> Communicator:
    """Connect parameters in host memory: shared memory within a place, gloo between places.

    Args:
        place: endpoints that name the same place share memory (see `device_place`); an
            empty one shares with nobody.

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
    )
    if network is None:
        return shared
    routes = {
        peer: shared if peer in near else network
        for peer in range(num_endpoints)
        if peer != endpoint
    }
    return CompositeCommunicator(routes, staging=shared)


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
            f"endpoint {endpoint}: not all {num_endpoints} endpoints of transfer group "
            f"{group_id!r} came within {timeout_seconds:g} s"
        ) from error


def device_place(device: int) -> str:
    """Names a device of this machine so that only processes that can share memory name it
    alike: same kernel, same user, same temporary folder (two containers have two)."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    folder = os.stat(tempfile.gettempdir())
    return f"{boot}/{os.getuid()}/{folder.st_dev}/{folder.st_ino}/{device}"
