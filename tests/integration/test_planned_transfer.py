"""The planner's programs through the executor: threads of one process, real tensors."""

import threading

import numpy as np
import pytest
import torch

from realloc.core.transfer import TransferPlan
from realloc.reallocation.limits import TransferLimits
from realloc.transfer.executor import TransferReport, execute
from realloc.transfer.local import LocalWorld
from realloc.transfer.staging import StagingBuffers
from tests.unit.reallocation.cases import Case, architecture, empty, filled, layout

TIGHT = TransferLimits(staging_bytes=8192, max_operations=64)
CASES = {
    "colocated": Case(
        model=architecture(), source=layout("megatron:d1t2p1"), destination=layout("vllm:d2t1p1")
    ),
    "one process for both": Case(
        model=architecture("qwen2", tied_embeddings=True),
        source=layout("megatron:d1t3p2v2"),
        destination=layout("vllm:d2t2p1"),
        roles=("both", "both"),
        limits=TIGHT,
    ),
    "passed on inside the second node": Case(
        model=architecture("qwen3"),
        source=layout("megatron:d2t2p1"),
        destination=layout("vllm:d4t1p1", 4),
        limits=TIGHT,
    ),
    "experts": Case(
        model=architecture("qwen3_moe"),
        source=layout("megatron:d2t2p2e2"),
        destination=layout("vllm:d2t2p1e2", 6),
        limits=TIGHT,
    ),
    "loading a checkpoint": Case(
        model=architecture("mistral"),
        source=layout("huggingface:d1t1p1"),
        destination=layout("fsdp:d5t1p1", 3),
    ),
}


def transfer(
    plan: TransferPlan, sources: dict[str, dict], targets: dict[str, dict]
) -> list[TransferReport | Exception]:
    """Run every endpoint's program in a thread of its own."""
    world = LocalWorld(len(plan.endpoints))
    reports: list[TransferReport | Exception] = [TimeoutError()] * len(plan.endpoints)

    def run(number: int) -> None:
        communicator = world.communicator(number)
        name = plan.endpoints[number].name
        try:
            reports[number] = execute(
                plan.programs[number],
                communicator,
                sources.get(name, {}),
                targets.get(name, {}),
                staging=StagingBuffers(
                    communicator.allocate, staging_bytes=16384, chunk_bytes=1024
                ),
                dtype=plan.dtype,
                timeout_seconds=30,
            )
        except Exception as error:
            reports[number] = error
            communicator.close()

    threads = [threading.Thread(target=run, args=(n,)) for n in range(len(plan.endpoints))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return reports


def tensors(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


@pytest.mark.parametrize("name", CASES)
def test_planned_programs_move_the_weights(name):
    """Every destination gets its weights bit by bit, and both sides' digests agree."""
    case = CASES[name]
    plan, weights = case.plan(), case.weights()
    sources = {
        endpoint.name: tensors(filled(table, weights))
        for endpoint, table in zip(case.have, case.tables(case.source), strict=True)
    }
    targets = {
        endpoint.name: tensors(empty(table))
        for endpoint, table in zip(case.want, case.tables(case.destination), strict=True)
    }
    reports = transfer(plan, sources, targets)
    assert not [report for report in reports if isinstance(report, Exception)]
    for endpoint, table in zip(case.want, case.tables(case.destination), strict=True):
        for parameter, expected in filled(table, weights).items():
            np.testing.assert_array_equal(targets[endpoint.name][parameter].numpy(), expected)
    received = {
        (number, tensor): digest
        for number, report in enumerate(reports)
        for tensor, digest in report.received_digests.items()
    }
    sent: dict[tuple[int, int], int] = {}
    for report in reports:
        for key, digest in report.sent_digests.items():
            sent[key] = (sent.get(key, 0) + digest + 2**63) % 2**64 - 2**63
    assert sent == received
    moved = sum(report.received_bytes for report in reports)
    assert moved == plan.traffic.cross_process_bytes
