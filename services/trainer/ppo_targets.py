"""What the losses of PPO train towards, computed once per training call.

Shapes: B rows of a mini-batch on this data rank, T tokens of its longest response.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from realloc.algorithms.advantages import (
    estimate_advantages,
    shape_rewards,
    whiten,
    whitening_sums,
)
from realloc.algorithms.padding import pad_rows, row_mask, unpad_rows
from realloc.core.batch import Batch, RaggedArray
from realloc.core.errors import Problem, raise_problems
from realloc.core.settings import PpoSettings
from services.trainer.micro_batches import Selection, selected_counts

_NEEDED = ("tokens", "prompt_length", "logprobs", "values", "reward")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PpoTargets:
    """Mini-batches with what the losses need besides."""

    mini_batches: tuple[Batch, ...]
    """With the fields ``advantages`` and ``returns``."""
    kl_per_sequence: float
    """Mean over all rows of the sampler's KL to the reference, summed over a row's tokens."""
    kl_per_token: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Estimates:
    mask_BT: Tensor
    advantages_BT: Tensor
    returns_BT: Tensor
    kl: float
    """Sum over all tokens."""


def compute_targets(
    mini_batches: Sequence[Batch],
    ppo: PpoSettings,
    kl_coefficient: float,
    group: dist.ProcessGroup,
    device: torch.device,
) -> PpoTargets:
    """Estimate advantages and returns; whiten over all mini-batches of all data ranks.

    Collective over `group`, the data ranks. Without ``ref_logprobs`` there is no KL penalty.

    Raises:
        InvalidInput: a field is missing.
    """
    estimates = [_estimate(batch, ppo, kl_coefficient) for batch in mini_batches]
    own = torch.zeros(5, dtype=torch.float64)
    for batch, estimate in zip(mini_batches, estimates, strict=True):
        own[:3] += whitening_sums(estimate.advantages_BT, estimate.mask_BT)
        own[3] += estimate.kl
        own[4] += batch.num_rows
    everywhere = own.to(device)
    dist.all_reduce(everywhere, group=group)
    sums = everywhere.cpu()
    return PpoTargets(
        mini_batches=tuple(
            _with_targets(batch, estimate, sums[:3] if ppo.whiten_advantages else None)
            for batch, estimate in zip(mini_batches, estimates, strict=True)
        ),
        kl_per_sequence=float(sums[3] / sums[4].clamp(min=1)),
        kl_per_token=float(sums[3] / sums[2].clamp(min=1)),
    )


def _estimate(batch: Batch, ppo: PpoSettings, kl_coefficient: float) -> _Estimates:
    if not batch.num_rows:
        nothing_BT = torch.zeros(0, 0)
        return _Estimates(
            mask_BT=nothing_BT.bool(), advantages_BT=nothing_BT, returns_BT=nothing_BT, kl=0.0
        )
    raise_problems(
        Problem(f"fields.{name}", "is missing") for name in _NEEDED if name not in batch.fields
    )
    lengths = selected_counts(batch, Selection.RESPONSE)
    mask_BT = row_mask(torch.from_numpy(lengths))
    logprobs_BT = _padded(batch, "logprobs", mask_BT)
    has_reference = "ref_logprobs" in batch.fields
    ref_BT = _padded(batch, "ref_logprobs", mask_BT) if has_reference else logprobs_BT
    scores_B = torch.from_numpy(batch.fields["reward"].values.astype("float32"))
    rewards_BT = shape_rewards(scores_B, logprobs_BT, ref_BT, mask_BT, kl_coefficient)
    result = estimate_advantages(
        rewards_BT,
        _padded(batch, "values", mask_BT),
        mask_BT,
        gamma=ppo.gamma,
        gae_lambda=ppo.gae_lambda,
    )
    return _Estimates(
        mask_BT=mask_BT,
        advantages_BT=result.advantages_BT,
        returns_BT=result.returns_BT,
        kl=float((logprobs_BT - ref_BT)[mask_BT].double().sum()),
    )


def _padded(batch: Batch, name: str, mask_BT: Tensor) -> Tensor:
    return pad_rows(torch.from_numpy(batch.fields[name].values.astype("float32")), mask_BT)


def _with_targets(batch: Batch, estimate: _Estimates, sums_3: Tensor | None) -> Batch:
    if not batch.num_rows:
        return batch
    advantages_BT, mask_BT = estimate.advantages_BT, estimate.mask_BT
    if sums_3 is not None:
        advantages_BT = whiten(advantages_BT, mask_BT, sums_3)
    lengths = selected_counts(batch, Selection.RESPONSE)
    targets = {"advantages": advantages_BT, "returns": estimate.returns_BT}
    return batch.merge(
        Batch(
            fields={
                name: RaggedArray(values=unpad_rows(x_BT, mask_BT).numpy(), lengths=lengths)
                for name, x_BT in targets.items()
            }
        )
    )
