"""What a param-store and its shards refuse; nothing changes then."""

import asyncio
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from realloc.core.errors import Conflict, InvalidInput, NotFound, Unavailable
from realloc.reallocation.families import canonical_names
from realloc.reallocation.layouts.provider import RankLayout, local_parameters
from services.param_store import plans
from services.param_store.model import PlacedLayout
from services.param_store.phases import Phase
from tests.support.toy_shards import PartyAround
from tests.support.toy_store import (
    ARCHITECTURE,
    SOURCE,
    TARGET,
    order,
    phases,
    run,
    toy_store,
)


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
        class Silent(PartyAround):
            async def check(self, prepared: Any) -> None:
                await asyncio.Event().wait()

        async with toy_store(wrap={"generation-1": Silent}) as held:
            held.train(1)
            with pytest.raises(Unavailable, match=r"generation-1 \(rank 1 of vllm:d2t1p1@0-1\)"):
                await held.reallocator.reallocate(order(1, timeout_seconds=3.0))
            held.assert_serves(None)

    run(scenario())


@pytest.mark.parametrize("connected", [False, True])
@pytest.mark.parametrize("name", ["trainer-1", "generation-1"])
def test_a_shard_that_falls_silent_in_the_transfer_is_named_and_nothing_changes(
    name: str, connected: bool
) -> None:
    """Not one of those that wait for it in vain; what they waited for is told, too."""
    silent = not connected

    class Silent(PartyAround):
        async def execute(self, prepared: Any) -> Any:
            if silent:
                await asyncio.Event().wait()
            return await self.party.execute(prepared)

    async def scenario() -> None:
        nonlocal silent
        async with toy_store(wrap={name: Silent}) as held:
            version = 1
            held.train(version)
            if connected:
                await held.reallocator.reallocate(order(version))
                silent, version = True, 2
                held.train(version)
            with pytest.raises(Unavailable) as caught:
                await held.reallocator.reallocate(order(version, timeout_seconds=2.0))
            silent_part, waiting = str(caught.value).split(" did not answer within 2 s; ")
            layout = (SOURCE if name in SOURCE.shards else TARGET).layout
            assert silent_part == f"{name} (rank 1 of {layout.short})"
            assert name in waiting
            assert "endpoint " not in waiting
            assert ("parameters" in waiting) is connected
            held.assert_serves(1 if connected else None)

    run(scenario())


@pytest.mark.parametrize("lost", [False, True])
def test_weights_that_arrive_damaged_are_never_served(lost: bool) -> None:
    """A digest that differs, or is missing: tensor and shard are named, nothing changes, and the
    next request works."""
    norm = canonical_names(ARCHITECTURE).index("model.norm.weight")

    class Damaging(PartyAround):
        damages = True

        async def execute(self, prepared: Any) -> Any:
            (report,) = await self.party.execute(prepared)
            digests = dict(report.received_digests)
            if Damaging.damages:
                digests[norm] += 1
                if lost:
                    del digests[norm]
            return [replace(report, received_digests=digests)]

    async def scenario() -> None:
        async with toy_store(wrap={"generation-1": Damaging}) as held:
            held.train(1)
            with pytest.raises(Unavailable, match=r"model\.norm\.weight .*damaged at generation-1"):
                await held.reallocator.reallocate(order(1))
            held.assert_serves(None)
            assert await phases(held) == [Phase.ABORTED]
            Damaging.damages = False
            await held.reallocator.reallocate(order(1))
            held.assert_serves(1)

    run(scenario())


def test_a_version_older_than_the_one_that_trains_is_refused() -> None:
    """Before any shard is asked, though a trainer says that it holds it."""

    async def scenario() -> None:
        async with toy_store() as held:
            source = replace(SOURCE, weight_version=-1)
            await held.reallocator.reallocate(order(5, target=source, request_id="source"))
            held.train(3)
            with pytest.raises(Conflict, match="actor is at version 5 and cannot go back to 3"):
                await held.reallocator.reallocate(order(3))
            assert held.calls == []
            assert await phases(held) == []

    run(scenario())


def test_a_commit_that_a_shard_does_not_answer_is_finished_by_the_next_request() -> None:
    """The error names it; the others serve the new version; asked again nothing moves twice."""

    class Silent(PartyAround):
        asked = 0

        async def commit(self, prepared: Any, weight_version: int) -> None:
            Silent.asked += 1
            if Silent.asked == 1:
                await asyncio.Event().wait()
            await self.party.commit(prepared, weight_version)

    async def scenario() -> None:
        async with toy_store(wrap={"generation-1": Silent}) as held:
            held.train(1)
            with pytest.raises(Unavailable, match=r"generation-1 did not answer the commit"):
                await held.reallocator.reallocate(order(1, timeout_seconds=2.0))
            assert await phases(held) == [Phase.COMMITTING]
            held.train(2)  # what a second transfer would bring
            done = await held.reallocator.reallocate(order(1, timeout_seconds=2.0))
            assert done.weight_version == 1
            held.assert_serves(1)
            assert await phases(held) == [Phase.COMMITTED]

    run(scenario())


def test_an_abort_that_a_shard_does_not_hear_is_made_up_for_by_the_next_transfer() -> None:
    """What it staged for nothing does not stand in the way."""

    class Failing(PartyAround):
        fails = True

        async def execute(self, prepared: Any) -> Any:
            reports = await self.party.execute(prepared)
            if Failing.fails:
                await staged.wait()
                raise Unavailable("no more")
            return reports

    class Deaf(PartyAround):
        async def execute(self, prepared: Any) -> Any:
            reports = await self.party.execute(prepared)
            staged.set()
            return reports

        async def abort(self, prepared: Any) -> None:
            if Failing.fails:
                raise Unavailable("what?")
            await self.party.abort(prepared)

    staged = asyncio.Event()

    async def scenario() -> None:
        async with toy_store(wrap={"trainer-1": Failing, "generation-1": Deaf}) as held:
            held.train(1)
            with pytest.raises(Unavailable, match=r"trainer-1 .*no more"):
                await held.reallocator.reallocate(order(1))
            held.assert_serves(None)
            Failing.fails = False
            await held.reallocator.reallocate(order(1))
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
