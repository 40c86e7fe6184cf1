"""PlanSearchService over gRPC, on a real etcd."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from deploy.local.etcd_binary import find_etcd
from deploy.local.etcd_server import EtcdServer
from realloc.api.plan_search.v1 import plan_search_pb2 as pb
from realloc.api.plan_search.v1 import plan_search_pb2_grpc
from realloc.core.errors import InvalidInput, NotFound, ResourceExhausted
from realloc.cost.hardware import hardware_of
from realloc.cost.profile_file import profile_to_json
from realloc.rpc.channel import connect
from realloc.rpc.server import running
from services.plan_search.app import build
from services.plan_search.config import PlanSearchConfig
from services.plan_search.plan_search import FoundPlan, PlanSearch
from services.plan_search.planning_request import PlanningRequest
from tests.support.planning_messages import planning_message
from tests.unit.cost.test_profile import profiled

TEST_SECONDS = 600.0
ENDLESS = 599.0
"""Seconds of a search that goes on until it is cancelled, whatever it has proved."""


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    """One etcd for all tests here."""
    folder: Path = tmp_path_factory.mktemp("etcd")
    with EtcdServer(find_etcd(), folder) as server:
        yield server


@asynccontextmanager
async def served(etcd: EtcdServer) -> AsyncIterator[Any]:
    """The stub of a plan-search that does one search at a time."""
    config = PlanSearchConfig(etcd_endpoints=(etcd.endpoint,), drain_seconds=0.0, max_searches=1)
    async with (
        build(config) as app,
        running(app, config) as address,
        connect(address) as channel,
    ):
        stub = plan_search_pb2_grpc.PlanSearchServiceStub(channel)
        await compiled(stub)
        yield stub


async def compiled(stub: Any) -> None:
    """Wait for the service's own warm-up: until then only first plans come, and no bound."""
    for tries in itertools.count(start=1):  # each time of its own: an answer may be remembered
        if (await answers(stub, planning_message(seconds=0.5 * tries)))[-1].lower_bound > 0:
            return
        await asyncio.sleep(0.2)  # the service does not tell; the test has a deadline


async def answers(stub: Any, request: pb.SearchPlanRequest) -> list[pb.SearchPlanResponse]:
    """All answers of a search; waits while another one runs."""
    while True:
        try:
            return [answer async for answer in stub.SearchPlan(request, timeout=60)]
        except ResourceExhausted:
            await asyncio.sleep(0.02)  # asked again, as the error says; the test has a deadline


def test_plans_arrive_one_by_one_and_the_last_is_remembered(etcd: EtcdServer) -> None:
    """Each is better than the one before or has a better bound; the same request again brings
    the last one alone, from the cache."""

    async def scenario() -> None:
        async with asyncio.timeout(TEST_SECONDS), served(etcd) as stub:
            found = await answers(stub, planning_message(seconds=20.0))
            assert len(found) > 1
            seconds = [answer.plan.predicted_seconds for answer in found]
            assert seconds == sorted(seconds, reverse=True)
            (again,) = await answers(stub, planning_message(seconds=20.0))
            assert again.from_cache
            assert again.plan == found[-1].plan

    asyncio.run(scenario())


def test_a_cancelled_search_makes_room_for_the_next(
    etcd: EtcdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a search runs that does not end no other may; its caller leaves, and the next runs."""
    plans = PlanSearch.plans

    def endless(self: PlanSearch, request: PlanningRequest, **given: Any) -> Iterator[FoundPlan]:
        yield from plans(self, request, **given)
        if given["seconds"] == ENDLESS:
            assert given["cancelled"].wait(TEST_SECONDS)

    monkeypatch.setattr(PlanSearch, "plans", endless)

    async def scenario() -> None:
        async with asyncio.timeout(TEST_SECONDS), served(etcd) as stub:
            long = stub.SearchPlan(planning_message(seconds=ENDLESS, nodes=16))
            async for _ in long:
                break
            with pytest.raises(ResourceExhausted, match="1 searches run"):
                async for _ in stub.SearchPlan(planning_message(seconds=0.3), timeout=60):
                    pass  # 0.3 s: `compiled` has not asked for these, no answer is remembered
            long.cancel()
            assert await answers(stub, planning_message(seconds=0.3))

    asyncio.run(scenario())


def test_a_plan_that_was_found_is_estimated_as_it_was_predicted(etcd: EtcdServer) -> None:
    """EstimatePlan gives back what SearchPlan promised, from the same profile."""
    profile = pb.Profile(
        name="profiles/test", content=profile_to_json(profiled(hardware_of("H100")))
    )

    async def scenario() -> None:
        async with asyncio.timeout(TEST_SECONDS), served(etcd) as stub:
            await stub.PutProfile(pb.PutProfileRequest(profile=profile))
            listed = await stub.ListProfiles(pb.ListProfilesRequest())
            assert [each.name for each in listed.profiles] == [profile.name]
            request = planning_message(profile=profile.name)
            found = (await answers(stub, request))[-1].plan
            estimated = await stub.EstimatePlan(
                pb.EstimatePlanRequest(
                    experiment=request.experiment,
                    models=request.models,
                    cluster=request.cluster,
                    plan=found,
                    mean_prompt_tokens=request.mean_prompt_tokens,
                    profile=profile.name,
                )
            )
            assert estimated.plan == found
            await stub.DeleteProfile(pb.DeleteProfileRequest(name=profile.name))
            with pytest.raises(NotFound):
                await answers(stub, request)

    asyncio.run(scenario())


def test_problems_of_a_request_come_back_with_their_paths(etcd: EtcdServer) -> None:
    """Time that is not given, corrections that are no JSON."""

    async def scenario() -> None:
        async with asyncio.timeout(TEST_SECONDS), served(etcd) as stub:
            with pytest.raises(InvalidInput, match="seconds"):
                await answers(stub, planning_message(seconds=0.0))
            with pytest.raises(InvalidInput, match="corrections"):
                await answers(stub, planning_message(corrections="{"))

    asyncio.run(scenario())
