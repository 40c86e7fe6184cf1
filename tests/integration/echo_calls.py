"""Echo services, channels to them, and how their calls fail."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from google.protobuf.wrappers_pb2 import StringValue

from realloc.config import ServiceConfig
from realloc.core.errors import ReallocError
from realloc.rpc.channel import Channel, connect, connect_sync
from realloc.rpc.server import App, running
from tests.integration.echo_service import SERVICE, Echo, EchoStub, add_to_server

TEST_SECONDS = 60.0


@asynccontextmanager
async def echo_server(echo: Echo, tracer: Any = None) -> AsyncIterator[str]:
    app = App(servicers=((add_to_server, echo),), service_names=(SERVICE,))
    async with running(app, ServiceConfig(drain_seconds=1.0), tracer) as address:
        yield address


@asynccontextmanager
async def echo_pair() -> AsyncIterator[tuple[Echo, Channel, EchoStub]]:
    echo = Echo()
    async with echo_server(echo) as address, connect(address) as channel:
        yield echo, channel, EchoStub(channel)


def within(work: Callable[[], Awaitable[None]]) -> None:
    """Run a test's coroutine under a deadline."""

    async def limited() -> None:
        async with asyncio.timeout(TEST_SECONDS):
            await work()

    asyncio.run(limited())


async def all_answers(stream: Any) -> list[str]:
    return [each.value async for each in stream]


async def failure_of(stub: EchoStub, text: str, stream: bool, **options: Any) -> ReallocError:
    request = StringValue(value=text)
    call = all_answers(stub.Repeat(request, **options)) if stream else stub.Say(request, **options)
    with pytest.raises(ReallocError) as caught:
        await call
    return caught.value


def sync_failure_of(address: str, text: str, stream: bool) -> ReallocError:
    with connect_sync(address) as channel:
        stub = EchoStub(channel)
        call = (lambda request: list(stub.Repeat(request))) if stream else stub.Say
        with pytest.raises(ReallocError) as caught:
            call(StringValue(value=text))
    return caught.value
