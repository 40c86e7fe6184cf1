"""What a call may choose beside its mesh, its strategy and its micro-batches."""

from dataclasses import dataclass
from enum import Enum


class GradientReduction(Enum):
    """How data ranks sum their gradients, and who holds the optimizer's states."""

    AFTER = "after"
    """All-reduce behind the last micro-batch; every rank holds and steps all parameters."""
    SHARDED = "sharded"
    """Reduce-scatter, a step of one's own share, all-gather (ZeRO 1, arXiv 1910.02054)."""
    OVERLAPPED = "overlapped"
    """Sharded, in buckets during the last micro-batch's backward pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallChoices:
    """How a call runs."""

    recompute: bool = False
    """Training runs each layer forward again before its backward pass."""
    offload: bool = False
    """Between calls the host's memory holds what only this call needs: the weights of a frozen
    model; the moments and master weights of a trained one, whose gradient buffer is freed."""
    sequence_parallel: bool = False
    """Tensor ranks split norms and residuals, too (arXiv 2205.05198, section 4.2.2)."""
    reduction: GradientReduction = GradientReduction.SHARDED
    """Of a train call."""
