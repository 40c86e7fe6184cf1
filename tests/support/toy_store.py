"""A param-store in the test's process, with toy shards around it."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from realloc.coordination.members import Members
from realloc.coordination.membership import Member
from realloc.coordination.memory_store import MemoryStore
from realloc.coordination.store import Store
from realloc.core.layout import Layout, LayoutKind
from realloc.core.model import Head, ModelArchitecture
from realloc.core.strategy import ParallelStrategy
from realloc.rpc.channels import Channels
from services.param_store.device_queue import DeviceQueue
from services.param_store.model import Model, PlacedLayout
from services.param_store.orders import ReallocationOrder
from services.param_store.participants import Processes
from services.param_store.phases import Phase
from services.param_store.plans import Plans, architecture_of
from services.param_store.reallocator import Reallocator
from services.param_store.records import Records
from services.param_store.registry import Registry
from tests.support.deadline import TEST_SECONDS
from tests.support.toy_shards import (
    Parameters,
    ToyShard,
    toy_canonical,
    toy_parameters,
    toy_replica,
    toy_trainer,
)
from tests.tiny_models import tiny_config_text

SOURCE = PlacedLayout(
    layout=Layout(
        kind=LayoutKind.MEGATRON, strategy=ParallelStrategy.parse("d1t2p1"), devices=(0, 1)
    ),
    shards=("trainer-0", "trainer-1"),
    weight_version=0,
)
TARGET = PlacedLayout(
    layout=Layout(kind=LayoutKind.VLLM, strategy=ParallelStrategy.parse("d2t1p1"), devices=(0, 1)),
    shards=("generation-0", "generation-1"),
)
MODEL = Model(
    job_id="job",
    model_id="actor",
    hf_config=tiny_config_text("llama", max_position_embeddings=64),
    head=Head.LM,
    layouts=(SOURCE,),
)
ARCHITECTURE: ModelArchitecture = architecture_of(MODEL)


def order(version: int, **changes: Any) -> ReallocationOrder:
    """Bring TARGET to a version."""
    plain = ReallocationOrder(
        request_id=f"job/actor/{version}",
        job_id="job",
        model_id="actor",
        target=TARGET,
        weight_version=version,
        timeout_seconds=20.0,
    )
    return replace(plain, **changes)


def member(name: str, address: str, incarnation: str = "1") -> Member:
    """A registered shard: ``trainer-0`` owns device 0 of node 0."""
    kind, _, device = name.partition("-")
    return Member(
        kind=kind,
        name=name,
        address=address,
        incarnation=incarnation,
        host="localhost",
        device=int(device),
        node=0,
    )


def run(scenario: Coroutine[Any, Any, None]) -> None:
    """Run a scenario to its end."""

    async def bounded() -> None:
        async with asyncio.timeout(TEST_SECONDS):
            await scenario

    asyncio.run(bounded())


async def phases(held: "ToyStore") -> list[Phase]:
    """Phases of all records."""
    return [record.value.phase for record in await Records(held.store).list()]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToyStore:
    """What the tests hold."""

    store: MemoryStore
    registry: Registry
    processes: Processes
    reallocator: Reallocator
    shards: dict[str, ToyShard]
    calls: list[str]
    """Methods that were called on shards, in order."""

    def train(self, version: int, frozen: Sequence[str] = ()) -> None:
        """Let the trainers hold a version."""
        canonical = toy_canonical(ARCHITECTURE, version, frozen)
        for rank, name in enumerate(SOURCE.shards):
            new = toy_parameters(ARCHITECTURE, SOURCE.layout, rank, canonical)
            for key, value in new.items():
                self.shards[name].parameters[key].copy_(value)
        name_version(self.shards, version)

    def assert_serves(
        self, version: int | None, frozen: Sequence[str] = (), dtype: torch.dtype = torch.float32
    ) -> None:
        """Every replica holds a version bit by bit; None: the zeros that it began with."""
        canonical = None if version is None else toy_canonical(ARCHITECTURE, version, frozen)
        for rank, name in enumerate(TARGET.shards):
            wanted = toy_parameters(ARCHITECTURE, TARGET.layout, rank, canonical, dtype)
            held = self.shards[name].parameters
            assert all(torch.equal(held[key], wanted[key]) for key in wanted), name

    async def restarted(self) -> Reallocator:
        """Another param-store over the same store, as after a crash of the first."""
        return _reallocator(self.store, self.processes)


class CountedProcesses(Processes):
    """Notes every call of a shard."""

    def __init__(self, members: Members, connect: Any) -> None:
        super().__init__(members, connect)
        self.calls: list[str] = []

    def stub(self, member: Member) -> Any:
        return _CountedStub(super().stub(member), self.calls)


class _CountedStub:
    def __init__(self, stub: Any, calls: list[str]) -> None:
        self._stub = stub
        self._calls = calls

    def __getattr__(self, method: str) -> Any:
        self._calls.append(method)
        return getattr(self._stub, method)


def name_version(shards: Mapping[str, ToyShard], version: int) -> None:
    """Let the trainers call what they hold a version."""
    for name in SOURCE.shards:
        trainer = shards[name].trainer
        assert trainer is not None
        trainer.version = version


def _reallocator(store: MemoryStore, processes: Processes) -> Reallocator:
    return Reallocator(store=store, processes=processes, plans=Plans(8), queue=DeviceQueue(8))


@asynccontextmanager
async def toy_store(
    dtype: torch.dtype = torch.float32,
    wrap: dict[str, Any] | None = None,
    change: dict[str, Any] | None = None,
) -> AsyncIterator[ToyStore]:
    """Two trainers, two replicas, a registered model, a reallocator.

    Args:
        dtype: of the replicas' parameters.
        wrap: per shard something that wraps its party.
        change: per shard a function that changes its parameters before it starts.
    """
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(MemoryStore())
        shards = await stack.enter_async_context(toy_shards(store, dtype, wrap, change))
        members = await stack.enter_async_context(Members(store))
        channels = await stack.enter_async_context(Channels())
        processes = CountedProcesses(members, channels.get)
        registry = Registry(store)
        await registry.register(MODEL)
        reallocator = _reallocator(store, processes)
        stack.push_async_callback(reallocator.close)
        yield ToyStore(
            store=store,
            registry=registry,
            processes=processes,
            reallocator=reallocator,
            shards=shards,
            calls=processes.calls,
        )


@asynccontextmanager
async def toy_shards(
    store: Store,
    dtype: torch.dtype = torch.float32,
    wrap: dict[str, Any] | None = None,
    change: dict[str, Any] | None = None,
) -> AsyncIterator[dict[str, ToyShard]]:
    """Two trainers and two replicas, registered in a store; see `toy_store`."""
    wrap, change = wrap or {}, change or {}
    async with AsyncExitStack() as stack:
        shards = {}
        for placed, serve, kind in (
            (SOURCE, toy_trainer, torch.float32),
            (TARGET, toy_replica, dtype),
        ):
            for rank, name in enumerate(placed.shards):
                parameters: Parameters = toy_parameters(
                    ARCHITECTURE, placed.layout, rank, None, kind
                )
                change.get(name, lambda _: None)(parameters)
                shards[name] = await stack.enter_async_context(
                    serve(name, parameters, wrap.get(name, lambda party: party))
                )
                entry = member(name, shards[name].address)
                await store.put(entry.key, entry.to_json())
        yield shards
