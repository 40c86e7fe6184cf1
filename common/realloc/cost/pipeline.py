"""Seconds of micro-batches through a pipeline.

1F1B: the last stage starts after one pass through the others and the first ends as much later;
between, the slowest stage sets the pace. With equal stages that is (m + p − 1) of a stage's
time, m useful ones and p − 1 of bubble; v model chunks per rank divide the bubble by v and
multiply the messages (Narayanan et al., arXiv 2104.04473, section 2.2). Messages are not hidden:
Megatron's plain schedule waits for them.
"""

from collections.abc import Sequence


def pipeline_seconds(
    stage_seconds: Sequence[float],
    num_micro_batches: int,
    *,
    message_seconds: float = 0.0,
    passes: int = 2,
    virtual_stages: int = 1,
) -> float:
    """Seconds until all micro-batches are through.

    Args:
        stage_seconds: of one micro-batch on each stage, all passes.
        message_seconds: of one micro-batch's hidden states to the next stage.
        passes: 2 with a backward pass, whose messages go the other way; else 1.
        virtual_stages: model chunks per stage.
    """
    slowest = max(stage_seconds)
    bubble = (sum(stage_seconds) - slowest) / virtual_stages
    stages = len(stage_seconds)
    seconds = num_micro_batches * slowest + bubble
    if stages > 1:
        hops = (num_micro_batches - 1) * virtual_stages + stages - 1
        seconds += passes * hops * message_seconds
    return seconds
