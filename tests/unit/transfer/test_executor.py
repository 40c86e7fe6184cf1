"""Programs executed by threads of one process, against the definition of their messages."""

import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from realloc.core.errors import InvalidInput, Unavailable
from realloc.core.transfer import TransferProgram
from realloc.reallocation.digest import tensor_digest
from realloc.transfer.arrivals import Arrival
from realloc.transfer.executor import TransferReport, execute
from realloc.transfer.local import LocalPending, LocalWorld
from realloc.transfer.staging import StagingBuffers
from tests.support.transfer_programs import Holding, make_programs

Tensors = dict[str, torch.Tensor]


def run_all(
    programs: Sequence[TransferProgram],
    sources: Sequence[Mapping[str, torch.Tensor]],
    destinations: Sequence[Mapping[str, torch.Tensor]],
    *,
    chunk_bytes: int = 64,
    staging_bytes: int = 512,
    dtype: str = "float32",
    world: LocalWorld | None = None,
    timeout_seconds: float = 20.0,
    arrived: Callable[[Arrival], None] | None = None,
) -> list[TransferReport | Exception]:
    """What each endpoint reports or raises; one thread each."""
    world = world or LocalWorld(len(programs))
    results: list[TransferReport | Exception] = [Unavailable("never ran")] * len(programs)

    def run(endpoint: int) -> None:
        communicator = world.communicator(endpoint)
        staging = StagingBuffers(
            communicator.allocate, staging_bytes=staging_bytes, chunk_bytes=chunk_bytes
        )
        try:
            results[endpoint] = execute(
                programs[endpoint], communicator, sources[endpoint], destinations[endpoint],
                staging=staging, dtype=dtype, timeout_seconds=timeout_seconds, arrived=arrived,
            )  # fmt: skip
        except Exception as error:
            results[endpoint] = error
            communicator.close()

    threads = [threading.Thread(target=run, args=(e,)) for e in range(len(programs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return results


def cuts(extent: int, parts: int) -> list[tuple[int, int]]:
    edges = [extent * part // parts for part in range(parts + 1)]
    return [(a, b) for a, b in itertools.pairwise(edges) if a < b]


def grid(
    endpoints: Sequence[int], shapes: Sequence[tuple[int, int]], by_rows: Sequence[bool]
) -> list[Holding]:
    """Each tensor split over endpoints by rows or by columns, a parameter per slice."""
    holdings = []
    for canonical, (shape, rows_first) in enumerate(zip(shapes, by_rows, strict=True)):
        for index, (first, last) in enumerate(cuts(shape[0 if rows_first else 1], len(endpoints))):
            span = (first, last)
            holdings.append(
                Holding(
                    endpoint=endpoints[index],
                    parameter=f"t{canonical}",
                    canonical=canonical,
                    rows=span if rows_first else (0, shape[0]),
                    cols=(0, shape[1]) if rows_first else span,
                    width=shape[1] if rows_first else last - first,
                )
            )
    return holdings


def parameters_of(
    holdings: Sequence[Holding], endpoint: int, canonical: Sequence[torch.Tensor] | None,
    dtype: torch.dtype = torch.float32,
) -> Tensors:  # fmt: skip
    """What an endpoint holds: slices of canonical tensors, or NaN where there are none."""
    tensors = {}
    for h in holdings:
        if h.endpoint == endpoint:
            shape = (h.rows[1] - h.rows[0], h.cols[1] - h.cols[0])
            tensors[h.parameter] = (
                torch.full(shape, torch.nan, dtype=dtype)
                if canonical is None
                else canonical[h.canonical][slice(*h.rows), slice(*h.cols)].to(dtype).contiguous()
            )
    return tensors


shape = st.tuples(st.integers(1, 12), st.integers(1, 30))


@given(
    shapes=st.lists(shape, min_size=1, max_size=4),
    num_source=st.integers(1, 3),
    num_destination=st.integers(1, 3),
    overlap=st.booleans(),
    splits=st.integers(0, 255),
    chunk_words=st.integers(1, 9),
    rounds=st.integers(1, 4),
    cut_at=st.lists(st.integers(0, 100), max_size=4),
)
@settings(max_examples=60, deadline=None)
def test_any_split_becomes_any_other(
    shapes: list[tuple[int, int]],
    num_source: int,
    num_destination: int,
    overlap: bool,
    splits: int,
    chunk_words: int,
    rounds: int,
    cut_at: list[int],
) -> None:
    """Random splits, meshes, chunk sizes and cuts: bit-identical weights, digests that agree with
    each other and with the definition."""
    generator = torch.Generator().manual_seed(splits)
    canonical = [torch.randn(shape, generator=generator) for shape in shapes]
    first = 0 if overlap else num_source
    num_endpoints = max(num_source, first + num_destination)
    by_rows = [bool(splits >> index & 1) for index in range(2 * len(shapes))]
    have = grid(range(num_source), shapes, by_rows[: len(shapes)])
    want = grid(range(first, first + num_destination), shapes, by_rows[len(shapes) :])
    programs = make_programs(shapes, have, want, num_endpoints, rounds, cut_at)
    sources = [parameters_of(have, e, canonical) for e in range(num_endpoints)]
    destinations = [parameters_of(want, e, None) for e in range(num_endpoints)]
    reports = run_all(programs, sources, destinations, chunk_bytes=8 * chunk_words)

    for endpoint in range(num_endpoints):
        for name, tensor in parameters_of(want, endpoint, canonical).items():
            assert torch.equal(destinations[endpoint][name], tensor)
    check_digests(reports)
    for number, tensor in enumerate(canonical):  # each element lies at one endpoint
        held = sum(
            report.received_digests.get(number, 0)
            for report in reports
            if isinstance(report, TransferReport)
        )
        assert (held - tensor_digest(tensor.numpy())) % 2**64 == 0


def check_digests(reports: Sequence[TransferReport | Exception]) -> None:
    """What all sent to an endpoint adds up to what it holds, per canonical tensor."""
    for endpoint, report in enumerate(reports):
        assert isinstance(report, TransferReport), report
        sent: dict[int, int] = {}
        for other in reports:
            assert isinstance(other, TransferReport), other
            for (peer, canonical), digest in other.sent_digests.items():
                if peer == endpoint:
                    sent[canonical] = sent.get(canonical, 0) + digest
        assert {c: d % 2**64 for c, d in sent.items()} == {
            c: d % 2**64 for c, d in report.received_digests.items()
        }


SHAPES = [(8, 24)]


@pytest.mark.parametrize("endpoints", [(0, 0), (0, 1)])
def test_weights_are_rounded_on_the_way(endpoints: tuple[int, int]) -> None:
    """float32 moved as bfloat16 is rounded alike to another process and within one."""
    canonical = [torch.randn(SHAPES[0], generator=torch.Generator().manual_seed(3))]
    have, want = grid([endpoints[0]], SHAPES, [True]), grid([endpoints[1]], SHAPES, [False])
    programs = make_programs(SHAPES, have, want, 2)
    sources = [parameters_of(have, e, canonical) for e in range(2)]
    for dtype in (torch.bfloat16, torch.float32):
        destinations = [parameters_of(want, e, None, dtype) for e in range(2)]
        reports = run_all(programs, sources, destinations, dtype="bfloat16")
        rounded = canonical[0].to(torch.bfloat16)
        assert torch.equal(destinations[endpoints[1]]["t0"].to(torch.bfloat16), rounded)
        assert torch.equal(destinations[endpoints[1]]["t0"].float(), rounded.float())
        check_digests(reports)


class _LateWorld(LocalWorld):
    """Endpoint 0 begins once endpoint 1 waits, or has sent what it cannot have yet."""

    def __init__(self, num_endpoints: int) -> None:
        super().__init__(num_endpoints)
        self._sent = threading.Event()

    def post(self, pending: LocalPending) -> None:
        operation = pending.operation
        if operation.endpoint == 1 and operation.round == 2:
            self._sent.set()
        if operation.endpoint == 0:
            self._sent.wait(0.2)
        super().post(pending)


def test_what_was_received_is_passed_on() -> None:
    """An endpoint sends from its destination what came two rounds before, and not earlier."""
    shapes = [(4, 4)]
    canonical = [torch.randn(shapes[0], generator=torch.Generator().manual_seed(4))]
    have, middle, last = (grid([endpoint], shapes, [True]) for endpoint in range(3))
    first = make_programs(shapes, have, middle, 3, 1)
    second = make_programs(shapes, middle, last, 3, 1)
    relay = replace(
        second[1],
        source_tensors=(),
        destination_tensors=("t0",),
        sends=replace(second[1].sends, round=np.array([2], np.int32)),
        receives=first[1].receives,
        num_rounds=3,
    )
    end = replace(second[2], receives=replace(second[2].receives, round=np.array([2], np.int32)))
    destinations = [{}, parameters_of(middle, 1, None), parameters_of(last, 2, None)]
    reports = run_all(
        [first[0], relay, end],
        [{"t0": canonical[0]}, {}, {}],
        destinations,
        staging_bytes=1024,
        world=_LateWorld(3),
    )
    assert torch.equal(destinations[2]["t0"], canonical[0])
    check_digests(reports)


def test_all_parameters_that_do_not_fit_are_named_and_nothing_moves() -> None:
    """Missing, short, strided and integer parameters are reported at once, by name."""
    shapes = [(4, 8)] * 4
    have, want = grid([0], shapes, [True] * 4), grid([1], shapes, [True] * 4)
    programs = make_programs(shapes, have, want, 2)
    wrong = {
        "t0": torch.zeros(31),
        "t1": torch.zeros(8, 4).t(),
        "t2": torch.zeros(4, 8, dtype=torch.int64),
    }
    destination = parameters_of(want, 1, None)
    results = run_all(programs, [wrong, {}], [{}, destination])
    assert isinstance(results[0], InvalidInput)
    assert {problem.path for problem in results[0].problems} == {"t0", "t1", "t2", "t3"}
    assert "31 elements and the program needs 32" in str(results[0])
    assert all(tensor.isnan().all() for tensor in destination.values())


def test_a_peer_that_leaves_is_named_with_round_and_parameter() -> None:
    """The error of a wait says which endpoint, which peer, which round, which parameters."""
    shapes = [(64, 64)]
    have, want = grid([0], shapes, [True]), grid([1], shapes, [False])
    programs = make_programs(shapes, have, want, 2, 1)
    world = LocalWorld(2)
    world.communicator(0).close()
    source = parameters_of(have, 0, None)
    results = run_all(programs[1:], [{}], [parameters_of(want, 1, None)], world=_Second(world))
    assert isinstance(results[0], Unavailable)
    for part in ("endpoint 1", "receive from endpoint 0", "round 0", "t0"):
        assert part in str(results[0])
    assert source["t0"].isnan().all()


class _Second(LocalWorld):
    """A world of which only endpoint 1 runs here."""

    def __init__(self, world: LocalWorld) -> None:
        self._world = world

    def communicator(self, endpoint: int):  # type: ignore[no-untyped-def]
        return self._world.communicator(endpoint + 1)


def test_what_the_callback_raises_ends_the_transfer() -> None:
    """Its own error comes back from `execute`."""
    shapes = [(64, 64)]
    have, want = grid([0], shapes, [True]), grid([1], shapes, [False])
    programs = make_programs(shapes, have, want, 2, 1)

    def full(arrival: Arrival) -> None:
        raise OSError(f"no room for tensor {arrival.canonical}")

    results = run_all(
        programs,
        [parameters_of(have, 0, [torch.zeros(64, 64)]), {}],
        [{}, parameters_of(want, 1, None)],
        arrived=full,
    )
    assert isinstance(results[1], OSError)
    assert "tensor 0" in str(results[1])


def test_a_late_peer_is_given_up_at_the_deadline() -> None:
    """A peer that never starts is an error after the timeout, not a hang."""
    shapes = [(64, 64)]
    have, want = grid([0], shapes, [True]), grid([1], shapes, [False])
    programs = make_programs(shapes, have, want, 2, 1)
    results = run_all(
        programs[1:], [{}], [parameters_of(want, 1, None)],
        world=_Second(LocalWorld(2)), timeout_seconds=0.1,
    )  # fmt: skip
    assert isinstance(results[0], Unavailable)
    assert "timed out" in str(results[0])
