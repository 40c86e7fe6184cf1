"""Spans of calls through several services."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from google.protobuf.wrappers_pb2 import StringValue
from opentelemetry import trace
from opentelemetry.trace import Tracer

from realloc.rpc.channel import connect
from realloc.telemetry.names import Span
from realloc.telemetry.recorded import RecordedSpan, orphans, read_spans
from realloc.telemetry.setup import tracer_provider
from realloc.telemetry.spans import span
from realloc.telemetry.timeline import chrome_trace
from tests.integration.echo_calls import (
    all_answers,
    echo_server,
    failure_of,
    within,
)
from tests.integration.echo_service import SERVICE, Echo, EchoStub

EDGES = {
    ("client job", "client Say"),
    ("client Say", "front Say"),
    ("front Say", "front Repeat"),
    ("front Repeat", "back Repeat"),
    ("client job", "client Repeat"),
    ("client Repeat", "front Repeat"),
}
CODES = {
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


@asynccontextmanager
async def front_and_back(tracers: Mapping[str, Tracer]) -> AsyncIterator[tuple[EchoStub, Echo]]:
    """A stub of a service that asks another one, and that other one."""
    back = Echo()
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        address = await enter(echo_server(back, tracers["back"]))
        back_stub = EchoStub(await enter(connect(address, tracer=tracers["front"])))

        async def through(text: str) -> str:
            answers = await all_answers(back_stub.Repeat(StringValue(value=text.lower())))
            return answers[-1]

        address = await enter(echo_server(Echo(through), tracers["front"]))
        yield EchoStub(await enter(connect(address, tracer=tracers["client"]))), back


async def three_calls(stub: EchoStub, back: Echo) -> None:
    """One that is answered, one that fails, and one that is cancelled while the back works."""
    await stub.Say(StringValue(value="FINE"))
    await failure_of(stub, "NotFound", stream=True)
    back.entered.clear()
    call = asyncio.create_task(failure_of(stub, "WAIT", stream=False))
    await back.entered.wait()
    call.cancel()
    await back.cancelled.wait()
    with pytest.raises(asyncio.CancelledError):
        await call


def recorded_spans(folder: Path) -> tuple[RecordedSpan, ...]:
    """What three processes would have recorded of the three calls of a job."""
    providers = {
        name: tracer_provider(name, f"{name}-0", str(folder))
        for name in ("client", "front", "back")
    }
    tracers = {name: provider.get_tracer("test") for name, provider in providers.items()}
    trace_ids = []

    async def work() -> None:
        async with front_and_back(tracers) as (stub, back):
            with span(Span.JOB, tracer=tracers["client"]) as job:
                trace_ids.append(trace.format_trace_id(job.get_span_context().trace_id))
                await three_calls(stub, back)

    within(work)
    for provider in providers.values():
        provider.shutdown()
    return read_spans(folder, trace_ids[0])


def test_a_call_through_two_servers_is_one_trace(tmp_path: Path) -> None:
    """Client, server and inner client spans of two services join into one tree without
    orphans, errors and cancellations included, and open as a timeline."""
    spans = recorded_spans(tmp_path)
    assert not orphans(spans)
    assert [each.name for each in spans if not each.parent_id] == ["job"]
    assert _edges(spans) >= EDGES
    calls = [each for each in spans if "/" in each.name]
    assert {
        (each.service, each.name, each.attributes["rpc.grpc.status_code"]) for each in calls
    } == CODES
    for each in calls:
        assert bool(each.error) == (each.attributes["rpc.grpc.status_code"] != "OK"), each
    drawn = chrome_trace(spans)["traceEvents"]
    assert len([event for event in drawn if event["ph"] == "X"]) == len(spans)


def _edges(spans: tuple[RecordedSpan, ...]) -> set[tuple[str, str]]:
    by_id = {each.span_id: each for each in spans}

    def label(each: RecordedSpan) -> str:
        return f"{each.service} {each.name.rpartition('/')[2]}"

    return {(label(by_id[each.parent_id]), label(each)) for each in spans if each.parent_id}
