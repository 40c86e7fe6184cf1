"""Weights that move within a running job: beside other calls, and no more than need be."""

import json
import math
import re
from typing import Any

import pytest

from realloc.core.errors import InvalidInput
from realloc.core.job import JobState
from realloc.core.model import ModelArchitecture
from realloc.reallocation.families import canonical_tensors
from realloc.reallocation.frozen import is_frozen
from tests.support.running_cluster import RunningCluster, experiment

TP2 = "d1t2p1@0-1"
Event = dict[str, Any]


@pytest.fixture(scope="module")
def trace(cluster: RunningCluster) -> list[Event]:
    """The spans of a PPO job whose critic trains for some time after its actor."""
    ppo = {"mini_batches": 8, "epochs": 2}
    pins = {"actor_gen": "d2t1p1@0-1", "actor_train": TP2, "critic_train": TP2, "critic_inf": TP2}
    work = experiment(cluster.folder, "ppo", iterations=4, ppo=ppo, pins=pins)
    with cluster.client() as client:
        job = client.submit(work)
        assert job.wait().state is JobState.SUCCEEDED
        events = json.loads(client.trace(job.job_id))["traceEvents"]
    return [event for event in events if event["ph"] == "X"]


def overlap(one: Event, other: Event) -> bool:
    return bool(one["ts"] < other["ts"] + other["dur"] and other["ts"] < one["ts"] + one["dur"])


def test_the_actor_moves_while_the_critic_trains(trace: list[Event]) -> None:
    """On each trainer the transfer of a new version overlaps the critic's train call."""
    moves = [event for event in trace if event["name"] == "reallocation.rank"]
    trainings = [event for event in trace if event["name"] == "function_call.rank critic_train"]
    beside = {
        move["pid"]
        for move in moves
        for training in trainings
        if move["pid"] == training["pid"] and overlap(move, training)
    }
    assert beside == {move["pid"] for move in moves}
    assert len(beside) == 2


def test_a_version_moves_once(trace: list[Event]) -> None:
    """Also where generation and evaluation both want it."""
    versions = [
        event["args"]["realloc.model.weight_version"]
        for event in trace
        if event["name"] == "reallocation"
    ]
    assert versions == [0, 16, 32, 48, 64]


def test_processes_of_a_device_share_memory(trace: list[Event]) -> None:
    """A trainer sends to the replica of its own device by shared memory, to the other by gloo."""
    moves = [event for event in trace if event["name"] == "reallocation.rank"]
    assert {move["args"]["realloc.reallocation.transports"] for move in moves} == {
        "gloo,shared_memory"
    }
    assert all(move["args"]["realloc.reallocation.sent_bytes"] > 0 for move in moves)


FROZEN = ["model.embed_tokens", "model.layers.0", "lm_head"]


def actor(cluster: RunningCluster, frozen: list[str]) -> dict[str, Any]:
    """The tiny actor with frozen parts."""
    return {
        "checkpoint": str(cluster.folder / "model"),
        "random_weights": True,
        "optimizer": {"learning_rate": 1e-3, "frozen": frozen},
    }


def test_frozen_parts_move_once_and_in_the_generators_type(cluster: RunningCluster) -> None:
    """A float32 trainer feeds bfloat16 replicas: first everything at two bytes an element, then
    only what trained; and both sides still agree on the tokens' log-probabilities."""
    work = experiment(
        cluster.folder,
        "ppo",
        iterations=3,
        actor=actor(cluster, FROZEN),
        dtype="bfloat16",
        evaluation=None,
    )
    with cluster.client() as client:
        job = client.submit(work)
        assert job.wait().state is JobState.SUCCEEDED
        reports = job.reports()
    config = json.loads((cluster.folder / "model" / "config.json").read_text())
    sizes = {
        tensor.name: math.prod(tensor.shape)
        for tensor in canonical_tensors(ModelArchitecture.from_hf_config(config))
    }
    training = [size for name, size in sizes.items() if not is_frozen(name, FROZEN)]
    moved = [move.bytes for report in reports for move in report.reallocations]
    num_replicas, element = 2, 2
    assert moved == [
        num_replicas * element * sum(sizes.values()),
        num_replicas * element * sum(training),
        num_replicas * element * sum(training),
    ]
    assert 0 < sum(training) < sum(sizes.values()) / 2
    differences = [report.metrics["train_rollout_logprob_abs_diff_max"] for report in reports]
    assert max(differences) < 0.2, "rounding of bfloat16, not other weights"


def test_a_frozen_name_that_no_tensor_has_is_refused_at_submit(cluster: RunningCluster) -> None:
    """So is freezing everything: with the field's path, before any time is spent."""
    for frozen, problem in (
        (["model.layers.7"], r"actor.optimizer.frozen\[0\].*'model.layers.7' names no tensor"),
        (["model", "lm_head"], r"actor.optimizer.frozen.*nothing to train"),
    ):
        work = experiment(cluster.folder, "ppo", actor=actor(cluster, frozen))
        with cluster.client() as client, pytest.raises(InvalidInput) as caught:
            client.submit(work)
        assert re.search(problem, "\n".join(map(str, caught.value.problems)))
