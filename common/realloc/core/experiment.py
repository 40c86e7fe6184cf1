"""What a user submits: one frozen value, checked as a whole."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from realloc.core.errors import Problem
from realloc.core.mesh import DeviceMesh
from realloc.core.settings import (
    GenerationSettings,
    OptimizerSettings,
    PlacementSettings,
    PpoSettings,
    RewardSettings,
)
from realloc.core.strategy import ParallelStrategy


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """Where a model comes from and how it trains."""

    checkpoint: str
    """Hugging Face folder: config.json, tokenizer.json and, unless random, safetensors."""
    random_weights: bool = False
    """Draw random weights instead of loading them."""
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    """How it trains; ignored for frozen models."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings:
    """Training data."""

    path: str
    """JSON-lines file with ``prompt``, ``completion`` (sft) and ``ground_truth``."""
    batch_size: int
    """Prompts (sft: rows) per iteration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSettings:
    """Evaluation by greedy decoding and the reward function."""

    path: str
    """JSON-lines file of held-out prompts."""
    every: int = 0
    """Evaluate every so many iterations besides before the first and after the last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSettings:
    """Checkpoints to resume from: models, optimizers, and how far the job is."""

    folder: str = ""
    """Folder on a file system that all shards share, for this job alone; empty for none."""
    every: int = 10
    """Iterations from one checkpoint to the next; there is one after the last, too."""
    keep: int = 2
    """The newest so many are kept."""
    max_recoveries: int = 3
    """Lost processes that the job survives without a new checkpoint in between."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallPin:
    """What the user fixes of a call's placement; the search chooses the rest."""

    call: str
    """Name of the function call."""
    mesh: DeviceMesh | None = None
    strategy: ParallelStrategy | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """One training run."""

    name: str
    algorithm: str
    """Key of the catalogue: ``ppo``, ``sft``."""
    iterations: int
    actor: ModelSettings
    """The model that generates and learns."""
    data: DataSettings
    seed: int = 0
    """Seeds data order, random weights and samples."""
    critic: ModelSettings | None = None
    """The value model; by default the actor's checkpoint under a new value head."""
    ref: ModelSettings | None = None
    """The frozen reference; by default the actor's checkpoint."""
    reward_model: ModelSettings | None = None
    """A reward model; by default the reward function alone gives rewards."""
    reward: RewardSettings = field(default_factory=RewardSettings)
    evaluation: EvaluationSettings | None = None
    generation: GenerationSettings = field(default_factory=GenerationSettings)
    ppo: PpoSettings = field(default_factory=PpoSettings)
    pins: tuple[CallPin, ...] = ()
    """Calls whose placement the user fixes; the search places the others."""
    placement: PlacementSettings = field(default_factory=PlacementSettings)
    """What holds for the placement of all calls."""
    max_tokens_per_micro_batch: int = 16_384
    """Packed tokens of a forward pass."""
    dtype: str = "float32"
    """``float32`` or ``bfloat16``."""
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    output: str = ""
    """Folder for the final Hugging Face checkpoint; empty for none."""
    call_timeout_seconds: float = 600.0
    """Deadline of one function call."""

    def evaluates_after(self, iteration: int) -> bool:
        """True where held-out prompts are answered once an iteration has ended."""
        if self.evaluation is None:
            return False
        every = self.evaluation.every
        return iteration == self.iterations or bool(every and iteration % every == 0)

    def problems(self) -> tuple[Problem, ...]:
        """Everything that is wrong with the values themselves; files are not looked at."""
        return tuple(_problems(self))


def _problems(experiment: Experiment) -> Iterator[Problem]:
    if not experiment.name:
        yield Problem("name", "is empty; give the job a name")
    for path, value in _positive(experiment):
        if not value > 0:
            yield Problem(path, f"is {value} and must be positive")
    for path, value in _not_negative(experiment):
        if value < 0:
            yield Problem(path, f"is {value} and must not be negative")
    if experiment.dtype not in ("float32", "bfloat16"):
        yield Problem("dtype", f"is {experiment.dtype!r}; use float32 or bfloat16")
    for path, text in (
        ("actor.checkpoint", experiment.actor.checkpoint),
        ("data.path", experiment.data.path),
    ):
        if not text:
            yield Problem(path, "is empty")
    rollouts = experiment.data.batch_size * max(1, experiment.generation.samples_per_prompt)
    if experiment.ppo.mini_batches > max(1, rollouts):
        yield Problem(
            "ppo.mini_batches",
            f"is {experiment.ppo.mini_batches} and a batch has {rollouts} rollouts",
        )
    for index, pin in enumerate(experiment.pins):
        if pin.mesh is None and pin.strategy is None:
            yield Problem(f"pins[{index}]", "fixes neither devices nor a strategy")
        elif pin.mesh and pin.strategy and pin.strategy.num_ranks != pin.mesh.num_devices:
            yield Problem(
                f"pins[{index}].strategy",
                f"{pin.strategy} has {pin.strategy.num_ranks} ranks and the mesh "
                f"{pin.mesh.num_devices} devices",
            )


def _positive(experiment: Experiment) -> Iterator[tuple[str, float]]:
    yield "iterations", experiment.iterations
    yield "data.batch_size", experiment.data.batch_size
    yield "generation.max_new_tokens", experiment.generation.max_new_tokens
    yield "generation.samples_per_prompt", experiment.generation.samples_per_prompt
    yield "reward.timeout_seconds", experiment.reward.timeout_seconds
    yield "reward.memory_bytes", experiment.reward.memory_bytes
    yield "checkpoint.every", experiment.checkpoint.every
    yield "checkpoint.keep", experiment.checkpoint.keep
    yield "max_tokens_per_micro_batch", experiment.max_tokens_per_micro_batch
    yield "call_timeout_seconds", experiment.call_timeout_seconds
    yield "ppo.gamma", experiment.ppo.gamma
    yield "ppo.clip_ratio", experiment.ppo.clip_ratio
    yield "ppo.value_clip", experiment.ppo.value_clip
    yield "ppo.kl_horizon", experiment.ppo.kl_horizon
    yield "ppo.mini_batches", experiment.ppo.mini_batches
    yield "ppo.epochs", experiment.ppo.epochs
    for name in ("actor", "critic"):
        model: ModelSettings | None = getattr(experiment, name)
        if model is not None:
            yield f"{name}.optimizer.learning_rate", model.optimizer.learning_rate
            yield f"{name}.optimizer.epsilon", model.optimizer.epsilon


def _not_negative(experiment: Experiment) -> Iterator[tuple[str, float]]:
    yield "seed", experiment.seed
    yield "generation.temperature", experiment.generation.temperature
    yield "ppo.gae_lambda", experiment.ppo.gae_lambda
    yield "ppo.kl_coefficient", experiment.ppo.kl_coefficient
    yield "ppo.kl_target", experiment.ppo.kl_target
    yield "ppo.critic_warmup_iterations", experiment.ppo.critic_warmup_iterations
    yield "checkpoint.max_recoveries", experiment.checkpoint.max_recoveries
    if experiment.evaluation is not None:
        yield "evaluation.every", experiment.evaluation.every
    for name in ("actor", "critic"):
        model: ModelSettings | None = getattr(experiment, name)
        if model is not None:
            yield f"{name}.optimizer.warmup_steps", model.optimizer.warmup_steps
            yield f"{name}.optimizer.weight_decay", model.optimizer.weight_decay
            yield f"{name}.optimizer.max_grad_norm", model.optimizer.max_grad_norm
