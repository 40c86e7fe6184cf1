"""Weights that move within a running job: beside other calls, and no more than need be."""

import json
from typing import Any

import pytest

from realloc.core.job import JobState
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
