"""The beginning of a job's run: its world, its engines, its models, and who knows of them."""

from collections.abc import Awaitable, Mapping
from typing import Any

from realloc.api.generation.v1 import generation_pb2
from realloc.api.param_store.v1 import param_store_pb2
from realloc.api.shard.v1 import shard_pb2
from realloc.api.trainer.v1 import trainer_pb2
from realloc.api.types.v1 import types_pb2
from realloc.core.checkpoint_folder import Checkpoint
from realloc.core.plan import ExecutionPlan
from realloc.dataflow.graph import CallKind
from realloc.telemetry.names import Span
from realloc.telemetry.spans import span
from realloc.wire.convert import to_proto
from services.scheduler.admission import Admission, AdmittedModel
from services.scheduler.function_calls import Progress
from services.scheduler.job_devices import model_layout
from services.scheduler.long_calls import follow_calls
from services.scheduler.shards import JobShards, TrainerShard
from services.scheduler.together import together


class JobSetup:
    """Brings up one start of a job on its shards."""

    def __init__(
        self,
        *,
        job_id: str,
        run_id: str,
        admission: Admission,
        plan: ExecutionPlan,
        shards: JobShards,
        progress: Progress,
        resume: Checkpoint | None,
    ) -> None:
        """
        Args:
            run_id: differs between two starts of the same job.
            resume: what trained models are restored from; None to begin anew.
        """
        self._job_id = job_id
        self._run_id = run_id
        self._admission = admission
        self._experiment = admission.experiment
        self._graph = admission.graph
        self._plan = plan
        self._shards = shards
        self._progress = progress
        self._resume = resume
        self._timeout = self._experiment.call_timeout_seconds

    async def start(self, weight_versions: Mapping[str, int]) -> None:
        """Bring up engines and models on every shard of the job.

        Args:
            weight_versions: by model, as it begins.
        """
        self._progress("starting engines")
        await together([self._start_trainers(), *self._start_generators()])
        for model in self._admission.models:
            self._progress(f"building {model.model_id}")
            await self._create_model(model)
        if self._resume is not None:
            await self._restore(self._resume)
        await self._register_models(weight_versions)

    async def _start_trainers(self) -> None:
        """The trainers meet as the job's world."""
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
            run_id=self._run_id,
            reward=to_proto(self._experiment.reward, types_pb2.RewardSettings),
        )
        return [
            shard.generation.StartJob(request, timeout=self._timeout)
            for shard in self._shards.generators.values()
        ]

    async def _create_model(self, model: AdmittedModel) -> None:
        """Build a model on its mesh; every trainer takes part in making its groups."""
        layout, settings = model_layout(self._graph, self._plan, model.model_id), model.settings

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
        await follow_calls(
            f"building {model.model_id}",
            "CreateModel",
            requests,
            progress=self._progress,
            timeout_seconds=self._timeout,
        )

    async def _restore(self, checkpoint: Checkpoint) -> None:
        """Every trainer fills its models that train."""
        self._progress(f"restoring iteration {checkpoint.manifest.iteration}")
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

    async def _register_models(self, weight_versions: Mapping[str, int]) -> None:
        # A run of this job that broke may have left some.
        release = param_store_pb2.ReleaseJobRequest(job_id=self._job_id)
        await self._shards.param_store.ReleaseJob(release, timeout=self._timeout)
        for model in self._admission.models:
            layout = model_layout(self._graph, self._plan, model.model_id)
            names = [self._shards.trainers[device].member.name for device in layout.devices]
            message = param_store_pb2.Model(
                job_id=self._job_id,
                model_id=model.model_id,
                hf_config=model.hf_config,
                head=types_pb2.Head.Value(f"HEAD_{model.architecture.head.name}"),
                run_id=self._run_id,
                layouts=[
                    param_store_pb2.PlacedLayout(
                        layout=to_proto(layout, types_pb2.Layout),
                        shards=names,
                        weight_version=weight_versions[model.model_id],
                    )
                ],
            )
            await self._shards.param_store.RegisterModel(
                param_store_pb2.RegisterModelRequest(model=message), timeout=self._timeout
            )
