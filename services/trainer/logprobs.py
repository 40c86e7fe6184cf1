"""Log-probabilities of given tokens when each tensor rank holds a part of the vocabulary.

Megatron-core's own cross-entropy reads a global process group, and is silently wrong where a
process holds models of different layouts; this one takes the group. Shapes: N tokens, V
columns of this rank.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def vocab_parallel_logprobs(
    logits_NV: Tensor,
    targets_N: Tensor,
    *,
    vocab_size: int,
    temperature: float,
    group: dist.ProcessGroup,
) -> Tensor:
    """log softmax(logits / temperature) at the targets, float32 [N], equal on all ranks.

    Args:
        logits_NV: this rank's columns; ranks hold equal numbers of them, in rank order.
        targets_N: int64, global token ids below `vocab_size`.
        vocab_size: columns from here on pad the vocabulary and have no probability.
        temperature: as the sampler's; 0 (greedy) counts as 1.
        group: the tensor-parallel ranks.
    """
    width = logits_NV.shape[1]
    first = group.rank() * width
    valid = min(max(vocab_size - first, 0), width)
    logprobs_N: Tensor = _LogProbs.apply(  # type: ignore[no-untyped-call]
        logits_NV, targets_N - first, valid, temperature or 1.0, group
    )
    return logprobs_N


class _LogProbs(torch.autograd.Function):
    """One float32 copy of the logits in all, which becomes the softmax and then the gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        logits_NV: Tensor,
        local_targets_N: Tensor,
        valid: int,
        temperature: float,
        group: dist.ProcessGroup,
    ) -> Tensor:
        x = logits_NV.to(torch.float32, copy=True)
        if temperature != 1.0:
            x.div_(temperature)
        x[:, valid:] = -torch.inf
        largest_N = x.amax(1)
        if group.size() > 1:
            dist.all_reduce(largest_N, dist.ReduceOp.MAX, group)
        x.sub_(largest_N.unsqueeze(1))
        here_N = (local_targets_N >= 0) & (local_targets_N < valid)
        index_N1 = local_targets_N.clamp(0, x.shape[1] - 1).unsqueeze(1)
        chosen_N = torch.where(here_N, x.gather(1, index_N1).squeeze(1), 0.0)
        sums_2N = torch.stack([x.exp_().sum(1), chosen_N])
        if group.size() > 1:
            dist.all_reduce(sums_2N, group=group)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(x.div_(sums_2N[0].unsqueeze(1)), index_N1, here_N)
            ctx.temperature, ctx.dtype = temperature, logits_NV.dtype
        return sums_2N[1] - sums_2N[0].log()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        softmax_NV, index_N1, here_N = ctx.saved_tensors
        grad_N = grads[0] / ctx.temperature
        gradient_NV = softmax_NV.mul_(-grad_N.unsqueeze(1))  # used once: the graph is freed
        gradient_NV.scatter_add_(1, index_N1, torch.where(here_N, grad_N, 0.0).unsqueeze(1))
        return gradient_NV.to(ctx.dtype), None, None, None, None
