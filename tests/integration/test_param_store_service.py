"""ParamStoreService over gRPC: two processes' worth of it on a real etcd, toy shards around."""

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deploy.local.etcd_binary import find_etcd
from deploy.local.etcd_server import EtcdServer
from realloc.api.param_store.v1 import param_store_pb2 as pb
from realloc.api.param_store.v1 import param_store_pb2_grpc
from realloc.api.types.v1 import types_pb2
from realloc.coordination.etcd_store import EtcdStore
from realloc.coordination.members import Members
from realloc.core.errors import Conflict, InvalidInput, NotFound
from realloc.rpc.channel import connect
from realloc.rpc.server import running
from realloc.telemetry.names import Attribute, Metric
from realloc.telemetry.recorded import read_spans
from realloc.wire.convert import to_proto
from services.param_store.app import build
from services.param_store.config import ParamStoreConfig
from tests.support.toy_store import MODEL, TARGET, name_version, toy_shards

TEST_SECONDS = 240.0


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    """One etcd for all tests here; each test cleans up."""
    folder: Path = tmp_path_factory.mktemp("etcd")
    with EtcdServer(find_etcd(), folder) as server:
        yield server


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A served param-store; closing its stack stops it."""

    stub: Any
    stack: AsyncExitStack


async def serve(etcd: str, name: str) -> Service:
    """Another param-store."""
    stack = AsyncExitStack()
    config = ParamStoreConfig(name=name, etcd_endpoints=(etcd,), drain_seconds=0.0)
    app = await stack.enter_async_context(build(config))
    address = await stack.enter_async_context(running(app, config))
    channel = await stack.enter_async_context(connect(address))
    return Service(stub=param_store_pb2_grpc.ParamStoreServiceStub(channel), stack=stack)


@asynccontextmanager
async def served(etcd: EtcdServer) -> AsyncIterator[Any]:
    """Toy shards and one param-store, with the model registered; its stub."""
    async with EtcdStore((etcd.endpoint,)) as store, toy_shards(store) as shards:
        service = await serve(etcd.endpoint, "param_store")
        async with service.stack:
            await service.stub.RegisterModel(registration())
            name_version(shards, 1)
            yield service.stub
            await service.stub.ReleaseJob(pb.ReleaseJobRequest(job_id="job"))


def registration() -> pb.RegisterModelRequest:
    return pb.RegisterModelRequest(model=to_proto(MODEL, pb.Model))


def reallocation(version: int, **changes: Any) -> pb.ReallocateRequest:
    """Bring TARGET to a version."""
    plain = {
        "request_id": f"job/actor/{version}",
        "job_id": "job",
        "model_id": "actor",
        "target": to_proto(TARGET.layout, types_pb2.Layout),
        "shards": TARGET.shards,
        "weight_version": version,
        "timeout_seconds": 20.0,
    }
    return pb.ReallocateRequest(**(plain | changes))


def run(scenario: Coroutine[Any, Any, None]) -> None:
    """Run a scenario with a deadline."""
    asyncio.run(asyncio.wait_for(scenario, TEST_SECONDS))


def test_models_are_read_listed_and_watched(etcd: EtcdServer) -> None:
    """A watch shows the version of a reallocation and ends when the job is released."""

    async def scenario() -> None:
        async with served(etcd) as stub:
            shown = await stub.GetModel(pb.GetModelRequest(job_id="job", model_id="actor"))
            assert shown.model == to_proto(MODEL, pb.Model)
            listed = await stub.ListModels(pb.ListModelsRequest())
            assert [model.model_id for model in listed.models] == ["actor"]
            assert not (await stub.ListModels(pb.ListModelsRequest(job_id="none"))).models
            versions = []
            request = pb.WatchModelRequest(job_id="job", model_id="actor")
            async with stub.WatchModel(request, timeout=120) as changes:
                async for change in changes:
                    versions.append([each.weight_version for each in change.model.layouts])
                    if len(versions) == 1:
                        await stub.Reallocate(reallocation(1))
                    else:
                        await stub.ReleaseJob(pb.ReleaseJobRequest(job_id="job"))
            assert versions == [[0], [1, 1]]
            with pytest.raises(NotFound, match="register it first"):
                await stub.GetModel(pb.GetModelRequest(job_id="job", model_id="actor"))

    run(scenario())


def test_a_plan_shows_bytes_bounds_and_seconds_and_moves_nothing(etcd: EtcdServer) -> None:
    """It agrees with the reallocation that follows, and bfloat16 halves it."""

    async def scenario() -> None:
        async with served(etcd) as stub:
            request = pb.PlanReallocationRequest(
                job_id="job",
                model_id="actor",
                target=to_proto(TARGET.layout, types_pb2.Layout),
                shards=TARGET.shards,
            )
            plan = await stub.PlanReallocation(request)
            assert plan.num_endpoints == 4
            assert plan.num_rounds >= 1
            assert plan.predicted_seconds > 0
            assert plan.traffic.cross_device_bytes == plan.traffic.cross_device_bound > 0
            model = (await stub.GetModel(pb.GetModelRequest(job_id="job", model_id="actor"))).model
            assert len(model.layouts) == 1
            moved = (await stub.Reallocate(reallocation(1))).reallocation
            assert moved.traffic == plan.traffic
            request.dtype = "bfloat16"
            half = await stub.PlanReallocation(request)
            assert 2 * half.traffic.total_bytes == plan.traffic.total_bytes
            request.dtype = "int8"
            with pytest.raises(InvalidInput, match="'int8' is none of"):
                await stub.PlanReallocation(request)

    run(scenario())


def test_all_that_is_wrong_with_a_request_is_said_at_once(etcd: EtcdServer) -> None:
    """Each problem with its field, and an id is never used for two things."""

    async def scenario() -> None:
        async with served(etcd) as stub:
            wrong = reallocation(-3, request_id="", timeout_seconds=0.0, dtype="float8")
            with pytest.raises(InvalidInput) as caught:
                await stub.Reallocate(wrong)
            assert {problem.path for problem in caught.value.problems} == {
                "request_id",
                "timeout_seconds",
                "weight_version",
                "dtype",
            }
            other = registration()
            other.model.head = types_pb2.HEAD_VALUE
            with pytest.raises(Conflict):
                await stub.RegisterModel(other)

    run(scenario())


def test_a_follower_passes_requests_on_and_takes_over(etcd: EtcdServer) -> None:
    """Either param-store serves a request; when the leader stops, the other knows its outcome."""

    async def scenario() -> None:
        async with EtcdStore((etcd.endpoint,)) as store, toy_shards(store) as shards:
            name_version(shards, 1)
            first = await serve(etcd.endpoint, "param_store-0")
            await first.stub.RegisterModel(registration())
            done = await first.stub.Reallocate(reallocation(1))
            second = await serve(etcd.endpoint, "param_store-1")
            async with second.stack:
                assert await second.stub.Reallocate(reallocation(1)) == done
                name_version(shards, 2)
                through = await second.stub.Reallocate(reallocation(2))
                assert through.reallocation.weight_version == 2
                await first.stack.aclose()
                assert await second.stub.Reallocate(reallocation(2)) == through
                name_version(shards, 3)
                third = await second.stub.Reallocate(reallocation(3))
                assert third.reallocation.weight_version == 3
                await second.stub.ReleaseJob(pb.ReleaseJobRequest(job_id="job"))

    run(scenario())


def test_what_a_reallocation_took_is_exported(etcd: EtcdServer, tmp_path: Path) -> None:
    """The files of a param-store that has ended hold each phase's span and seconds, the bytes by
    kind, bandwidth and bound ratio of a real reallocation, under the names of `telemetry.names`."""

    async def scenario() -> pb.Reallocation:
        async with EtcdStore((etcd.endpoint,)) as store, toy_shards(store) as shards:
            name_version(shards, 1)
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "services.param_store",
                f"--etcd_endpoints={etcd.endpoint}",
                f"--trace_dir={tmp_path}",
                "--drain_seconds=0",
            )
            try:
                async with Members(store) as members:
                    found = await members.wait_for({"param_store": 1}, timeout_seconds=200)
                async with connect(found[0].address) as channel:
                    stub = param_store_pb2_grpc.ParamStoreServiceStub(channel)
                    await stub.RegisterModel(registration())
                    done: pb.Reallocation = (await stub.Reallocate(reallocation(1))).reallocation
                    await stub.ReleaseJob(pb.ReleaseJobRequest(job_id="job"))
            finally:
                process.terminate()
                await process.wait()
            return done

    done = asyncio.run(asyncio.wait_for(scenario(), TEST_SECONDS))
    lines = "".join(path.read_text() for path in tmp_path.glob("*.otlp.jsonl"))
    trace_id = re.findall(r'"traceId": ?"(\w+)"[^{}]*"name": ?"reallocation"', lines)[0]
    spans = {span.name: span for span in read_spans(tmp_path, trace_id)}
    steps = ("plan", "prepare", "transfer", "verify", "commit")
    assert {"reallocation", *(f"reallocation.{step}" for step in steps)} <= spans.keys()
    assert all(spans[f"reallocation.{step}"].seconds >= 0 for step in steps)
    moved = spans["reallocation.transfer"].attributes
    assert moved[Attribute.MOVED_BYTES] == done.bytes
    assert moved[Attribute.LOCAL_BYTES] == done.traffic.local_bytes > 0
    assert moved[Attribute.CROSS_DEVICE_BYTES] == done.traffic.cross_device_bytes > 0
    assert moved[Attribute.CROSS_NODE_BYTES] == done.traffic.cross_node_bytes == 0
    assert moved[Attribute.BOUND_RATIO] == 1.0
    metrics = exported_metrics(tmp_path)
    assert {key[1] for key in metrics if key[0] == Metric.REALLOCATION_PHASE_SECONDS} == {
        "preparing",
        "transferring",
        "verifying",
        "committing",
    }
    by_kind = {
        key[1]: value for key, value in metrics.items() if key[0] == Metric.REALLOCATED_BYTES
    }
    assert sum(by_kind.values()) == done.bytes
    assert by_kind["local"] == done.traffic.local_bytes
    assert by_kind["cross_device"] == done.traffic.cross_device_bytes
    assert metrics[Metric.REALLOCATIONS, "committed"] == 1
    assert metrics[Metric.REALLOCATION_BOUND_RATIO, ""] == 1.0
    bandwidth = done.bytes / done.transfer_seconds
    assert metrics[Metric.REALLOCATION_BANDWIDTH, ""] == pytest.approx(bandwidth)
    assert metrics[Metric.REALLOCATION_SECONDS, ""] == pytest.approx(done.seconds)


def exported_metrics(folder: Path) -> dict[tuple[str, str], float]:
    """The last value (of a histogram the sum) by name and what tells its series apart."""
    found: dict[tuple[str, str], float] = {}
    for path in folder.glob("*.metrics.jsonl"):
        for line in path.read_text().splitlines():
            for resource in json.loads(line)["resourceMetrics"]:
                for scope in resource["scopeMetrics"]:
                    for metric in scope["metrics"]:
                        found |= dict(_points(metric))
    return found


def _points(metric: dict[str, Any]) -> Iterator[tuple[tuple[str, str], float]]:
    (data,) = (metric[kind] for kind in ("sum", "gauge", "histogram") if kind in metric)
    for point in data["dataPoints"]:
        series = [
            next(iter(attribute["value"].values()))
            for attribute in point.get("attributes", ())
            if attribute["key"] in (Attribute.PHASE, Attribute.BYTES_KIND, Attribute.OUTCOME)
        ]
        value = point.get("sum", point.get("asInt", point.get("asDouble")))
        yield (metric["name"], "".join(series)), float(value)
