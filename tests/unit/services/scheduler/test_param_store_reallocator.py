"""What the runner asks of param-store, over a toy stub."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from realloc.api.param_store.v1 import param_store_pb2 as pb
from realloc.core.errors import Unavailable
from realloc.core.mesh import DeviceMesh
from realloc.core.plan import CallPlacement
from realloc.core.strategy import ParallelStrategy
from services.param_store.session import ANSWER_SECONDS
from services.scheduler.param_store_reallocator import ParamStoreReallocator


class ToyParamStore:
    """Answers when it is let go."""

    def __init__(self) -> None:
        self.requests: list[pb.ReallocateRequest] = []
        self.timeouts: list[float] = []
        self.go_on = asyncio.Event()
        self.error: Exception | None = None

    async def Reallocate(self, request: pb.ReallocateRequest, timeout: float) -> Any:
        self.requests.append(request)
        self.timeouts.append(timeout)
        await self.go_on.wait()
        if self.error is not None:
            raise self.error
        moved = pb.Reallocation(weight_version=request.weight_version, bytes=8, digest_ok=True)
        return pb.ReallocateResponse(reallocation=moved)


def reallocator(store: ToyParamStore, frozen: tuple[str, ...] = ()) -> ParamStoreReallocator:
    generator = SimpleNamespace(member=SimpleNamespace(name="generation-0"))
    experiment: Any = SimpleNamespace(call_timeout_seconds=5.0, dtype="bfloat16")
    shards: Any = SimpleNamespace(generators={0: generator}, param_store=store)
    placement = CallPlacement(
        call="actor_gen",
        mesh=DeviceMesh(first_device=0, num_devices=1),
        strategy=ParallelStrategy(),
        predicted_seconds=0.0,
    )
    return ParamStoreReallocator("job", "run", experiment, shards, placement, frozen=frozen)


def test_param_store_has_time_to_say_which_shard_was_late() -> None:
    """The call does not end with the deadline that param-store gives the shards."""

    async def scenario() -> None:
        store = ToyParamStore()
        store.go_on.set()
        await reallocator(store).bring("actor", 3)
        assert store.timeouts[0] >= store.requests[0].timeout_seconds + ANSWER_SECONDS

    asyncio.run(scenario())


def test_a_version_that_was_begun_is_waited_for_not_asked_for_again() -> None:
    """One request per version, whoever wants it how often."""

    async def scenario() -> None:
        store = ToyParamStore()
        moves = reallocator(store)
        moves.start("actor", 3)
        waiting = asyncio.create_task(moves.bring("actor", 3))
        await asyncio.sleep(0)
        store.go_on.set()
        report = await waiting
        assert report is not None
        assert (report.weight_version, report.bytes) == (3, 8)
        assert await moves.bring("actor", 3) is None
        assert [request.weight_version for request in store.requests] == [3]
        assert store.requests[0].mode == pb.TRANSFER_MODE_ALL
        assert store.requests[0].dtype == "bfloat16"

    asyncio.run(scenario())


def test_what_was_begun_fails_whoever_waits_for_it() -> None:
    """The error of the transfer is the error of the call that needs the version."""

    async def scenario() -> None:
        store = ToyParamStore()
        store.error = Unavailable("generation-0 is gone")
        store.go_on.set()
        moves = reallocator(store)
        moves.start("actor", 1)
        with pytest.raises(Unavailable, match="generation-0 is gone"):
            await moves.bring("actor", 1)

    asyncio.run(scenario())


def test_what_nobody_waited_for_ends_with_the_job() -> None:
    """A job that is cancelled meanwhile leaves no request behind."""

    async def scenario() -> None:
        store = ToyParamStore()
        moves = reallocator(store)
        moves.start("actor", 1)
        await asyncio.sleep(0)
        assert len(store.requests) == 1
        async with asyncio.timeout(5):
            await moves.close()
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(scenario())


def test_with_frozen_tensors_only_what_changed_moves() -> None:
    """The scheduler asks for the delta where it pays."""

    async def scenario() -> None:
        store = ToyParamStore()
        store.go_on.set()
        await reallocator(store, frozen=("model.embed_tokens",)).bring("actor", 1)
        assert store.requests[0].mode == pb.TRANSFER_MODE_CHANGED

    asyncio.run(scenario())
