"""Golden timelines: a change of the simulator's semantics shows here as text."""

import os
from pathlib import Path

import pytest

from realloc.core.errors import InvalidInput
from realloc.core.mesh import DeviceMesh
from realloc.cost.simulator import PlacedCall, SimulationRules, simulate
from realloc.cost.timeline_text import render_timeline
from realloc.dataflow.graph import CallKind

GOLDEN = Path(__file__).parents[2] / "golden" / "timelines"

PPO_EDGES = [(0, 1), (0, 2), (0, 3), *((a, b) for a in (1, 2, 3) for b in (4, 5))]


def _call(
    name: str, model: int, kind: CallKind, first: int, num: int, seconds: float, layout: int = -1
) -> PlacedCall:
    return PlacedCall(
        name=name,
        model=model,
        kind=kind,
        devices=DeviceMesh(first_device=first, num_devices=num),
        seconds=seconds,
        resident_bytes=0,
        active_bytes=0,
        layout=layout,
    )


def _ppo(generation: DeviceMesh, critic: DeviceMesh) -> tuple[PlacedCall, ...]:
    """Actor trains on 0-3; generation and critic where told."""
    infer, train = CallKind.INFERENCE, CallKind.TRAIN
    first, num = generation.first_device, generation.num_devices
    return (
        _call("actor_gen", 0, CallKind.GENERATE, first, num, 10.0, layout=1),
        _call("reward_inf", 2, infer, 0, 2, 2.0),
        _call("ref_inf", 3, infer, 2, 2, 3.0),
        _call("critic_inf", 1, infer, critic.first_device, critic.num_devices, 1.5, layout=0),
        _call("actor_train", 0, train, 0, 4, 8.0, layout=0),
        _call("critic_train", 1, train, critic.first_device, critic.num_devices, 6.0, layout=0),
    )


def _move(model: int, source: int, target: int) -> float:
    return 0.5


CASES = {
    "colocated": (
        _ppo(DeviceMesh(first_device=0, num_devices=4), DeviceMesh(first_device=0, num_devices=4)),
        0,
    ),
    "critic_apart": (
        _ppo(DeviceMesh(first_device=0, num_devices=4), DeviceMesh(first_device=4, num_devices=4)),
        0,
    ),
    "asynchronous": (
        _ppo(DeviceMesh(first_device=4, num_devices=4), DeviceMesh(first_device=0, num_devices=4)),
        1,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_timelines_are_as_recorded(name: str) -> None:
    """PPO with calls on the same devices, the critic on its own, and one step off policy."""
    calls, staleness = CASES[name]
    rules = SimulationRules(iterations=3, staleness=staleness)
    text = render_timeline(simulate(calls, PPO_EDGES, _move, rules), num_devices=8)
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


def test_the_next_iteration_waits_for_every_call_that_it_depends_on() -> None:
    """Generation starts after the actor's training, however early the critic's ends."""
    calls, _ = CASES["critic_apart"]
    timeline = simulate(calls, PPO_EDGES, _move, SimulationRules(iterations=2))
    starts = {(w.name, w.iteration, w.kind.value): w for w in timeline.works}
    train = starts["actor_train", 1, "call"]
    assert starts["actor_gen", 2, "reallocation"].start == train.end
    assert starts["actor_gen", 2, "call"].start == train.end + 0.5


def test_rules_need_two_iterations_and_no_negative_staleness() -> None:
    """The result is a difference between iterations."""
    with pytest.raises(InvalidInput, match="at least 2"):
        SimulationRules(iterations=1)
    with pytest.raises(InvalidInput, match="must not be negative"):
        SimulationRules(staleness=-1)
