"""Runs one function call on the shards of its mesh: split rows, send, collect references."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from realloc.api.generation.v1 import generation_pb2
from realloc.api.trainer.v1 import trainer_pb2
from realloc.api.types.v1 import types_pb2
from realloc.core.batch import BatchReference
from realloc.core.data_file import DataFile
from realloc.core.errors import JobFailed
from realloc.core.experiment import Experiment
from realloc.core.plan import CallPlacement
from realloc.core.settings import GenerationSettings
from realloc.dataflow.graph import FunctionCall
from realloc.dataflow.partition import balanced_partition
from realloc.wire.convert import from_proto, to_proto
from services.scheduler.columns import Columns
from services.scheduler.shards import JobShards, TrainerShard, replica_devices
from services.scheduler.together import together

Progress = Callable[[str], None]
"""Takes a short phrase: how far a call is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOutcome:
    """What a call measured; its data lie on the shards."""

    seconds: float
    """Of the slowest rank, without its wait for calls before it."""
    num_tokens: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    weight_version: int = 0
    """After a train call: the model's optimizer steps so far."""


class FunctionCalls:
    """The calls of one job. Every request has the experiment's deadline."""

    def __init__(self, job_id: str, experiment: Experiment, shards: JobShards) -> None:
        self._job_id = job_id
        self._experiment = experiment
        self._shards = shards
        self._timeout = experiment.call_timeout_seconds

    async def generate(
        self,
        call: FunctionCall,
        placement: CallPlacement,
        *,
        data: DataFile,
        rows: Sequence[int],
        settings: GenerationSettings,
        columns: Columns,
        iteration: int,
        seed: int,
        weight_version: int,
        progress: Progress,
    ) -> CallOutcome:
        """Sample rollouts for rows of a prompt file; the columns get their references.

        Row ``i`` of the file's ``rows`` becomes rows ``i * samples … (i + 1) * samples − 1``
        of the batch, whatever the number of replicas.
        """
        samples = settings.samples_per_prompt
        devices = replica_devices(placement.mesh, placement.strategy)
        parts = balanced_partition([data.lengths[row] for row in rows], len(devices))
        finished = dict.fromkeys(devices, 0)

        async def one_replica(device: int, part: Sequence[int]) -> generation_pb2.GenerateResult:
            request = generation_pb2.GenerateRequest(
                job_id=self._job_id,
                call=call.name,
                iteration=iteration,
                data=types_pb2.DataRows(path=data.path, rows=[rows[index] for index in part]),
                settings=to_proto(settings, types_pb2.GenerationSettings),
                seed=seed,
                weight_version=weight_version,
            )
            stub = self._shards.generators[device].generation
            async for response in stub.Generate(request, timeout=self._timeout):
                finished[device] = response.num_finished
                progress(f"{call.name} {sum(finished.values())}/{len(rows) * samples}")
                if response.HasField("result"):
                    return response.result  # type: ignore[no-any-return]  # stubs are untyped
            raise JobFailed(f"{call.name}: the replica of device {device} ended without a result")

        busy = [(device, part) for device, part in zip(devices, parts, strict=True) if part]
        results = await together(one_replica(device, part) for device, part in busy)
        sums: dict[str, float] = {}
        for (_, part), result in zip(busy, results, strict=True):
            batch_rows = [index * samples + sample for index in part for sample in range(samples)]
            columns.add(from_proto(result.batch, BatchReference), batch_rows)
            for name, value in result.sums.items():
                sums[name] = sums.get(name, 0.0) + value
        return CallOutcome(
            seconds=max(result.seconds for result in results),
            num_tokens=sum(result.num_tokens for result in results),
            metrics={name: value / columns.num_rows for name, value in sums.items()},
        )

    async def infer(
        self,
        call: FunctionCall,
        placement: CallPlacement,
        *,
        columns: Columns,
        settings: trainer_pb2.CallSettings,
        iteration: int,
    ) -> CallOutcome:
        """Score every row; the columns get the references of the results."""
        parts = balanced_partition(columns.lengths, placement.strategy.data)

        def request(shard: TrainerShard, data_rank: int) -> trainer_pb2.RunInferenceRequest:
            return trainer_pb2.RunInferenceRequest(
                job_id=self._job_id,
                sequence=shard.next_sequence(),
                model_id=call.model,
                call=call.name,
                iteration=iteration,
                settings=settings,
                input=columns.call_input(call.inputs, parts[data_rank]),
                output_field=call.outputs[0],
            )

        responses = await self._on_mesh(placement, "RunInference", request)
        for rank, response in enumerate(responses):
            if response.HasField("output"):
                part = parts[placement.strategy.coordinate(rank).data]
                columns.add(from_proto(response.output, BatchReference), part)
        return CallOutcome(
            seconds=max(response.seconds for response in responses),
            num_tokens=sum(columns.lengths),
        )

    async def train(
        self,
        call: FunctionCall,
        placement: CallPlacement,
        *,
        mini_batches: Sequence[Sequence[trainer_pb2.CallInput]],
        settings: trainer_pb2.CallSettings,
        iteration: int,
    ) -> CallOutcome:
        """One optimizer step per mini-batch.

        Args:
            mini_batches: per mini-batch the input of each data-parallel rank.
        """

        def request(shard: TrainerShard, data_rank: int) -> trainer_pb2.RunTrainingRequest:
            return trainer_pb2.RunTrainingRequest(
                job_id=self._job_id,
                sequence=shard.next_sequence(),
                model_id=call.model,
                call=call.name,
                iteration=iteration,
                settings=settings,
                mini_batches=[parts[data_rank] for parts in mini_batches],
            )

        responses = await self._on_mesh(placement, "RunTraining", request)
        return CallOutcome(
            seconds=max(response.seconds for response in responses),
            # One rank of each replica counts: tensor rank 0 of the first stage.
            num_tokens=sum(
                response.num_tokens
                for rank, response in enumerate(responses)
                if rank
                == placement.strategy.rank(
                    data=placement.strategy.coordinate(rank).data, tensor=0, pipeline=0
                )
            ),
            metrics=dict(responses[0].metrics),
            weight_version=responses[0].weight_version,
        )

    async def _on_mesh(
        self,
        placement: CallPlacement,
        method: str,
        request: Callable[[TrainerShard, int], Any],
    ) -> list[Any]:
        """Send a request to every rank of a mesh; sequence numbers are taken without a pause,
        so that all shards agree on the order of calls."""
        prepared = []
        for rank, device in enumerate(placement.mesh.devices):
            shard = self._shards.trainers[device]
            data_rank = placement.strategy.coordinate(rank).data
            prepared.append((shard, request(shard, data_rank)))
        return await together(
            getattr(shard.trainer, method)(message, timeout=self._timeout)
            for shard, message in prepared
        )
