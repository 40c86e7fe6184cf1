"""Reallocations beside each other, beside calls that train, and beside the end of their job."""

import asyncio
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
import torch

from realloc.core.errors import Unavailable
from realloc.core.layout import Layout, LayoutKind
from realloc.core.strategy import ParallelStrategy
from services.param_store.model import Model, PlacedLayout
from services.param_store.orders import ReallocationOrder
from tests.support.toy_shards import PartyAround, toy_canonical, toy_parameters
from tests.support.toy_store import (
    ARCHITECTURE,
    MODEL,
    SOURCE,
    name_version,
    order,
    phases,
    run,
    toy_store,
)


def single(device: int) -> Model:
    """A model on one trainer."""
    strategy = ParallelStrategy.parse("d1t1p1")
    layout = Layout(kind=LayoutKind.MEGATRON, strategy=strategy, devices=(device,))
    placed = PlacedLayout(layout=layout, shards=(f"trainer-{device}",), weight_version=0)
    return replace(MODEL, model_id=f"model-{device}", layouts=(placed,))


def to_replica(device: int, version: int) -> ReallocationOrder:
    """Bring it to the replica of its device."""
    strategy = ParallelStrategy.parse("d1t1p1")
    layout = Layout(kind=LayoutKind.VLLM, strategy=strategy, devices=(device,))
    target = PlacedLayout(layout=layout, shards=(f"generation-{device}",))
    request = f"{device}/{version}"
    return order(version, model_id=f"model-{device}", target=target, request_id=request)


def whole(parameters: dict[str, torch.Tensor]) -> None:
    """All weights of version 1 on one rank."""
    layout = single(0).source.layout
    parameters.clear()
    parameters.update(toy_parameters(ARCHITECTURE, layout, 0, toy_canonical(ARCHITECTURE, 1)))


def test_disjoint_reallocations_move_at_once_and_others_wait_their_turn() -> None:
    """While one stands still, another on other devices is done; a third that shares a device
    has not asked any shard yet, and follows."""

    async def scenario() -> None:
        reached, go_on = asyncio.Event(), asyncio.Event()

        class Held(PartyAround):
            async def execute(self, prepared: Any) -> Any:
                reached.set()
                await go_on.wait()
                return await self.party.execute(prepared)

        change = dict.fromkeys(SOURCE.shards, whole)
        async with toy_store(wrap={"generation-0": Held}, change=change) as held:
            for device in range(2):
                await held.registry.register(single(device))
            name_version(held.shards, 1)
            slow = asyncio.create_task(held.reallocator.reallocate(to_replica(0, 1)))
            await reached.wait()
            asked = held.calls.count("PrepareTransfer")
            waiting = asyncio.create_task(held.reallocator.reallocate(to_replica(0, 2)))
            await held.reallocator.reallocate(to_replica(1, 1))
            assert held.calls.count("PrepareTransfer") == asked + 2
            assert not slow.done()
            assert not waiting.done()
            go_on.set()
            await slow
            name_version(held.shards, 2)
            assert (await waiting).weight_version == 2
            held.assert_serves(1)  # version 2 has the same weights here

    run(scenario())


def test_weights_stand_still_while_they_move_and_other_models_do_not_wait() -> None:
    """A call that trains the model waits for the transfer; one of another model goes on."""

    async def scenario() -> None:
        reading, go_on = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()

        class Held(PartyAround):
            async def execute(self, prepared: Any) -> Any:
                await go_on.wait()
                return await self.party.execute(prepared)

        async with toy_store(wrap={"generation-0": Held}) as held:
            held.train(1)
            source = held.shards["trainer-0"]

            def version_read(model_id: str) -> int:
                loop.call_soon_threadsafe(reading.set)
                return 1

            def train(model_id: str, patience: float) -> None:
                with ExitStack() as locked:
                    for name in SOURCE.shards:
                        shard = held.shards[name]
                        locked.enter_context(shard.locks.changing(model_id, patience))
                    if model_id == "actor":
                        held.train(2)

            source.trainer.weight_version = version_read  # type: ignore[union-attr, method-assign]
            moving = asyncio.create_task(held.reallocator.reallocate(order(1)))
            await reading.wait()
            await asyncio.to_thread(train, "critic", 10.0)
            with pytest.raises(Unavailable, match="still reads actor"):
                await asyncio.to_thread(train, "actor", 0.01)
            training = asyncio.create_task(asyncio.to_thread(train, "actor", 20.0))
            go_on.set()
            await moving
            await training
            held.assert_serves(1)

    run(scenario())


def test_release_ends_a_reallocation_and_forgets_everything() -> None:
    """A running one is aborted; no model and no record is left; the shards hold nothing."""

    async def scenario() -> None:
        reached = asyncio.Event()

        class Held(PartyAround):
            async def execute(self, prepared: Any) -> Any:
                reached.set()
                await asyncio.Event().wait()

        async with toy_store(wrap={"generation-1": Held}) as held:
            held.train(1)
            moving = asyncio.create_task(held.reallocator.reallocate(order(1, timeout_seconds=4.0)))
            await reached.wait()
            await held.reallocator.release("job")
            with pytest.raises(Unavailable, match="its job was released"):
                await moving
            held.assert_serves(None)
            assert await phases(held) == []
            assert await held.registry.list("job") == ()
            assert not await held.store.list("/realloc/reallocations/")

    run(scenario())


def test_a_start_that_was_replaced_releases_nothing() -> None:
    """Models of a later start stay; its own release, and one of any start, end them."""

    async def scenario() -> None:
        async with toy_store() as held:
            for run_id in ("second", ""):
                await held.reallocator.release("job")
                await held.registry.register(replace(MODEL, run_id="second"))
                await held.reallocator.release("job", "first")
                (kept,) = await held.registry.list("job")
                assert kept.run_id == "second"
                await held.reallocator.release("job", run_id)
                assert await held.registry.list("job") == ()

    run(scenario())
