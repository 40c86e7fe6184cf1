"""The life of one job on its shards: start, iterate, evaluate, save, and always let go."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from realloc.api.generation.v1 import generation_pb2
from realloc.api.param_store.v1 import param_store_pb2
from realloc.api.shard.v1 import shard_pb2
from realloc.api.trainer.v1 import trainer_pb2
from realloc.coordination.membership import Member
from realloc.core.checkpoint_folder import Checkpoint, Manifest
from realloc.core.errors import JobFailed
from realloc.core.job import Evaluation, IterationReport, Wanted
from realloc.core.kl_controller import KlController, initial_kl_controller
from realloc.core.plan import ExecutionPlan
from realloc.dataflow.graph import CallKind
from realloc.telemetry.names import Span
from realloc.telemetry.spans import span
from services.scheduler.admission import Admission
from services.scheduler.checkpoints import CheckpointEvents, JobCheckpoints
from services.scheduler.function_calls import FunctionCalls, Progress
from services.scheduler.iteration import IterationRunner, Spans
from services.scheduler.job_devices import model_layout
from services.scheduler.job_setup import JobSetup
from services.scheduler.long_calls import follow_calls
from services.scheduler.param_store_reallocator import ParamStoreReallocator
from services.scheduler.saved_job import plain_architecture
from services.scheduler.shards import JobShards
from services.scheduler.together import together

_END_SECONDS = 10.0
"""Deadline for letting go of a shard; one that is stuck ends itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEvents:
    """Whom a running job tells."""

    reported: Callable[[IterationReport], Awaitable[None]]
    evaluated: Callable[[Evaluation], Awaitable[None]]
    progress: Progress
    checkpoints: CheckpointEvents


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnd:
    """How a run ended that nothing broke."""

    paused: bool
    """True where iterations are left."""
    checkpoint: str = ""
    """Folder of the final Hugging Face checkpoint; empty for none."""


class JobRunner:
    """Runs one admitted job with one plan on its shards."""

    def __init__(
        self,
        *,
        job_id: str,
        admission: Admission,
        plan: ExecutionPlan,
        shards: JobShards,
        events: JobEvents,
        spans: Spans,
        resume: Checkpoint | None,
    ) -> None:
        """
        Args:
            resume: what to go on from; None to begin with the first iteration.
        """
        self._job_id = job_id
        self._run_id = uuid.uuid4().hex[:8]
        self._admission = admission
        self._experiment = admission.experiment
        self._graph = admission.graph
        self._plan = plan
        self._shards = shards
        self._events = events
        self._spans = spans
        self._timeout = self._experiment.call_timeout_seconds
        self._resume = resume
        self._setup = JobSetup(
            job_id=job_id,
            run_id=self._run_id,
            admission=admission,
            plan=plan,
            shards=shards,
            progress=events.progress,
            resume=resume,
        )
        self._done = resume.manifest.iteration if resume else 0
        self._wanted = Wanted.NOTHING
        self.unanswered: tuple[Member, ...] = ()
        """Processes that did not answer when the job let go of them."""
        self._checkpoints = JobCheckpoints(
            job_id=job_id,
            settings=self._experiment.checkpoint,
            shards=shards,
            events=events.checkpoints,
            timeout_seconds=self._timeout,
        )
        self._checkpoints.saved_iteration = self._done
        self._reallocator = self._make_reallocator()
        self._iterations = IterationRunner(
            experiment=self._experiment,
            graph=self._graph,
            plan=plan,
            data=admission.data,
            calls=FunctionCalls(job_id, self._experiment, shards),
            reallocator=self._reallocator,
            spans=spans,
            progress=events.progress,
            kl_controller=self._kl_controller(),
        )
        if resume is not None:
            self._iterations.weight_versions |= resume.manifest.weight_versions

    async def start(self) -> None:
        """Bring up engines and models on every shard of the job."""
        await self._setup.start(self._iterations.weight_versions)

    def want(self, wanted: Wanted) -> None:
        """Ask for a checkpoint, or a pause, after the iteration that runs."""
        self._wanted = wanted

    async def run(self) -> RunEnd:
        """The iterations that are left, unless the job is to pause before."""
        if not self._done:
            await self._evaluate(0)
        while self._done < self._experiment.iterations:
            if self._wanted is Wanted.PAUSE:
                await self._pause()
                return RunEnd(paused=True)
            await self._run_iteration(self._done + 1)
        await self._checkpoints.settle()
        return RunEnd(paused=False, checkpoint=await self._save_checkpoint())

    async def _run_iteration(self, iteration: int) -> None:
        report = await self._iterations.run(iteration)
        report = replace(report, saved_iteration=self._checkpoints.saved_iteration)
        await self._events.reported(report)
        await self._release_batches(before_iteration=iteration + 1)
        self._done = iteration
        if self._experiment.evaluates_after(iteration):
            await self._evaluate(iteration)
        if self._checkpoint_is_due():
            await self._save_state()

    async def _pause(self) -> None:
        """Save what has not been saved yet.

        Raises:
            JobFailed: it could not be written.
        """
        await self._checkpoints.settle()
        if self._checkpoints.saved_iteration < self._done:
            await self._save_state()
            await self._checkpoints.settle()
        if self._checkpoints.saved_iteration < self._done:
            raise JobFailed(
                f"it was to pause after iteration {self._done}, which could not be saved; it can "
                f"be resumed after iteration {self._checkpoints.saved_iteration}"
            )

    def _checkpoint_is_due(self) -> bool:
        settings = self._experiment.checkpoint
        last = self._done == self._experiment.iterations
        wanted = self._wanted is not Wanted.NOTHING
        return bool(settings.folder) and (last or wanted or self._done % settings.every == 0)

    async def _save_state(self) -> None:
        """Begin a checkpoint of everything up to the iteration that has ended."""
        if self._wanted is Wanted.CHECKPOINT:
            self._wanted = Wanted.NOTHING
        self._events.progress("saving a checkpoint")
        trained = [model for model in self._admission.models if model.trains]
        await self._checkpoints.save(
            Manifest(
                job_id=self._job_id,
                iteration=self._done,
                weight_versions={
                    model.model_id: self._iterations.weight_versions[model.model_id]
                    for model in trained
                },
                kl_coefficient=self._iterations.kl_coefficient,
                layouts={
                    model.model_id: model_layout(self._graph, self._plan, model.model_id).short
                    for model in trained
                },
                architectures={
                    model.model_id: plain_architecture(model.architecture) for model in trained
                },
                data_rows=self._admission.data.num_rows,
                files=(),
                tensors={},
            )
        )

    async def end(self) -> None:
        """Let go of every shard; a shard that does not answer is left to itself."""
        await self._checkpoints.close()
        if self._reallocator is not None:
            await self._reallocator.close()
        members = [
            *(shard.member for shard in self._shards.trainers.values()),
            *(shard.member for shard in self._shards.generators.values()),
            self._shards.members[-1],  # param-store
        ]
        answers = await asyncio.gather(
            *(
                shard.trainer.EndJob(
                    trainer_pb2.EndJobRequest(job_id=self._job_id, run_id=self._run_id),
                    timeout=_END_SECONDS,
                )
                for shard in self._shards.trainers.values()
            ),
            *(
                shard.generation.EndJob(
                    generation_pb2.EndJobRequest(job_id=self._job_id, run_id=self._run_id),
                    timeout=_END_SECONDS,
                )
                for shard in self._shards.generators.values()
            ),
            self._shards.param_store.ReleaseJob(
                param_store_pb2.ReleaseJobRequest(job_id=self._job_id, run_id=self._run_id),
                timeout=_END_SECONDS,
            ),
            return_exceptions=True,
        )
        self.unanswered = tuple(
            member
            for member, answer in zip(members, answers, strict=True)
            if isinstance(answer, Exception)
        )

    def _kl_controller(self) -> KlController:
        controller = initial_kl_controller(self._experiment.ppo)
        if self._resume is None:
            return controller
        return replace(controller, coefficient=self._resume.manifest.kl_coefficient)

    def _make_reallocator(self) -> ParamStoreReallocator | None:
        generating = [call for call in self._graph.placed_calls() if call.kind is CallKind.GENERATE]
        if not generating:
            return None
        placement = self._plan.placement(generating[0].name)
        return ParamStoreReallocator(
            self._job_id,
            self._run_id,
            self._experiment,
            self._shards,
            placement,
            frozen=self._admission.actor.settings.optimizer.frozen,
        )

    async def _evaluate(self, iteration: int) -> None:
        data = self._admission.evaluation
        if data is None:
            return
        self._events.progress("evaluating")
        with span(Span.EVALUATION):
            outcome = await self._iterations.evaluate(data)
        await self._events.evaluated(
            Evaluation(
                iteration=iteration,
                reward=outcome.metrics["reward"],
                num_prompts=data.num_rows,
                weight_version=self._iterations.weight_versions["actor"],
            )
        )

    async def _release_batches(self, *, before_iteration: int) -> None:
        request = shard_pb2.ReleaseBatchesRequest(
            job_id=self._job_id, before_iteration=before_iteration
        )
        everyone: list[Any] = [*self._shards.trainers.values(), *self._shards.generators.values()]
        await together(
            shard.batches.ReleaseBatches(request, timeout=_END_SECONDS) for shard in everyone
        )

    async def _save_checkpoint(self) -> str:
        folder = self._experiment.output
        if not folder:
            return ""
        self._events.progress("saving the checkpoint")
        requests = [
            (
                shard,
                trainer_pb2.SaveCheckpointRequest(
                    job_id=self._job_id,
                    sequence=shard.next_sequence(),
                    model_id="actor",
                    folder=str(Path(folder).absolute()),
                ),
            )
            for shard in self._shards.trainers.values()
        ]
        with span(Span.CHECKPOINT):
            await follow_calls(
                "saving the checkpoint",
                "SaveCheckpoint",
                requests,
                progress=self._events.progress,
                timeout_seconds=self._timeout,
            )
        return str(Path(folder).absolute())
