"""Seconds of rollouts: prefill, then decoding steps until the longest row ends.

A decoding step reads all weights of the device and the keys and values of every row once, so
it is bound by memory until the rows are many (Pope et al., arXiv 2211.05102, section 2); to
that come two small all-reduces per layer under tensor parallelism, and fixed times. Rows end
by the distribution in `realloc.cost.lengths`. Continuous batching (Yu et al., OSDI 2022; vLLM)
refills places of ended rows while rows wait, so that the batch is as large as the cache holds
until the queue is empty; from there on it shrinks with the distribution's tail.
"""

import math
from collections.abc import Hashable
from dataclasses import dataclass

from realloc.core.model import Head, ModelArchitecture
from realloc.cost.hardware import Hardware
from realloc.cost.layers import (
    Execution,
    Tokens,
    head_passes,
    head_shape,
    layer_passes,
    layer_shape,
    tensor_group,
)
from realloc.cost.lengths import ResponseLengths
from realloc.cost.links import all_reduce_seconds
from realloc.cost.memory import cache_bytes_per_token
from realloc.cost.model_size import (
    expert_parameters,
    layer_parameters,
    num_parameters,
)
from realloc.cost.ratios import Work


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """One generation engine."""

    architecture: ModelArchitecture
    tensor: int
    element_bytes: int
    hardware: Hardware

    @property
    def execution(self) -> Execution:
        return Execution(tensor=self.tensor, element_bytes=self.element_bytes)

    @property
    def shape(self) -> Hashable:
        """What a rank's kernels look like in a whole step."""
        return engine_shape(self.architecture, self.execution)

    @property
    def cache_bytes_per_token(self) -> float:
        return cache_bytes_per_token(self.architecture, self.tensor, self.element_bytes)


def engine_shape(architecture: ModelArchitecture, execution: Execution) -> Hashable:
    """What a rank's kernels of a whole step look like."""
    layer, head = layer_shape(architecture, execution), head_shape(architecture, execution)
    return layer, architecture.num_layers, head


def generation_seconds(
    replica: Replica,
    rows: float,
    prompt_tokens: float,
    lengths: ResponseLengths,
    cache_bytes: float,
) -> float:
    """Seconds until a replica's rows are all done.

    Args:
        rows: of this replica.
        cache_bytes: room for keys and values on each device.
    """
    most = concurrent_rows(replica, prompt_tokens, lengths, cache_bytes)
    together = min(rows, most)
    waiting = rows - together
    seconds = prefill_seconds(replica, rows, prompt_tokens)
    if lengths.limit == 1:
        return seconds
    lengths = lengths.after_first  # which comes with the prefill
    if waiting > 0:
        # While rows wait, each end lets one in: the batch stays full, contexts are average.
        full_steps = waiting * lengths.mean / together
        context = prompt_tokens + lengths.mean / 2
        seconds += full_steps * step_seconds(replica, together, context)
    for segment in lengths.segments(together):
        context = prompt_tokens + segment.position
        seconds += segment.steps * step_seconds(replica, segment.rows, context)
    return seconds


def concurrent_rows(
    replica: Replica, prompt_tokens: float, lengths: ResponseLengths, cache_bytes: float
) -> float:
    """Rows that decode at once: as many as the cache holds at the mean context."""
    row = replica.cache_bytes_per_token * (prompt_tokens + lengths.mean)
    return max(1.0, min(float(replica.hardware.decode_rows), cache_bytes / row))


def step_seconds(replica: Replica, rows: float, context: float) -> float:
    """Seconds of one decoding step of so many rows, whose mean context is given."""
    a, hardware = replica.architecture, replica.hardware
    reach = hardware.efficiency
    bandwidth = hardware.memory_bytes_per_second * reach.memory
    speed = hardware.peak_flops(replica.element_bytes) * reach.matrix
    parameters = _active_parameters(a, rows) / replica.tensor
    read = parameters * replica.element_bytes / bandwidth
    multiply = 2 * num_active_parameters(a) * rows / replica.tensor / speed
    cache = rows * context * replica.cache_bytes_per_token / bandwidth
    hidden = rows * a.hidden_size * replica.element_bytes
    group = tensor_group(replica.execution, hardware)
    reduce = 2 * a.num_layers * _decode_all_reduce(group.size, hidden, hardware)
    fixed = a.num_layers * reach.decode_layer_seconds + reach.decode_step_seconds
    seconds = max(read, multiply) + cache + fixed + rows * reach.decode_row_seconds
    ratio = hardware.ratios.ratio(Work.DECODE, replica.shape, rows, context)
    return seconds * ratio + reduce


def num_active_parameters(architecture: ModelArchitecture) -> float:
    """Parameters that multiply one token: of the experts only the chosen, no embedding."""
    a = architecture
    layer: float = layer_parameters(a)
    if a.num_experts:
        layer -= (a.num_experts - a.experts_per_token) * expert_parameters(a)
    head = a.vocab_size * a.hidden_size if a.head is Head.LM else 0
    return a.num_layers * layer + head


def _active_parameters(architecture: ModelArchitecture, rows: float) -> float:
    """Parameters that a step of so many rows reads: each expert that any row chose."""
    a = architecture
    if not a.num_experts:
        return num_active_parameters(a)
    unused = math.pow(1.0 - a.experts_per_token / a.num_experts, rows)
    spare = a.num_experts * unused * expert_parameters(a)
    embedding = a.vocab_size * a.hidden_size * (not a.tied_embeddings)
    return num_parameters(a) - embedding - a.num_layers * spare


def prefill_seconds(replica: Replica, rows: float, prompt_tokens: float) -> float:
    """Seconds until rows that start together have each their first token."""
    a, reach = replica.architecture, replica.hardware.efficiency
    bare = replica.hardware.without_ratios()
    at_once = max(1.0, min(rows, bare.prefill_tokens / max(prompt_tokens, 1.0)))
    tokens = Tokens(rows=at_once, length=prompt_tokens)
    layer = layer_passes(a, tokens, replica.execution, bare).forward
    # The head sees only the last token of each row.
    last = Tokens(rows=at_once, length=1.0)
    head = head_passes(a, last, replica.execution, bare).forward
    steps = rows / at_once * (a.num_layers * layer + head + reach.decode_step_seconds)
    ratio = replica.hardware.ratios.ratio(Work.PREFILL, replica.shape, rows, prompt_tokens)
    return (steps + rows * reach.prefill_row_seconds) * ratio


def _decode_all_reduce(size: int, size_bytes: float, hardware: Hardware) -> float:
    """Small messages go by one-shot kernels of a third of NCCL's latency (vLLM, TensorRT-LLM)."""
    if size == 1:
        return 0.0
    link = hardware.node_link
    shot = link.latency_seconds / 3 + (size - 1) * size_bytes / link.bytes_per_second
    ring = all_reduce_seconds(tensor_group(Execution(tensor=size), hardware), size_bytes, hardware)
    return min(shot, ring)
