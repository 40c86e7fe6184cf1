"""Which strategies a model, its work and the system that runs it allow."""

import math

from realloc.core.strategy import ParallelStrategy
from realloc.cost.calls import Workload
from realloc.dataflow.graph import CallKind, FunctionCall
from realloc.search.task import PlanTask


def illegal(task: PlanTask, call: FunctionCall, strategy: ParallelStrategy) -> str:
    """Why a strategy cannot be; empty where it can."""
    a, workload = task.architectures[call.model], task.workloads[call.name]
    most = task.constraints.placement.max_tensor
    rows = workload.num_rows
    if call.kind is CallKind.TRAIN:
        rows = rows * workload.num_epochs // workload.num_steps
    if a.num_attention_heads % strategy.tensor:
        return f"{a.num_attention_heads} attention heads do not split by {strategy}"
    if a.num_layers % strategy.pipeline:
        return f"{a.num_layers} layers do not split by {strategy}"
    if most and strategy.tensor > most:
        return f"{strategy}: placement.max_tensor is {most}"
    if call.kind is CallKind.GENERATE and strategy.tensor > task.cluster.devices_per_node:
        return (
            f"{strategy}: a replica must fit into the {task.cluster.devices_per_node} devices of a "
            "node"
        )
    if call.kind is CallKind.GENERATE and strategy.pipeline > 1:
        return f"{strategy}: generation has no pipeline; use p1"
    if call.kind is CallKind.GENERATE and strategy.context > 1:
        return f"{strategy}: generation has no context parallelism; leave c{strategy.context} out"
    if call.kind is not CallKind.GENERATE and a.num_key_value_heads % strategy.tensor:
        return f"{a.num_key_value_heads} key-value heads do not split by {strategy}"
    if rows < strategy.data:
        return f"{rows} rows are too few for the {strategy.data} data ranks of {strategy}"
    if task.rules.even_batches and rows % strategy.data:
        return (
            f"a batch of {rows} rows does not divide by the {strategy.data} data ranks of "
            f"{strategy}; change data.batch_size"
        )
    return _illegal_extension(task, call, strategy)


def _illegal_extension(task: PlanTask, call: FunctionCall, strategy: ParallelStrategy) -> str:
    """Why context, expert or virtual pipeline degrees cannot be; empty where they can."""
    a, workload = task.architectures[call.model], task.workloads[call.name]
    if strategy.is_plain:
        return ""
    if not task.rules.free_choices or call.kind is CallKind.GENERATE:
        return f"{strategy}: only data, tensor and pipeline degrees can run here"
    if workload.tokens_per_row < 2 * strategy.context:
        return f"rows of {workload.tokens_per_row:.0f} tokens are too short for {strategy}"
    if strategy.expert > 1 and (a.num_experts or 1) % strategy.expert:
        return f"{a.num_experts or 1} experts do not split by {strategy}"
    if strategy.data % strategy.expert:
        return f"{strategy}: the expert degree does not divide the data degree"
    chunks = strategy.pipeline * strategy.virtual_pipeline
    if strategy.virtual_pipeline > 1:
        if call.kind is not CallKind.TRAIN:
            return f"{strategy}: only training interleaves chunks"
        if strategy.pipeline == 1 or a.num_layers % chunks:
            return f"{a.num_layers} layers do not split into the {chunks} chunks of {strategy}"
    return ""


def interleaves(workload: Workload, strategy: ParallelStrategy) -> bool:
    """Whether the schedule of a step works: with model chunks, micro-batches come in rounds of
    the pipeline's stages (Megatron-core asserts it)."""
    rows = workload.num_rows * workload.num_epochs / workload.num_steps / strategy.data
    at_once = max(1.0, workload.max_tokens_per_micro_batch // workload.tokens_per_row)
    micro_batches = math.ceil(max(1.0, rows) / at_once)
    return strategy.virtual_pipeline == 1 or micro_batches % strategy.pipeline == 0
