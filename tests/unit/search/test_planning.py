"""From experiment and cluster to a plan: spaces, constraints, advice."""

import itertools
import random
from dataclasses import replace
from typing import Any

import pytest

from realloc.core.errors import InvalidInput
from realloc.core.experiment import CallPin, DataSettings, Experiment, ModelSettings
from realloc.core.mesh import Cluster, DeviceMesh
from realloc.core.model import Head, ModelArchitecture
from realloc.core.settings import (
    GenerationPlacement,
    GenerationSettings,
    PlacementSettings,
    PpoSettings,
)
from realloc.core.strategy import ParallelStrategy
from realloc.cost.hardware import hardware_of
from realloc.dataflow.catalog import build_graph
from realloc.search.constraints import PlanConstraints
from realloc.search.construction import build_space
from realloc.search.exhaustive import ExhaustiveSearcher
from realloc.search.explanation import explain_plan
from realloc.search.front import Objective, plan_front
from realloc.search.planning import Effort, PlannedIteration, plan_task, smallest_cluster
from realloc.search.searchers import searcher_named
from realloc.search.task import PlanTask, SpaceRules, workloads_of

SMALL = ModelArchitecture(
    family="llama",
    num_layers=16,
    hidden_size=2048,
    intermediate_size=8192,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=64,
    vocab_size=128_256,
    max_position_embeddings=8192,
    rms_norm_eps=1e-5,
    rope_theta=5e5,
)
LARGE = replace(
    SMALL,
    num_layers=80,
    hidden_size=8192,
    intermediate_size=28672,
    num_attention_heads=64,
    head_dim=128,
)


def task(
    *,
    devices: int = 4,
    nodes: int = 1,
    actor: ModelArchitecture = SMALL,
    constraints: PlanConstraints | None = None,
    batch: int = 64,
) -> PlanTask:
    model = ModelSettings(checkpoint="a")
    experiment = Experiment(
        name="plan",
        algorithm="ppo",
        iterations=1,
        actor=model,
        data=DataSettings(path="p", batch_size=batch),
        generation=GenerationSettings(max_new_tokens=256),
        ppo=PpoSettings(mini_batches=2),
        dtype="bfloat16",
    )
    graph = build_graph(experiment)
    hardware = hardware_of("H100").with_node_size(devices)
    return PlanTask(
        graph=graph,
        architectures={"actor": actor, "ref": actor, "critic": SMALL.with_head(Head.VALUE)},
        workloads=workloads_of(experiment, graph, prompt_tokens=256),
        cluster=Cluster(
            num_nodes=nodes,
            devices_per_node=devices,
            device_kind="H100",
            device_memory_bytes=hardware.memory_bytes,
        ),
        hardware=hardware,
        constraints=constraints or PlanConstraints(),
    )


def placed(**settings: Any) -> PlanConstraints:
    return PlanConstraints(placement=PlacementSettings(**settings))


def planned(given: PlanTask, seconds: float = 0.5) -> PlannedIteration:
    return plan_task(given, Effort(searcher=searcher_named("default"), seconds=seconds))


def test_the_plan_is_the_best_of_its_space() -> None:
    """On two devices the default searcher finds what trying every plan finds."""
    small = task(devices=2)
    found = planned(small)
    best = plan_task(small, Effort(searcher=ExhaustiveSearcher(), seconds=120))
    assert found.result.seconds == best.result.seconds
    assert found.result.seconds <= found.heuristic_seconds


def test_the_plan_fits_the_memory() -> None:
    """No device is predicted to need more than is usable."""
    found = planned(task())
    assert max(found.device_bytes()) <= found.space.task.usable_bytes
    assert max(found.device_bytes()) == found.result.peak_bytes


def test_options_are_legal() -> None:
    """Heads, layers and rows divide; generation has no pipeline."""
    space = build_space(task())
    for option in space.options:
        assert option.strategy.num_ranks == option.mesh.num_devices
        assert 64 % option.strategy.data == 0
        if option.call == "actor_gen":
            assert option.strategy.pipeline == 1


def test_generation_has_weights_of_its_own() -> None:
    """Generation under training's mesh and strategy is another layout and costs a move."""
    space = build_space(task(devices=1))
    plan = [int(space.problem.options_of(call)[0]) for call in range(space.problem.num_calls)]
    names = space.problem.call_names
    layouts = {
        name: int(space.problem.option_layout[o]) for name, o in zip(names, plan, strict=True)
    }
    assert layouts["actor_gen"] != layouts["actor_train"]
    assert layouts["critic_inf"] == layouts["critic_train"]
    assert layouts["ref_inf"] == -1
    assert space.reallocation_seconds(plan) > 0


def test_pins_are_kept() -> None:
    """A pinned call has one mesh and one strategy."""
    pin = CallPin(
        call="actor_gen",
        mesh=DeviceMesh(first_device=2, num_devices=2),
        strategy=ParallelStrategy(data=2),
    )
    found = planned(task(constraints=PlanConstraints(pins=(pin,))))
    chosen = next(option for option in found.chosen if option.call == "actor_gen")
    assert (chosen.mesh, chosen.strategy) == (pin.mesh, pin.strategy)


def test_a_pin_may_split_matrices_over_nodes_but_no_replica() -> None:
    """The search keeps tensor ranks within a node; whoever pins a trainer knows why not."""
    pair = DeviceMesh(first_device=0, num_devices=2)
    pin = CallPin(call="actor_train", mesh=pair, strategy=ParallelStrategy(tensor=2))
    given = task(devices=1, nodes=2, constraints=PlanConstraints(pins=(pin,)))
    assert planned(given).plan.placement("actor_train").strategy == pin.strategy
    split = PlanConstraints(pins=(replace(pin, call="actor_gen"),))
    with pytest.raises(InvalidInput, match="a replica must fit into the 1 devices of a node"):
        planned(task(devices=1, nodes=2, constraints=split))


def test_disjoint_generation_shares_no_device_with_training() -> None:
    """Rollouts on the first devices, the actor's training on the others."""
    found = planned(task(constraints=placed(generation=GenerationPlacement.DISJOINT)))
    by_call = {option.call: option for option in found.chosen}
    assert not by_call["actor_gen"].mesh.overlaps(by_call["actor_train"].mesh)


def test_colocated_generation_uses_all_devices_in_turns() -> None:
    """Both on the whole cluster."""
    found = planned(task(constraints=placed(generation=GenerationPlacement.COLOCATED)))
    by_call = {option.call: option for option in found.chosen}
    assert by_call["actor_gen"].mesh == by_call["actor_train"].mesh
    assert by_call["actor_gen"].mesh.num_devices == 4


def test_limits_are_kept() -> None:
    """No tensor degree above the most, no avoided node, headroom left free."""
    constraints = placed(max_tensor=2, headroom=0.25, avoided_nodes=(1,))
    given = task(nodes=3, constraints=constraints)
    space = build_space(given)
    assert all(option.strategy.tensor <= 2 for option in space.options)
    assert not any(4 <= d < 8 for option in space.options for d in option.mesh.devices)
    assert given.usable_bytes == int(0.75 * 77e9)


def test_contradictions_are_reported_together() -> None:
    """Each with its path."""
    pin = CallPin(
        call="actor_gen",
        mesh=DeviceMesh(first_device=0, num_devices=4),
        strategy=ParallelStrategy(tensor=4),
    )
    constraints = PlanConstraints(
        pins=(pin, replace(pin, call="nobody")),
        placement=PlacementSettings(max_tensor=2, avoided_nodes=(0,), headroom=2.0),
    )
    with pytest.raises(InvalidInput) as caught:
        build_space(task(nodes=2, constraints=constraints))
    paths = [problem.path for problem in caught.value.problems]
    assert paths.count("pins.actor_gen") == 2
    assert {"headroom", "pins.nobody"} <= set(paths)


def test_a_batch_that_does_not_divide_is_named() -> None:
    """A pinned call whose data ranks do not divide its rows says both numbers."""
    pin = CallPin(
        call="actor_gen",
        mesh=DeviceMesh(first_device=0, num_devices=4),
        strategy=ParallelStrategy(data=4),
    )
    given = task(batch=6, constraints=PlanConstraints(pins=(pin,)))
    with pytest.raises(InvalidInput, match="batch of 6 rows does not divide by the 4 data ranks"):
        build_space(given)


def test_too_small_a_cluster_names_the_smallest_that_would_do() -> None:
    """The advice is enough, and one node less is not."""
    given = task(nodes=1, devices=8, actor=LARGE, batch=512)
    with pytest.raises(InvalidInput, match="the smallest that would do is") as caught:
        planned(given)
    nodes = smallest_cluster(given)
    assert f"{nodes}xH100:8" in str(caught.value)
    enough = replace(given, cluster=replace(given.cluster, num_nodes=nodes))
    assert planned(enough, seconds=0.1).result.peak_bytes <= given.usable_bytes
    with pytest.raises(InvalidInput, match="smallest"):
        planned(replace(given, cluster=replace(given.cluster, num_nodes=nodes - 1)), seconds=0.1)


def test_explanations_add_up() -> None:
    """A runner-up is never better, and its difference is what simulation says."""
    found = planned(task())
    for call, explanation in enumerate(explain_plan(found)):
        assert explanation.added_seconds >= 0 or found.result.gap > 0
        if explanation.runner_up is None or explanation.added_seconds == float("inf"):
            continue
        options = list(found.result.options)
        options[call] = found.space.options.index(explanation.runner_up)
        seconds = found.space.problem.simulate(options, found.rules).seconds
        assert seconds - found.result.seconds == pytest.approx(explanation.added_seconds)


def test_a_pinned_mesh_leaves_the_strategy_to_the_search_and_the_other_way_round() -> None:
    """Only what is pinned is fixed."""
    pins = (
        CallPin(call="actor_gen", mesh=DeviceMesh(first_device=2, num_devices=2)),
        CallPin(call="actor_train", strategy=ParallelStrategy(data=1, tensor=2)),
    )
    space = build_space(task(constraints=PlanConstraints(pins=pins)))
    places: dict[str, set[DeviceMesh]] = {}
    degrees: dict[str, set[ParallelStrategy]] = {}
    for option in space.options:
        places.setdefault(option.call, set()).add(option.mesh)
        degrees.setdefault(option.call, set()).add(option.strategy)
    assert places["actor_gen"] == {pins[0].mesh}
    assert len(degrees["actor_gen"]) > 1
    assert degrees["actor_train"] == {pins[1].strategy}
    assert len(places["actor_train"]) == 2


def test_a_pinned_strategy_that_fits_no_mesh_says_so() -> None:
    """The number of its ranks, or the rule that it breaks."""
    for strategy, message in (
        (ParallelStrategy(data=3), "no mesh of the 3 devices of d3t1p1"),
        (ParallelStrategy(data=1, tensor=1, pipeline=4, virtual_pipeline=3), "12 chunks"),
    ):
        pin = CallPin(call="actor_train", strategy=strategy)
        with pytest.raises(InvalidInput, match=message):
            build_space(task(constraints=PlanConstraints(pins=(pin,))))


def test_other_trainers_may_offload_interleave_and_overlap_and_ours_may_not() -> None:
    """Free choices make spaces larger, never plans slower; keeping all on the device is kept."""
    free = build_space(task())
    assert any(option.choices.offload for option in free.options)
    assert any(option.strategy.virtual_pipeline > 1 for option in free.options)
    kept = build_space(task(constraints=placed(keep_on_device=True)))
    assert not any(option.choices.offload for option in kept.options)
    ours = build_space(replace(task(), rules=SpaceRules(free_choices=False)))
    assert all(option.strategy.is_plain and not option.notes for option in ours.options)
    assert planned(task()).seconds <= planned(
        replace(task(), rules=SpaceRules(free_choices=False))
    ).seconds * (1 + 1e-9)


def test_long_rows_and_experts_may_be_split() -> None:
    """Context ranks from 8,192 tokens on; expert ranks where there are experts."""
    given = task()
    long = replace(given.workloads["actor_train"], prompt_tokens=20_000)
    space = build_space(replace(given, workloads=dict.fromkeys(given.workloads, long)))
    assert any(option.strategy.context > 1 for option in space.options)
    sparse = replace(SMALL, num_experts=8, experts_per_token=2, expert_intermediate_size=1024)
    space = build_space(task(actor=sparse))
    found = {option.strategy.expert for option in space.options if option.call == "actor_train"}
    assert {1, 2, 4} <= found


def mixed(*kinds: str) -> PlanTask:
    """A node of four devices of each kind."""
    nodes = tuple(hardware_of(kind).with_node_size(4) for kind in kinds)
    given = task(nodes=len(kinds))
    memory = max(node.memory_bytes for node in nodes)
    cluster = replace(given.cluster, device_memory_bytes=memory)
    return replace(given, cluster=cluster, hardware=nodes[0], node_hardware=nodes)


def test_unlike_nodes_run_at_the_pace_of_the_slower() -> None:
    """A mesh over both takes as long as one of slow devices only."""
    by_place = {
        option.mesh: option
        for option in build_space(mixed("H100", "L40S")).options
        if option.call == "ref_inf" and option.strategy.data == 8 and not option.choices.offload
    }
    slow = {
        option.mesh: option
        for option in build_space(mixed("L40S", "L40S")).options
        if option.call == "ref_inf" and option.strategy.data == 8 and not option.choices.offload
    }
    both = DeviceMesh(first_device=0, num_devices=8)
    assert by_place[both].cost.seconds >= slow[both].cost.seconds * (1 - 1e-9)


def test_no_device_of_unlike_nodes_is_overfilled() -> None:
    """Each plan that the scaled problem accepts fits the memory of each device."""
    given = mixed("H100", "L40S")
    found = planned(given)
    for device, size in enumerate(found.device_bytes()):
        assert size <= given.usable_on(given.node_hardware[device // 4])
    problem = found.space.problem
    rng = random.Random(0)
    for _ in range(300):
        options = [int(rng.choice(problem.options_of(c))) for c in range(problem.num_calls)]
        if problem.peak_bytes(options) > problem.device_memory_bytes:
            continue
        chosen = replace(found, result=replace(found.result, options=tuple(options)))
        for device, size in enumerate(chosen.device_bytes()):
            assert size <= given.usable_on(given.node_hardware[device // 4])


def test_as_few_devices_as_pay_off() -> None:
    """The front's plans are faster or cheaper than all others; the ends are the objectives."""
    front = plan_front(task(), Effort(searcher=searcher_named("default"), seconds=1.0))
    for one, two in itertools.pairwise(front.plans):
        assert one.seconds > two.seconds
        assert one.cost < two.cost
    assert front.best(Objective.SECONDS) is front.plans[-1]
    assert front.best(Objective.COST) is front.plans[0]
    for plan in front.plans:
        assert plan.cost == pytest.approx(plan.num_devices * plan.seconds / 64)
