"""The experiments of examples/ are valid, and fit the cluster of `make run`."""

from pathlib import Path

import pytest

from realloc.client.experiment_file import load_experiment
from realloc.core.mesh import Cluster
from realloc.core.reward_function import check_reward_function
from realloc.dataflow.catalog import build_graph

ROOT = Path(__file__).resolve().parent.parent.parent
EXAMPLES = sorted((ROOT / "examples").rglob("*.yaml"))
LOCAL = Cluster(num_nodes=1, devices_per_node=2, device_kind="cpu", device_memory_bytes=4 << 30)


@pytest.fixture(params=EXAMPLES, ids=lambda path: path.name)
def experiment(request, monkeypatch):
    monkeypatch.chdir(ROOT)
    return load_experiment(str(request.param))


def test_there_are_examples():
    """The tests below have something to look at."""
    assert {"sft.yaml", "ppo.yaml"} <= {path.name for path in EXAMPLES}


def test_every_example_is_valid(experiment):
    """Each file has only known fields, and values that the scheduler accepts."""
    assert experiment.problems() == ()


def test_every_pin_places_a_call_of_the_graph_on_the_local_cluster(experiment):
    """Pins name calls that exist, once each, on legal meshes of two devices."""
    calls = [call.name for call in build_graph(experiment).placed_calls()]
    pinned = [pin.call for pin in experiment.pins]
    assert set(pinned) <= set(calls)
    assert len(set(pinned)) == len(pinned)
    assert {pin.mesh for pin in experiment.pins} <= set(LOCAL.meshes())


def test_every_reward_function_may_be_used(experiment):
    """Each reward function is there and takes what it will be given."""
    if experiment.reward_model is None or experiment.reward.function:
        check_reward_function(experiment.reward.function, [ROOT])
