"""Reallocation between Megatron layouts against Megatron-core's own resharding."""

from collections.abc import Iterator

import pytest
import torch

from realloc.core.model import ModelArchitecture
from realloc.core.transfer import TransferSession
from realloc.transfer.rendezvous import TransferStore
from tests.support import megatron_pair
from tests.support.rank_processes import RankProcesses

NUM_RANKS = 4
ARCHITECTURE = ModelArchitecture(
    family="qwen2",
    num_layers=4,
    hidden_size=64,
    intermediate_size=96,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=16,
    vocab_size=512,
    max_position_embeddings=64,
    rms_norm_eps=1e-6,
    rope_theta=10000.0,
    qkv_bias=True,
)
PAIRS = [
    ("d2t2p1", "d1t4p1"),
    ("d1t4p1", "d1t1p4"),
    ("d1t2p2", "d4t1p1"),
    ("d2t1p2", "d1t2p2"),
]


def compare(
    source: str, destination: str, session: TransferSession
) -> tuple[list[str], int, int, bool]:
    """Parameters that differ, bytes received by us and by them, whether theirs are whole."""
    source_id, destination_id = f"{source}-{destination}/from", f"{source}-{destination}/to"
    megatron_pair.create(source_id, ARCHITECTURE, source, seed=1)
    megatron_pair.create(destination_id, ARCHITECTURE, destination, seed=2)
    megatron_pair.clear(destination_id)
    _, expected_bytes = megatron_pair.swap(source_id, destination_id)
    expected = megatron_pair.copy_of(destination_id)
    megatron_pair.clear(destination_id)
    report = megatron_pair.reallocate(
        source_id, destination_id, ARCHITECTURE, source, destination, session
    )
    found = megatron_pair.copy_of(destination_id)
    differ = [name for name, tensor in expected.items() if not torch.equal(found[name], tensor)]
    complete = all(bool(tensor.isfinite().all()) for tensor in expected.values())
    return differ, report.received_bytes, expected_bytes, complete


@pytest.fixture(scope="module")
def ranks() -> Iterator[tuple[RankProcesses, TransferSession]]:
    store = TransferStore(megatron_pair.HOST)
    processes = RankProcesses(NUM_RANKS)
    ports = processes.run(
        megatron_pair.open_rank,
        [(rank, NUM_RANKS, store.port) for rank in range(NUM_RANKS)],
        timeout_seconds=120.0,
    )
    session = TransferSession(
        session_id="1",
        group_id="pair",
        store_host=megatron_pair.HOST,
        store_port=ports[0],
        num_endpoints=NUM_RANKS,
        canonical_tensors=(),
        dtype="float32",
        timeout_seconds=60.0,
    )
    yield processes, session
    processes.close()
    store.close()


@pytest.mark.parametrize(("source", "destination"), PAIRS)
def test_weights_equal_those_of_megatrons_resharding(
    ranks: tuple[RankProcesses, TransferSession], source: str, destination: str
) -> None:
    """Bit by bit the same parameters on every rank, with no more bytes between ranks."""
    processes, session = ranks
    results = processes.run(
        compare, [(source, destination, session)] * NUM_RANKS, timeout_seconds=120.0
    )
    for differ, _, _, complete in results:
        assert complete
        assert differ == []
    ours, theirs = (sum(result[index] for result in results) for index in (1, 2))
    assert 0 <= ours <= theirs
