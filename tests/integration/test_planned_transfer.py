"""The planner's programs through the executor: threads of one process, real tensors."""

import threading
from collections.abc import Callable
from dataclasses import fields
from functools import partial

import numpy as np
import pytest
import torch

from realloc.core.transfer import Blocks, TransferPlan
from realloc.reallocation.digest import block_digests
from realloc.reallocation.limits import TransferLimits
from realloc.transfer.arrivals import Arrival
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
    "layer by layer": Case(
        model=architecture("gemma3_text", num_layers=8),
        source=layout("megatron:d1t2p1"),
        destination=layout("vllm:d1t2p1", 4),
        limits=TIGHT,
    ),
    "loading a checkpoint": Case(
        model=architecture("mistral"),
        source=layout("huggingface:d1t1p1"),
        destination=layout("fsdp:d5t1p1", 3),
    ),
}


def transfer(
    plan: TransferPlan,
    sources: dict[str, dict],
    targets: dict[str, dict],
    arrived: Callable[[int, Arrival], None] | None = None,
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
                arrived=None if arrived is None else partial(arrived, number),
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


def of_tensor(blocks: Blocks, canonical: int) -> Blocks:
    """The blocks of one canonical tensor."""
    chosen = blocks.canonical == canonical
    return Blocks(**{of.name: getattr(blocks, of.name)[chosen] for of in fields(blocks)})


def elements(flats: list[np.ndarray], blocks: Blocks) -> list[np.ndarray]:
    """What some blocks hold."""
    return [
        np.lib.stride_tricks.as_strided(
            flats[blocks.tensor[b]][blocks.start[b] :],
            (blocks.rows[b], blocks.cols[b]),
            (4 * blocks.row_stride[b], 4),
        ).copy()
        for b in range(len(blocks))
    ]


@pytest.mark.parametrize("name", CASES)
def test_each_tensor_is_whole_when_its_arrival_is_told(name):
    """At that moment it is bit-identical and its digest is the numpy definition's, on every
    endpoint that receives of it, once; layers come in order, while later ones are still out."""
    case = CASES[name]
    plan, weights = case.plan(), case.weights()
    programs = list(plan.programs)
    sources = {
        endpoint.name: tensors(filled(table, weights))
        for endpoint, table in zip(case.have, case.tables(case.source), strict=True)
    }
    tables = dict(zip((e.name for e in case.want), case.tables(case.destination), strict=True))
    arrays = {name: empty(table) for name, table in tables.items()}
    expected = {name: filled(table, weights) for name, table in tables.items()}
    told: list[list[int]] = [[] for _ in programs]
    outstanding = [0] * len(programs)

    def arrived(number: int, arrival: Arrival) -> None:
        program, endpoint = programs[number], plan.endpoints[number].name
        here, there = (
            [side[endpoint][tensor].reshape(-1) for tensor in program.destination_tensors]
            for side in (arrays, expected)
        )
        blocks = of_tensor(program.receives.blocks, arrival.canonical)
        for found, wanted in zip(elements(here, blocks), elements(there, blocks), strict=True):
            np.testing.assert_array_equal(found, wanted)
        digests = block_digests(here, blocks, len(plan.canonical_tensors))
        assert digests[arrival.canonical] == arrival.digest
        told[number].append(arrival.canonical)
        outstanding[number] += any(
            np.isnan(block).all() for block in elements(here, program.receives.blocks)
        )

    reports = transfer(plan, sources, {n: tensors(a) for n, a in arrays.items()}, arrived)
    assert not [report for report in reports if isinstance(report, Exception)]
    for number, program in enumerate(programs):
        received = np.unique(program.receives.blocks.canonical).tolist()
        assert sorted(told[number]) == received
        if received and len(set(program.receives.peer)) == 1:
            names = [plan.canonical_tensors[canonical] for canonical in told[number]]
            layers = [int(name.split(".")[2]) for name in names if ".layers." in name]
            assert layers == sorted(layers)
        if received:
            assert outstanding[number] >= len(received) // 2


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
