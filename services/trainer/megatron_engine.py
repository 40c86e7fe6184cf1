"""The trainer engine on Megatron-core: several models, each in its own layout, per job.

Calls are collective: `start_job`, `create_model` and `end_job` over the job's world, the
others over the model's layout; ranks outside the layout need not make them. Every rank makes
its calls in the same order, from one thread; parameters and versions may be read from another.
"""

import gc
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from realloc.core.batch import Batch
from realloc.core.checkpoint_folder import Checkpoint
from realloc.core.errors import Conflict, InvalidInput, NotFound, Unavailable
from realloc.core.layout import LayoutKind
from realloc.reallocation.families import canonical_tensors
from realloc.reallocation.frozen import check_frozen, frozen_parameters
from realloc.reallocation.layouts.provider import local_parameters
from realloc.reallocation.layouts.tensor_parallel import padded_vocab_size
from realloc.transfer.rendezvous import connect_store
from services.trainer import megatron_shim
from services.trainer.checkpoint import save_checkpoint
from services.trainer.engine import (
    CallSettings,
    JobWorld,
    ModelSpec,
    TrainResult,
)
from services.trainer.inference import infer
from services.trainer.megatron_groups import WorldGroups, create_groups
from services.trainer.megatron_model import (
    MegatronModel,
    build_module,
    check_buildable,
    make_trainable,
)
from services.trainer.network import choose_gloo_interface
from services.trainer.progress import Progress, ignore_progress
from services.trainer.saved_state import SavedState
from services.trainer.snapshot import Snapshot
from services.trainer.training import train
from services.trainer.training_state import (
    restore_model,
    restore_random_state,
    take_snapshot,
)
from services.trainer.weights import (
    HuggingFaceWeights,
    RandomWeights,
    TensorSource,
    load_weights,
)


@dataclass(slots=True)
class _Job:
    """What lives as long as a job."""

    world: JobWorld
    groups: WorldGroups
    models: dict[str, MegatronModel] = field(default_factory=dict)
    elsewhere: set[str] = field(default_factory=set)
    """Models whose layout has no rank here."""


class MegatronEngine:
    """A `TrainerEngine`; one job at a time, any number of jobs one after the other."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        """``host``: address of this machine that the other ranks can connect to."""
        megatron_shim.install()
        choose_gloo_interface(host)
        self._device = torch.device("cpu")
        if torch.cuda.is_available():
            self._device = torch.device("cuda", torch.cuda.current_device())
        self._job: _Job | None = None

    def start_job(self, world: JobWorld) -> None:
        """Meet the other ranks.

        Raises:
            Conflict: another job runs here.
            Unavailable: the others did not come in time.
        """
        if self._job is not None:
            raise Conflict(f"job {self._job.world.job_id} runs on this shard; end it first")
        timeout = timedelta(seconds=world.timeout_seconds)
        try:
            # Jobs that follow each other meet at the same store, each under its own names, and
            # so do the starts of a job that was resumed.
            store = dist.PrefixStore(
                f"{world.job_id}/{world.run_id}",
                connect_store(world.store_host, world.store_port, world.timeout_seconds),
            )
            dist.init_process_group(
                "nccl" if self._device.type == "cuda" else "gloo",
                store=store,
                rank=world.rank,
                world_size=len(world.devices),
                timeout=timeout,
            )
        except (dist.DistError, RuntimeError) as error:
            raise Unavailable(
                f"rank {world.rank} of job {world.job_id} did not meet the others at "
                f"{world.store_host}:{world.store_port} in {world.timeout_seconds} s: {error}"
            ) from error
        self._job = _Job(world, WorldGroups(world.timeout_seconds))

    def create_model(self, spec: ModelSpec, progress: Progress = ignore_progress) -> None:
        """Build a model over its layout's ranks and load its weights.

        Args:
            progress: told how many elements of this rank's weights are in place, of how many.

        Raises:
            Conflict: the job has a model of this id.
            InvalidInput: the layout does not fit the model or the job, or the checkpoint is
                unreadable. Nothing has been built then.
        """
        job = self._running()
        if spec.model_id in job.models or spec.model_id in job.elsewhere:
            raise Conflict(f"model {spec.model_id} exists already")
        architecture, layout = spec.architecture, spec.layout
        _check_layout(spec, job.world)
        check_buildable(architecture, layout.strategy)
        names = spec.optimizer.frozen if spec.optimizer is not None else ()
        check_frozen(architecture, layout, names)
        source = _tensor_source(spec)
        ranks = [job.world.devices.index(device) for device in layout.devices]
        groups = create_groups(job.groups, ranks, layout.strategy)
        if groups is None:
            job.elsewhere.add(spec.model_id)
            return
        vocabulary = padded_vocab_size(architecture, LayoutKind.MEGATRON, layout.strategy.tensor)
        model = build_module(spec, groups, vocabulary, self._device)
        table = local_parameters(architecture, layout, ranks.index(job.world.rank))
        tensors = canonical_tensors(architecture)
        if source is not None:
            with closing(source):
                load_weights(model.parameters(), table, tensors, source, progress)
        if spec.optimizer is not None:
            make_trainable(model, spec.optimizer, frozen_parameters(architecture, table, names))
        job.models[spec.model_id] = model

    def infer(self, model_id: str, settings: CallSettings, batch: Batch) -> Batch | None:
        """Log-probabilities, values or scores; see `services.trainer.inference.infer`."""
        return infer(self._model(model_id), settings, batch)

    def train(
        self, model_id: str, settings: CallSettings, mini_batches: Sequence[Batch]
    ) -> TrainResult:
        """Optimizer steps; see `services.trainer.training.train`."""
        return train(self._model(model_id), settings, mini_batches)

    def save_checkpoint(
        self, model_id: str, folder: str, source: str = "", progress: Progress = ignore_progress
    ) -> None:
        """Write a Hugging Face folder, with the tokenizer of `source` or the checkpoint."""
        if model_id in self._running().elsewhere:
            return
        model = self._model(model_id)
        origin = source or model.spec.checkpoint
        save_checkpoint(model, Path(folder), Path(origin) if origin else None, progress)

    def snapshot(self) -> Snapshot:
        """Copy to host memory what this rank has to save of all models that train."""
        return take_snapshot(self._running().models, self._device)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Fill every model that trains from a checkpoint of any layout.

        Raises:
            InvalidInput: a file is missing, has changed or lacks something; raised on the ranks
                that saw it, `Unavailable` on the others. No model has been touched then.
        """
        job = self._running()
        with closing(SavedState(checkpoint)) as state:
            self._agree(lambda: state.verify(job.world.rank, len(job.world.devices)))
            for model_id, model in job.models.items():
                if model.optimizer is not None:
                    restore_model(model_id, model, state)
            random_state = state.random_state(job.world.rank)
        if random_state is not None:
            restore_random_state(random_state, self._device)

    def _agree(self, check: Callable[[], None]) -> None:
        """Run a check on every rank of the world; where it fails on one, none goes on."""
        failure: InvalidInput | None = None
        try:
            check()
        except InvalidInput as error:
            failure = error
        failed = torch.tensor(float(failure is not None), device=self._device)
        dist.all_reduce(failed)
        if failure is not None:
            raise failure
        if failed.item():
            raise Unavailable("another rank found the checkpoint damaged")

    def parameters(self, model_id: str) -> Mapping[str, torch.Tensor]:
        """This rank's live parameters by Megatron name, contiguous; none outside the layout."""
        if model_id in self._running().elsewhere:
            return {}
        return self._model(model_id).parameters()

    def weight_version(self, model_id: str) -> int:
        """Optimizer steps of the model so far."""
        return self._model(model_id).weight_version

    def end_job(self) -> None:
        """Forget every model and leave the world; nothing happens without a job."""
        if self._job is None:
            return
        self._job = None
        gc.collect()  # Megatron-core's modules and hooks refer to each other
        dist.destroy_process_group()

    def _running(self) -> _Job:
        if self._job is None:
            raise Conflict("no job runs on this shard; start one first")
        return self._job

    def _model(self, model_id: str) -> MegatronModel:
        models = self._running().models
        if model_id not in models:
            raise NotFound(f"no model {model_id!r} on this shard; there are {sorted(models)}")
        return models[model_id]


def _check_layout(spec: ModelSpec, world: JobWorld) -> None:
    if spec.layout.kind is not LayoutKind.MEGATRON:
        raise InvalidInput.at("layout", f"{spec.layout} is not a megatron layout")
    foreign = sorted(set(spec.layout.devices) - set(world.devices))
    if foreign:
        raise InvalidInput.at("layout", f"{spec.layout} names {foreign}, not devices of the job")


def _tensor_source(spec: ModelSpec) -> TensorSource | None:
    if spec.empty:
        return None
    random = RandomWeights(spec.seed, spec.initializer_range)
    if not spec.checkpoint:
        return random
    tensors = canonical_tensors(spec.architecture)
    return HuggingFaceWeights(Path(spec.checkpoint), tensors, head=random)
