"""GenerationService: parse, call, answer."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

from realloc.api.generation.v1 import generation_pb2 as pb
from realloc.api.generation.v1 import generation_pb2_grpc
from realloc.api.types.v1 import types_pb2
from realloc.core.errors import Conflict, Unavailable
from realloc.core.reward_function import check_reward_function
from realloc.core.settings import GenerationSettings, RewardSettings
from realloc.shard.batches import BatchStore
from realloc.shard.data_source import DataSource
from realloc.shard.tokenizer import Tokenizer
from realloc.shard.transfer_service import TransferServicer
from realloc.telemetry.names import Attribute, Metric, Span
from realloc.telemetry.spans import Attributes, record, span
from realloc.wire.convert import from_proto, to_proto
from services.generation.config import GenerationConfig
from services.generation.engine import EngineSpec
from services.generation.rewards import RewardFunction
from services.generation.rollout_worker import RolloutWorker
from services.generation.rollouts import JobRollouts, RolloutBatch
from services.generation.transfers import GenerationTransfers

_RELEASE_SECONDS = 3.0
"""Wait for staged weights to be dropped when a job ends."""


class GenerationServicer(generation_pb2_grpc.GenerationServiceServicer):
    """Serves one job at a time."""

    def __init__(
        self,
        *,
        config: GenerationConfig,
        worker: RolloutWorker,
        batches: BatchStore,
        transfers: TransferServicer,
        weights: GenerationTransfers,
    ) -> None:
        self._config = config
        self._worker = worker
        self._batches = batches
        self._transfers = transfers
        self._weights = weights
        self._job_id = self._run_id = ""
        self._reward: RewardFunction | None = None
        self._rollouts: JobRollouts | None = None
        self._changing = asyncio.Lock()

    async def StartJob(self, request: pb.StartJobRequest, context: Any) -> pb.StartJobResponse:
        async with self._changing:
            await self._end()
            tokenizer = await asyncio.to_thread(Tokenizer.load, request.tokenizer)
            await self._worker.load(
                EngineSpec(
                    hf_config=request.hf_config,
                    tensor_parallel=request.tensor_parallel,
                    max_model_len=request.max_model_len,
                    dtype=request.dtype,
                    kv_cache_bytes=self._config.kv_cache_bytes,
                    seed=request.seed,
                ),
                timeout_seconds=self._config.load_seconds,
            )
            self._reward = await self._start_reward(request)
            self._rollouts = JobRollouts(
                worker=self._worker,
                tokenizer=tokenizer,
                data=DataSource(tokenizer),
                reward=self._reward,
            )
            self._job_id, self._run_id = request.job_id, request.run_id
        return pb.StartJobResponse()

    async def Generate(
        self, request: pb.GenerateRequest, context: Any
    ) -> AsyncIterator[pb.GenerateResponse]:
        rollouts = self._ready(request)
        settings = from_proto(request.settings, GenerationSettings, "settings")
        progresses = rollouts.generate(
            path=request.data.path,
            rows=tuple(request.data.rows),
            settings=settings,
            seed=request.seed,
            prefix=f"{request.call}/{request.iteration}",
            timeout_seconds=context.time_remaining(),
        )
        attributes: Attributes = {
            Attribute.CALL: request.call,
            Attribute.ITERATION: request.iteration,
            Attribute.NUM_ROWS: len(request.data.rows),
        }
        with span(Span.ROLLOUT, attributes) as current:
            async with aclosing(progresses):
                async for progress in progresses:
                    response = pb.GenerateResponse(
                        num_finished=progress.num_finished, num_rollouts=progress.num_rollouts
                    )
                    if progress.result is not None:
                        current.set_attribute(Attribute.NUM_TOKENS, progress.result.num_tokens)
                        response.result.CopyFrom(self._keep(request, progress.result))
                    yield response

    async def EndJob(self, request: pb.EndJobRequest, context: Any) -> pb.EndJobResponse:
        async with self._changing:
            if request.job_id == self._job_id and request.run_id in ("", self._run_id):
                await self._end()
        return pb.EndJobResponse()

    @property
    def job_id(self) -> str:
        """The job that holds this replica; empty where none does."""
        return self._job_id

    async def close(self) -> None:
        """End the reward process."""
        async with self._changing:
            await self._end()

    async def _end(self) -> None:
        if self._reward is not None:
            await self._reward.close()
        self._transfers.release(self._job_id)
        if self._job_id:
            # An abort that comes later no longer finds its session: what is staged goes now, or
            # right after the transfer that the engine's thread is still in.
            with suppress(Unavailable):
                await self._worker.abort_weights(timeout_seconds=_RELEASE_SECONDS)
        self._batches.release(self._job_id)
        self._job_id, self._reward, self._rollouts = "", None, None
        self._weights.weight_version = -1

    async def _start_reward(self, request: pb.StartJobRequest) -> RewardFunction | None:
        settings = from_proto(request.reward, RewardSettings, "reward")
        if not settings.function:
            return None
        roots = [Path(root) for root in self._config.reward_roots]
        reward = RewardFunction(
            check_reward_function(settings.function, roots),
            timeout_seconds=settings.timeout_seconds,
            memory_bytes=settings.memory_bytes,
            num_processes=self._config.reward_processes,
        )
        try:
            await reward.start()
        except BaseException:
            await reward.close()
            raise
        return reward

    def _ready(self, request: pb.GenerateRequest) -> JobRollouts:
        """The job's rollouts, where the engine has the weights that are asked for."""
        if self._rollouts is None or request.job_id != self._job_id:
            raise Conflict(f"this replica does not work for job {request.job_id!r}; start it first")
        if self._weights.weight_version != request.weight_version:
            raise Conflict(
                f"the engine serves version {self._weights.weight_version} and version "
                f"{request.weight_version} is wanted; reallocate first"
            )
        return self._rollouts

    def _keep(self, request: pb.GenerateRequest, done: RolloutBatch) -> pb.GenerateResult:
        record(Metric.DEVICE_BUSY_SECONDS, done.seconds, {Attribute.CALL: request.call})
        reference = self._batches.put(
            job_id=request.job_id,
            iteration=request.iteration,
            call=request.call,
            batch=done.batch,
        )
        return pb.GenerateResult(
            batch=to_proto(reference, types_pb2.BatchReference),
            sums=done.sums,
            seconds=done.seconds,
            num_tokens=done.num_tokens,
        )
