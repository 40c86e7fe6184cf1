"""Calls as a whole: what must hold between estimates, whatever the numbers."""

from dataclasses import replace

import pytest

from realloc.core.strategy import ParallelStrategy
from realloc.cost.calls import Workload, estimate_call
from realloc.cost.generation import Replica, concurrent_rows, step_seconds
from realloc.cost.hardware import HARDWARE, hardware_of
from realloc.cost.lengths import ResponseLengths
from realloc.cost.model_size import num_parameters
from realloc.dataflow.graph import CallKind
from tests.unit.cost.models import LLAMA_8B, LLAMA_70B

H100 = hardware_of("H100")
WORK = Workload(
    num_rows=256,
    prompt_tokens=1024,
    response_tokens=1024,
    num_steps=4,
    element_bytes=2,
    max_tokens_per_micro_batch=8192,
)


def seconds(kind: CallKind, strategy: str, work: Workload = WORK) -> float:
    return estimate_call(kind, LLAMA_8B, ParallelStrategy.parse(strategy), work, H100).seconds


@pytest.mark.parametrize("name", sorted(HARDWARE))
@pytest.mark.parametrize("kind", list(CallKind))
def test_every_preset_gives_sane_numbers(name: str, kind: CallKind) -> None:
    """Positive seconds and bytes for every call on all hardware."""
    cost = estimate_call(kind, LLAMA_8B, ParallelStrategy(tensor=2), WORK, hardware_of(name))
    assert cost.seconds > 0
    assert cost.resident_bytes >= num_parameters(LLAMA_8B) * 2 / 2.1
    assert cost.active_bytes > 0


def test_training_reaches_no_more_than_the_peak() -> None:
    """Six flops per parameter and token take longer than at peak speed, but not ten times."""
    tokens = WORK.num_tokens
    ideal = 6 * num_parameters(LLAMA_8B) * tokens / 8 / H100.flops_per_second
    assert 1.3 * ideal < seconds(CallKind.TRAIN, "d8t1p1") < 5 * ideal


def test_recomputation_adds_about_a_third() -> None:
    """A second forward pass beside one forward and a twice as long backward pass."""
    plain = seconds(CallKind.TRAIN, "d8t1p1")
    again = seconds(CallKind.TRAIN, "d8t1p1", replace(WORK, recompute=True))
    assert 1.2 < again / plain < 1.4


def test_epochs_repeat_the_rows() -> None:
    """Two epochs of two steps each cost twice one epoch of two steps."""
    one = seconds(CallKind.TRAIN, "d8t1p1", replace(WORK, num_steps=2))
    two = seconds(CallKind.TRAIN, "d8t1p1", replace(WORK, num_steps=4, num_epochs=2))
    assert two == pytest.approx(2 * one, rel=0.02)


def test_inference_is_a_third_of_training() -> None:
    """A forward pass against forward and backward."""
    assert 2.5 < seconds(CallKind.TRAIN, "d8t1p1") / seconds(CallKind.INFERENCE, "d8t1p1") < 4


def test_short_responses_save_decoding() -> None:
    """A mean of a quarter of the limit takes less than all rows at the limit, but not a quarter."""
    full = seconds(CallKind.GENERATE, "d8t1p1")
    short = seconds(CallKind.GENERATE, "d8t1p1", replace(WORK, mean_response_tokens=256))
    assert full / 4 < short < full


def test_a_full_cache_makes_rows_wait() -> None:
    """With room for a quarter of the rows, decoding takes longer than with room for all."""
    work = replace(WORK, num_rows=2048, mean_response_tokens=512)
    strategy = ParallelStrategy(data=2)
    roomy = estimate_call(CallKind.GENERATE, LLAMA_8B, strategy, work, H100)
    tight = estimate_call(
        CallKind.GENERATE, LLAMA_8B, strategy, work, H100, memory_bytes=60 * 10**9
    )
    assert tight.seconds > 1.1 * roomy.seconds
    assert tight.active_bytes < roomy.active_bytes


def test_a_decoding_step_reads_all_weights() -> None:
    """One row on one device: at least the weights over the bandwidth, and not twice as long."""
    replica = Replica(architecture=LLAMA_8B, tensor=1, element_bytes=2, hardware=H100)
    reading = 15e9 / (H100.memory_bytes_per_second * H100.efficiency.memory)
    assert reading < step_seconds(replica, 1, 512) < 2 * reading


def test_tensor_ranks_share_a_step() -> None:
    """Eight ranks are faster than one, but less than eight times."""
    one = Replica(architecture=LLAMA_70B, tensor=1, element_bytes=2, hardware=H100)
    eight = replace(one, tensor=8)
    assert 3 < step_seconds(one, 64, 1024) / step_seconds(eight, 64, 1024) < 8


def test_the_cache_bounds_the_rows() -> None:
    """128 KiB per token and 1,536 tokens a row: 12 GiB hold 64 rows."""
    replica = Replica(architecture=LLAMA_8B, tensor=1, element_bytes=2, hardware=H100)
    lengths = ResponseLengths(mean=512, limit=512)
    assert concurrent_rows(replica, 1024, lengths, 12 * 2**30) == 64
