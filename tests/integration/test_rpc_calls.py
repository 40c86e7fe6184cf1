"""Calls between servers and channels, over real sockets: answers, errors, deadlines."""

import asyncio
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from deploy.local.ports import LOOPBACK, ReservedPorts
from realloc.core import errors
from realloc.core.errors import InvalidInput, Problem, ReallocError, Unavailable
from realloc.rpc.channel import connect, connect_sync
from tests.integration.echo_calls import (
    echo_pair,
    echo_server,
    failure_of,
    sync_failure_of,
)
from tests.integration.echo_service import SERVICE, Echo, EchoStub
from tests.support.deadline import within

REPOSITORY = Path(__file__).parents[2]


def test_answers_come_back_on_both_kinds_of_channel() -> None:
    """Unary and streamed answers arrive, by asyncio and by threads."""

    def from_thread(address: str) -> list[str]:
        with connect_sync(address) as channel:
            stub = EchoStub(channel)
            first = stub.Say(StringValue(value="a")).value
            return [first, *(each.value for each in stub.Repeat(StringValue(value="b")))]

    async def work() -> None:
        async with echo_pair() as (_, channel, stub):
            assert (await stub.Say(StringValue(value="a"))).value == "a"
            assert [each.value async for each in stub.Repeat(StringValue(value="b"))] == ["b"] * 3
            assert await asyncio.to_thread(from_thread, channel.address) == ["a", "b", "b", "b"]

    within(work)


@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
def test_errors_arrive_as_the_same_class(stream: bool) -> None:
    """Each class of the error tree crosses as itself, with text and problems."""

    async def work() -> None:
        async with echo_pair() as (_, channel, stub):
            for name in ("NotFound", "Conflict", "ResourceExhausted", "Unavailable", "JobFailed"):
                for error in (
                    await failure_of(stub, name, stream),
                    await asyncio.to_thread(sync_failure_of, channel.address, name, stream),
                ):
                    assert type(error) is getattr(errors, name)
                    assert str(error) == f"{name}: ümlaut"
            error = await failure_of(stub, "InvalidInput", stream)
            assert isinstance(error, InvalidInput)
            assert error.problems == (Problem("a.b", "is 3 — not 4"), Problem("c[1]", "is missing"))
            error = await failure_of(stub, "many problems", stream)
            assert isinstance(error, InvalidInput)
            assert "more problems" in str(error.problems[-1])

    within(work)


@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
def test_unknown_errors_leak_nothing_and_are_logged_once(
    stream: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bug is INTERNAL for the client; its text stands in the server's log, once."""

    async def work() -> None:
        async with echo_pair() as (_, _, stub):
            error = await failure_of(stub, "bug", stream)
            assert type(error) is ReallocError
            assert "INTERNAL" in str(error)
            assert "secret" not in str(error)

    within(work)
    captured = capsys.readouterr()
    assert (captured.out + captured.err).count("call failed") == 1


@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
def test_every_call_has_a_deadline(stream: bool) -> None:
    """A call without a timeout gets the channel's; the error names method and address, and
    the server's handler is cancelled."""

    async def work() -> None:
        echo = Echo()
        async with (
            echo_server(echo) as address,
            connect(address, timeout_seconds=1.0, stream_timeout_seconds=1.1) as channel,
        ):
            stub = EchoStub(channel)
            await stub.Say(StringValue(value="connected"), timeout=30)
            error = await failure_of(stub, "wait", stream)
            assert isinstance(error, Unavailable)
            method = f"{SERVICE}/{'Repeat' if stream else 'Say'}"
            assert str(error) == f"{method} at {address} did not answer in time"
            await echo.cancelled.wait()

    within(work)


def test_a_peer_that_is_gone_is_unavailable() -> None:
    """A refused connection is Unavailable with method and address, on both channels."""

    async def work() -> None:
        with closing(ReservedPorts(1)) as gone:
            address = f"{LOOPBACK}:{gone.numbers[0]}"
            async with connect(address) as channel:
                error = await failure_of(EchoStub(channel), "a", stream=False)
            other = await asyncio.to_thread(sync_failure_of, address, "a", True)
        for each in (error, other):
            assert isinstance(each, Unavailable)
            assert address in str(each)
            assert SERVICE in str(each)

    within(work)


def test_the_light_client_needs_no_telemetry() -> None:
    """Channels work where OpenTelemetry and structlog are not installed."""
    code = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('opentelemetry', 'structlog', 'torch', 'aetcd'):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
from google.protobuf.wrappers_pb2 import StringValue
from realloc.rpc.channel import connect_sync
from tests.integration.echo_service import EchoStub
with connect_sync(sys.argv[1]) as channel:
    print(EchoStub(channel).Say(StringValue(value='light')).value)
"""

    async def work() -> None:
        async with echo_server(Echo()) as address:
            path = os.pathsep.join((str(REPOSITORY / "common"), str(REPOSITORY)))
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", code, address),
                env=os.environ | {"PYTHONPATH": path},
                stdout=subprocess.PIPE,
            )
            out, _ = await process.communicate()
            assert out == b"light\n"

    within(work)


def test_plain_grpc_clients_are_served() -> None:
    """A client that knows nothing of us gets status codes and texts."""

    async def work() -> None:
        async with (
            echo_server(Echo()) as address,
            grpc.aio.insecure_channel(address) as channel,
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await EchoStub(channel).Say(StringValue(value="NotFound"), timeout=10)
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
            assert caught.value.details() == "NotFound: ümlaut"

    within(work)
