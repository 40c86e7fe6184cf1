"""What a shard process keeps for reallocations: its store, and its connections by group.

Blocking; one thread uses it: the transfers' thread in a trainer, the worker's in vLLM.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch

from realloc.core.errors import InvalidInput
from realloc.core.transfer import TransferProgram, TransferSession
from realloc.transfer.arrivals import Arrival
from realloc.transfer.communicator import Communicator, Memory
from realloc.transfer.connecting import connect_cpu, connect_cuda, device_place
from realloc.transfer.executor import TransferReport, execute
from realloc.transfer.rendezvous import TransferStore, connect_store
from realloc.transfer.shared_memory import SharedMemorySegments
from realloc.transfer.staging import (
    CUDA_CHUNK_BYTES,
    DEFAULT_CHUNK_BYTES,
    DEFAULT_STAGING_BYTES,
    LEAST_CUDA_STAGING_BYTES,
    StagingBuffers,
)

DEFAULT_MAX_GROUPS = 8
_TRANSPORTS = {"cpu": ("gloo", "shared_memory"), "cuda": ("nccl", "cuda_ipc")}
"""By the kind of device: between devices, and between processes of one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """A group that this process is connected to, and the buffers it moves through."""

    communicator: Communicator
    staging: StagingBuffers


class TransferEndpoint:
    """A process as an end of transfers.

    A connection is made at the first transfer of a group and used again for later ones. It is
    dropped when a transfer over it failed, when it is the least recently used of too many,
    and at `close`. After a failed transfer all endpoints need a new group id: those that were
    through before the failure have not noticed it.
    """

    def __init__(
        self,
        host: str,
        name: str,
        *,
        device: int | None = None,
        cuda_device: torch.device | None = None,
        staging_bytes: int = DEFAULT_STAGING_BYTES,
        max_groups: int = DEFAULT_MAX_GROUPS,
    ) -> None:
        """Serve a store on `host`.

        Args:
            host: address of this machine that the other endpoints can connect to.
            name: name of the shard, for errors.
            device: device that the process owns; it shares memory with other processes of the
                device. None: it reaches all over the network.
            cuda_device: where the parameters lie, if on a GPU: they move by CUDA IPC and NCCL.
            staging_bytes: most bytes of staging buffers of the process.
            max_groups: most connections that are kept.

        Raises:
            InvalidInput: less than two chunks need, or on a GPU than its peers count on.
        """
        least = 2 * DEFAULT_CHUNK_BYTES if cuda_device is None else LEAST_CUDA_STAGING_BYTES
        if staging_bytes < least:
            raise InvalidInput.at(
                "staging_bytes", f"is {staging_bytes} and must be at least {least}"
            )
        self.name = name
        self._host = host
        self._cuda_device = cuda_device
        self._place = "" if device is None or cuda_device is not None else device_place(device)
        self._staging_bytes = staging_bytes
        self._max_groups = max_groups
        self._segments = SharedMemorySegments()
        self._store = TransferStore(host)
        self._connections: OrderedDict[str, Connection] = OrderedDict()

    @property
    def store_host(self) -> str:
        """Where this process's store listens: for sessions that meet here."""
        return self._store.host

    @property
    def store_port(self) -> int:
        return self._store.port

    @property
    def group_ids(self) -> tuple[str, ...]:
        """Groups that are connected, the least recently used first."""
        return tuple(self._connections)

    def allocate(self, size_bytes: int) -> torch.Tensor:
        """Memory for parameters to be written, uint8 [size_bytes]: other processes of the device
        can write there themselves."""
        if self._place:
            return self._segments.allocate(size_bytes)
        return torch.empty(size_bytes, dtype=torch.uint8, device=self._cuda_device)

    def connect(self, session: TransferSession, endpoint: int) -> Connection:
        """Join the session's group; all its endpoints do this at the same time.

        Args:
            session: names the group and where it meets.
            endpoint: index of this process in the session.

        Raises:
            Unavailable: not all endpoints came within the session's timeout.
            InvalidInput: this process has another index in the group already.
        """
        connection = self._connections.get(session.group_id)
        if connection is None:
            connection = self._connect(session, endpoint)
            self._connections[session.group_id] = connection
        elif connection.communicator.endpoint != endpoint:
            raise InvalidInput.at(
                "endpoint",
                f"{self.name} is endpoint {connection.communicator.endpoint} of group "
                f"{session.group_id!r}, not {endpoint}",
            )
        self._connections.move_to_end(session.group_id)
        for idle in list(self._connections.values())[:-1]:
            idle.staging.release()  # the process has one budget of buffers for all groups
        while len(self._connections) > self._max_groups:
            self.drop(next(iter(self._connections)))
        return connection

    def run(
        self,
        session: TransferSession,
        program: TransferProgram,
        source: Mapping[str, torch.Tensor],
        destination: Mapping[str, torch.Tensor],
        *,
        digests: bool = True,
        arrived: Callable[[Arrival], None] | None = None,
    ) -> TransferReport:
        """Connect where needed and execute a program; see `executor.execute`.

        Raises:
            Unavailable: a peer is gone or late. The connection is dropped.
            InvalidInput: parameters do not fit the program. The connection is dropped, since
                the peers wait for this process in vain.
        """
        connection = self.connect(session, program.endpoint)
        try:
            return execute(
                program,
                connection.communicator,
                source,
                destination,
                staging=connection.staging,
                dtype=session.dtype,
                timeout_seconds=session.timeout_seconds,
                digests=digests,
                arrived=arrived,
                uncast=session.uncast,
            )
        except BaseException:
            self.drop(session.group_id)
            raise

    def transports(self, group_id: str, peers: Iterable[int]) -> tuple[str, ...]:
        """How peers of a connected group are reached: names, each once, sorted."""
        communicator = self._connections[group_id].communicator
        network, shared = _TRANSPORTS[communicator.device.type]
        crossed = {communicator.memory(peer) is Memory.ANY for peer in peers}
        return tuple(sorted(network if crosses else shared for crosses in crossed))

    def drop(self, group_id: str) -> None:
        """Close the connection of a group, if there is one; its peers notice."""
        connection = self._connections.pop(group_id, None)
        if connection is not None:
            connection.communicator.close()

    def close(self) -> None:
        """Drop all connections and stop serving. Safe to call twice."""
        for group_id in self.group_ids:
            self.drop(group_id)
        self._store.close()

    def _connect(self, session: TransferSession, endpoint: int) -> Connection:
        communicator = self._communicator(session, endpoint)
        staging = StagingBuffers(
            communicator.allocate,
            staging_bytes=self._staging_bytes,
            chunk_bytes=DEFAULT_CHUNK_BYTES if self._cuda_device is None else CUDA_CHUNK_BYTES,
        )
        return Connection(communicator=communicator, staging=staging)

    def _communicator(self, session: TransferSession, endpoint: int) -> Communicator:
        store = connect_store(session.store_host, session.store_port, session.timeout_seconds)
        if self._cuda_device is not None:
            return connect_cuda(
                store=store,
                group_id=session.group_id,
                endpoint=endpoint,
                num_endpoints=session.num_endpoints,
                device=self._cuda_device,
                timeout_seconds=session.timeout_seconds,
            )
        return connect_cpu(
            store=store,
            group_id=session.group_id,
            endpoint=endpoint,
            num_endpoints=session.num_endpoints,
            host=self._host,
            place=self._place,
            timeout_seconds=session.timeout_seconds,
            segments=self._segments,
        )
