"""An inference call: log-probabilities, values or scores of a batch's rows."""

from torch import Tensor

from realloc.core.batch import Batch
from realloc.core.errors import InvalidInput
from realloc.core.model import Head
from services.trainer.engine import CallSettings
from services.trainer.megatron_model import MegatronModel
from services.trainer.micro_batches import MicroBatch, join_results, split_batch
from services.trainer.objectives import TokenLogProbs, selection_of
from services.trainer.schedule import run_schedule

_HEADS = {"logprobs": Head.LM, "values": Head.VALUE, "score": Head.VALUE}
"""Each kind of inference is also the name of the field that it gives."""


def infer(model: MegatronModel, settings: CallSettings, batch: Batch) -> Batch | None:
    """Run the rows of this data rank. Collective over its tensor and pipeline ranks.

    Returns:
        One field with the batch's rows in their order, on the rank that reports; None on others.

    Raises:
        InvalidInput: no such kind of inference, the model has the wrong head, or a field is
            missing.
    """
    kind, architecture = settings.loss, model.spec.architecture
    if kind not in _HEADS:
        raise InvalidInput.at("loss", f"{kind!r} is not one of {', '.join(_HEADS)}")
    if architecture.head is not _HEADS[kind]:
        raise InvalidInput.at(
            "loss", f"{kind} needs a {_HEADS[kind].value} head, not {architecture.head.value}"
        )
    logprobs = TokenLogProbs(
        vocab_size=architecture.vocab_size,
        temperature=settings.temperature,
        group=model.groups.tensor,
    )

    def on_output(micro_batch: MicroBatch, output_NC: Tensor) -> tuple[Tensor, Tensor]:
        columns_are_logits = kind == "logprobs"
        result_N = logprobs(micro_batch, output_NC) if columns_are_logits else output_NC[:, 0]
        return result_N.new_zeros(()), result_N

    selection = selection_of(settings, has_loss_mask=False)
    limit = settings.max_tokens_per_micro_batch
    micro_batches = split_batch(batch, selection, limit, model.device)
    results: list[Tensor] = []
    if micro_batches:
        results = run_schedule(model, micro_batches, on_output, forward_only=True)
    if not model.groups.reports:
        return None
    return Batch(fields={kind: join_results(micro_batches, results, batch.num_rows)})
