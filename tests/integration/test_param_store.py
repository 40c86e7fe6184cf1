"""A param-store and toy shards over gRPC and gloo, in one process."""

import asyncio
import math
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from realloc.core.errors import Conflict, InvalidInput, NotFound, Unavailable
from realloc.core.layout import Layout, LayoutKind
from realloc.core.strategy import ParallelStrategy
from realloc.reallocation.families import canonical_names, canonical_tensors
from realloc.reallocation.layouts.provider import RankLayout, local_parameters
from services.param_store import plans
from services.param_store.model import Model, PlacedLayout
from services.param_store.orders import ReallocationOrder, TransferMode
from services.param_store.phases import Phase
from services.param_store.records import Records
from tests.support.toy_shards import toy_canonical, toy_parameters
from tests.support.toy_store import (
    ARCHITECTURE,
    MODEL,
    SOURCE,
    TARGET,
    ToyStore,
    member,
    name_version,
    order,
    toy_store,
)

TEST_SECONDS = 180.0


def run(scenario: Coroutine[Any, Any, None]) -> None:
    """Run a scenario to its end."""

    async def bounded() -> None:
        async with asyncio.timeout(TEST_SECONDS):
            await scenario

    asyncio.run(bounded())


async def phases(held: ToyStore) -> list[Phase]:
    """Phases of all records."""
    return [record.value.phase for record in await Records(held.store).list()]


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


def test_the_wrong_element_type_names_tensor_and_rank() -> None:
    """float32 is asked for and the engine runs bfloat16: nothing moves."""

    async def scenario() -> None:
        async with toy_store(dtype=torch.bfloat16) as held:
            held.train(1)
            with pytest.raises(InvalidInput) as caught:
                await held.reallocator.reallocate(order(1))
            held.assert_serves(None, dtype=torch.bfloat16)
            text = str(caught.value)
            assert "generation-0" in text
            assert "generation-1" in text
            assert "rank 1 of vllm:d2t1p1@0-1: " in text
            assert "model.embed_tokens.weight is bfloat16 here and float32 is asked for" in text
            assert await phases(held) == [Phase.ABORTED]

    run(scenario())


def test_another_shape_and_a_missing_tensor_are_named_with_their_rank() -> None:
    """All problems of all shards at once; nothing changes, and the next request works."""

    def transpose(parameters: dict[str, torch.Tensor]) -> None:
        name = "decoder.layers.0.mlp.linear_fc1.weight"
        parameters[name] = parameters[name].t().contiguous()

    def drop(parameters: dict[str, torch.Tensor]) -> None:
        del parameters["model.norm.weight"]

    async def scenario() -> None:
        changes = {"trainer-1": transpose, "generation-0": drop}
        async with toy_store(change=changes) as held:
            with pytest.raises(InvalidInput) as caught:
                await held.reallocator.reallocate(order(1))
            found = {(each.path, each.reason) for each in caught.value.problems}
            assert found == {
                (
                    "trainer-1: programs[0]",
                    "rank 1 of megatron:d1t2p1@0-1: decoder.layers.0.mlp.linear_fc1.weight has "
                    "shape 64×128 here and 128×64 in the layout",
                ),
                (
                    "generation-0: programs[0]",
                    "rank 0 of vllm:d2t1p1@0-1: model.norm.weight is not here; is this another "
                    "model, or another layout of it?",
                ),
            }

    run(scenario())


def test_boxes_that_overlap_are_refused_before_anything_moves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A layout whose table stores two tensors in one place: parameter and rank are named."""

    def overlapping(architecture: Any, layout: Any, rank: int) -> RankLayout:
        table = local_parameters(architecture, layout, rank)
        start = table.blocks.start.copy()
        fused = np.flatnonzero(np.diff(table.blocks.tensor) == 0)[0]
        start[fused + 1] = start[fused]
        return replace(table, blocks=replace(table.blocks, start=start))

    async def scenario() -> None:
        async with toy_store() as held:
            held.train(1)
            monkeypatch.setattr(plans, "local_parameters", overlapping)
            with pytest.raises(InvalidInput, match=r"rank 0 of megatron:d1t2p1@0-1: \S+ has boxes"):
                await held.reallocator.reallocate(order(1))
            held.assert_serves(None)
            assert await phases(held) == []

    run(scenario())


def test_a_layout_that_the_model_cannot_have_is_refused() -> None:
    """Missing ranks, unknown processes, wrong devices, and degrees that do not divide."""

    async def scenario() -> None:
        with pytest.raises(InvalidInput, match="nobody holds rank 1"):
            PlacedLayout(layout=TARGET.layout, shards=("generation-0",))
        async with toy_store() as held:
            stranger = replace(TARGET, shards=("generation-0", "generation-7"))
            with pytest.raises(NotFound, match=r"generation-7.*rank 1 of vllm:d2t1p1@0-1"):
                await held.reallocator.reallocate(order(1, target=stranger))
            swapped = replace(TARGET, shards=("generation-1", "generation-0"))
            with pytest.raises(InvalidInput, match=r"rank 0 .* lives on device 0"):
                await held.reallocator.reallocate(order(1, target=swapped))
            with pytest.raises(InvalidInput, match="trainer-0"):
                await held.reallocator.reallocate(
                    order(1, target=replace(TARGET, shards=SOURCE.shards))
                )
            with pytest.raises(NotFound, match="no model"):
                await held.reallocator.reallocate(order(1, model_id="critic"))
            assert await phases(held) == []

    run(scenario())


def test_a_shard_that_does_not_answer_is_named_and_nothing_changes() -> None:
    """Unavailable within the deadline, with the process and its rank."""

    async def scenario() -> None:
        class Silent:
            def __init__(self, party: Any) -> None:
                self._party = party

            def __getattr__(self, name: str) -> Any:
                return getattr(self._party, name)

            async def check(self, prepared: Any) -> None:
                await asyncio.Event().wait()

        async with toy_store(wrap={"generation-1": Silent}) as held:
            held.train(1)
            with pytest.raises(Unavailable, match=r"generation-1 \(rank 1 of vllm:d2t1p1@0-1\)"):
                await held.reallocator.reallocate(order(1, timeout_seconds=3.0))
            held.assert_serves(None)

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
            restarted = member("generation-1", held.shards["generation-1"].address, "2")
            await held.store.put(restarted.key, restarted.to_json())
            while held.processes.find("generation-1") != restarted:
                await asyncio.sleep(0)
            await held.reallocator.reallocate(order(5, request_id="restarted"))
            assert len(held.calls) > len(asked)
            held.assert_serves(2)

    run(scenario())


def test_only_changed_tensors_move() -> None:
    """With frozen tensors the second reallocation moves the others; the weights are whole."""
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

    run(scenario())


def test_a_request_is_carried_out_once_also_over_a_restart() -> None:
    """The same id gives the recorded outcome; for another version it is a conflict."""

    async def scenario() -> None:
        async with toy_store() as held:
            held.train(1)
            both = await asyncio.gather(
                held.reallocator.reallocate(order(1)), held.reallocator.reallocate(order(1))
            )
            assert both[0] == both[1]
            held.train(9)
            later = await held.restarted()
            assert await later.reallocate(order(1)) == both[0]
            held.assert_serves(1)
            with pytest.raises(Conflict, match="another reallocation"):
                await later.reallocate(order(2, request_id="job/actor/1"))

    run(scenario())


def test_release_ends_a_reallocation_and_forgets_everything() -> None:
    """A running one is aborted; no model and no record is left; the shards hold nothing."""

    async def scenario() -> None:
        reached = asyncio.Event()

        class Held:
            def __init__(self, party: Any) -> None:
                self._party = party

            def __getattr__(self, name: str) -> Any:
                return getattr(self._party, name)

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


def test_weights_stand_still_while_they_move_and_other_models_do_not_wait() -> None:
    """A call that trains the model waits for the transfer; one of another model goes on."""

    async def scenario() -> None:
        reading, go_on = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()

        class Held:
            def __init__(self, party: Any) -> None:
                self._party = party

            def __getattr__(self, name: str) -> Any:
                return getattr(self._party, name)

            async def execute(self, prepared: Any) -> Any:
                await go_on.wait()
                return await self._party.execute(prepared)

        async with toy_store(wrap={"generation-0": Held}) as held:
            held.train(1)
            source = held.shards["trainer-0"]

            def version_read(model_id: str) -> int:
                loop.call_soon_threadsafe(reading.set)
                return 1

            def train(model_id: str, patience: float) -> None:
                with source.locks.changing(model_id, patience):
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


def test_a_version_that_the_trainers_do_not_hold_is_refused() -> None:
    """Neither one to come nor one that is gone: the error names process and versions."""

    async def scenario() -> None:
        async with toy_store() as held:
            held.train(1)
            with pytest.raises(
                Conflict, match=r"trainer-\d .*actor is at version 1 here and version 2"
            ):
                await held.reallocator.reallocate(order(2, timeout_seconds=4.0))
            held.assert_serves(None)
            assert await phases(held) == [Phase.ABORTED]

    run(scenario())


def test_disjoint_reallocations_move_at_once_and_others_wait_their_turn() -> None:
    """While one stands still, another on other devices is done; a third that shares a device
    has not asked any shard yet, and follows."""

    def single(device: int) -> Model:
        strategy = ParallelStrategy.parse("d1t1p1")
        layout = Layout(kind=LayoutKind.MEGATRON, strategy=strategy, devices=(device,))
        placed = PlacedLayout(layout=layout, shards=(f"trainer-{device}",), weight_version=0)
        return replace(MODEL, model_id=f"model-{device}", layouts=(placed,))

    def to_replica(device: int, version: int) -> ReallocationOrder:
        strategy = ParallelStrategy.parse("d1t1p1")
        layout = Layout(kind=LayoutKind.VLLM, strategy=strategy, devices=(device,))
        target = PlacedLayout(layout=layout, shards=(f"generation-{device}",))
        request = f"{device}/{version}"
        return order(version, model_id=f"model-{device}", target=target, request_id=request)

    def whole(parameters: dict[str, torch.Tensor]) -> None:
        layout = single(0).source.layout
        parameters.clear()
        parameters.update(toy_parameters(ARCHITECTURE, layout, 0, toy_canonical(ARCHITECTURE, 1)))

    async def scenario() -> None:
        reached, go_on = asyncio.Event(), asyncio.Event()

        class Held:
            def __init__(self, party: Any) -> None:
                self._party = party

            def __getattr__(self, name: str) -> Any:
                return getattr(self._party, name)

            async def execute(self, prepared: Any) -> Any:
                reached.set()
                await go_on.wait()
                return await self._party.execute(prepared)

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
