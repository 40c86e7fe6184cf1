"""The life of one job on its shards: start, iterate, evaluate, save, and always let go."""

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from realloc.api.generation.v1 import generation_pb2
from realloc.api.param_store.v1 import param_store_pb2
from realloc.api.shard.v1 import shard_pb2
from realloc.api.trainer.v1 import trainer_pb2
from realloc.api.types.v1 import types_pb2
from realloc.coordination.membership import Member
from realloc.core.checkpoint_folder import Checkpoint, Manifest
from realloc.core.errors import JobFailed
from realloc.core.experiment import Experiment
from realloc.core.job import Evaluation, IterationReport, ReallocationReport, Wanted
from realloc.core.kl_controller import KlController, initial_kl_controller
from realloc.core.layout import Layout, LayoutKind
from realloc.core.plan import CallPlacement, ExecutionPlan
from realloc.dataflow.graph import CallKind, DataflowGraph
from realloc.telemetry.names import Span
from realloc.telemetry.spans import span
from realloc.wire.convert import to_proto
from services.scheduler.admission import Admission, AdmittedModel
from services.scheduler.checkpoints import CheckpointEvents, JobCheckpoints
from services.scheduler.function_calls import FunctionCalls, Progress
from services.scheduler.iteration import IterationRunner, Spans
from services.scheduler.saved_job import plain_architecture
from services.scheduler.shards import JobShards, TrainerShard, replica_devices
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


def trainer_devices(graph: DataflowGraph, plan: ExecutionPlan) -> tuple[int, ...]:
    """Devices whose trainers the job needs, ascending."""
    return tuple(
        sorted(
            {
                device
                for call in graph.placed_calls()
                if call.kind is not CallKind.GENERATE
                for device in plan.placement(call.name).mesh.devices
            }
        )
    )


def generation_devices(graph: DataflowGraph, plan: ExecutionPlan) -> tuple[int, ...]:
    """First device of each generation replica that the job needs, ascending."""
    devices: set[int] = set()
    for call in graph.placed_calls():
        if call.kind is CallKind.GENERATE:
            placement = plan.placement(call.name)
            devices |= set(replica_devices(placement.mesh, placement.strategy))
    return tuple(sorted(devices))


def model_placement(graph: DataflowGraph, plan: ExecutionPlan, model_id: str) -> CallPlacement:
    """The one placement of a model's calls on trainers."""
    return next(
        plan.placement(call.name)
        for call in graph.placed_calls()
        if call.model == model_id and call.kind is not CallKind.GENERATE
    )


class ParamStoreReallocator:
    """Asks param-store for the generation layout of a model."""

    def __init__(
        self,
        job_id: str,
        run_id: str,
        experiment: Experiment,
        shards: JobShards,
        placement: CallPlacement,
        *,
        frozen: Sequence[str],
    ) -> None:
        """
        Args:
            placement: where the model generates.
            frozen: tensors that never change; with some, only what has changed moves.
        """
        self._job_id = job_id
        self._run_id = run_id
        self._mode = param_store_pb2.TRANSFER_MODE_ALL
        if frozen:
            self._mode = param_store_pb2.TRANSFER_MODE_CHANGED
        self._experiment = experiment
        self._shards = shards
        self._layout = Layout(
            kind=LayoutKind.VLLM,
            strategy=placement.strategy,
            devices=tuple(placement.mesh.devices),
        )
        self._versions: dict[str, int] = {}
        self._early: dict[tuple[str, int], asyncio.Task[ReallocationReport]] = {}

    def start(self, model_id: str, weight_version: int) -> None:
        """Begin to reallocate a version that was just made; `bring` waits for it."""
        key = (model_id, weight_version)
        self._early[key] = asyncio.create_task(self._reallocate(*key), name=f"move {model_id}")

    async def bring(self, model_id: str, weight_version: int) -> ReallocationReport | None:
        """Reallocate where the layout does not have this version yet."""
        if self._versions.get(model_id) == weight_version:
            return None
        early = self._early.pop((model_id, weight_version), None)
        report = await (early or self._reallocate(model_id, weight_version))
        self._versions[model_id] = weight_version
        return report

    async def close(self) -> None:
        """End what was begun and nobody waited for."""
        for task in self._early.values():
            task.cancel()
        await asyncio.gather(*self._early.values(), return_exceptions=True)

    async def _reallocate(self, model_id: str, weight_version: int) -> ReallocationReport:
        tensor = self._layout.strategy.tensor
        owners = [
            self._layout.devices[rank // tensor * tensor]
            for rank in range(len(self._layout.devices))
        ]
        request = param_store_pb2.ReallocateRequest(
            # A job that recovers brings the versions of repeated iterations again.
            request_id=f"{self._job_id}/{self._run_id}/{model_id}/{weight_version}",
            job_id=self._job_id,
            model_id=model_id,
            target=to_proto(self._layout, types_pb2.Layout),
            shards=[self._shards.generators[device].member.name for device in owners],
            weight_version=weight_version,
            timeout_seconds=self._experiment.call_timeout_seconds,
            dtype=self._experiment.dtype,
            mode=self._mode,
        )
        response = await self._shards.param_store.Reallocate(
            request, timeout=self._experiment.call_timeout_seconds
        )
        moved = response.reallocation
        return ReallocationReport(
            model_id=model_id,
            weight_version=moved.weight_version,
            bytes=moved.bytes,
            seconds=moved.seconds,
            digest_ok=moved.digest_ok,
        )


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
        self._events.progress("starting engines")
        await together([*self._start_trainers(), *self._start_generators()])
        for model in self._admission.models:
            self._events.progress(f"building {model.model_id}")
            await self._create_model(model)
        if self._resume is not None:
            await self._restore(self._resume)
        await self._register_models()

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
                layouts={model.model_id: self._layout(model).short for model in trained},
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
                    generation_pb2.EndJobRequest(job_id=self._job_id), timeout=_END_SECONDS
                )
                for shard in self._shards.generators.values()
            ),
            self._shards.param_store.ReleaseJob(
                param_store_pb2.ReleaseJobRequest(job_id=self._job_id), timeout=_END_SECONDS
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

    def _start_trainers(self) -> list[Awaitable[Any]]:
        return [self._start_trainer_world()]

    async def _start_trainer_world(self) -> None:
        shards = list(self._shards.trainers.values())
        meeting = await shards[0].transfer.GetRendezvous(
            shard_pb2.GetRendezvousRequest(), timeout=self._timeout
        )
        await together(
            shard.trainer.StartJob(
                trainer_pb2.StartJobRequest(
                    job_id=self._job_id,
                    run_id=self._run_id,
                    rank=rank,
                    devices=list(self._shards.trainers),
                    store_host=meeting.host,
                    store_port=meeting.port,
                    timeout_seconds=self._timeout,
                ),
                timeout=self._timeout,
            )
            for rank, shard in enumerate(shards)
        )

    def _start_generators(self) -> list[Awaitable[Any]]:
        actor = self._admission.actor
        if not self._shards.generators:
            return []
        call = next(call for call in self._graph.placed_calls() if call.kind is CallKind.GENERATE)
        request = generation_pb2.StartJobRequest(
            job_id=self._job_id,
            hf_config=actor.hf_config,
            tokenizer=actor.settings.checkpoint,
            tensor_parallel=self._plan.placement(call.name).strategy.tensor,
            max_model_len=actor.architecture.max_position_embeddings,
            dtype=self._experiment.dtype,
            seed=self._experiment.seed,
            reward=to_proto(self._experiment.reward, types_pb2.RewardSettings),
        )
        return [
            shard.generation.StartJob(request, timeout=self._timeout)
            for shard in self._shards.generators.values()
        ]

    async def _create_model(self, model: AdmittedModel) -> None:
        """Build a model on its mesh; every trainer takes part in making its groups."""
        layout, settings = self._layout(model), model.settings

        def request(shard: TrainerShard) -> trainer_pb2.CreateModelRequest:
            message = trainer_pb2.CreateModelRequest(
                job_id=self._job_id,
                sequence=shard.next_sequence(),
                model_id=model.model_id,
                hf_config=model.hf_config,
                head=types_pb2.Head.Value(f"HEAD_{model.architecture.head.name}"),
                layout=to_proto(layout, types_pb2.Layout),
                checkpoint="" if settings.random_weights else settings.checkpoint,
                seed=self._experiment.seed,
                tokenizer=settings.checkpoint,
                empty=model.trains and self._resume is not None,
            )
            if model.trains:
                message.optimizer.CopyFrom(
                    to_proto(settings.optimizer, types_pb2.OptimizerSettings)
                )
            return message

        requests = [(shard, request(shard)) for shard in self._shards.trainers.values()]
        await self._followed(f"building {model.model_id}", "CreateModel", requests)

    async def _followed(
        self, what: str, method: str, requests: Sequence[tuple[TrainerShard, Any]]
    ) -> None:
        """A long call on every trainer; tells how far all of them are together."""
        done = dict.fromkeys(range(len(requests)), (0, 0))

        async def one(number: int, shard: TrainerShard, message: Any) -> None:
            async for step in getattr(shard.trainer, method)(message, timeout=self._timeout):
                done[number] = step.done, step.total
                total = sum(total for _, total in done.values())
                if total:
                    part = sum(so_far for so_far, _ in done.values()) / total
                    self._events.progress(f"{what} {part:.0%}")

        await together(one(number, *each) for number, each in enumerate(requests))

    def _layout(self, model: AdmittedModel) -> Layout:
        """Where a model's calls on trainers run."""
        placement = model_placement(self._graph, self._plan, model.model_id)
        return Layout(
            kind=LayoutKind.MEGATRON,
            strategy=placement.strategy,
            devices=tuple(placement.mesh.devices),
        )

    async def _restore(self, checkpoint: Checkpoint) -> None:
        """Every trainer fills its models that train."""
        self._events.progress(f"restoring iteration {checkpoint.manifest.iteration}")
        requests = [
            (
                shard,
                trainer_pb2.RestoreStateRequest(
                    job_id=self._job_id,
                    sequence=shard.next_sequence(),
                    checkpoint=str(checkpoint.path),
                ),
            )
            for shard in self._shards.trainers.values()
        ]
        with span(Span.CHECKPOINT_RESTORE):
            await together(
                shard.trainer.RestoreState(message, timeout=self._timeout)
                for shard, message in requests
            )

    async def _register_models(self) -> None:
        # A run of this job that broke may have left some.
        release = param_store_pb2.ReleaseJobRequest(job_id=self._job_id)
        await self._shards.param_store.ReleaseJob(release, timeout=self._timeout)
        for model in self._admission.models:
            layout = self._layout(model)
            names = [self._shards.trainers[device].member.name for device in layout.devices]
            message = param_store_pb2.Model(
                job_id=self._job_id,
                model_id=model.model_id,
                hf_config=model.hf_config,
                head=types_pb2.Head.Value(f"HEAD_{model.architecture.head.name}"),
                layouts=[
                    param_store_pb2.PlacedLayout(
                        layout=to_proto(layout, types_pb2.Layout),
                        shards=names,
                        weight_version=self._iterations.weight_versions[model.model_id],
                    )
                ],
            )
            await self._shards.param_store.RegisterModel(
                param_store_pb2.RegisterModelRequest(model=message), timeout=self._timeout
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
            await self._followed("saving the checkpoint", "SaveCheckpoint", requests)
        return str(Path(folder).absolute())
