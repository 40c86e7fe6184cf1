"""Settings of optimizers, losses and sampling: what an experiment may tune."""

from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSettings:
    """AdamW with linear warm-up and gradient clipping."""

    learning_rate: float = 1e-6
    """Peak learning rate, reached after the warm-up and then held."""
    warmup_steps: int = 0
    """Optimizer steps over which the learning rate rises linearly from 0."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.95
    """Decay of the second moment."""
    epsilon: float = 1e-8
    """Added to the denominator of Adam's step."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this global norm; 0 turns clipping off."""
    frozen: tuple[str, ...] = ()
    """Tensors that keep their weights, or parts of the model, by Hugging Face name:
    ``model.embed_tokens``, ``model.layers.0``. They are not sent to generation again either."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PpoSettings:
    """Proximal policy optimization with a critic (arXiv 1707.06347, 2203.02155)."""

    gamma: float = 1.0
    """Discount per token."""
    gae_lambda: float = 0.95
    """Bias-variance trade-off of generalised advantage estimation."""
    clip_ratio: float = 0.2
    """The policy ratio is clipped to 1 ± this."""
    value_clip: float = 0.2
    """Values move at most this far from the old ones in the clipped value loss."""
    kl_coefficient: float = 0.05
    """Initial weight of the per-token KL penalty to the reference."""
    kl_target: float = 0.0
    """Mean KL per sequence that the adaptive controller aims at; 0 keeps the weight fixed."""
    kl_horizon: float = 10_000.0
    """Samples over which the adaptive controller reacts."""
    whiten_advantages: bool = True
    """Scale advantages to mean 0 and variance 1 over the global batch."""
    mini_batches: int = 1
    """Optimizer steps per pass over the batch."""
    epochs: int = 1
    """Passes over the batch."""
    critic_warmup_iterations: int = 0
    """Iterations at the start in which only the critic trains."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationSettings:
    """How rollouts are sampled."""

    temperature: float = 1.0
    """Softmax temperature; 0 is greedy."""
    max_new_tokens: int = 128
    """Tokens after which a rollout is cut."""
    samples_per_prompt: int = 1
    """Rollouts per prompt, kept together as a group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardSettings:
    """A user's reward function and what it may use."""

    function: str = ""
    """``path/to/file.py:function_name``; empty for none."""
    timeout_seconds: float = 10.0
    """Wall-clock limit of one call."""
    memory_bytes: int = 2 << 30
    """Address space that the reward process may use."""


class GenerationPlacement(Enum):
    """Where rollouts run, seen from the training of the same model."""

    ANY = "any"
    COLOCATED = "colocated"
    """On the same devices, in turns: both on all usable ones."""
    DISJOINT = "disjoint"
    """On devices of their own: the first ones of the cluster; training on the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementSettings:
    """What an execution plan may do, beside the pins of single calls."""

    generation: GenerationPlacement = GenerationPlacement.ANY
    """Rollouts on the devices of training or on others."""
    max_tensor: int = 0
    """Largest tensor degree; 0 for the devices of a node."""
    headroom: float = 0.0
    """Share of each device's memory that stays free, from 0 to below 1."""
    avoided_nodes: tuple[int, ...] = ()
    """Nodes, counted from 0, that the plan leaves out."""
    keep_on_device: bool = False
    """Nothing waits in the host's memory between calls."""
