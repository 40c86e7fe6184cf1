"""From experiment and cluster to a plan: spaces, constraints, advice."""

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
from realloc.search.planning import Effort, PlannedIteration, plan_task, smallest_cluster
from realloc.search.searchers import searcher_named
from realloc.search.task import PlanTask, workloads_of

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
