"""Reallocations between processes that share one GPU, over CUDA IPC, for real."""

import os
import time
from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest
import torch

from realloc.core.errors import InvalidInput, Unavailable
from realloc.core.transfer import TransferSession
from realloc.transfer.endpoint import TransferEndpoint
from realloc.transfer.nccl import NcclCommunicator
from realloc.transfer.rendezvous import TransferStore, connect_store
from tests.support.rank_processes import RankProcesses
from tests.unit.reallocation.cases import Case, architecture, filled, layout

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
HOST = "127.0.0.1"
TIMEOUT = 60.0
NUM_PROCESSES = 4
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LARGE = architecture(
    num_layers=2,
    hidden_size=240,
    intermediate_size=720,
    num_attention_heads=12,
    num_key_value_heads=6,
    head_dim=20,
    vocab_size=36_000,
    tied_embeddings=True,
)
"""Its embeddings are runs long enough to be read in the sender's parameters."""
CASES = {
    "one process to another": Case(
        model=LARGE, source=layout("megatron:d1t1p1"), destination=layout("vllm:d1t1p1", 1)
    ),
    "two to two": Case(
        model=LARGE, source=layout("megatron:d1t2p1"), destination=layout("vllm:d2t1p1", 2)
    ),
    "two stages to two ranks": Case(
        model=architecture("qwen2", tied_embeddings=True),
        source=layout("megatron:d1t1p2"),
        destination=layout("vllm:d1t2p1", 2),
    ),
    "experts, rounded on the way": Case(
        model=architecture("qwen3_moe"),
        source=layout("megatron:d2t1p1e2"),
        destination=layout("vllm:d2t1p1e2", 2),
        dtype="bfloat16",
    ),
    "within one process": Case(
        model=LARGE,
        source=layout("megatron:d1t1p1"),
        destination=layout("vllm:d1t1p1"),
        roles=("both", "both"),
    ),
}
_here: dict[str, TransferEndpoint] = {}


# What the processes run.


def open_endpoint(name: str) -> int:
    if "endpoint" in _here:
        _here["endpoint"].close()
    _here["endpoint"] = TransferEndpoint(HOST, name, cuda_device=torch.device("cuda", 0))
    return _here["endpoint"].store_port


def on_gpu(arrays: dict[str, np.ndarray], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(a).to("cuda:0", dtype) for name, a in arrays.items()}


@cache
def held(case: Case, name: str) -> tuple[dict, dict]:
    """Source parameters of an endpoint, and what its destination parameters become."""
    weights = case.weights()
    source: dict[str, torch.Tensor] = {}
    target: dict[str, torch.Tensor] = {}
    for endpoint, table in zip(case.have, case.tables(case.source), strict=True):
        if endpoint.name == name:
            source = on_gpu(filled(table, weights), torch.float32)
    for endpoint, table in zip(case.want, case.tables(case.destination), strict=True):
        if endpoint.name == name:
            target = on_gpu(filled(table, weights), _DTYPES[case.dtype])
    return source, target


def reallocate(
    session: TransferSession, case: Case, index: int
) -> tuple[dict, dict, bool, list[int], int]:
    """Digests sent and received, whether all arrived bit by bit, the order in which tensors
    were complete, and the bytes that the transfer allocated at its peak."""
    plan = case.plan()
    source, target = held(case, plan.endpoints[index].name)
    destination = {name: torch.full_like(t, torch.nan) for name, t in target.items()}
    complete: list[int] = []
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    report = _here["endpoint"].run(
        session,
        plan.programs[index],
        source,
        destination,
        arrived=lambda arrival: complete.append(arrival.canonical),
    )
    peak = torch.cuda.max_memory_allocated() - before
    equal = all(
        torch.equal(
            destination[name][~tensor.isnan()].view(torch.uint8),
            tensor[~tensor.isnan()].view(torch.uint8),
        )
        for name, tensor in target.items()
    )
    return dict(report.sent_digests), dict(report.received_digests), equal, complete, peak


def survive(session: TransferSession, case: Case, index: int) -> tuple[float, str]:
    """Seconds until the transfer fails, and with what."""
    plan = case.plan()
    source, destination = held(case, plan.endpoints[index].name)
    began = time.monotonic()
    try:
        _here["endpoint"].run(session, plan.programs[index], source, destination)
    except Unavailable as error:
        return time.monotonic() - began, str(error)
    return 0.0, "no failure"


def die() -> None:
    os._exit(1)


def connect_nccl(
    port: int, group_id: str, endpoint: int, members: tuple[int, ...], timeout_seconds: float
) -> str:
    """What connecting ends with."""
    try:
        communicator = NcclCommunicator(
            store=connect_store(HOST, port, timeout_seconds),
            group_id=group_id,
            endpoint=endpoint,
            num_endpoints=len(members),
            members=members,
            device=torch.device("cuda", 0),
            timeout_seconds=timeout_seconds,
        )
    except (InvalidInput, Unavailable) as error:
        return f"{type(error).__name__}: {error}"
    communicator.close()
    communicator.close()
    return "connected"


# What they prove.


@pytest.fixture(scope="module")
def ranks() -> Iterator[RankProcesses]:
    processes = RankProcesses(NUM_PROCESSES)
    yield processes
    processes.close()


def open_session(ranks: RankProcesses, case: Case, *, whole: bool = False) -> TransferSession:
    ports = ranks.run(
        open_endpoint,
        [(f"shard-{rank}",) for rank in range(NUM_PROCESSES)],
        timeout_seconds=TIMEOUT,
    )
    return TransferSession(
        session_id="1",
        group_id="gpu",
        store_host=HOST,
        store_port=ports[0],
        num_endpoints=len(case.plan().endpoints),
        canonical_tensors=(),
        dtype=case.dtype,
        timeout_seconds=TIMEOUT,
        uncast=tuple(range(len(case.plan().endpoints))) if whole else (),
    )


@pytest.mark.parametrize("whole", [False, True], ids=["in chunks", "whole"])
@pytest.mark.parametrize("name", CASES)
def test_weights_arrive_bit_by_bit_on_one_gpu(ranks: RankProcesses, name: str, whole: bool) -> None:
    """Megatron layouts become vLLM's between processes of one device; digests agree, and each
    tensor was told of once."""
    case = CASES[name]
    session = open_session(ranks, case, whole=whole and case.dtype == "float32")
    count = session.num_endpoints
    for _ in range(2):  # the second time over the same connection
        results = ranks.run(
            reallocate,
            [(session, case, index) for index in range(count)],
            timeout_seconds=TIMEOUT,
        )
        assert all(equal for _, _, equal, _, _ in results)
        sent: dict[tuple[int, int], int] = {}
        for digests, *_ in results:
            for key, digest in digests.items():
                sent[key] = (sent.get(key, 0) + digest) % 2**64
        received = {
            (index, canonical): digest % 2**64
            for index, (_, digests, *_) in enumerate(results)
            for canonical, digest in digests.items()
        }
        assert sent == received
        for _, digests, _, complete, _ in results:
            assert sorted(complete) == sorted(digests)


def test_device_memory_stays_within_the_staging_buffers(ranks: RankProcesses) -> None:
    """What a transfer allocates on the GPU, digests included, fits the buffers and 1 MiB."""
    case = CASES["two to two"]
    session = open_session(ranks, case)
    results = ranks.run(
        reallocate, [(session, case, index) for index in range(4)], timeout_seconds=TIMEOUT
    )
    for *_, peak in results:
        assert peak <= (256 << 20) + (1 << 20)


def test_a_peer_that_died_is_an_error_that_names_it(ranks: RankProcesses) -> None:
    """The survivor learns at once, with endpoint, peer, round and parameter."""
    case = CASES["one process to another"]
    session = open_session(ranks, case)
    ranks.run(reallocate, [(session, case, index) for index in range(2)], timeout_seconds=TIMEOUT)
    ranks.start_one(0, die, ())
    ranks.processes[0].join(20)
    ranks.start_one(1, survive, (session, case, 1))
    seconds, message = ranks.results([1], timeout_seconds=TIMEOUT)[0]
    assert seconds < 10.0
    for part in ("endpoint 1", "endpoint 0", "round", "parameters"):
        assert part in message


def test_nccl_refuses_two_processes_of_one_device(ranks: RankProcesses) -> None:
    """Both learn which endpoints share a device and what to use instead."""
    store = TransferStore(HOST)
    for rank in (2, 3):
        ranks.start_one(rank, connect_nccl, (store.port, "shared", rank - 2, (0, 1), 20.0))
    for answer in ranks.results([2, 3], timeout_seconds=TIMEOUT):
        assert answer.startswith("InvalidInput")
        assert "endpoints 0 and 1 are processes of one device" in answer
        assert "CUDA IPC" in answer
    store.close()


def test_nccl_connects_a_group_of_one_and_gives_up_on_a_peer_that_never_comes(
    ranks: RankProcesses,
) -> None:
    """A lone member connects and closes twice; a missing one is an error at the deadline."""
    store = TransferStore(HOST)
    ranks.start_one(2, connect_nccl, (store.port, "alone", 0, (0,), 20.0))
    assert ranks.results([2], timeout_seconds=TIMEOUT) == ["connected"]
    ranks.start_one(2, connect_nccl, (store.port, "late", 0, (0, 1), 2.0))
    answer = ranks.results([2], timeout_seconds=20.0)[0]
    assert answer.startswith("Unavailable")
    assert "not all 2 members" in answer
    store.close()
