"""Worlds of three endpoints, one per backend, for the contract of communicators."""

import itertools
import threading
from collections.abc import Callable
from typing import Any, Protocol

import torch

from realloc.transfer.communicator import Communicator
from realloc.transfer.connecting import connect_cpu, device_place
from realloc.transfer.cuda_ipc import connect_cuda_ipc
from realloc.transfer.gloo import GlooCommunicator
from realloc.transfer.local import LocalWorld
from realloc.transfer.nccl import NcclCommunicator
from realloc.transfer.rendezvous import TransferStore, connect_store
from realloc.transfer.shared_memory import connect_shared_memory
from tests.support.rank_processes import RankProcesses

NUM_ENDPOINTS = 3
HOST = "127.0.0.1"
Scenario = Callable[[Communicator], Any]


class World(Protocol):
    """Runs a scenario on three freshly connected endpoints."""

    def run(self, scenario: Scenario) -> list[Any]:
        """What the scenario returns on each endpoint; raises what one of them raises."""
        ...

    def close(self) -> None: ...


class ThreadWorld:
    """`local`: three threads."""

    def run(self, scenario: Scenario) -> list[Any]:
        world = LocalWorld(NUM_ENDPOINTS)
        results: list[Any] = [None] * NUM_ENDPOINTS

        def run(endpoint: int) -> None:
            try:
                results[endpoint] = run_and_close(scenario, world.communicator(endpoint))
            except Exception as error:
                results[endpoint] = error

        threads = [threading.Thread(target=run, args=(e,)) for e in range(NUM_ENDPOINTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        for result in results:
            if isinstance(result, Exception):
                raise result
        return results

    def close(self) -> None: ...


class ProcessWorld:
    """A backend between three processes, which are started once."""

    def __init__(self, backend: str) -> None:
        self._backend = backend
        self._store = TransferStore(HOST)
        self._ranks = RankProcesses(NUM_ENDPOINTS)
        self._groups = itertools.count()

    def run(self, scenario: Scenario) -> list[Any]:
        group_id = f"{self._backend}-{next(self._groups)}"
        return self._ranks.run(
            run_connected,
            [
                (scenario, self._backend, self._store.port, group_id, endpoint)
                for endpoint in range(NUM_ENDPOINTS)
            ],
        )

    def close(self) -> None:
        self._ranks.close()
        self._store.close()


def make_world(backend: str) -> World:
    """The world of a backend by its name."""
    return ThreadWorld() if backend == "local" else ProcessWorld(backend)


def run_connected(
    scenario: Scenario, backend: str, store_port: int, group_id: str, endpoint: int
) -> Any:
    """Connect one endpoint, run the scenario, close."""
    return run_and_close(scenario, connect(backend, store_port, group_id, endpoint))


def connect(backend: str, store_port: int, group_id: str, endpoint: int) -> Communicator:
    """One endpoint of a group of three."""
    store = connect_store(HOST, store_port, 20.0)
    if backend == "gloo":
        return GlooCommunicator(
            store=store,
            group_id=group_id,
            endpoint=endpoint,
            num_endpoints=NUM_ENDPOINTS,
            host=HOST,
            timeout_seconds=20.0,
        )
    if backend == "shared_memory":
        return connect_shared_memory(
            store=store,
            group_id=group_id,
            endpoint=endpoint,
            num_endpoints=NUM_ENDPOINTS,
            timeout_seconds=20.0,
        )
    if backend == "composite":  # 0 and 1 share memory, 2 is elsewhere
        return connect_cpu(
            store=store,
            group_id=group_id,
            endpoint=endpoint,
            num_endpoints=NUM_ENDPOINTS,
            host=HOST,
            place="" if endpoint == 2 else device_place(0),
            timeout_seconds=20.0,
        )
    if backend == "cuda_ipc":  # three processes of one device
        return connect_cuda_ipc(
            store=store,
            group_id=group_id,
            endpoint=endpoint,
            num_endpoints=NUM_ENDPOINTS,
            device=torch.device("cuda", 0),
            timeout_seconds=60.0,
        )
    if backend == "nccl":
        torch.cuda.set_device(endpoint)
        return NcclCommunicator(
            store=store,
            group_id=group_id,
            endpoint=endpoint,
            num_endpoints=NUM_ENDPOINTS,
            members=tuple(range(NUM_ENDPOINTS)),
            device=torch.device("cuda", endpoint),
            timeout_seconds=60.0,
        )
    raise NotImplementedError(backend)


def run_and_close(scenario: Scenario, communicator: Communicator) -> Any:
    try:
        return scenario(communicator)
    finally:
        communicator.close()
