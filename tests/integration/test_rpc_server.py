"""The life of a server: what it says of itself, its port, its drain."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from google.protobuf.wrappers_pb2 import StringValue
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from realloc.config import ServiceConfig
from realloc.core.errors import Unavailable
from realloc.rpc.channel import connect
from realloc.rpc.server import App, running
from tests.integration.echo_calls import (
    echo_pair,
    echo_server,
    failure_of,
    within,
)
from tests.integration.echo_service import SERVICE, Echo, EchoStub, add_to_server

SERVING = health_pb2.HealthCheckResponse.SERVING


NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def test_health_and_reflection_tell_what_is_served() -> None:
    """Health is SERVING for the server and each service; reflection lists the services."""

    async def work() -> None:
        async with echo_pair() as (_, channel, _):
            health = health_pb2_grpc.HealthStub(channel)
            for name in ("", SERVICE):
                request = health_pb2.HealthCheckRequest(service=name)
                assert (await health.Check(request)).status == SERVING
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            request = reflection_pb2.ServerReflectionRequest(list_services="")
            async with stub.ServerReflectionInfo(iter([request])) as answers:
                answer = await anext(answers)
            listed = {each.name for each in answer.list_services_response.service}
            assert {SERVICE, "grpc.health.v1.Health"} <= listed

    within(work)


def test_running_calls_may_end_during_the_drain() -> None:
    """From the drain on health is NOT_SERVING and the registration gone, yet a call that
    runs is answered."""

    async def work() -> None:
        order: list[str] = []
        release = asyncio.Event()
        entered = asyncio.Event()

        async def elsewhere(text: str) -> str:
            entered.set()
            await release.wait()
            return text + " done"

        @asynccontextmanager
        async def registration(address: str) -> AsyncIterator[None]:
            order.append("registered")
            yield
            health = health_pb2_grpc.HealthStub(channel)
            status = (await health.Check(health_pb2.HealthCheckRequest())).status
            order.append("not serving" if status == NOT_SERVING else "serving")

        async def started(address: str) -> None:
            order.append("started")

        async def draining() -> None:
            order.append("draining")
            asyncio.get_running_loop().call_later(0.2, release.set)  # work that takes its time

        app = App(
            servicers=((add_to_server, Echo(elsewhere)),),
            service_names=(SERVICE,),
            registration=registration,
            started=started,
            draining=draining,
        )
        async with AsyncExitStack() as stack:
            async with running(app, ServiceConfig()) as address:
                channel = await stack.enter_async_context(connect(address))
                task = asyncio.create_task(EchoStub(channel).Say(StringValue(value="work")))
                await entered.wait()
            assert (await task).value == "work done"
        assert order == ["started", "registered", "not serving", "draining"]

    within(work)


def test_a_drain_has_an_end() -> None:
    """A call that does not end is cut off after drain_seconds, as Unavailable."""

    async def work() -> None:
        echo = Echo()
        async with AsyncExitStack() as stack:
            async with echo_server(echo) as address:
                channel = await stack.enter_async_context(connect(address))
                task = asyncio.create_task(failure_of(EchoStub(channel), "wait", stream=False))
                await echo.entered.wait()
            assert isinstance(await task, Unavailable)

    within(work)


def test_a_taken_port_is_named() -> None:
    """Two servers never share a port; the second says which one."""

    async def work() -> None:
        async with echo_server(Echo()) as address:
            port = int(address.rpartition(":")[2])
            app = App(servicers=(), service_names=())
            with pytest.raises(Unavailable, match=f"cannot listen on 127.0.0.1:{port}"):
                async with running(app, ServiceConfig(port=port)):
                    pass

    within(work)
