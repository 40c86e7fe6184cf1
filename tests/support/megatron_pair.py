"""One model in two Megatron layouts on the same ranks, moved by us and by Megatron-core."""

import sys
import time
import types
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from realloc.core.layout import Layout, LayoutKind
from realloc.core.model import ModelArchitecture
from realloc.core.strategy import ParallelStrategy
from realloc.core.transfer import Endpoint, TransferPlan, TransferSession
from realloc.reallocation.planner import plan_transfer
from realloc.transfer.endpoint import TransferEndpoint
from realloc.transfer.executor import TransferReport
from services.trainer.engine import JobWorld, ModelSpec
from services.trainer.megatron_engine import MegatronEngine

HOST = "127.0.0.1"


@dataclass
class Rank:
    """What lives in one process of the world."""

    engine: MegatronEngine
    endpoint: TransferEndpoint
    rank: int
    num_ranks: int
    plans: dict[str, Any] = field(default_factory=dict)


HERE: list[Rank] = []
"""The one `Rank` of this process, once it is opened."""


def open_rank(rank: int, num_ranks: int, store_port: int) -> int:
    """Join the world; returns the port of this rank's own store."""
    torch.set_num_threads(1)
    engine = MegatronEngine()
    engine.start_job(
        JobWorld(
            job_id="pair",
            run_id="first",
            rank=rank,
            devices=tuple(range(num_ranks)),
            store_host=HOST,
            store_port=store_port,
            timeout_seconds=60.0,
        )
    )
    endpoint = TransferEndpoint(HOST, f"rank-{rank}")
    HERE.append(Rank(engine=engine, endpoint=endpoint, rank=rank, num_ranks=num_ranks))
    return endpoint.store_port


def layout(strategy: str, num_ranks: int) -> Layout:
    return Layout(
        kind=LayoutKind.MEGATRON,
        strategy=ParallelStrategy.parse(strategy),
        devices=tuple(range(num_ranks)),
    )


def create(model_id: str, architecture: ModelArchitecture, strategy: str, seed: int) -> None:
    """A model with random weights."""
    here = HERE[0]
    here.engine.create_model(
        ModelSpec(
            model_id=model_id,
            architecture=architecture,
            layout=layout(strategy, here.num_ranks),
            checkpoint="",
            seed=seed,
            optimizer=None,
        )
    )


def clear(model_id: str) -> None:
    """Nothing of the model's weights is left."""
    for tensor in HERE[0].engine.parameters(model_id).values():
        tensor.fill_(torch.nan)


def copy_of(model_id: str) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in HERE[0].engine.parameters(model_id).items()}


def plan(
    architecture: ModelArchitecture, source: str, destination: str, num_ranks: int
) -> TransferPlan:
    endpoints = [Endpoint(name=f"rank-{r}", device=r, node=0) for r in range(num_ranks)]
    return plan_transfer(
        architecture,
        layout(source, num_ranks),
        layout(destination, num_ranks),
        source_endpoints=endpoints,
        destination_endpoints=endpoints,
        dtype="float32",
    )


def reallocate(
    source_id: str, destination_id: str, architecture: ModelArchitecture, source: str,
    destination: str, session: TransferSession, digests: bool = True,
) -> TransferReport:  # fmt: skip
    """Move the weights of one model into the other with a transfer program."""
    here = HERE[0]
    key = f"{source}/{destination}"
    if key not in here.plans:
        here.plans[key] = plan(architecture, source, destination, here.num_ranks)
        here.plans[key + "/program"] = here.plans[key].programs[here.rank]
    dist.barrier()
    return here.endpoint.run(
        session,
        here.plans[key + "/program"],
        here.engine.parameters(source_id),
        here.engine.parameters(destination_id),
        digests=digests,
    )


def swap(source_id: str, destination_id: str) -> tuple[float, int]:
    """Megatron-core's own resharding; its seconds, and the bytes that other ranks send here."""
    megatron = _resharding()
    models = HERE[0].engine._running().models
    target = models[destination_id].module
    for model_id in (source_id, destination_id):
        for name, parameter in models[model_id].module.named_parameters():
            if name.endswith("linear_fc1.weight"):
                # [gate; up] per rank; Megatron-core marks it so when it initialises weights.
                parameter.partition_stride = 2
    dist.barrier()
    began = time.monotonic()
    megatron.swap_model_weights(models[source_id].module, target, "gloo")
    seconds = time.monotonic() - began
    parameters = dict(target.named_parameters())
    received = sum(
        parameters[op.param_name][op.my_slice].numel() * 4
        for op in target._cached_reshard_plan.recv_ops
        if op.peer_rank != HERE[0].rank
    )
    return seconds, received


def _resharding() -> types.ModuleType:
    """`megatron.core.resharding`, made to run without CUDA as the rest of Megatron-core is."""
    import megatron.core
    from megatron.core import resharding

    cpu_torch = getattr(megatron.core, "_realloc_cpu_torch", None)
    if cpu_torch is not None:
        stream = types.SimpleNamespace(wait_stream=lambda _: None)
        cpu_torch.cuda.Stream = cpu_torch.cuda.current_stream = lambda *_: stream
        for name, module in list(sys.modules.items()):
            if name.startswith("megatron.core") and getattr(module, "torch", None) is torch:
                module.torch = cpu_torch
    return resharding
