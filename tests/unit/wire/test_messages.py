"""Every dataclass that travels has a message with its fields."""

import dataclasses
from typing import Any

import pytest
from google.protobuf.message import Message

from realloc.api.generation.v1 import generation_pb2
from realloc.api.param_store.v1 import param_store_pb2
from realloc.api.scheduler.v1 import experiment_pb2, scheduler_pb2
from realloc.api.shard.v1 import shard_pb2
from realloc.api.trainer.v1 import trainer_pb2
from realloc.api.types.v1 import types_pb2
from realloc.core import batch, experiment, job, layout, mesh, plan, settings, strategy, transfer
from services.param_store.model import Model, PlacedLayout
from services.param_store.orders import Reallocation
from services.param_store.preview import Preview
from services.param_store.records import ReallocationRecord, RecordedParticipant
from services.trainer.engine import CallSettings, JobWorld

PAIRS: list[tuple[type[Any], type[Message]]] = [
    (strategy.ParallelStrategy, types_pb2.ParallelStrategy),
    (mesh.DeviceMesh, types_pb2.DeviceMesh),
    (mesh.Cluster, types_pb2.Cluster),
    (layout.Layout, types_pb2.Layout),
    (plan.CallPlacement, types_pb2.CallPlacement),
    (plan.ExecutionPlan, types_pb2.ExecutionPlan),
    (batch.BatchReference, types_pb2.BatchReference),
    (settings.OptimizerSettings, types_pb2.OptimizerSettings),
    (settings.PpoSettings, types_pb2.PpoSettings),
    (settings.GenerationSettings, types_pb2.GenerationSettings),
    (settings.RewardSettings, types_pb2.RewardSettings),
    (experiment.Experiment, experiment_pb2.Experiment),
    (experiment.ModelSettings, experiment_pb2.ModelSettings),
    (experiment.DataSettings, experiment_pb2.DataSettings),
    (experiment.EvaluationSettings, experiment_pb2.EvaluationSettings),
    (experiment.CallPin, experiment_pb2.CallPin),
    (job.Job, scheduler_pb2.Job),
    (job.IterationReport, scheduler_pb2.IterationReport),
    (transfer.TransferSession, shard_pb2.TransferSession),
    (transfer.ParameterSpec, shard_pb2.ParameterSpec),
    (transfer.ExpectedParameters, shard_pb2.ExpectedParameters),
    (transfer.Blocks, shard_pb2.Blocks),
    (transfer.Messages, shard_pb2.Messages),
    (transfer.TransferProgram, shard_pb2.TransferProgram),
    (transfer.Traffic, param_store_pb2.Traffic),
    (Model, param_store_pb2.Model),
    (PlacedLayout, param_store_pb2.PlacedLayout),
    (Reallocation, param_store_pb2.Reallocation),
    (Preview, param_store_pb2.PlanReallocationResponse),
    (ReallocationRecord, param_store_pb2.ReallocationRecord),
    (RecordedParticipant, param_store_pb2.RecordedParticipant),
    (CallSettings, trainer_pb2.CallSettings),
    (JobWorld, trainer_pb2.StartJobRequest),
]


@pytest.mark.parametrize(("value_class", "message"), PAIRS, ids=lambda each: each.__name__)
def test_a_message_has_every_field_of_its_dataclass(
    value_class: type[Any], message: type[Message]
) -> None:
    """A field that is added on one side only fails here, not in a running job."""
    have = set(message.DESCRIPTOR.fields_by_name)
    assert {field.name for field in dataclasses.fields(value_class)} <= have


def test_weights_have_no_field_to_travel_in() -> None:
    """Only batches and transfer programs have bytes in their messages."""
    holders = {
        f"{message.name}.{field.name}"
        for file in (generation_pb2, param_store_pb2, trainer_pb2, shard_pb2, scheduler_pb2)
        for message in file.DESCRIPTOR.message_types_by_name.values()
        for field in message.fields
        if field.type == field.TYPE_BYTES and message.name not in ("Blocks", "Messages")
    }
    assert holders == {"FetchBatchResponse.data", "GetJobTraceResponse.data"}
