"""Every participant is killed in every phase of a reallocation; no engine serves half of it.

The processes are real: etcd, ``services.param_store``, two trainers and two replicas that hold
parameters (`tests.support.toy_shards`). A shard halts in a phase, somebody gets SIGKILL, and the
parameters of all that are left are compared bit by bit with whole versions.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from deploy.local.etcd_binary import find_etcd
from deploy.local.etcd_server import EtcdServer
from realloc.api.param_store.v1 import param_store_pb2 as pb
from realloc.api.param_store.v1 import param_store_pb2_grpc
from realloc.api.types.v1 import types_pb2
from realloc.core.errors import NotFound, ReallocError
from realloc.rpc.channel import connect_sync
from realloc.wire.convert import to_proto
from tests.support.toy_fleet import ToyFleet
from tests.support.toy_store import MODEL, SOURCE, TARGET

SHARDS = (*SOURCE.shards, *TARGET.shards)
CALL_SECONDS = 40.0
PHASE_SECONDS = 4.0
"""Deadline of each phase: what a thread may wait for a peer that was killed."""


class Calls:
    """Reallocations through the param-store that runs now."""

    def __init__(self, fleet: ToyFleet) -> None:
        self.fleet = fleet
        self._executor = ThreadPoolExecutor(1)

    def register(self) -> None:
        with connect_sync(self.fleet.param_store) as channel:
            stub = param_store_pb2_grpc.ParamStoreServiceStub(channel)
            stub.RegisterModel(pb.RegisterModelRequest(model=to_proto(MODEL, pb.Model)))

    def reallocate(
        self,
        version: int,
        name: str = "",
        seconds: float = 20.0,
        mode: pb.TransferMode = pb.TRANSFER_MODE_ALL,
    ) -> pb.Reallocation:
        """Bring the replicas to a version."""
        request = pb.ReallocateRequest(
            request_id=name or f"job/actor/{version}",
            job_id="job",
            model_id="actor",
            target=to_proto(TARGET.layout, types_pb2.Layout),
            shards=TARGET.shards,
            weight_version=version,
            timeout_seconds=seconds,
            mode=mode,
        )
        with connect_sync(self.fleet.param_store) as channel:
            stub = param_store_pb2_grpc.ParamStoreServiceStub(channel)
            return stub.Reallocate(request, timeout=CALL_SECONDS).reallocation

    def start(self, version: int, phase: str) -> "Future[pb.Reallocation]":
        """The same, beside the test."""
        mode = pb.TRANSFER_MODE_CHANGED if phase == "digest" else pb.TRANSFER_MODE_ALL
        return self._executor.submit(self.reallocate, version, seconds=PHASE_SECONDS, mode=mode)

    def close(self) -> None:
        self._executor.shutdown()


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Calls]:
    """A fleet in which the model is registered."""
    folder = tmp_path_factory.mktemp("reallocation-faults")
    with EtcdServer(find_etcd(), folder) as etcd:
        fleet = ToyFleet(etcd.endpoint, folder)
        fleet.start()
        calls = Calls(fleet)
        calls.register()
        yield calls
        fleet.stop()
        calls.close()


@pytest.fixture
def version(calls: Calls) -> int:
    """All replicas serve this version; the trainers hold the next one."""
    calls.fleet.start()
    with connect_sync(calls.fleet.param_store) as channel:
        stub = param_store_pb2_grpc.ParamStoreServiceStub(channel)
        model = stub.GetModel(pb.GetModelRequest(job_id="job", model_id="actor")).model
    version: int = model.layouts[0].weight_version + 1
    calls.fleet.train(version)
    calls.reallocate(version, f"whole again at {version}")
    assert held(calls, version) == dict.fromkeys(SHARDS, version)
    calls.fleet.train(version + 1)
    return version


def held(calls: Calls, version: int) -> dict[str, int]:
    """The version that each living shard holds, bit by bit; -1 where it is not a whole one."""
    return {
        name: calls.fleet.held_version(name, (version, version + 1)) for name in calls.fleet.shards
    }


def expected(calls: Calls, replicas_at: int, trainers_at: int) -> dict[str, int]:
    """What the living shards should hold."""
    return {
        name: trainers_at if name in SOURCE.shards else replicas_at for name in calls.fleet.shards
    }


def halt(calls: Calls, version: int, name: str, phase: str) -> "Future[pb.Reallocation]":
    """Start a reallocation and wait until a shard stands still in a phase."""
    calls.fleet.shards[name].ask("arm", phase)
    moving = calls.start(version + 1, phase)
    assert calls.fleet.shards[name].wait_reached() == phase
    return moving


@pytest.mark.parametrize("phase", ["prepare", "transfer", "transferred"])
@pytest.mark.parametrize("victim", SHARDS)
def test_a_shard_that_dies_before_the_commit_leaves_the_old_version(
    calls: Calls, version: int, victim: str, phase: str
) -> None:
    """The error names the shard; every replica that is left serves what it served."""
    moving = halt(calls, version, victim, phase)
    calls.fleet.kill(victim)
    with pytest.raises(ReallocError) as caught:
        moving.result(CALL_SECONDS)
    assert victim in str(caught.value)
    assert held(calls, version) == expected(calls, version, version + 1)


@pytest.mark.parametrize("victim", [*SHARDS, "param_store"])
def test_whoever_dies_while_sources_digest_leaves_the_old_version(
    calls: Calls, version: int, victim: str
) -> None:
    """Before it is known what has changed nothing has moved; then the same request works."""
    moving = halt(calls, version, "trainer-0", "digest")
    calls.fleet.kill(victim)
    if victim != "trainer-0":
        calls.fleet.shards["trainer-0"].let_go()
    with pytest.raises(ReallocError):
        moving.result(CALL_SECONDS)
    assert held(calls, version) == expected(calls, version, version + 1)
    calls.fleet.start()
    calls.fleet.train(version + 1)
    calls.reallocate(version + 1, mode=pb.TRANSFER_MODE_CHANGED)
    assert held(calls, version) == expected(calls, version + 1, version + 1)


@pytest.mark.parametrize("victim", SHARDS)
def test_a_shard_that_dies_while_digests_are_awaited_leaves_one_version(
    calls: Calls, version: int, victim: str
) -> None:
    """It had moved all: whether its answer still came decides which version all others serve."""
    slow = next(name for name in TARGET.shards if name != victim)
    calls.fleet.shards[victim].ask("tell", "transferred")
    moving = halt(calls, version, slow, "transferred")
    calls.fleet.shards[victim].wait_reached()
    calls.fleet.kill(victim)
    calls.fleet.shards[slow].let_go()
    error = moving.exception(CALL_SECONDS)
    found = held(calls, version)
    if error is None:
        assert found == expected(calls, version + 1, version + 1)
    else:
        assert victim in str(error)
        new = "was committed" in str(error)
        assert found == expected(calls, version + 1 if new else version, version + 1)


@pytest.mark.parametrize("phase", ["commit", "committed"])
@pytest.mark.parametrize("victim", SHARDS)
def test_a_shard_that_dies_in_the_commit_does_not_hold_the_others_back(
    calls: Calls, version: int, victim: str, phase: str
) -> None:
    """Everybody who is left serves the new version; a lost replica is named."""
    moving = halt(calls, version, victim, phase)
    calls.fleet.kill(victim)
    if victim in TARGET.shards:
        with pytest.raises(ReallocError, match=victim):
            moving.result(CALL_SECONDS)
    else:
        assert moving.result(CALL_SECONDS).weight_version == version + 1
    assert held(calls, version) == expected(calls, version + 1, version + 1)


@pytest.mark.parametrize("phase", ["prepare", "transfer", "transferred"])
def test_a_param_store_that_dies_before_the_commit_changes_nothing(
    calls: Calls, version: int, phase: str
) -> None:
    """All serve the old version, before its successor comes and after; then the same works."""
    moving = halt(calls, version, "generation-0", phase)
    calls.fleet.kill("param_store")
    with pytest.raises(ReallocError):
        moving.result(CALL_SECONDS)
    calls.fleet.shards["generation-0"].let_go()
    assert held(calls, version) == expected(calls, version, version + 1)
    calls.fleet.start()
    calls.reallocate(version + 1)
    assert held(calls, version) == expected(calls, version + 1, version + 1)


@pytest.mark.parametrize("phase", ["commit", "committed"])
def test_a_param_store_that_dies_in_the_commit_has_it_finished_by_its_successor(
    calls: Calls, version: int, phase: str
) -> None:
    """No replica is left behind, and the same request gets the outcome without a transfer."""
    moving = halt(calls, version, "generation-0", phase)
    calls.fleet.kill("param_store")
    with pytest.raises(ReallocError):
        moving.result(CALL_SECONDS)
    found = held(calls, version)
    assert found["generation-0"] == version + (phase == "committed")
    assert -1 not in found.values()
    calls.fleet.shards["generation-0"].let_go()
    calls.fleet.train(version + 2)  # a second transfer would bring these
    calls.fleet.start()
    done = calls.reallocate(version + 1)
    assert (done.weight_version, done.digest_ok) == (version + 1, True)
    assert held(calls, version) == {
        **dict.fromkeys(TARGET.shards, version + 1),
        **dict.fromkeys(SOURCE.shards, -1),
    }


def test_nothing_is_known_of_a_released_job(calls: Calls, version: int) -> None:
    """After all faults the job can be released, and is gone."""
    with connect_sync(calls.fleet.param_store) as channel:
        stub = param_store_pb2_grpc.ParamStoreServiceStub(channel)
        stub.ReleaseJob(pb.ReleaseJobRequest(job_id="job"))
        with pytest.raises(NotFound):
            stub.GetModel(pb.GetModelRequest(job_id="job", model_id="actor"))
