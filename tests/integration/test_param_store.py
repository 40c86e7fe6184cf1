"""A param-store and toy shards over gRPC and gloo, in one process: what moves, and how often."""

import asyncio
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from realloc.core.errors import Conflict
from realloc.reallocation.families import canonical_names, canonical_tensors
from services.param_store.orders import TransferMode
from services.param_store.phases import Phase
from tests.support.toy_shards import PartyAround
from tests.support.toy_store import (
    ARCHITECTURE,
    SOURCE,
    TARGET,
    ToyStore,
    member,
    name_version,
    order,
    phases,
    run,
    toy_store,
)


def test_a_reallocation_brings_every_bit_and_writes_the_version() -> None:
    """Bit by bit the trainer's weights; the registry knows version and incarnations."""

    async def scenario() -> None:
        async with toy_store() as held:
            held.train(1)
            done = await held.reallocator.reallocate(order(1))
            held.assert_serves(1)
            assert done.digest_ok
            assert done.num_digests == 2 * len(canonical_names(ARCHITECTURE))
            model = await held.registry.get("job", "actor")
            placed = model.placed(TARGET)
            assert placed is not None
            assert (placed.weight_version, placed.incarnations) == (1, ("1", "1"))
            assert await phases(held) == [Phase.COMMITTED]

    run(scenario())


def test_bfloat16_is_cast_on_the_way() -> None:
    """Half the bytes; the replica holds the trainer's float32 weights rounded."""

    async def scenario() -> None:
        async with toy_store(dtype=torch.bfloat16) as held:
            held.train(1)
            done = await held.reallocator.reallocate(order(1, dtype="bfloat16"))
            held.assert_serves(1, dtype=torch.bfloat16)
            elements = sum(math.prod(tensor.shape) for tensor in canonical_tensors(ARCHITECTURE))
            assert done.bytes == 2 * elements * len(TARGET.shards)

    run(scenario())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_shard_is_told_who_casts_nothing(dtype: torch.dtype) -> None:
    """Trainers of float32 cast what moves as bfloat16; replicas hold what moves."""
    told: list[set[int]] = []

    class Listening(PartyAround):
        async def execute(self, prepared: Any) -> Any:
            told.append(set(prepared.session.uncast))
            return await self.party.execute(prepared)

    async def scenario() -> None:
        names = (*SOURCE.shards, *TARGET.shards)
        async with toy_store(dtype=dtype, wrap=dict.fromkeys(names, Listening)) as held:
            held.train(1)
            await held.reallocator.reallocate(order(1, dtype=str(dtype).removeprefix("torch.")))
            sources, everyone = len(SOURCE.shards), len(names)
            casting = sources if dtype is torch.bfloat16 else 0
            assert told == [set(range(casting, everyone))] * everyone

    run(scenario())


def test_the_same_version_again_costs_no_call_of_a_shard() -> None:
    """Where the version is, and where it is made, nothing is asked and nothing moves, until a
    process of the target restarts."""

    async def scenario() -> None:
        async with toy_store() as held:
            held.train(1)
            await held.reallocator.reallocate(order(1))
            asked = list(held.calls)
            assert {"PrepareTransfer", "ExecuteTransfer", "CommitTransfer"} <= set(asked)
            held.train(2)  # what would arrive, if anything moved
            done = await held.reallocator.reallocate(order(1, request_id="again"))
            assert (done.bytes, done.seconds, done.weight_version) == (0, 0.0, 1)
            source = order(5, target=replace(SOURCE, weight_version=-1), request_id="source")
            assert (await held.reallocator.reallocate(source)).bytes == 0
            assert held.calls == asked
            held.assert_serves(1)
            assert (await held.registry.get("job", "actor")).source.weight_version == 5
            name_version(held.shards, 5)
            await restart(held, "generation-1")
            await held.reallocator.reallocate(order(5, request_id="restarted"))
            assert len(held.calls) > len(asked)
            held.assert_serves(2)

    run(scenario())


def test_only_changed_tensors_move() -> None:
    """With frozen tensors the second reallocation moves the others; the weights are whole. A
    replica that restarted gets everything."""
    names = canonical_names(ARCHITECTURE)
    frozen = [name for name in names if ".layers.0." in name or "embed" in name]

    async def scenario() -> None:
        async with toy_store() as held:
            changed = {"mode": TransferMode.CHANGED}
            held.train(1, frozen)
            first = await held.reallocator.reallocate(order(1, **changed))
            held.train(2, frozen)
            second = await held.reallocator.reallocate(order(2, **changed))
            held.assert_serves(2, frozen)
            assert first.num_tensors == len(names)
            assert second.num_tensors == len(names) - len(frozen)
            assert 0 < second.bytes < first.bytes
            name_version(held.shards, 3)
            third = await held.reallocator.reallocate(order(3, **changed))
            assert (third.num_tensors, third.bytes) == (0, 0)
            held.assert_serves(2, frozen)
            for parameter in held.shards["generation-1"].parameters.values():
                parameter.zero_()
            await restart(held, "generation-1")
            name_version(held.shards, 4)
            fourth = await held.reallocator.reallocate(order(4, **changed))
            assert fourth.num_tensors == len(names)
            held.assert_serves(2, frozen)

    run(scenario())


async def restart(held: ToyStore, name: str) -> None:
    """A shard is there again as another incarnation, and the param-store has seen it."""
    restarted = member(name, held.shards[name].address, "2")
    await held.store.put(restarted.key, restarted.to_json())
    while held.processes.find(name) != restarted:
        await asyncio.sleep(0)


def test_a_request_is_carried_out_once_also_over_a_restart() -> None:
    """The same id gives the outcome of the one that runs, or the recorded one; for anything else
    it is a conflict."""

    async def scenario() -> None:
        async with toy_store() as held:
            held.train(1)
            same = [asyncio.create_task(held.reallocator.reallocate(order(1))) for _ in range(2)]
            await asyncio.sleep(0)
            elsewhere = replace(TARGET, shards=TARGET.shards[::-1])
            for other in (
                order(2, request_id="job/actor/1"),
                order(1, dtype="bfloat16"),
                order(1, target=elsewhere),
                order(1, model_id="critic"),
            ):
                with pytest.raises(Conflict, match="another reallocation"):
                    await held.reallocator.reallocate(other)
            both = await asyncio.gather(*same)
            assert both[0] == both[1]
            held.train(9)
            later = await held.restarted()
            assert await later.reallocate(order(1)) == both[0]
            held.assert_serves(1)
            with pytest.raises(Conflict, match="another reallocation"):
                await later.reallocate(order(2, request_id="job/actor/1"))

    run(scenario())
