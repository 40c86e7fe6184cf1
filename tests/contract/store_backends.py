"""What the contract suite needs of an implementation besides the Store itself."""

import asyncio
import contextlib
import uuid
from abc import ABC, abstractmethod

import grpc.aio
from aetcd import rpc

from deploy.local.etcd_server import EtcdServer
from realloc.coordination.etcd_store import EtcdStore
from realloc.coordination.memory_database import MemoryDatabase
from realloc.coordination.memory_store import MemoryStore
from realloc.coordination.store import Store

CALL_SECONDS = 20.0


class StoreBackend(ABC):
    """One set of data with several clients, each of which can be cut off."""

    def __init__(self) -> None:
        self.stores: list[Store] = []
        self.prefix = f"/test/{uuid.uuid4().hex}/"
        """Keys of this test only: the etcd is shared."""

    @abstractmethod
    async def open(self, timeout_seconds: float = CALL_SECONDS) -> Store:
        """Another client of the same data, and the deadline of its calls."""

    @abstractmethod
    def cut_off(self, store: Store) -> None:
        """Let no byte pass between a client and its data; connections stay open."""

    @abstractmethod
    def heal(self, store: Store) -> None:
        """Undo `cut_off`."""

    @abstractmethod
    async def compact(self, revision: int) -> None:
        """Forget the events before a revision."""

    async def close(self) -> None:
        """Close every client."""
        for store in self.stores:
            await store.close()


class MemoryBackend(StoreBackend):
    """In-memory stores of one database."""

    def __init__(self) -> None:
        super().__init__()
        self.database = MemoryDatabase()

    async def open(self, timeout_seconds: float = CALL_SECONDS) -> Store:
        store = MemoryStore(self.database, timeout_seconds=timeout_seconds)
        self.stores.append(store)
        return store

    def cut_off(self, store: Store) -> None:
        assert isinstance(store, MemoryStore)
        store.disconnect()

    def heal(self, store: Store) -> None:
        assert isinstance(store, MemoryStore)
        store.reconnect()

    async def compact(self, revision: int) -> None:
        self.database.compact(revision)


class EtcdBackend(StoreBackend):
    """Clients of one etcd, each through a wire of its own."""

    def __init__(self, server: EtcdServer) -> None:
        super().__init__()
        self.server = server
        self.wires: dict[Store, Wire] = {}

    async def open(self, timeout_seconds: float = CALL_SECONDS) -> Store:
        wire = Wire(self.server.member.client_port)
        await wire.open()
        store = EtcdStore([f"127.0.0.1:{wire.port}"], timeout_seconds=timeout_seconds)
        self.wires[store] = wire
        self.stores.append(store)
        return store

    def cut_off(self, store: Store) -> None:
        self.wires[store].intact.clear()

    def heal(self, store: Store) -> None:
        self.wires[store].intact.set()

    async def compact(self, revision: int) -> None:
        async with grpc.aio.insecure_channel(self.server.endpoint) as channel:
            request = rpc.CompactionRequest(revision=revision, physical=True)
            await rpc.KVStub(channel).Compact(request, timeout=CALL_SECONDS)

    async def close(self) -> None:
        await super().close()
        for wire in self.wires.values():
            await wire.close()


class Wire:
    """A TCP proxy on loopback that can fall silent."""

    def __init__(self, target_port: int) -> None:
        self.port = 0
        self.intact = asyncio.Event()
        self.intact.set()
        self._target_port = target_port
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Listen on a free port."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Break every connection."""
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _connected(self, near: asyncio.StreamReader, out: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        with contextlib.suppress(OSError, asyncio.CancelledError), contextlib.closing(out):
            far, into = await asyncio.open_connection("127.0.0.1", self._target_port)
            with contextlib.closing(into):
                pumps = [
                    asyncio.create_task(self._pump(near, into)),
                    asyncio.create_task(self._pump(far, out)),
                ]
                try:
                    await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for pump in pumps:
                        pump.cancel()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                await self.intact.wait()
                writer.write(data)
                await writer.drain()
