"""What every `Communicator` does, whatever moves its bytes."""

import time
from collections.abc import Iterator

import pytest
import torch

from realloc.core.errors import Unavailable
from realloc.transfer.communicator import Communicator, Memory, Pending, Region
from tests.support.communicators import NUM_ENDPOINTS, World, make_world


def needs_gpus(count: int) -> list[pytest.MarkDecorator]:
    missing = torch.cuda.device_count() < count
    return [pytest.mark.gpu, pytest.mark.skipif(missing, reason=f"needs {count} GPUs")]


BACKENDS = (
    "local",
    "gloo",
    "shared_memory",
    "composite",
    pytest.param("cuda_ipc", marks=needs_gpus(1)),
    pytest.param("nccl", marks=needs_gpus(NUM_ENDPOINTS)),
)
SIZES = (1, 8, 4096, 300_001)
TIMEOUT = 20.0


@pytest.fixture(scope="module", params=BACKENDS)
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    made = make_world(request.param)
    yield made
    made.close()


def others(communicator: Communicator) -> list[int]:
    return [peer for peer in range(NUM_ENDPOINTS) if peer != communicator.endpoint]


def content(sender: int, receiver: int, number: int, size: int) -> torch.Tensor:
    """Bytes that differ for each message."""
    generator = torch.Generator().manual_seed(1000 * sender + 100 * receiver + number)
    return torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator)


def pairs_in_order() -> list[tuple[int, int, int]]:
    """(number, sender, receiver) of all messages, in an order that all endpoints share."""
    return [
        (number, sender, receiver)
        for number in range(len(SIZES))
        for sender in range(NUM_ENDPOINTS)
        for receiver in range(NUM_ENDPOINTS)
        if sender != receiver
    ]


# Scenarios, run by every endpoint.


def exchange(communicator: Communicator) -> bool:
    me = communicator.endpoint
    started, received = [], []
    for number, sender, receiver in pairs_in_order():
        size = SIZES[number]
        if me == sender:
            buffer = (
                communicator.allocate(size)
                if number % 2
                else torch.empty(size, dtype=torch.uint8, device=communicator.device)
            )
            buffer.copy_(content(me, receiver, number, size))
            started.append(communicator.send(buffer, peer=receiver, round=number))
        elif me == receiver:
            buffer = torch.zeros(size, dtype=torch.uint8, device=communicator.device)
            started.append(communicator.receive(buffer, peer=sender, round=number))
            received.append((buffer, content(sender, me, number, size)))
    for pending in started:
        pending.wait(TIMEOUT)
    return all(torch.equal(found.cpu(), expected) for found, expected in received)


def send_typed(communicator: Communicator) -> bool:
    if communicator.endpoint == 0:
        values = torch.arange(1000, dtype=torch.bfloat16, device=communicator.device)
        communicator.send(values[100:900], peer=1, round=0).wait(TIMEOUT)
    if communicator.endpoint == 1:
        found = torch.zeros(1000, dtype=torch.bfloat16, device=communicator.device)
        communicator.receive(found[100:900], peer=0, round=0).wait(TIMEOUT)
        expected = torch.arange(1000, dtype=torch.bfloat16)
        found = found.cpu()
        return (
            torch.equal(found[100:900], expected[100:900])
            and not found[:100].any()
            and not found[900:].any()
        )
    return True


def reuse_a_buffer(communicator: Communicator) -> list[int]:
    found = []
    buffer = communicator.allocate(64 << 10)
    for value in range(20):
        if communicator.endpoint == 0:
            buffer.fill_(value)
            communicator.send(buffer, peer=2, round=value).wait(TIMEOUT)
        if communicator.endpoint == 2:
            communicator.receive(buffer, peer=0, round=value).wait(TIMEOUT)
            assert int(buffer.min()) == int(buffer.max())
            found.append(int(buffer[0]))
    return found


def send_own_buffers(communicator: Communicator) -> bool:
    """Endpoint 0 sends 1 parts of buffers that it allocated."""
    found = True
    for number in range(10):
        if communicator.endpoint == 0:
            buffer = communicator.allocate(5000)
            buffer.copy_(content(0, 1, number, 5000))
            communicator.send(buffer[1000:], peer=1, round=number).wait(TIMEOUT)
        elif communicator.endpoint == 1:
            plain = torch.zeros(4000, dtype=torch.uint8, device=communicator.device)
            communicator.receive(plain, peer=0, round=number).wait(TIMEOUT)
            found &= torch.equal(plain.cpu(), content(0, 1, number, 5000)[1000:])
    return found


def region_view(region: Region) -> torch.Tensor:
    """A region as float32, [rows, cols]."""
    rows = (region.rows, region.row_bytes // 4)
    return region.memory.view(torch.float32).as_strided(
        rows, (region.stride_bytes // 4, 1), region.start // 4
    )


def write_views(communicator: Communicator) -> bool:
    """Endpoints 1 and 2 lend columns of memory that they allocated; 0 writes there."""
    values = torch.arange(60_000, dtype=torch.float32).view(300, 200)
    found = True
    for number in range(5):
        if communicator.endpoint == 0:
            for peer in (1, 2):
                if communicator.memory(peer) is Memory.LENT:
                    borrowed = communicator.borrow((300 * 100 + 200) * 4, peer=peer, round=number)
                    borrowed.wait(TIMEOUT)
                    columns, row = map(region_view, borrowed.message)
                    columns.copy_(values[:, 50:150] + number * peer)
                    row.copy_(values[7:8])
                    borrowed.release()
        elif communicator.memory(0) is Memory.LENT:
            kept = communicator.allocate(values.nbytes).view(torch.float32).view(300, 200)
            last = communicator.allocate(800).view(torch.float32).view(1, 200)
            assert communicator.lends(kept)
            assert not communicator.lends(values)
            kept.fill_(-1)
            pending = communicator.lend([kept[:, 50:150], last], peer=0, round=number)
            pending.wait(TIMEOUT)
            expected = values + number * communicator.endpoint
            found &= torch.equal(kept[:, 50:150], expected[:, 50:150])
            found &= bool((kept[:, :50] == -1).all() and (kept[:, 150:] == -1).all())
            found &= torch.equal(last, values[7:8])
    return found and exchange(communicator)


def lend_views(communicator: Communicator) -> bool:
    """Endpoint 0 lends 1 and 2 columns of memory that it keeps, where memory is open."""
    values = torch.arange(60_000, dtype=torch.float32).view(300, 200)
    found = True
    for number in range(5):
        if communicator.endpoint == 0 and communicator.memory(1) is Memory.OPEN:
            kept = (values + number).to(communicator.device)
            views = [kept[:, 50:150], kept[7:8]]
            pending = [communicator.lend(views, peer=peer, round=number) for peer in (1, 2)]
            for operation in pending:
                operation.wait(TIMEOUT)
        elif communicator.endpoint and communicator.memory(0) is Memory.OPEN:
            size_bytes = (300 * 100 + 200) * 4
            borrowed = communicator.borrow(size_bytes, peer=0, round=number)
            borrowed.wait(TIMEOUT)
            for region, expected in zip(
                borrowed.message, (values[:, 50:150], values[7:8]), strict=True
            ):
                found &= torch.equal(region_view(region).cpu(), expected + number)
            borrowed.release()
            communicator.settle()
    return found and exchange(communicator)


def fill_the_window(communicator: Communicator) -> bool:
    if communicator.endpoint == 2:
        return True
    peer, device = 1 - communicator.endpoint, communicator.device
    count = communicator.max_operations // 2
    buffers = [
        torch.full((1000,), number, dtype=torch.int32, device=device) for number in range(count)
    ]
    found = [torch.zeros(1000, dtype=torch.int32, device=device) for _ in range(count)]
    started = []
    for mine, theirs in zip(buffers, found, strict=True):
        with communicator.group():
            halves = [
                lambda mine=mine: communicator.send(mine, peer=peer, round=0),
                lambda theirs=theirs: communicator.receive(theirs, peer=peer, round=0),
            ]
            # Lower endpoint first: one order for both.
            started += [half() for half in (halves if peer else halves[::-1])]
    for pending in started:
        pending.wait(TIMEOUT)
    return all(torch.equal(a, b) for a, b in zip(buffers, found, strict=True))


def wait_for_nobody(communicator: Communicator) -> tuple[float, str]:
    if communicator.endpoint != 0:
        stay_until_left(communicator, 0)
        return 0.0, ""
    pending = communicator.receive(
        torch.zeros(10, dtype=torch.uint8, device=communicator.device), peer=1, round=7
    )
    return _failure(pending)


def wait_for_one_who_left(communicator: Communicator) -> tuple[float, str]:
    if communicator.endpoint != 0:
        return 0.0, ""
    try:
        pending = communicator.receive(
            torch.zeros(10, dtype=torch.uint8, device=communicator.device), peer=1, round=3
        )
    except Unavailable as error:
        return 0.0, str(error)
    return _failure(pending, TIMEOUT)


def stay_until_left(communicator: Communicator, peer: int) -> None:
    """Be silent, but connected, until a peer closes."""
    never = communicator.receive(
        torch.zeros(1, dtype=torch.uint8, device=communicator.device), peer=peer, round=0
    )
    with pytest.raises(Unavailable):
        never.wait(TIMEOUT)


def _failure(pending: Pending, timeout_seconds: float = 0.3) -> tuple[float, str]:
    began = time.monotonic()
    try:
        pending.wait(timeout_seconds)
    except Unavailable as error:
        return time.monotonic() - began, str(error)
    return 0.0, "no failure"


def use_after_close(communicator: Communicator) -> str:
    communicator.close()
    communicator.close()
    try:
        communicator.send(
            torch.zeros(1, device=communicator.device), peer=others(communicator)[0], round=0
        )
    except Unavailable as error:
        return str(error)
    return "sent"


# What they prove.


def test_all_pairs_exchange_messages_of_all_sizes(world: World) -> None:
    """Every pair's messages arrive whole, in order, in both directions at once."""
    assert world.run(exchange) == [True] * NUM_ENDPOINTS


def test_a_slice_of_typed_memory_is_sent_and_received_in_place(world: World) -> None:
    """A contiguous slice of any element type moves without touching its surroundings."""
    assert all(world.run(send_typed))


def test_a_buffer_is_free_after_its_wait(world: World) -> None:
    """Overwriting a buffer after its wait never changes what was sent before."""
    assert world.run(reuse_a_buffer)[2] == list(range(20))


def test_parts_of_own_buffers_are_sent(world: World) -> None:
    """Parts of buffers of `allocate` arrive, each allocated anew."""
    assert all(world.run(send_own_buffers))


def test_open_memory_is_read_where_it_is(world: World) -> None:
    """Strided views of memory that the sender keeps are read in place, by several peers; then
    messages go as before."""
    assert all(world.run(lend_views))


def test_lent_memory_is_written_where_it_is(world: World) -> None:
    """Strided views of memory that receivers allocated are filled by the sender, and nothing
    beside them; ordinary memory is not lent; then messages go as before."""
    assert all(world.run(write_views))


def test_as_many_operations_as_promised_are_in_flight(world: World) -> None:
    """`max_operations` operations can be started before the first wait."""
    assert all(world.run(fill_the_window))


def test_a_wait_ends_at_its_deadline_and_says_what_for(world: World) -> None:
    """A silent peer is an error in time, which names both endpoints, operation and round."""
    seconds, message = world.run(wait_for_nobody)[0]
    assert 0.2 < seconds < TIMEOUT
    for part in ("endpoint 0", "receive from endpoint 1", "round 7", "10 bytes"):
        assert part in message


def test_a_peer_that_left_is_noticed_before_the_deadline(world: World) -> None:
    """A closed peer ends waits for it at once, not at their deadline."""
    seconds, message = world.run(wait_for_one_who_left)[0]
    assert seconds < TIMEOUT
    assert "receive from endpoint 1 in round 3" in message


def test_a_closed_communicator_refuses_operations(world: World) -> None:
    """Closing twice is fine; sending afterwards is an error, not a crash."""
    assert all("failed" in message for message in world.run(use_after_close))
