"""Plans that the scheduler can execute: simple ones at once, better ones after."""

import asyncio
import contextlib
import itertools
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from realloc.api.plan_search.v1 import plan_search_pb2 as pb
from realloc.coordination.memory_database import MemoryDatabase
from realloc.coordination.memory_store import MemoryStore
from realloc.core.errors import InvalidInput, NotFound, ResourceExhausted
from realloc.core.experiment import (
    CallPin,
    EvaluationSettings,
    Experiment,
)
from realloc.core.mesh import DeviceMesh
from realloc.core.model import Head
from realloc.core.plan import ExecutionPlan
from realloc.core.settings import PlacementSettings
from realloc.core.strategy import ParallelStrategy
from realloc.cost.hardware import hardware_of
from realloc.cost.profile_file import profile_to_json
from realloc.cost.recalibration import (
    LEAST_RATIOS,
    Corrections,
    measured_call,
    measured_reallocation,
)
from realloc.dataflow.catalog import build_graph
from services.plan_search.config import PlanSearchConfig
from services.plan_search.plan_search import PlanSearch, estimate
from services.plan_search.planning_request import PlanningRequest
from services.plan_search.profiles import Profiles
from services.plan_search.servicer import PlanSearchServicer
from tests.support.planning_messages import CLUSTER, EXPERIMENT, MODEL, planning_message
from tests.unit.cost.test_profile import profiled


@pytest.fixture(scope="module")
def search() -> PlanSearch:
    compiled = PlanSearch()
    compiled.warm_up()
    return compiled


def task(experiment: Experiment = EXPERIMENT) -> PlanningRequest:
    return PlanningRequest(
        experiment=experiment,
        graph=build_graph(experiment),
        architectures={"actor": MODEL, "ref": MODEL, "critic": MODEL.with_head(Head.VALUE)},
        cluster=CLUSTER,
        hardware=hardware_of(CLUSTER.device_kind).in_cluster(CLUSTER),
        mean_prompt_tokens=128,
    )


def pinned(call: str, first: int, strategy: str) -> CallPin:
    parsed = ParallelStrategy.parse(strategy)
    mesh = DeviceMesh(first_device=first, num_devices=parsed.num_ranks)
    return CallPin(call=call, mesh=mesh, strategy=parsed)


def plans_of(found: PlanSearch, request: PlanningRequest, seconds: float) -> list[ExecutionPlan]:
    return [each.plan for each in found.plans(request, seconds=seconds)]


def test_no_plan_is_worse_than_the_one_before(search: PlanSearch) -> None:
    """Seconds never rise along the stream, nor do bounds fall; bounds hold."""
    found = list(search.plans(task(), seconds=1.0))
    assert len(found) > 1
    for earlier, later in itertools.pairwise(found):
        assert later.plan.predicted_seconds <= earlier.plan.predicted_seconds
        assert earlier.lower_bound <= later.lower_bound <= later.plan.predicted_seconds
    assert found[-1].plan.predicted_seconds < found[0].plan.predicted_seconds


def test_a_models_trainers_share_a_layout(search: PlanSearch) -> None:
    """The critic scores where it trains, since its weights lie there and nowhere else."""
    for plan in plans_of(search, task(), 1.0):
        scores, trains = plan.placement("critic_inf"), plan.placement("critic_train")
        assert (scores.mesh, scores.strategy) == (trains.mesh, trains.strategy)


def test_a_pin_holds_for_all_calls_of_the_layout(search: PlanSearch) -> None:
    """Where only training is pinned, inference of the model follows."""
    experiment = replace(EXPERIMENT, pins=(pinned("critic_train", 2, "d1t2p1"),))
    plans = plans_of(search, task(experiment), 1.0)
    assert plans
    for plan in plans:
        assert plan.placement("critic_inf").mesh == DeviceMesh(first_device=2, num_devices=2)


def test_pins_of_one_layout_that_differ_are_refused(search: PlanSearch) -> None:
    """Both calls are named."""
    pins = (pinned("critic_train", 2, "d1t2p1"), pinned("critic_inf", 0, "d1t2p1"))
    with pytest.raises(InvalidInput, match="critic_train and critic_inf are calls of one model"):
        plans_of(search, task(replace(EXPERIMENT, pins=pins)), 1.0)


def test_placement_settings_of_the_experiment_hold(search: PlanSearch) -> None:
    """No tensor degree above the experiment's most."""
    experiment = replace(EXPERIMENT, placement=PlacementSettings(max_tensor=1))
    for plan in plans_of(search, task(experiment), 0.5):
        assert all(placement.strategy.tensor == 1 for placement in plan.placements)


def test_before_it_is_compiled_a_first_plan_comes() -> None:
    """Nobody waits for the compiler, and the trainers can run what comes."""
    (plan,) = plans_of(PlanSearch(), task(), 1.0)
    assert plan.placement("critic_inf").mesh == plan.placement("critic_train").mesh
    assert plan == estimate(task(), plan)


def test_an_evaluation_of_its_own_is_placed(search: PlanSearch) -> None:
    """sft generates only to evaluate, on the fastest mesh."""
    experiment = replace(
        EXPERIMENT, algorithm="sft", evaluation=EvaluationSettings(path="held-out.jsonl")
    )
    request = replace(task(experiment), graph=build_graph(experiment))
    calls = {call.name for call in request.graph.placed_calls()}
    for plan in plans_of(search, request, 0.3):
        assert {placement.call for placement in plan.placements} == calls
        assert estimate(request, plan) == plan


def test_estimates_agree_with_the_search(search: PlanSearch) -> None:
    """A plan that was found is estimated as it was predicted."""
    found = plans_of(search, task(), 0.5)[-1]
    assert estimate(task(), found) == found


def test_a_plan_that_is_not_legal_is_not_estimated(search: PlanSearch) -> None:
    """The placement is named; so are calls that are missing."""
    found = plans_of(search, task(), 0.3)[-1]
    odd = replace(found.placements[0], strategy=ParallelStrategy(data=3))
    with pytest.raises(InvalidInput, match="d3t1p1 has 3 ranks"):
        estimate(task(), replace(found, placements=(odd, *found.placements[1:])))
    with pytest.raises(InvalidInput, match="the calls are actor_gen, "):
        estimate(task(), replace(found, placements=found.placements[1:]))


def test_models_that_fit_nowhere_are_refused(search: PlanSearch) -> None:
    """With what it needs and what there is."""
    small = replace(CLUSTER, device_memory_bytes=5 * 10**9)
    with pytest.raises(InvalidInput, match="GiB"):
        next(search.plans(replace(task(), cluster=small), seconds=1.0))


def test_a_search_that_needs_too_much_memory_is_refused() -> None:
    """Before it begins."""
    with pytest.raises(ResourceExhausted, match="may have"):
        next(PlanSearch(max_memory_bytes=1000).plans(task(), seconds=1.0))


def test_a_cancelled_search_stops_its_work(search: PlanSearch) -> None:
    """After the event is set, the rest of an hour is not searched."""
    cancelled = threading.Event()
    wide = replace(CLUSTER, num_nodes=4, devices_per_node=8)
    plans = search.plans(replace(task(), cluster=wide), seconds=3600.0, cancelled=cancelled)
    next(plans)
    cancelled.set()
    assert len(list(plans)) <= 5


@contextlib.asynccontextmanager
async def serving(search: PlanSearch, **limits: Any) -> AsyncIterator[PlanSearchServicer]:
    async with MemoryStore(MemoryDatabase()) as store:
        config = PlanSearchConfig(**limits)
        yield PlanSearchServicer(search, Profiles(store), config)


async def answers(
    servicer: PlanSearchServicer, request: pb.SearchPlanRequest
) -> list[pb.SearchPlanResponse]:
    return [response async for response in servicer.SearchPlan(request, None)]


def test_the_same_request_is_answered_at_once(search: PlanSearch) -> None:
    """With the final answer of the first, which says so; another one is searched."""

    async def ask() -> None:
        async with serving(search) as servicer:
            first = await answers(servicer, planning_message())
            assert len(first) > 1
            (again,) = await answers(servicer, planning_message())
            assert again.from_cache
            assert again.plan == first[-1].plan
            other = await answers(servicer, planning_message(seconds=0.6))
            assert not other[-1].from_cache

    asyncio.run(ask())


def test_a_caller_who_leaves_ends_the_search(search: PlanSearch) -> None:
    """Its place is free again, and its thread was told."""

    async def ask() -> None:
        async with serving(search, max_searches=1) as servicer:
            stream = servicer.SearchPlan(planning_message(seconds=3.0), None)
            await anext(stream)
            with pytest.raises(ResourceExhausted, match="1 searches run"):
                await answers(servicer, planning_message(seconds=2.0))
            await stream.aclose()
            assert await answers(servicer, planning_message(seconds=0.3))

    asyncio.run(ask())


def test_profiles_are_kept_listed_and_used(search: PlanSearch) -> None:
    """A device half as fast makes plans slower; what is no profile is refused."""
    text = profile_to_json(profiled(replace(hardware_of("H100"), flops_per_second=100e12)))

    async def ask() -> None:
        async with serving(search) as servicer:
            for name in ("profiles/b", "profiles/a"):
                profile = pb.Profile(name=name, content=text)
                await servicer.PutProfile(pb.PutProfileRequest(profile=profile), None)
            page = await servicer.ListProfiles(pb.ListProfilesRequest(page_size=1), None)
            assert [profile.name for profile in page.profiles] == ["profiles/a"]
            token = page.next_page_token
            page = await servicer.ListProfiles(pb.ListProfilesRequest(page_token=token), None)
            assert [profile.name for profile in page.profiles] == ["profiles/b"]
            assert not page.next_page_token
            read = await servicer.GetProfile(pb.GetProfileRequest(name="profiles/a"), None)
            assert read.profile.content == text
            slow = await answers(servicer, planning_message(profile="profiles/a"))
            fast = await answers(servicer, planning_message())
            assert slow[-1].plan.predicted_seconds > fast[-1].plan.predicted_seconds
            await servicer.DeleteProfile(pb.DeleteProfileRequest(name="profiles/a"), None)
            with pytest.raises(NotFound):
                await answers(servicer, planning_message(profile="profiles/a"))
            for name, content in (("profiles/c", "{}"), ("Profiles/../c", text)):
                profile = pb.Profile(name=name, content=content)
                with pytest.raises(InvalidInput):
                    await servicer.PutProfile(pb.PutProfileRequest(profile=profile), None)

    asyncio.run(ask())


def test_what_calls_have_taken_decides(search: PlanSearch) -> None:
    """A strategy that was measured to be slow is left where another is better, and what the
    cost model alone says stays in the plan; the same in an estimate."""
    before = plans_of(search, task(), 0.5)[-1]
    trains = before.placement("actor_train")
    measured = Corrections()
    for strategy, ratio in ((trains.strategy, 6.0), (ParallelStrategy(pipeline=4), 1.0)):
        call = measured_call("train", MODEL, strategy)
        for _ in range(LEAST_RATIOS):
            measured = measured.observed(call, predicted=1.0, measured=ratio)
    request = replace(task(), corrections=measured)
    corrected = estimate(request, before)
    assert corrected.placement("actor_train").predicted_seconds == pytest.approx(
        6.0 * trains.predicted_seconds
    )
    assert corrected.placement("actor_train").model_seconds == trains.model_seconds
    after = plans_of(search, request, 0.5)[-1]
    assert after.placement("actor_train").strategy != trains.strategy
    assert after.predicted_seconds < corrected.predicted_seconds


def test_measured_reallocations_count(search: PlanSearch) -> None:
    """A plan is dearer by what its moves took longer than predicted."""
    before = plans_of(search, task(), 0.5)[-1]
    measured = Corrections()
    for _ in range(LEAST_RATIOS):
        measured = measured.observed(measured_reallocation(MODEL), predicted=1.0, measured=3.0)
    after = estimate(replace(task(), corrections=measured), before)
    assert before.predicted_reallocation_seconds > 0
    assert after.predicted_reallocation_seconds == pytest.approx(
        3.0 * before.predicted_reallocation_seconds
    )
    assert after.model_reallocation_seconds == pytest.approx(before.model_reallocation_seconds)
    assert after.predicted_seconds > before.predicted_seconds


def test_unreadable_corrections_are_refused(search: PlanSearch) -> None:
    """Before anything is searched; the field is named."""

    async def ask() -> None:
        async with serving(search) as servicer:
            with pytest.raises(InvalidInput, match="corrections"):
                await answers(servicer, planning_message(corrections="{"))

    asyncio.run(ask())
