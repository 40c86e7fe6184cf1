"""The pipeline's formula against a schedule played out step by step."""

import itertools

import pytest

from realloc.cost.pipeline import pipeline_seconds


def one_forward_one_backward(forward: float, backward: float, stages: int, batches: int) -> float:
    """End of 1F1B with equal stages, every dependency waited for; an independent reference."""
    orders = []
    for stage in range(stages):
        warm = min(stages - 1 - stage, batches)
        order = [("f", b) for b in range(warm)]
        for b in range(batches - warm):
            order += [("f", warm + b), ("b", b)]
        order += [("b", b) for b in range(batches - warm, batches)]
        orders.append(order)
    ends: dict[tuple[str, int, int], float] = {}
    clock = [0.0] * stages
    position = [0] * stages
    while any(position[s] < len(orders[s]) for s in range(stages)):
        for s in range(stages):
            while position[s] < len(orders[s]):
                kind, b = orders[s][position[s]]
                before = ("f", s - 1, b) if kind == "f" else ("b", s + 1, b)
                at_end = s == 0 if kind == "f" else s == stages - 1
                if not at_end and before not in ends:
                    break
                begin = max(clock[s], 0.0 if at_end else ends[before])
                clock[s] = begin + (forward if kind == "f" else backward)
                ends[kind, s, b] = clock[s]
                position[s] += 1
    return max(ends.values())


@pytest.mark.parametrize(
    ("stages", "batches"), list(itertools.product((1, 2, 3, 4, 8), (8, 9, 16)))
)
def test_equal_stages_equal_the_played_out_schedule(stages: int, batches: int) -> None:
    """With equal stages the formula is exact."""
    played = one_forward_one_backward(1.0, 2.0, stages, batches)
    assert pipeline_seconds([3.0] * stages, batches) == pytest.approx(played)


def test_chunks_divide_the_bubble() -> None:
    """v chunks per rank leave 1/v of the bubble."""
    plain = pipeline_seconds([1.0] * 4, 8)
    interleaved = pipeline_seconds([1.0] * 4, 8, virtual_stages=3)
    assert plain - 8 == pytest.approx(3 * (interleaved - 8))


def test_the_slowest_stage_sets_the_pace() -> None:
    """Every further micro-batch takes as long as the slowest stage."""
    stages = [1.0, 1.0, 2.5]
    assert pipeline_seconds(stages, 9) - pipeline_seconds(stages, 8) == pytest.approx(2.5)


def test_messages_count_per_hop_and_pass() -> None:
    """m − 1 messages in the steady state and p − 1 to fill, in both directions."""
    silent = pipeline_seconds([1.0] * 4, 8)
    assert pipeline_seconds([1.0] * 4, 8, message_seconds=0.1) - silent == pytest.approx(2.0)
