"""Running micro-batches through a model's pipeline, forward only or with gradients."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator
from megatron.core.pipeline_parallel.schedules import get_forward_backward_func
from torch import Tensor

from services.trainer.megatron_model import MegatronModel
from services.trainer.micro_batches import MicroBatch

Outcome = tuple[Tensor, Any]
"""A micro-batch's loss (a sum already divided as it should be), and what it reports."""
OutputFunction = Callable[[MicroBatch, Tensor], Outcome]
"""Takes the model's output [N, columns]: this tensor rank's logits, or values [N, 1]."""


def run_schedule(
    model: MegatronModel,
    micro_batches: Sequence[MicroBatch],
    on_output: OutputFunction,
    *,
    forward_only: bool,
) -> list[Any]:
    """Run every micro-batch; with gradients, leave them reduced over the data ranks.

    Collective over the model's tensor and pipeline ranks, and with gradients over its data
    ranks, which may have different numbers of micro-batches but at least one.

    Returns:
        What `on_output` reports for each micro-batch, on the last stage; empty elsewhere.
    """
    groups = model.groups
    run = get_forward_backward_func(pp_size=groups.strategy.pipeline, vp_size=None)
    with torch.set_grad_enabled(not forward_only):
        reports: list[Any] = run(
            forward_step_func=_forward_step(on_output),
            data_iterator=iter(micro_batches),
            model=model.wrapped,
            num_microbatches=len(micro_batches),
            seq_length=1,  # unused: lengths vary, and travel with the hidden states
            micro_batch_size=1,
            forward_only=forward_only,
            pg_collection=groups.collection,
            p2p_communicator=P2PCommunicator(groups.pipeline, model.config),
        )
    return reports


def _forward_step(on_output: OutputFunction) -> Callable[[Any, torch.nn.Module], Any]:
    def forward_step(iterator: Any, module: torch.nn.Module) -> Any:
        micro_batch: MicroBatch = next(iterator)
        output = module(
            micro_batch.tokens_T.unsqueeze(0), None, None, packed_seq_params=micro_batch.packing
        )

        def on_last_stage(output_1NC: Tensor) -> tuple[Tensor, Tensor, Any]:
            loss, report = on_output(micro_batch, output_1NC.squeeze(0))
            # Megatron-core wants a number of tokens; the loss is divided by the global one
            # already, so it is told none.
            return loss, torch.zeros((), dtype=torch.int, device=loss.device), report

        return output, on_last_stage

    return forward_step
