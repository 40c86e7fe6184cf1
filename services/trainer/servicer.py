"""TrainerService: parse, wait for the turn, call the engine, answer."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import structlog

from realloc.api.trainer.v1 import trainer_pb2 as pb
from realloc.api.trainer.v1 import trainer_pb2_grpc
from realloc.api.types.v1 import types_pb2
from realloc.core.batch import Batch, BatchReference, RaggedArray
from realloc.core.checkpoint_folder import open_checkpoint
from realloc.core.errors import Conflict, InvalidInput
from realloc.core.layout import Layout
from realloc.core.model import Head, ModelArchitecture, check_computable
from realloc.core.settings import OptimizerSettings
from realloc.shard.batches import BatchStore
from realloc.shard.transfer_service import TransferServicer
from realloc.telemetry.names import Attribute, Span
from realloc.telemetry.spans import span
from realloc.transfer.link_meter import LinkMeasurement, MeterWorld
from realloc.wire.convert import from_proto, to_proto
from services.trainer.call_inputs import CallInputs
from services.trainer.engine import CallSettings, JobWorld, ModelSpec, TrainerEngine, TrainResult
from services.trainer.job_calls import JobCalls
from services.trainer.model_locks import ModelLocks
from services.trainer.progress import ProgressFeed
from services.trainer.snapshot import write_snapshot
from services.trainer.timed_work import timed, timed_call

log = structlog.get_logger(__name__)


class TrainerServicer(trainer_pb2_grpc.TrainerServiceServicer):
    """Serves one job at a time."""

    def __init__(
        self,
        *,
        engine: TrainerEngine,
        job: JobCalls,
        inputs: CallInputs,
        locks: ModelLocks,
        batches: BatchStore,
        transfers: TransferServicer,
        measure: Callable[[MeterWorld], LinkMeasurement],
    ) -> None:
        """
        Args:
            measure: measures the links to other trainers, while no job is here.
        """
        self._engine = engine
        self._job = job
        self._inputs = inputs
        self._locks = locks
        self._batches = batches
        self._transfers = transfers
        self._measure = measure
        self._tokenizers: dict[str, str] = {}
        self._changing = asyncio.Lock()

    async def StartJob(self, request: pb.StartJobRequest, context: Any) -> pb.StartJobResponse:
        world = from_proto(request, JobWorld)
        async with self._changing:
            await self._end()
            await self._job.start(world)
        return pb.StartJobResponse()

    async def CreateModel(
        self, request: pb.CreateModelRequest, context: Any
    ) -> AsyncIterator[pb.CreateModelResponse]:
        self._job.require(request.job_id)
        spec = await self._job.or_skip(request.sequence, lambda: _model_spec(request))
        await self._inputs.name_tokenizer(request.sequence, request.tokenizer)
        self._tokenizers[request.model_id] = request.tokenizer
        feed = ProgressFeed()

        async def create() -> None:
            with span(Span.LOAD_MODEL, {Attribute.MODEL_ID: request.model_id}):
                await self._job.run(
                    request.sequence, lambda: self._engine.create_model(spec, feed.report)
                )

        async with aclosing(feed.follow(create())) as steps:
            async for step in steps:
                yield pb.CreateModelResponse(done=step.done, total=step.total)

    async def RunInference(
        self, request: pb.RunInferenceRequest, context: Any
    ) -> pb.RunInferenceResponse:
        self._job.require(request.job_id)
        settings = from_proto(request.settings, CallSettings, "settings")
        batch = await self._inputs.read(request.sequence, request.input)
        scored = await self._job.run(
            request.sequence,
            timed_call(request, lambda: self._engine.infer(request.model_id, settings, batch)),
        )
        response = pb.RunInferenceResponse(seconds=scored.seconds, num_tokens=_num_tokens(batch))
        if scored.value is not None:
            reference = self._keep(request, scored.value)
            response.output.CopyFrom(to_proto(reference, types_pb2.BatchReference))
        return response

    async def RunTraining(
        self, request: pb.RunTrainingRequest, context: Any
    ) -> pb.RunTrainingResponse:
        self._job.require(request.job_id)
        settings = from_proto(request.settings, CallSettings, "settings")
        batches = [await self._inputs.read(request.sequence, each) for each in request.mini_batches]

        def train() -> TrainResult:
            with self._locks.changing(request.model_id, self._job.timeout_seconds):
                return self._engine.train(request.model_id, settings, batches)

        result = await self._job.run(request.sequence, timed_call(request, train))
        return pb.RunTrainingResponse(
            metrics=result.value.metrics,
            weight_version=result.value.weight_version,
            seconds=result.seconds,
            num_tokens=sum(map(_num_tokens, batches)),
        )

    async def SaveCheckpoint(
        self, request: pb.SaveCheckpointRequest, context: Any
    ) -> AsyncIterator[pb.SaveCheckpointResponse]:
        self._job.require(request.job_id)
        feed, tokenizer = ProgressFeed(), self._tokenizers.get(request.model_id, "")

        def save() -> None:
            self._engine.save_checkpoint(request.model_id, request.folder, tokenizer, feed.report)

        async with aclosing(feed.follow(self._job.run(request.sequence, save))) as steps:
            async for step in steps:
                yield pb.SaveCheckpointResponse(done=step.done, total=step.total)

    async def SaveState(
        self, request: pb.SaveStateRequest, context: Any
    ) -> AsyncIterator[pb.SaveStateResponse]:
        world = self._job.require(request.job_id)
        snapshot = await self._job.run(request.sequence, timed(self._engine.snapshot))
        size = snapshot.value.num_bytes
        yield pb.SaveStateResponse(snapshot_seconds=snapshot.seconds, bytes=size)
        path = Path(request.folder) / f"rank-{world.rank:05d}.safetensors"
        stop = threading.Event()
        try:
            file = await asyncio.to_thread(write_snapshot, snapshot.value, path, stop)
        finally:
            stop.set()  # a caller that went away leaves nobody who would use the file
        yield pb.SaveStateResponse(
            snapshot_seconds=snapshot.seconds,
            bytes=size,
            file=to_proto(file, pb.SavedFile),
            tensors=snapshot.value.tensors,
        )

    async def RestoreState(
        self, request: pb.RestoreStateRequest, context: Any
    ) -> pb.RestoreStateResponse:
        self._job.require(request.job_id)
        checkpoint = await self._job.or_skip(
            request.sequence, lambda: open_checkpoint(Path(request.checkpoint))
        )
        restored = await self._job.run(
            request.sequence, timed(lambda: self._engine.restore(checkpoint))
        )
        return pb.RestoreStateResponse(seconds=restored.seconds)

    async def EndJob(self, request: pb.EndJobRequest, context: Any) -> pb.EndJobResponse:
        async with self._changing:
            world = self._job.world
            if world is not None and _names(request, world):
                await self._end()
        return pb.EndJobResponse()

    async def MeasureLinks(
        self, request: pb.MeasureLinksRequest, context: Any
    ) -> pb.MeasureLinksResponse:
        async with self._changing:
            if self._job.world is not None:
                raise Conflict(f"job {self._job.world.job_id} holds this trainer; wait for its end")
            world = from_proto(request, MeterWorld)
            measured = await self._job.beside(
                lambda: self._measure(world), timeout_seconds=world.timeout_seconds
            )
        return to_proto(measured, pb.MeasureLinksResponse)

    @property
    def job_id(self) -> str:
        """The job that holds this shard; empty where none does."""
        return self._job.world.job_id if self._job.world is not None else ""

    async def _end(self) -> None:
        """Free everything of the job that is here, if there is one."""
        job_id = self.job_id
        if not job_id:
            return
        self._transfers.release(job_id)
        await self._job.end(job_id)
        self._batches.release(job_id)
        self._inputs.release()

    def _keep(self, request: pb.RunInferenceRequest, scored: Batch) -> BatchReference:
        """Store results under the name that the graph gives them."""
        (field,) = scored.fields.values()
        kept = Batch(fields={request.output_field: field})
        return self._batches.put(
            job_id=request.job_id, iteration=request.iteration, call=request.call, batch=kept
        )


def _names(request: pb.EndJobRequest, world: JobWorld) -> bool:
    return request.job_id == world.job_id and request.run_id in ("", world.run_id)


def _model_spec(request: pb.CreateModelRequest) -> ModelSpec:
    head = Head[types_pb2.Head.Name(request.head).removeprefix("HEAD_")]
    try:
        config = json.loads(request.hf_config)
    except ValueError as error:
        raise InvalidInput.at("hf_config", f"is not JSON: {error}") from error
    check_computable(config)
    optimizer = None
    if request.HasField("optimizer"):
        optimizer = from_proto(request.optimizer, OptimizerSettings, "optimizer")
    return ModelSpec(
        model_id=request.model_id,
        architecture=ModelArchitecture.from_hf_config(config, head).with_head(head),
        layout=from_proto(request.layout, Layout, "layout"),
        checkpoint=request.checkpoint,
        seed=request.seed,
        optimizer=optimizer,
        initializer_range=float(config.get("initializer_range", 0.02)),
        recompute=request.recompute,
        empty=request.empty,
    )


def _num_tokens(batch: Batch) -> int:
    tokens: RaggedArray | None = batch.fields.get("tokens")
    return int(tokens.lengths.sum()) if tokens is not None else 0
