"""A training call: mini-batches in, optimizer steps and global metrics out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from realloc.core.batch import Batch
from realloc.core.errors import InvalidInput, JobFailed
from realloc.core.settings import OptimizerSettings
from realloc.telemetry.names import Attribute, Span
from realloc.telemetry.spans import span
from services.trainer.engine import CallSettings, TrainResult
from services.trainer.megatron_model import MegatronModel
from services.trainer.micro_batches import (
    MicroBatch,
    Selection,
    check_batch,
    idle_micro_batch,
    selected_counts,
    split_batch,
)
from services.trainer.objectives import Objective, Report, objective_of, selection_of
from services.trainer.ppo_targets import PpoTargets, compute_targets
from services.trainer.schedule import run_schedule


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _StepReport:
    """One optimizer step as this rank saw it."""

    loss: Tensor
    """float64 0-d: this rank's part of the mini-batch's loss."""
    sums: Tensor
    largest: Tensor
    grad_norm: float
    """Global, before clipping."""


def train(
    model: MegatronModel, settings: CallSettings, mini_batches: Sequence[Batch]
) -> TrainResult:
    """Make one optimizer step per mini-batch. Collective over the layout's ranks.

    Raises:
        InvalidInput: a field is missing or has wrong lengths, or the model cannot be trained so.
        JobFailed: a gradient is not finite.
    """
    if model.optimizer is None:
        raise InvalidInput.at("model_id", f"{model.spec.model_id} was created without optimizer")
    if not mini_batches:
        raise InvalidInput.at("mini_batches", "is empty; a call makes at least one step")
    objective = objective_of(settings, model.spec.architecture, model.groups.tensor)
    has_loss_mask = all("loss_mask" in batch.fields for batch in mini_batches if batch.num_rows)
    selection = selection_of(settings, has_loss_mask)
    for batch in mini_batches:
        check_batch(batch, selection)
    targets = None
    if settings.loss != "sft":
        targets = compute_targets(
            mini_batches, settings.ppo, settings.kl_coefficient, model.groups.data, model.device
        )
        mini_batches = targets.mini_batches
    num_tokens = _global_tokens(model, mini_batches, selection)
    steps = []
    for batch, tokens in zip(mini_batches, num_tokens, strict=True):
        with span(Span.TRAIN_STEP, {Attribute.NUM_ROWS: batch.num_rows}):
            steps.append(_step(model, settings, objective, batch, selection, tokens))
    metrics = _metrics(model, objective, steps, num_tokens)
    if targets is not None:
        metrics |= _kl_metrics(targets)
    metrics["learning_rate"] = learning_rate(_settings(model), model.weight_version - 1)
    return TrainResult(metrics=metrics, weight_version=model.weight_version)


def learning_rate(settings: OptimizerSettings, step: int) -> float:
    """Learning rate of an optimizer step, counted from 0."""
    if settings.warmup_steps <= 0:
        return settings.learning_rate
    return settings.learning_rate * min(1.0, (step + 1) / settings.warmup_steps)


def _settings(model: MegatronModel) -> OptimizerSettings:
    assert model.spec.optimizer is not None
    return model.spec.optimizer


def _global_tokens(
    model: MegatronModel, mini_batches: Sequence[Batch], selection: Selection
) -> list[float]:
    """Selected tokens of each mini-batch over all data ranks; 1 where there are none."""
    own = [int(selected_counts(batch, selection).sum()) for batch in mini_batches]
    counts = torch.tensor(own, dtype=torch.float64, device=model.device)
    dist.all_reduce(counts, group=model.groups.data)
    return counts.clamp(min=1.0).tolist()


def _step(
    model: MegatronModel,
    settings: CallSettings,
    objective: Objective,
    batch: Batch,
    selection: Selection,
    num_tokens: float,
) -> _StepReport:
    micro_batches = split_batch(
        batch, selection, settings.max_tokens_per_micro_batch, model.device
    ) or [idle_micro_batch(selection, model.device)]

    def on_output(micro_batch: MicroBatch, output_NC: Tensor) -> tuple[Tensor, object]:
        loss, report = objective.loss(micro_batch, output_NC)
        scaled = loss / num_tokens
        # The schedule may change the loss in place: what is reported is a copy.
        return scaled, (scaled.detach().clone().double(), report)

    model.wrapped.zero_grad_buffer()
    model.optimizer.zero_grad()
    results = run_schedule(model, micro_batches, on_output, forward_only=False)
    for group in model.optimizer.param_groups:
        group["lr"] = learning_rate(_settings(model), model.weight_version)
    _, grad_norm, _ = model.optimizer.step()
    model.weight_version += 1
    if not math.isfinite(grad_norm):
        raise JobFailed(
            f"the gradient of {model.spec.model_id} is {grad_norm} in step "
            f"{model.weight_version}; lower the learning rate, or look at the batch"
        )
    return _sum_up(model, objective, results, float(grad_norm))


def _sum_up(
    model: MegatronModel,
    objective: Objective,
    results: Sequence[tuple[Tensor, Report]],
    grad_norm: float,
) -> _StepReport:
    """Add up the micro-batches; zeros where another rank speaks for this replica."""
    zero = torch.zeros((), dtype=torch.float64, device=model.device)
    sums = zero.repeat(len(objective.sums))
    if not model.groups.reports:
        return _StepReport(loss=zero, sums=sums, largest=zero, grad_norm=grad_norm)
    return _StepReport(
        loss=torch.stack([loss for loss, _ in results]).sum(),
        sums=torch.stack([report.sums for _, report in results]).sum(0),
        largest=torch.stack([report.largest for _, report in results]).max(),
        grad_norm=grad_norm,
    )


def _metrics(
    model: MegatronModel,
    objective: Objective,
    steps: Sequence[_StepReport],
    num_tokens: Sequence[float],
) -> dict[str, float]:
    """Means over all ranks and mini-batches."""
    table = torch.stack([torch.cat([step.loss.view(1), step.sums]) for step in steps])
    dist.all_reduce(table, group=model.groups.everyone)
    table = table.cpu()
    total = sum(num_tokens)
    metrics = {
        "loss": float(table[:, 0].mean()),
        "grad_norm": sum(step.grad_norm for step in steps) / len(steps),
        "num_tokens": total,
    }
    means = dict(zip(objective.sums, (table[:, 1:].sum(0) / total).tolist(), strict=True))
    if "logprob_abs_diff" in means:
        del means["logprob_abs_diff"]
        # Only before the first step do trainer and sampler have the same weights.
        first = table[0, 1 + objective.sums.index("logprob_abs_diff")] / num_tokens[0]
        largest = steps[0].largest
        dist.all_reduce(largest, dist.ReduceOp.MAX, model.groups.everyone)
        metrics["train_rollout_logprob_abs_diff"] = float(first)
        metrics["train_rollout_logprob_abs_diff_max"] = float(largest)
    if "return_squared" in means:
        metrics["explained_variance"] = _explained_variance(means)
        del means["return_squared"]
    return metrics | means


def _explained_variance(means: dict[str, float]) -> float:
    """1 − Var(return − value) / Var(return): 1 is a perfect critic, 0 a constant one."""
    error = means["return"] - means["value"]
    spread = means["return_squared"] - means["return"] ** 2
    return 1.0 - (means["value_error"] - error**2) / max(spread, 1e-8)


def _kl_metrics(targets: PpoTargets) -> dict[str, float]:
    return {"kl_to_ref": targets.kl_per_sequence, "kl_to_ref_per_token": targets.kl_per_token}
