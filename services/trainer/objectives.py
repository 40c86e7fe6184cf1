"""What a training call minimises: a loss of each micro-batch, and the sums it reports.

An objective is a value with two parts: which tokens it is about, and a function of a
micro-batch and the model's output at those tokens. Sums over tokens are added up over
micro-batches and ranks, and divided by the global number of tokens at the end.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from realloc.algorithms.losses import LossSums, policy_loss, sft_loss, value_loss
from realloc.core.errors import InvalidInput
from realloc.core.model import Head, ModelArchitecture
from services.trainer.engine import CallSettings
from services.trainer.logprobs import vocab_parallel_logprobs
from services.trainer.micro_batches import MicroBatch, Selection


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Report:
    """What one micro-batch adds to the metrics."""

    sums: Tensor
    """float64 [sums of the objective], to be added up."""
    largest: Tensor
    """float64 0-d, of which the maximum counts: |logprob − sampler's logprob|."""


class Objective(Protocol):
    """A loss, and the names of what it reports."""

    @property
    def sums(self) -> tuple[str, ...]: ...

    def loss(self, micro_batch: MicroBatch, output_NC: Tensor) -> tuple[Tensor, Report]:
        """Sum over the micro-batch's tokens, and the report; the loss is not yet divided."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogProbs:
    """Log-probabilities of the selected tokens from this tensor rank's logits."""

    vocab_size: int
    temperature: float
    group: dist.ProcessGroup

    def __call__(self, micro_batch: MicroBatch, logits_NV: Tensor) -> Tensor:
        return vocab_parallel_logprobs(
            logits_NV,
            micro_batch.targets_N,
            vocab_size=self.vocab_size,
            temperature=self.temperature,
            group=self.group,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SftObjective:
    """Cross entropy."""

    logprobs: TokenLogProbs
    sums: tuple[str, ...] = ("nll",)

    def loss(self, micro_batch: MicroBatch, output_NC: Tensor) -> tuple[Tensor, Report]:
        logprobs_N = self.logprobs(micro_batch, output_NC)
        result = sft_loss(logprobs_N, micro_batch.mask_N)
        return result.loss, _report(result, self.sums, {})


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorObjective:
    """PPO's clipped surrogate; the old log-probabilities are the sampler's."""

    logprobs: TokenLogProbs
    clip_ratio: float
    sums: tuple[str, ...] = (
        "policy_loss",
        "ratio",
        "clip_fraction",
        "approx_kl",
        "entropy",
        "logprob_abs_diff",
    )

    def loss(self, micro_batch: MicroBatch, output_NC: Tensor) -> tuple[Tensor, Report]:
        logprobs_N = self.logprobs(micro_batch, output_NC)
        fields, mask_N = micro_batch.fields, micro_batch.mask_N
        result = policy_loss(
            logprobs_N,
            fields["logprobs"],
            fields["advantages"],
            mask_N,
            clip_ratio=self.clip_ratio,
        )
        kept_N = torch.where(mask_N, logprobs_N.detach(), 0.0)
        old_N = torch.where(mask_N, fields["logprobs"], 0.0)
        difference_N = (kept_N - old_N).abs()
        more = {"entropy": -kept_N.sum(), "logprob_abs_diff": difference_N.sum()}
        return result.loss, _report(result, self.sums, more, difference_N.max())


@dataclass(frozen=True, slots=True, kw_only=True)
class CriticObjective:
    """The clipped value loss."""

    value_clip: float
    sums: tuple[str, ...] = (
        "value_loss",
        "value",
        "value_error",
        "value_clip_fraction",
        "return",
        "return_squared",
    )

    def loss(self, micro_batch: MicroBatch, output_NC: Tensor) -> tuple[Tensor, Report]:
        fields, mask_N = micro_batch.fields, micro_batch.mask_N
        returns_N = torch.where(mask_N, fields["returns"], 0.0)
        result = value_loss(
            output_NC.squeeze(1),
            fields["values"],
            returns_N,
            mask_N,
            value_clip=self.value_clip,
        )
        more = {"return": returns_N.sum(), "return_squared": returns_N.double().square().sum()}
        return result.loss, _report(result, self.sums, more)


def selection_of(settings: CallSettings, has_loss_mask: bool) -> Selection:
    """The tokens that a call is about, by its loss or kind of inference."""
    match settings.loss:
        case "sft":
            return Selection.LOSS_MASK if has_loss_mask else Selection.RESPONSE
        case "score":
            return Selection.LAST
        case "ppo_actor" | "ppo_critic" | "logprobs" | "values":
            return Selection.RESPONSE
    raise InvalidInput.at("loss", f"{settings.loss!r} is unknown to the trainer")


def objective_of(
    settings: CallSettings, architecture: ModelArchitecture, group: dist.ProcessGroup
) -> Objective:
    """The objective of a training call.

    Raises:
        InvalidInput: no such loss, or the model has the wrong head for it.
    """
    needed = Head.VALUE if settings.loss == "ppo_critic" else Head.LM
    if architecture.head is not needed:
        raise InvalidInput.at(
            "loss", f"{settings.loss} needs a {needed.value} head, not {architecture.head.value}"
        )
    logprobs = TokenLogProbs(
        vocab_size=architecture.vocab_size, temperature=settings.temperature, group=group
    )
    match settings.loss:
        case "sft":
            return SftObjective(logprobs=logprobs)
        case "ppo_actor":
            return ActorObjective(logprobs=logprobs, clip_ratio=settings.ppo.clip_ratio)
        case "ppo_critic":
            return CriticObjective(value_clip=settings.ppo.value_clip)
    raise InvalidInput.at("loss", f"{settings.loss!r} is not a training loss")


def _report(
    result: LossSums,
    names: tuple[str, ...],
    more: dict[str, Tensor],
    largest: Tensor | None = None,
) -> Report:
    sums = {**result.metrics, **more}
    return Report(
        sums=torch.stack([sums[name].detach().double() for name in names]),
        largest=result.loss.new_zeros(()).double() if largest is None else largest.double(),
    )
