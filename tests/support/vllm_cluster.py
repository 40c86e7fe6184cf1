"""A process that sends weights, one with a vLLM engine, and what tests ask of them."""

import itertools
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from realloc.core.layout import Layout, LayoutKind
from realloc.core.model import ModelArchitecture
from realloc.core.strategy import ParallelStrategy
from realloc.core.transfer import Endpoint, TransferPlan, TransferSession
from realloc.reallocation.planner import plan_transfer
from services.generation.engine import EngineSpec, Rollout, RolloutRequest
from tests.support import vllm_process
from tests.support.rank_processes import RankProcesses

LOAD_SECONDS = 120.0
TRAINER, GENERATION = 0, 1
"""Ranks of the test's processes, and endpoints of its transfers."""
SESSIONS = itertools.count()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A process that sends weights and one that generates."""

    processes: RankProcesses
    store: tuple[str, int]

    def on(self, rank: int, function: Any, *arguments: Any, timeout_seconds: float = 60.0) -> Any:
        self.start(rank, function, *arguments)
        return self.result(rank, timeout_seconds)

    def start(self, rank: int, function: Any, *arguments: Any) -> None:
        self.processes.start_one(rank, function, arguments)

    def result(self, rank: int, timeout_seconds: float = 60.0) -> Any:
        return self.processes.results([rank], timeout_seconds=timeout_seconds)[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A Hugging Face folder and its model."""

    folder: Path
    model: Any

    @property
    def spec(self) -> EngineSpec:
        return EngineSpec(
            hf_config=(self.folder / "config.json").read_text(),
            tensor_parallel=1,
            max_model_len=256,
            dtype="float32",
            kv_cache_bytes=64 << 20,
            seed=0,
        )

    @property
    def architecture(self) -> ModelArchitecture:
        return ModelArchitecture.from_hf_config(json.loads(self.spec.hf_config))


def plan(checkpoint: Checkpoint, tensor_parallel: int = 1) -> TransferPlan:
    strategy = ParallelStrategy(tensor=tensor_parallel)
    devices = tuple(range(tensor_parallel))
    return plan_transfer(
        checkpoint.architecture,
        Layout(kind=LayoutKind.HUGGINGFACE, strategy=ParallelStrategy(), devices=(0,)),
        Layout(kind=LayoutKind.VLLM, strategy=strategy, devices=devices),
        source_endpoints=[Endpoint(name="trainer-0", device=0, node=0)],
        destination_endpoints=[
            Endpoint(name=f"generation-0/{rank}", device=rank, node=0) for rank in devices
        ],
        dtype="float32",
    )


def session(
    cluster: Cluster, transfer: TransferPlan, *, group: str, timeout_seconds: float = 20.0
) -> TransferSession:
    host, port = cluster.store
    return TransferSession(
        session_id=f"session-{next(SESSIONS)}",
        group_id=group,
        store_host=host,
        store_port=port,
        num_endpoints=len(transfer.endpoints),
        canonical_tensors=transfer.canonical_tensors,
        dtype="float32",
        timeout_seconds=timeout_seconds,
    )


def stage(
    cluster: Cluster, checkpoint: Checkpoint, *, group: str, tensor_parallel: int = 1
) -> None:
    """Transfer a checkpoint's weights into the shadow; the digests of both sides agree."""
    transfer = plan(checkpoint, tensor_parallel)
    meeting = session(cluster, transfer, group=group)
    cluster.start(TRAINER, vllm_process.send, meeting, transfer.programs[0], str(checkpoint.folder))
    received = cluster.on(GENERATION, vllm_process.stage, meeting, list(transfer.programs[1:]))
    sent = cluster.result(TRAINER)
    assert {
        (1 + rank, canonical): digest
        for rank, digests in enumerate(received)
        for canonical, digest in digests.items()
    } == sent
    assert {canonical for _, canonical in sent} == set(range(len(transfer.canonical_tensors)))


def reallocate(
    cluster: Cluster, checkpoint: Checkpoint, *, version: int, group: str, tensor_parallel: int = 1
) -> None:
    stage(cluster, checkpoint, group=group, tensor_parallel=tensor_parallel)
    cluster.on(GENERATION, vllm_process.commit, version)


def load(cluster: Cluster, spec: EngineSpec) -> float:
    memory: float = cluster.on(GENERATION, vllm_process.load, spec, timeout_seconds=LOAD_SECONDS)
    return memory


def request(name: str, prompt: list[int], **changes: Any) -> RolloutRequest:
    made = RolloutRequest(
        request_id=name,
        prompt_tokens=tuple(prompt),
        temperature=1.0,
        max_new_tokens=16,
        seed=7,
        stop_token_ids=(),
    )
    return replace(made, **changes)


def requests(count: int = 6) -> list[RolloutRequest]:
    """Different prompts, temperatures, lengths and seeds; the last fills a block of the cache."""
    return [
        request(
            f"r{i}",
            [(7 * i + j) % 250 for j in range(3 + 5 * i if i < 5 else 160)],
            temperature=(1.0, 0.7, 1.3)[i % 3],
            max_new_tokens=8 + 3 * i,
            seed=100 + i,
        )
        for i in range(count)
    ]


def hf_logprobs(model: Any, asked: RolloutRequest, rollout: Rollout) -> torch.Tensor:
    """What Hugging Face gives each response token at the request's temperature."""
    tokens = torch.tensor([[*asked.prompt_tokens, *rollout.tokens]])
    first = len(asked.prompt_tokens)
    with torch.no_grad():
        logits = model(tokens).logits[0, first - 1 : -1] / asked.temperature
    chosen = torch.log_softmax(logits, -1).gather(1, tokens[0, first:, None])
    return chosen[:, 0]


def worst_difference(
    model: Any, asked: list[RolloutRequest], rollouts: dict[str, Rollout]
) -> float:
    return max(
        float(
            (
                hf_logprobs(model, one, rollouts[one.request_id])
                - torch.tensor(rollouts[one.request_id].logprobs)
            )
            .abs()
            .max()
        )
        for one in asked
    )


def generate(cluster: Cluster, asked: list[RolloutRequest]) -> dict[str, Rollout]:
    rollouts: dict[str, Rollout] = cluster.on(GENERATION, vllm_process.generate, asked)
    return rollouts
