"""Servers and channels against each other, over real sockets."""

import asyncio
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from opentelemetry import trace

from realloc.config import ServiceConfig
from realloc.core import errors
from realloc.core.errors import InvalidInput, Problem, ReallocError, Unavailable
from realloc.rpc.channel import Channel, connect, connect_sync
from realloc.rpc.server import App, running
from realloc.telemetry.names import Span
from realloc.telemetry.recorded import RecordedSpan, orphans, read_spans
from realloc.telemetry.setup import tracer_provider
from realloc.telemetry.spans import span
from realloc.telemetry.timeline import chrome_trace
from tests.integration.echo_service import SERVICE, Echo, EchoStub, add_to_server

REPOSITORY = Path(__file__).parents[2]
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


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


def within(seconds: float, work: Callable[[], Awaitable[None]]) -> None:
    """Run a test's coroutine under a deadline."""

    async def limited() -> None:
        async with asyncio.timeout(seconds):
            await work()

    asyncio.run(limited())


async def failure_of(stub: EchoStub, text: str, stream: bool, **options: Any) -> ReallocError:
    request = StringValue(value=text)
    call = _all(stub.Repeat(request, **options)) if stream else stub.Say(request, **options)
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

    within(30, work)


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

    within(30, work)


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

    within(30, work)
    captured = capsys.readouterr()
    assert (captured.out + captured.err).count("call failed") == 1


@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
def test_cancelled_work_is_an_answer(stream: bool) -> None:
    """A handler whose awaited work was cancelled answers at once, not at the deadline."""

    async def work() -> None:
        async with echo_pair() as (_, _, stub):
            error = await failure_of(stub, "cancelled inside", stream, timeout=60)
            assert isinstance(error, Unavailable)
            assert "its work was cancelled" in str(error)

    within(20, work)


@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
def test_every_call_has_a_deadline(stream: bool) -> None:
    """A call without a timeout gets the channel's; the error names method and address, and
    the server's handler is cancelled."""

    async def work() -> None:
        echo = Echo()
        async with (
            echo_server(echo) as address,
            connect(address, timeout_seconds=0.2, stream_timeout_seconds=0.3) as channel,
        ):
            error = await failure_of(EchoStub(channel), "wait", stream)
            assert isinstance(error, Unavailable)
            method = f"{SERVICE}/{'Repeat' if stream else 'Say'}"
            assert str(error) == f"{method} at {address} did not answer in time"
            await echo.cancelled.wait()

    within(20, work)


def test_a_peer_that_is_gone_is_unavailable() -> None:
    """A refused connection is Unavailable with method and address, on both channels."""

    async def work() -> None:
        async with echo_server(Echo()) as address:
            pass
        async with connect(address) as channel:
            error = await failure_of(EchoStub(channel), "a", stream=False)
        other = await asyncio.to_thread(sync_failure_of, address, "a", True)
        for each in (error, other):
            assert isinstance(each, Unavailable)
            assert address in str(each)
            assert SERVICE in str(each)

    within(30, work)


def test_leaving_a_stream_cancels_it() -> None:
    """`async with`, `cancel` from another task, and dropping a stream all end the handler."""

    async def work() -> None:
        async with echo_pair() as (echo, _, stub):
            async with stub.Repeat(StringValue(value="wait")) as stream:
                assert (await anext(stream)).value == "wait"
            await echo.cancelled.wait()

            echo.cancelled.clear()
            echo.entered.clear()
            stream = stub.Repeat(StringValue(value="wait"))
            reader = asyncio.create_task(_all(stream))
            await echo.entered.wait()
            stream.cancel()
            assert len(await reader) <= 3
            await echo.cancelled.wait()

            echo.cancelled.clear()
            echo.entered.clear()
            stream = stub.Repeat(StringValue(value="wait"))
            await echo.entered.wait()
            del stream
            gc.collect()
            await echo.cancelled.wait()

    within(20, work)


async def _all(stream: Any) -> list[str]:
    return [each.value async for each in stream]


def test_a_cancelled_task_cancels_its_call() -> None:
    """Cancelling the caller's task ends the call on the server and raises in the task."""

    async def work() -> None:
        async with echo_pair() as (echo, _, stub):
            task = asyncio.create_task(failure_of(stub, "wait", stream=False))
            await echo.entered.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await echo.cancelled.wait()

    within(20, work)


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

    within(20, work)


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

    within(20, work)


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

    within(20, work)


def test_a_taken_port_is_named() -> None:
    """Two servers never share a port; the second says which one."""

    async def work() -> None:
        async with echo_server(Echo()) as address:
            port = int(address.rpartition(":")[2])
            app = App(servicers=(), service_names=())
            with pytest.raises(Unavailable, match=f"cannot listen on 127.0.0.1:{port}"):
                async with running(app, ServiceConfig(port=port)):
                    pass

    within(20, work)


def test_a_call_through_two_servers_is_one_trace(tmp_path: Path) -> None:
    """Client, server and inner client spans of two services join into one tree without
    orphans, errors and cancellations included, and open as a timeline."""
    providers = {
        name: tracer_provider(name, f"{name}-0", str(tmp_path))
        for name in ("client", "front", "back")
    }
    tracers = {name: provider.get_tracer("test") for name, provider in providers.items()}

    async def work() -> None:
        async with AsyncExitStack() as stack:
            enter = stack.enter_async_context
            inner = Echo()
            back = await enter(echo_server(inner, tracers["back"]))
            back_stub = EchoStub(await enter(connect(back, tracer=tracers["front"])))

            async def through(text: str) -> str:
                try:
                    async for each in back_stub.Repeat(StringValue(value=text.lower())):
                        last = each.value
                except InvalidInput as error:
                    raise errors.JobFailed("inner call failed") from error
                return str(last)

            front = await enter(echo_server(Echo(through), tracers["front"]))
            stub = EchoStub(await enter(connect(front, tracer=tracers["client"])))
            with span(Span.JOB, tracer=tracers["client"]) as job:
                trace_ids.append(trace.format_trace_id(job.get_span_context().trace_id))
                await stub.Say(StringValue(value="FINE"))
                await failure_of(stub, "NotFound", stream=True)
                inner.entered.clear()
                call = asyncio.create_task(failure_of(stub, "WAIT", stream=False))
                await inner.entered.wait()
                call.cancel()
                await inner.cancelled.wait()
                with pytest.raises(asyncio.CancelledError):
                    await call

    trace_ids: list[str] = []
    within(30, work)
    for provider in providers.values():
        provider.shutdown()
    spans = read_spans(tmp_path, trace_ids[0])
    assert not orphans(spans)
    assert [each.name for each in spans if not each.parent_id] == ["job"]
    assert _edges(spans) >= {
        ("client job", "client Say"),
        ("client Say", "front Say"),
        ("front Say", "front Repeat"),
        ("front Repeat", "back Repeat"),
        ("client job", "client Repeat"),
        ("client Repeat", "front Repeat"),
    }
    codes = {
        (each.service, each.name, each.attributes["rpc.grpc.status_code"])
        for each in spans
        if "/" in each.name
    }
    assert codes == {
        ("client", f"{SERVICE}/Say", "OK"),
        ("front", f"{SERVICE}/Say", "OK"),
        ("front", f"{SERVICE}/Repeat", "OK"),
        ("back", f"{SERVICE}/Repeat", "OK"),
        ("client", f"{SERVICE}/Repeat", "NOT_FOUND"),
        ("front", f"{SERVICE}/Repeat", "NOT_FOUND"),
        ("client", f"{SERVICE}/Say", "CANCELLED"),
        ("front", f"{SERVICE}/Say", "CANCELLED"),
        ("front", f"{SERVICE}/Repeat", "CANCELLED"),
        ("back", f"{SERVICE}/Repeat", "CANCELLED"),
    }
    for each in spans:
        failed = each.attributes.get("rpc.grpc.status_code", "OK") != "OK"
        assert bool(each.error) == failed, each
    drawn = chrome_trace(spans)["traceEvents"]
    assert len([event for event in drawn if event["ph"] == "X"]) == len(spans)


def _edges(spans: tuple[RecordedSpan, ...]) -> set[tuple[str, str]]:
    by_id = {each.span_id: each for each in spans}

    def label(each: RecordedSpan) -> str:
        return f"{each.service} {each.name.rpartition('/')[2]}"

    return {(label(by_id[each.parent_id]), label(each)) for each in spans if each.parent_id}


@contextmanager
def echo_process(events: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    path = os.pathsep.join((str(REPOSITORY / "common"), str(REPOSITORY)))
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.echo_main", str(events), *arguments],
        env=os.environ | {"PYTHONPATH": path},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=20)


def wait_for(events: Path, word: str) -> str:
    """The line of the process's notes that begins with a word."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for line in events.read_text().splitlines() if events.exists() else ():
            if line.startswith(word):
                return line
        time.sleep(0.02)  # polls another process's file; the deadline decides
    raise AssertionError(f"no {word!r} within 30 s")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_drain_a_process(tmp_path: Path, number: signal.Signals) -> None:
    """SIGTERM and SIGINT deregister, let the running stream end, flush spans, exit with 0."""
    events = tmp_path / "events"
    arguments = ("--trace-dir", str(tmp_path), "--name", "echo-0", "--drain-seconds", "1")
    with echo_process(events, *arguments) as process:
        address = wait_for(events, "registered").split()[1]
        with connect_sync(address) as channel:
            stub = EchoStub(channel)
            assert stub.Say(StringValue(value="hello")).value == "hello"
            health = health_pb2_grpc.HealthStub(channel)
            assert health.Check(health_pb2.HealthCheckRequest()).status == SERVING
            process.send_signal(number)
            _, log = process.communicate(timeout=20)
        assert process.returncode == 0, log
    assert events.read_text().split("\n") == [
        "built",
        f"started {address}",
        f"registered {address}",
        "deregistered",
        "draining",
        "closed",
        "",
    ]
    assert [json.loads(line)["event"] for line in log.splitlines()] == ["serving", "draining"]
    assert f"{SERVICE}/Say" in (tmp_path / "echo-0.otlp.jsonl").read_text()


def test_a_signal_before_the_start_cancels_it(tmp_path: Path) -> None:
    """A service that is told to stop while it is being built cleans up and exits with 0."""
    events = tmp_path / "events"
    with echo_process(events, "--name", "slow-builder") as process:
        wait_for(events, "built")
        process.terminate()
        assert process.wait(timeout=20) == 0
    assert events.read_text().split() == ["built", "build", "cancelled"]


@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        ("--port={taken}", "cannot listen on 127.0.0.1:{taken}"),
        ("--tls-dir=absent", "absent needs ca.crt, tls.crt, tls.key: "),
    ],
)
def test_a_service_that_cannot_start_says_why(tmp_path: Path, argument: str, reason: str) -> None:
    """An error of ours at the start is one log line and exit status 1, no traceback."""
    with socket.create_server(("127.0.0.1", 0)) as occupied:
        taken = occupied.getsockname()[1]
        with echo_process(tmp_path / "events", argument.format(taken=taken)) as process:
            _, log = process.communicate(timeout=30)
    assert process.returncode == 1
    event = json.loads(log.splitlines()[-1])
    assert event["event"] == "stopped"
    assert reason.format(taken=taken) in event["reason"]
    assert "Traceback" not in log


def test_a_service_refuses_to_be_reached_in_the_clear(tmp_path: Path) -> None:
    """An address beyond loopback without certificates: exit status 2, and what to do."""
    with echo_process(tmp_path / "events", "--host", "203.0.113.1") as process:
        _, log = process.communicate(timeout=30)
    assert process.returncode == 2
    assert log.startswith("host: 203.0.113.1 is not loopback")
    assert "realloc certs init" in log
    assert not (tmp_path / "events").exists()


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

    within(30, work)


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

    within(20, work)
