"""What the trainer service asks of an engine. Calls are blocking and run in one thread.

`start_job`, `create_model`, `restore` and `end_job` are collective over the job's world,
`infer`, `train` and `save_checkpoint` over the model's layout; all ranks make them in the same
order. A call that raises leaves the engine unusable for the job where its collectives were cut
off; the process then exits and is started anew.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from realloc.core.batch import Batch
from realloc.core.checkpoint_folder import Checkpoint
from realloc.core.layout import Layout
from realloc.core.model import ModelArchitecture
from realloc.core.settings import OptimizerSettings, PpoSettings
from services.trainer.progress import Progress, ignore_progress
from services.trainer.snapshot import Snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class JobWorld:
    """The processes of one job, one rank per device of the job."""

    job_id: str
    run_id: str
    """Differs between two starts of the same job."""
    rank: int
    """This process within the job's world."""
    devices: tuple[int, ...]
    """Global device id of each rank, ascending."""
    store_host: str
    store_port: int
    """Where the TCPStore of the rendezvous is served (`realloc.transfer.rendezvous`)."""
    timeout_seconds: float
    """Deadline of the rendezvous and of every collective."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A model that the engine builds over some ranks of the world."""

    model_id: str
    """Unique within the job: ``actor``, ``critic``, ``ref``."""
    architecture: ModelArchitecture
    layout: Layout
    """A Megatron layout; its devices are among the job's."""
    checkpoint: str
    """Hugging Face folder to load; empty for random weights."""
    seed: int
    """Seeds random weights (all, or only those that the checkpoint lacks: a value head)."""
    optimizer: OptimizerSettings | None
    """None for a model that never trains."""
    initializer_range: float = 0.02
    """Standard deviation of random weights, as the Hugging Face configuration names it."""
    recompute: bool = False
    """Recompute activations in the backward pass."""
    empty: bool = False
    """Load nothing: `restore` will fill the weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSettings:
    """What a function call does besides its batch."""

    loss: str
    """Training: ``sft``, ``ppo_actor`` or ``ppo_critic``; inference: ``logprobs``,
    ``values`` (one per response token) or ``score`` (one per row)."""
    temperature: float
    """Logits are divided by it, as the sampler did."""
    kl_coefficient: float
    """Present weight of the KL penalty (the controller's)."""
    max_tokens_per_micro_batch: int
    """Packed tokens of a forward pass; a longer row is a micro-batch of its own."""
    ppo: PpoSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """What a train call reports, equal on every rank."""

    metrics: Mapping[str, float]
    """Global means (over all ranks and mini-batches): ``loss``, ``grad_norm``, …"""
    weight_version: int
    """Optimizer steps of the model so far."""


class TrainerEngine(Protocol):
    """Builds models in a layout, runs their calls, hands out their parameters."""

    def start_job(self, world: JobWorld) -> None: ...

    def create_model(self, spec: ModelSpec, progress: Progress = ignore_progress) -> None:
        """Build a model and fill its weights; `progress` counts elements of this rank's."""
        ...

    def infer(self, model_id: str, settings: CallSettings, batch: Batch) -> Batch | None:
        """Rows of this data-parallel rank in; their results out, on one rank of each replica
        (tensor rank 0 of the last stage), None elsewhere."""
        ...

    def train(
        self, model_id: str, settings: CallSettings, mini_batches: Sequence[Batch]
    ) -> TrainResult:
        """One optimizer step per mini-batch. Each holds this data-parallel rank's rows; ranks
        may have different numbers of rows, also none."""
        ...

    def save_checkpoint(
        self, model_id: str, folder: str, source: str = "", progress: Progress = ignore_progress
    ) -> None:
        """Write a Hugging Face folder; complete only when its marker file is there.

        `source` is a folder whose tokenizer and further configuration are carried over; empty
        for that of the checkpoint that the model came from.
        """
        ...

    def snapshot(self) -> Snapshot:
        """A copy in host memory of what this rank has to save of all models that train."""
        ...

    def restore(self, checkpoint: Checkpoint) -> None:
        """Fill every model that trains with what the ranks of any world saved."""
        ...

    def parameters(self, model_id: str) -> Mapping[str, torch.Tensor]:
        """This rank's parameters by Megatron name, live and contiguous."""
        ...

    def weight_version(self, model_id: str) -> int: ...

    def end_job(self) -> None: ...
