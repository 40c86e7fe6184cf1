"""Plans that the scheduler can execute: simple ones at once, better ones after."""

import asyncio
import itertools
import json
from dataclasses import replace

import pytest

from realloc.api.plan_search.v1 import plan_search_pb2 as pb
from realloc.api.scheduler.v1 import experiment_pb2
from realloc.api.types.v1 import types_pb2
from realloc.core.errors import InvalidInput
from realloc.core.experiment import CallPin, DataSettings, Experiment, ModelSettings
from realloc.core.mesh import Cluster, DeviceMesh
from realloc.core.model import Head, ModelArchitecture
from realloc.core.plan import ExecutionPlan
from realloc.core.settings import GenerationSettings, PpoSettings
from realloc.core.strategy import ParallelStrategy
from realloc.cost.hardware import hardware_of
from realloc.dataflow.catalog import build_graph
from realloc.wire.convert import from_proto, to_proto
from services.plan_search.plan_search import PlanSearch, estimate
from services.plan_search.planner import PlanningTask
from services.plan_search.servicer import PlanSearchServicer

CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 16,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32_000,
}
MODEL = ModelArchitecture.from_hf_config(CONFIG)
CLUSTER = Cluster(
    num_nodes=1, devices_per_node=4, device_kind="H100", device_memory_bytes=80 * 10**9
)
EXPERIMENT = Experiment(
    name="plan",
    algorithm="ppo",
    iterations=1,
    actor=ModelSettings(checkpoint="a"),
    # 63 rollouts divide neither into mini-batches nor by data ranks: trainers take them.
    data=DataSettings(path="p", batch_size=63),
    generation=GenerationSettings(max_new_tokens=128),
    ppo=PpoSettings(mini_batches=2),
    dtype="bfloat16",
)


@pytest.fixture(scope="module")
def search() -> PlanSearch:
    compiled = PlanSearch()
    compiled.warm_up()
    return compiled


def task(experiment: Experiment = EXPERIMENT) -> PlanningTask:
    return PlanningTask(
        hardware=hardware_of(CLUSTER.device_kind).with_node_size(CLUSTER.devices_per_node),
        experiment=experiment,
        graph=build_graph(experiment),
        architectures={"actor": MODEL, "ref": MODEL, "critic": MODEL.with_head(Head.VALUE)},
        cluster=CLUSTER,
        mean_prompt_tokens=128,
    )


def pinned(call: str, first: int, strategy: str) -> CallPin:
    parsed = ParallelStrategy.parse(strategy)
    mesh = DeviceMesh(first_device=first, num_devices=parsed.num_ranks)
    return CallPin(call=call, mesh=mesh, strategy=parsed)


def test_each_plan_is_better_than_the_one_before(search: PlanSearch) -> None:
    """The stream falls strictly."""
    seconds = [plan.predicted_seconds for plan in search.plans(task(), seconds=1.0)]
    assert len(seconds) > 1
    assert all(later < earlier for earlier, later in itertools.pairwise(seconds))


def test_a_models_trainers_share_a_layout(search: PlanSearch) -> None:
    """The critic scores where it trains, since its weights lie there and nowhere else."""
    for plan in search.plans(task(), seconds=1.0):
        scores, trains = plan.placement("critic_inf"), plan.placement("critic_train")
        assert (scores.mesh, scores.strategy) == (trains.mesh, trains.strategy)


def test_a_pin_holds_for_all_calls_of_the_layout(search: PlanSearch) -> None:
    """Where only training is pinned, inference of the model follows."""
    experiment = replace(EXPERIMENT, pins=(pinned("critic_train", 2, "d1t2p1"),))
    plans = list(search.plans(task(experiment), seconds=1.0))
    assert plans
    for plan in plans:
        assert plan.placement("critic_inf").mesh == DeviceMesh(first_device=2, num_devices=2)


def test_before_it_is_compiled_the_simple_plan_comes() -> None:
    """Nobody waits for the compiler."""
    assert len(list(PlanSearch().plans(task(), seconds=1.0))) == 1


def test_estimates_agree_with_the_search(search: PlanSearch) -> None:
    """A plan that was found is estimated as it was predicted."""
    found = list(search.plans(task(), seconds=0.5))[-1]
    assert estimate(task(), found) == found


def test_models_that_fit_nowhere_are_refused(search: PlanSearch) -> None:
    """With what it needs and what there is."""
    small = replace(CLUSTER, device_memory_bytes=5 * 10**9)
    with pytest.raises(InvalidInput, match="GiB"):
        next(search.plans(replace(task(), cluster=small), seconds=1.0))


def test_the_service_streams_the_plans(search: PlanSearch) -> None:
    """Each as a message; the last one is the best."""
    request = pb.SearchPlanRequest(
        experiment=to_proto(EXPERIMENT, experiment_pb2.Experiment),
        models=[
            pb.PlannedModel(model_id=name, hf_config=json.dumps(CONFIG), head=head)
            for name, head in (("actor", "HEAD_LM"), ("ref", "HEAD_LM"), ("critic", "HEAD_VALUE"))
        ],
        cluster=to_proto(CLUSTER, types_pb2.Cluster),
        seconds=1.0,
        mean_prompt_tokens=128.0,
    )

    async def collect() -> list[ExecutionPlan]:
        servicer = PlanSearchServicer(search, max_search_seconds=10.0)
        return [
            from_proto(response.plan, ExecutionPlan)
            async for response in servicer.SearchPlan(request, None)
        ]

    plans = asyncio.run(collect())
    assert len(plans) > 1
    assert plans[-1] == min(plans, key=lambda plan: plan.predicted_seconds)
