"""What every process of a cluster offers, whatever it does."""

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from realloc.api.param_store.v1 import param_store_pb2, param_store_pb2_grpc
from realloc.api.shard.v1 import shard_pb2, shard_pb2_grpc
from realloc.api.trainer.v1 import trainer_pb2, trainer_pb2_grpc
from realloc.core.errors import Conflict, InvalidInput, NotFound
from realloc.rpc.channel import connect_sync
from tests.support.running_cluster import RunningCluster

SERVED = {
    "scheduler": {"SchedulerService"},
    "plan_search": {"PlanSearchService"},
    "param_store": {"ParamStoreService"},
    "trainer-0": {"TrainerService", "BatchService", "TransferService"},
    "generation-1": {"GenerationService", "BatchService", "TransferService"},
}
SECONDS = 60.0


@pytest.mark.parametrize("name", SERVED)
def test_health_and_reflection_name_every_service(cluster: RunningCluster, name: str) -> None:
    """Probes and tools like grpcurl work on each process."""
    with grpc.insecure_channel(cluster.endpoints[name]) as channel:
        listed = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=SECONDS
        )
        services = {service.name for service in next(listed).list_services_response.service}
        health = health_pb2_grpc.HealthStub(channel)
        for service in (each for each in services if each.startswith("realloc.")):
            answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=SECONDS)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert SERVED[name] | {"DiagnosticsService"} <= {
        service.rpartition(".")[2] for service in services
    }


def test_a_shard_refuses_work_of_a_job_that_it_does_not_have(cluster: RunningCluster) -> None:
    """No call of a stranger touches an engine."""
    with connect_sync(cluster.endpoints["trainer-0"]) as channel:
        stub = trainer_pb2_grpc.TrainerServiceStub(channel)
        with pytest.raises(Conflict, match="'stranger'"):
            stub.RunTraining(trainer_pb2.RunTrainingRequest(job_id="stranger", sequence=1))


def test_a_batch_that_is_not_here_is_not_found(cluster: RunningCluster) -> None:
    """The error names the batch and the shard."""
    with connect_sync(cluster.endpoints["generation-0"]) as channel:
        stub = shard_pb2_grpc.BatchServiceStub(channel)
        request = shard_pb2.FetchBatchRequest(key="job/1/actor_gen", fields=["tokens"], rows=[0])
        with pytest.raises(NotFound, match="job/1/actor_gen"):
            list(stub.FetchBatch(request, timeout=SECONDS))


def test_a_bad_request_names_every_field(cluster: RunningCluster) -> None:
    """INVALID_ARGUMENT brings all problems with their paths."""
    with connect_sync(cluster.endpoints["param_store"]) as channel:
        stub = param_store_pb2_grpc.ParamStoreServiceStub(channel)
        model = param_store_pb2.Model(job_id="j", model_id="m", hf_config="{}")
        layout = model.layouts.add(shards=["trainer-0"]).layout
        layout.devices.append(0)
        with pytest.raises(InvalidInput) as caught:
            stub.RegisterModel(param_store_pb2.RegisterModelRequest(model=model), timeout=SECONDS)
    paths = {problem.path for problem in caught.value.problems}
    assert "model.head" in paths
    assert "model.layouts[0].layout.kind" in paths
