"""The parallel strategies worth trying for a call on a mesh."""

from collections.abc import Iterator

from realloc.core.strategy import ParallelStrategy
from realloc.dataflow.graph import CallKind, FunctionCall
from realloc.search.task import PlanTask

_LONG_ROW = 8192
"""Tokens of a row from which on splitting it over context ranks may pay."""

_CONTEXTS = (2, 4, 8)
_CHUNKS = (2,)
"""Model chunks per pipeline rank: more of them send more messages for little less bubble."""


def strategies(task: PlanTask, call: FunctionCall, num_devices: int) -> Iterator[ParallelStrategy]:
    """Data × tensor × pipeline that fill the mesh; with what else the rules allow."""
    for tensor in _divisors(num_devices):
        if tensor > task.cluster.devices_per_node:
            break
        for pipeline in _divisors(num_devices // tensor):
            data = num_devices // tensor // pipeline
            plain = ParallelStrategy(data=data, tensor=tensor, pipeline=pipeline)
            yield plain
            if task.rules.free_choices and call.kind is not CallKind.GENERATE:
                yield from _extended(task, call, plain)


def _extended(
    task: PlanTask, call: FunctionCall, plain: ParallelStrategy
) -> Iterator[ParallelStrategy]:
    architecture = task.architectures[call.model]
    data, tensor, pipeline = plain.data, plain.tensor, plain.pipeline
    if call.kind is CallKind.TRAIN and pipeline > 1:
        for chunks in _CHUNKS:
            yield ParallelStrategy(
                data=data, tensor=tensor, pipeline=pipeline, virtual_pipeline=chunks
            )
    if task.workloads[call.name].tokens_per_row >= _LONG_ROW:
        for context in _CONTEXTS:
            if data % context == 0:
                yield ParallelStrategy(
                    data=data // context, tensor=tensor, pipeline=pipeline, context=context
                )
    for expert in _divisors(architecture.num_experts or 1)[1:]:
        if data % expert == 0:
            yield ParallelStrategy(data=data, tensor=tensor, pipeline=pipeline, expert=expert)


def _divisors(number: int) -> list[int]:
    return [candidate for candidate in range(1, number + 1) if number % candidate == 0]
