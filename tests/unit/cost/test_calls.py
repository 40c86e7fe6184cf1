"""Calls as a whole: what must hold between estimates, whatever the numbers."""

from dataclasses import replace

import pytest

from realloc.core.model import ModelArchitecture
from realloc.core.strategy import ParallelStrategy
from realloc.cost.calls import CallCost, Workload, estimate_call
from realloc.cost.choices import CallChoices, GradientReduction
from realloc.cost.generation import Replica, concurrent_rows, step_seconds
from realloc.cost.hardware import HARDWARE, hardware_of
from realloc.cost.lengths import ResponseLengths
from realloc.cost.model_size import num_parameters
from realloc.dataflow.graph import CallKind
from tests.unit.cost.models import LLAMA_8B, LLAMA_70B, MIXTRAL

H100 = hardware_of("H100")
WORK = Workload(
    num_rows=256,
    prompt_tokens=1024,
    response_tokens=1024,
    num_steps=4,
    element_bytes=2,
    max_tokens_per_micro_batch=8192,
)


def cost(
    kind: CallKind,
    strategy: str,
    work: Workload = WORK,
    *,
    model: ModelArchitecture = LLAMA_8B,
    choices: CallChoices | None = None,
) -> CallCost:
    parsed = ParallelStrategy.parse(strategy)
    return estimate_call(kind, model, parsed, work, H100, choices=choices or CallChoices())


def seconds(kind: CallKind, strategy: str, work: Workload = WORK) -> float:
    return cost(kind, strategy, work).seconds


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
    again = cost(CallKind.TRAIN, "d8t1p1", choices=CallChoices(recompute=True)).seconds
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


OFFLOAD = CallChoices(offload=True)


def test_offloaded_weights_cross_the_host_link_once() -> None:
    """A frozen 8B model in 16 bits on two ranks: 8 GB each come in at 50 GB/s; nothing stays."""
    here = cost(CallKind.INFERENCE, "d4t2p1")
    away = cost(CallKind.INFERENCE, "d4t2p1", choices=OFFLOAD)
    half = num_parameters(LLAMA_8B)
    assert away.seconds - here.seconds == pytest.approx(half / 50e9, rel=0.01)
    assert away.resident_bytes == 0
    assert away.peak_bytes == pytest.approx(here.peak_bytes, rel=1e-6)
    assert away.host_bytes == here.resident_bytes


def test_offloaded_states_cross_the_host_link_twice() -> None:
    """Master weights and moments, 12 bytes per parameter over 8 ranks, come in and go out."""
    here = cost(CallKind.TRAIN, "d8t1p1")
    away = cost(CallKind.TRAIN, "d8t1p1", choices=OFFLOAD)
    states = 12 * num_parameters(LLAMA_8B) / 8
    assert away.seconds - here.seconds == pytest.approx(2 * states / 50e9, rel=0.01)
    assert away.resident_bytes == pytest.approx(2 * num_parameters(LLAMA_8B), rel=1e-4)
    assert away.peak_bytes == pytest.approx(here.peak_bytes, rel=1e-6)


def test_unsharded_states_stand_on_every_rank() -> None:
    """Behind an all-reduce each of 8 ranks holds all 12 bytes per parameter, not an eighth."""
    sharded = cost(CallKind.TRAIN, "d8t1p1")
    after = CallChoices(reduction=GradientReduction.AFTER)
    whole = cost(CallKind.TRAIN, "d8t1p1", choices=after)
    extra = 12 * num_parameters(LLAMA_8B) * 7 / 8
    assert whole.resident_bytes - sharded.resident_bytes == pytest.approx(extra, rel=1e-4)


def test_overlap_hides_the_reduction_but_not_more() -> None:
    """Hidden gradients save time; never more than the reduction of 4 + 2 bytes lasts."""
    plain = cost(CallKind.TRAIN, "d8t1p1").seconds
    overlapped = CallChoices(reduction=GradientReduction.OVERLAPPED)
    hidden = cost(CallKind.TRAIN, "d8t1p1", choices=overlapped).seconds
    ring = 6 * num_parameters(LLAMA_8B) * 7 / 8 / H100.node_link.bytes_per_second
    assert 0 < plain - hidden < WORK.num_steps * ring * 1.3


def test_sequence_parallel_ranks_share_what_tensor_ranks_repeat() -> None:
    """Smaller activations, and not slower."""
    plain = cost(CallKind.TRAIN, "d2t4p1")
    split = cost(CallKind.TRAIN, "d2t4p1", choices=CallChoices(sequence_parallel=True))
    assert split.active_bytes < plain.active_bytes
    assert split.seconds <= plain.seconds


def test_context_ranks_share_the_sequence() -> None:
    """Twice the ranks halve a long sequence's activations, and nearly its seconds."""
    work = replace(WORK, num_rows=8, prompt_tokens=65_536, response_tokens=0, num_steps=1)
    one = cost(CallKind.TRAIN, "d1t8p1", work)
    two = cost(CallKind.TRAIN, "d1t8p1c2", work)
    assert 1.7 < one.seconds / two.seconds < 2.0
    assert one.active_bytes / two.active_bytes == pytest.approx(2, rel=0.01)


def test_context_ranks_are_replicas_to_the_optimizer() -> None:
    """Gradients and states of d1t8p1c2 are those of d2t8p1."""
    ring = cost(CallKind.TRAIN, "d1t8p1c2")
    assert ring.resident_bytes == cost(CallKind.TRAIN, "d2t8p1").resident_bytes


def test_expert_ranks_hold_their_experts_only() -> None:
    """Eight expert ranks hold an eighth of the experts' weights, gradients and states."""
    every = cost(CallKind.TRAIN, "d8t1p1", model=MIXTRAL)
    split = cost(CallKind.TRAIN, "d8t1p1e8", model=MIXTRAL)
    experts = 32 * 8 * 3 * 4096 * 14336
    held = (2 + 4 + 12 / 8) * experts
    # An expert's states have no replica left to be shared with: 12 bytes of an eighth.
    shared = (2 + 4 + 12) * experts / 8
    assert every.resident_bytes - split.resident_bytes == pytest.approx(held - shared, rel=1e-4)
