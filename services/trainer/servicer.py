"""TrainerService: parse, wait for the turn, call the engine, answer."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import structlog

from realloc.api.trainer.v1 import trainer_pb2 as pb
from realloc.api.trainer.v1 import trainer_pb2_grpc
from realloc.api.types.v1 import types_pb2
from realloc.core.batch import Batch, BatchReference, RaggedArray
from realloc.core.checkpoint_folder import open_checkpoint
from realloc.core.errors import Conflict, InvalidInput, ReallocError
from realloc.core.layout import Layout
from realloc.core.model import Head, ModelArchitecture
from realloc.core.settings import OptimizerSettings
from realloc.shard.batch_reader import BatchReader, FieldGroup
from realloc.shard.batches import BatchStore
from realloc.shard.data_source import DataSource
from realloc.shard.ordered_calls import OrderedCalls
from realloc.shard.tokenizer import Tokenizer
from realloc.shard.transfer_service import TransferServicer
from realloc.telemetry.names import Attribute, Metric, Span
from realloc.telemetry.spans import Attributes, current_traceparent, record, span
from realloc.transfer.link_meter import LinkMeasurement, MeterWorld
from realloc.wire.convert import from_proto, to_proto
from services.trainer.engine import CallSettings, JobWorld, ModelSpec, TrainerEngine, TrainResult
from services.trainer.model_locks import ModelLocks
from services.trainer.progress import ProgressFeed
from services.trainer.snapshot import write_snapshot

log = structlog.get_logger(__name__)
Result = TypeVar("Result")

_IDLE_SECONDS = 5.0
"""A call that runs so long after its job ended is stuck in a collective."""


class TrainerServicer(trainer_pb2_grpc.TrainerServiceServicer):
    """Serves one job at a time."""

    def __init__(
        self,
        *,
        engine: TrainerEngine,
        calls: OrderedCalls,
        locks: ModelLocks,
        batches: BatchStore,
        reader: BatchReader,
        transfers: TransferServicer,
        measure: Callable[[MeterWorld], LinkMeasurement],
        abandon: Callable[[str], None],
    ) -> None:
        """
        Args:
            measure: measures the links to other trainers, while no job is here.
            abandon: ends the process where its engine is beyond repair; takes the reason.
        """
        self._engine = engine
        self._calls = calls
        self._locks = locks
        self._batches = batches
        self._reader = reader
        self._transfers = transfers
        self._measure = measure
        self._abandon = abandon
        self._world: JobWorld | None = None
        self._data: DataSource | None = None
        self._tokenizers: dict[str, str] = {}
        self._data_lock = asyncio.Lock()
        self._changing = asyncio.Lock()

    async def StartJob(self, request: pb.StartJobRequest, context: Any) -> pb.StartJobResponse:
        world = from_proto(request, JobWorld)
        async with self._changing:
            if self._world is not None:
                await self._end(self._world.job_id)
            self._calls.begin_job()
            self._world = world
            await self._calls.run(
                lambda: self._engine.start_job(world), sequence=0, timeout=world.timeout_seconds
            )
        return pb.StartJobResponse()

    async def CreateModel(
        self, request: pb.CreateModelRequest, context: Any
    ) -> AsyncIterator[pb.CreateModelResponse]:
        self._job(request.job_id)
        spec = await self._or_skip(request.sequence, lambda: _model_spec(request))
        if self._data is None:
            self._data = await self._or_skip(
                request.sequence, lambda: DataSource(Tokenizer.load(request.tokenizer))
            )
        self._tokenizers[request.model_id] = request.tokenizer
        feed = ProgressFeed()

        async def create() -> None:
            with span(Span.LOAD_MODEL, {Attribute.MODEL_ID: request.model_id}):
                await self._run(
                    request.sequence, lambda: self._engine.create_model(spec, feed.report)
                )

        async with aclosing(feed.follow(create())) as steps:
            async for step in steps:
                yield pb.CreateModelResponse(done=step.done, total=step.total)

    async def RunInference(
        self, request: pb.RunInferenceRequest, context: Any
    ) -> pb.RunInferenceResponse:
        self._job(request.job_id)
        settings = from_proto(request.settings, CallSettings, "settings")
        batch = await self._input(request.sequence, request.input)
        scored = await self._run(
            request.sequence,
            _ranked(request, lambda: self._engine.infer(request.model_id, settings, batch)),
        )
        response = pb.RunInferenceResponse(seconds=scored.seconds, num_tokens=_num_tokens(batch))
        if scored.value is not None:
            reference = self._keep(request, scored.value)
            response.output.CopyFrom(to_proto(reference, types_pb2.BatchReference))
        return response

    async def RunTraining(
        self, request: pb.RunTrainingRequest, context: Any
    ) -> pb.RunTrainingResponse:
        self._job(request.job_id)
        settings = from_proto(request.settings, CallSettings, "settings")
        batches = [await self._input(request.sequence, each) for each in request.mini_batches]

        def train() -> TrainResult:
            with self._locks.changing(request.model_id, self._timeout):
                return self._engine.train(request.model_id, settings, batches)

        result = await self._run(request.sequence, _ranked(request, train))
        return pb.RunTrainingResponse(
            metrics=result.value.metrics,
            weight_version=result.value.weight_version,
            seconds=result.seconds,
            num_tokens=sum(map(_num_tokens, batches)),
        )

    async def SaveCheckpoint(
        self, request: pb.SaveCheckpointRequest, context: Any
    ) -> AsyncIterator[pb.SaveCheckpointResponse]:
        self._job(request.job_id)
        feed, tokenizer = ProgressFeed(), self._tokenizers.get(request.model_id, "")

        def save() -> None:
            self._engine.save_checkpoint(request.model_id, request.folder, tokenizer, feed.report)

        async with aclosing(feed.follow(self._run(request.sequence, save))) as steps:
            async for step in steps:
                yield pb.SaveCheckpointResponse(done=step.done, total=step.total)

    async def SaveState(
        self, request: pb.SaveStateRequest, context: Any
    ) -> AsyncIterator[pb.SaveStateResponse]:
        world = self._job(request.job_id)
        snapshot = await self._run(request.sequence, _timed(self._engine.snapshot))
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
        self._job(request.job_id)
        checkpoint = await self._or_skip(
            request.sequence, lambda: open_checkpoint(Path(request.checkpoint))
        )
        restored = await self._run(
            request.sequence, _timed(lambda: self._engine.restore(checkpoint))
        )
        return pb.RestoreStateResponse(seconds=restored.seconds)

    async def EndJob(self, request: pb.EndJobRequest, context: Any) -> pb.EndJobResponse:
        async with self._changing:
            world = self._world
            if world is not None and _names(request, world):
                await self._end(request.job_id)
        return pb.EndJobResponse()

    async def MeasureLinks(
        self, request: pb.MeasureLinksRequest, context: Any
    ) -> pb.MeasureLinksResponse:
        async with self._changing:
            if self._world is not None:
                raise Conflict(f"job {self._world.job_id} holds this trainer; wait for its end")
            world = from_proto(request, MeterWorld)
            measured = await self._calls.run(
                lambda: self._measure(world),
                sequence=0,
                timeout=world.timeout_seconds,
            )
        return to_proto(measured, pb.MeasureLinksResponse)

    @property
    def job_id(self) -> str:
        """The job that holds this shard; empty where none does."""
        return self._world.job_id if self._world is not None else ""

    async def _end(self, job_id: str) -> None:
        """Free everything of a job; a call that never returns costs the process its life."""
        self._calls.begin_job()
        self._transfers.release(job_id)
        try:
            async with asyncio.timeout(_IDLE_SECONDS):
                await self._calls.run(self._end_engine, sequence=0, timeout=_IDLE_SECONDS)
        except TimeoutError:
            self._abandon(f"job {job_id} ended and a call or a transfer of it is stuck")
        except Exception as error:
            self._abandon(f"job {job_id} could not be ended: {error}")
        self._batches.release(job_id)
        self._world = self._data = None

    def _end_engine(self) -> None:
        self._locks.wait_unread(_IDLE_SECONDS)
        self._engine.end_job()

    @property
    def _timeout(self) -> float:
        return self._world.timeout_seconds if self._world else 0.0

    async def _run(self, sequence: int, work: Callable[[], Result]) -> Result:
        return await self._calls.run(work, sequence=sequence, timeout=self._timeout)

    async def _or_skip(self, sequence: int, read: Callable[[], Result]) -> Result:
        """What a call needs before its turn; where that fails, its turn passes unused."""
        try:
            return await asyncio.to_thread(read)
        except ReallocError:
            await self._run(sequence, lambda: None)
            raise

    async def _input(self, sequence: int, given: pb.CallInput) -> Batch:
        if given.HasField("data"):
            data = self._data
            if data is None:
                raise Conflict("no model has named a tokenizer for rows of a data file yet")
            async with self._data_lock:
                return await self._or_skip(
                    sequence, lambda: data.supervised(given.data.path, given.data.rows)
                )
        groups = [
            FieldGroup(
                fields=tuple(group.fields),
                references=tuple(
                    from_proto(reference, BatchReference) for reference in group.references
                ),
            )
            for group in given.groups
        ]
        with span(Span.PULL_BATCH) as current:
            batch = await self._or_skip(sequence, lambda: self._reader.read(groups))
            current.set_attribute(Attribute.NUM_ROWS, batch.num_rows)
        return batch

    def _keep(self, request: pb.RunInferenceRequest, scored: Batch) -> BatchReference:
        """Store results under the name that the graph gives them."""
        (field,) = scored.fields.values()
        kept = Batch(fields={request.output_field: field})
        return self._batches.put(
            job_id=request.job_id, iteration=request.iteration, call=request.call, batch=kept
        )

    def _job(self, job_id: str) -> JobWorld:
        if self._world is None or self._world.job_id != job_id:
            raise Conflict(f"this shard does not work for job {job_id!r}; start it first")
        return self._world


@dataclass(frozen=True, slots=True, kw_only=True)
class _Timed(Generic[Result]):
    """What work returned, and how long it took once its turn had come."""

    value: Result
    seconds: float


def _names(request: pb.EndJobRequest, world: JobWorld) -> bool:
    return request.job_id == world.job_id and request.run_id in ("", world.run_id)


def _timed(work: Callable[[], Result]) -> Callable[[], _Timed[Result]]:
    """The work, timed once the engine's thread gets to it."""

    def timed() -> _Timed[Result]:
        started = time.monotonic()
        value = work()
        return _Timed(value=value, seconds=time.monotonic() - started)

    return timed


def _ranked(
    request: pb.RunInferenceRequest | pb.RunTrainingRequest, work: Callable[[], Result]
) -> Callable[[], _Timed[Result]]:
    """The work under a span of its own, and timed, once the engine's thread gets to it."""
    parent = current_traceparent()
    attributes: Attributes = {
        Attribute.CALL: request.call,
        Attribute.MODEL_ID: request.model_id,
        Attribute.ITERATION: request.iteration,
        Attribute.CALL_SEQUENCE: request.sequence,
    }

    timed = _timed(work)

    def spanned() -> _Timed[Result]:
        with span(Span.FUNCTION_CALL_RANK, attributes, parent=parent):
            done = timed()
        record(Metric.DEVICE_BUSY_SECONDS, done.seconds, {Attribute.CALL: request.call})
        return done

    return spanned


def _model_spec(request: pb.CreateModelRequest) -> ModelSpec:
    head = Head[types_pb2.Head.Name(request.head).removeprefix("HEAD_")]
    try:
        config = json.loads(request.hf_config)
    except ValueError as error:
        raise InvalidInput.at("hf_config", f"is not JSON: {error}") from error
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
