"""One way to run a service: telemetry, interceptors, health, reflection, registration, drain.

    @asynccontextmanager
    async def build(config: SchedulerConfig) -> AsyncIterator[App]:
        store = ...                                     # opened here, closed after the drain
        yield App(
            servicers=((add_JobsServicer_to_server, JobsServicer(...)),),
            service_names=("realloc.api.scheduler.v1.Jobs",),
            started=shard.bind,                         # await started("host:port")
            registration=lambda address: membership.registered(store, address),
        )

    asyncio.run(serve(build, config))

Order: telemetry → build → bind → started(address) → registration entered → health SERVING →
SIGTERM or SIGINT → health NOT_SERVING → registration left → draining() → running calls
get ``drain_seconds`` → build left → telemetry flushed. A second signal kills at once. An
exception in a task group that `build` or `registration` opened cancels the service the same
way and leaves `serve` as that exception. A signal before the service is up cancels it.
"""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from opentelemetry import trace

from realloc.addresses import join
from realloc.api.diagnostics.v1 import diagnostics_pb2, diagnostics_pb2_grpc
from realloc.config import ServiceConfig
from realloc.core.errors import ReallocError, Unavailable
from realloc.rpc.calls import MAX_MESSAGE_BYTES
from realloc.rpc.diagnostics import DiagnosticsServicer, ShardFacts, no_shard
from realloc.rpc.interception import Around
from realloc.rpc.server_access import checked_access
from realloc.rpc.server_errors import translated_errors
from realloc.rpc.server_tracing import traced_calls
from realloc.security.tls import TlsFolder, server_credentials
from realloc.security.tokens import TokenFile
from realloc.telemetry import setup

MAX_CONCURRENT_CALLS = 2048
"""Further calls get RESOURCE_EXHAUSTED."""

_DIAGNOSTICS = diagnostics_pb2.DESCRIPTOR.services_by_name["DiagnosticsService"].full_name

SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # Two processes on one port would share its calls at random.
    ("grpc.so_reuseport", 0),
    # Clients ping every 20 s; grpc's default takes that for abuse.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 0),
)


class AddServicer(Protocol):
    """A generated ``add_XServicer_to_server``."""

    def __call__(self, servicer: Any, server: Any) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class App:
    """What a service consists of, as `serve` needs it."""

    servicers: Sequence[tuple[AddServicer, Any]]
    service_names: Sequence[str]
    """Full names, ``DESCRIPTOR.services_by_name["X"].full_name``, for health and reflection."""
    started: Callable[[str], Awaitable[None]] | None = None
    """Called with the address before anybody can know it."""
    registration: Callable[[str], AbstractAsyncContextManager[Any]] | None = None
    """Entered with the address; others find the service while it is open."""
    draining: Callable[[], Awaitable[None]] | None = None
    """Called when the service is no longer registered: end streams that would never end."""
    facts: Callable[[], ShardFacts] = no_shard
    """What a shard tells `realloc doctor` about its device."""
    tokens: TokenFile | None = None
    """Of the people who call this service; without any its callers are processes, which show
    their certificates. Where TLS is off nobody is asked."""


ConfigT = TypeVar("ConfigT", bound=ServiceConfig)


async def serve(
    build: Callable[[ConfigT], AbstractAsyncContextManager[App]], config: ConfigT
) -> None:
    """Run a service until SIGTERM or SIGINT; see the module's text.

    Raises:
        SystemExit: status 1 after an error of ours, which is logged.
    """
    log = structlog.get_logger(__name__)
    telemetry = setup.start(
        service=config.service,
        instance=config.instance,
        log_level=config.log_level,
        trace_dir=config.trace_dir,
        otlp_endpoint=config.otlp_endpoint,
    )
    signals = _Signals()
    try:
        async with build(config) as app, running(app, config) as address:
            log.info("serving", address=address)
            await signals.wait()
            log.info("draining", seconds=config.drain_seconds)
    except asyncio.CancelledError:
        if not signals.received:
            raise
    except ReallocError as error:
        log.error("stopped", error=type(error).__name__, reason=str(error))
        raise SystemExit(1) from error
    finally:
        telemetry.shutdown()


@asynccontextmanager
async def running(app: App, config: ServiceConfig, tracer: Any = None) -> AsyncIterator[str]:
    """A server that is up and registered within the context, drained at its end.

    Yields:
        ``host:port`` under which others reach it.
    """
    tracer = tracer or trace.get_tracer(__name__)
    surroundings = [traced_calls(tracer), translated_errors]
    if config.tls_dir:
        surroundings.append(checked_access(app.tokens))
    server = grpc.aio.server(
        interceptors=[Around(each) for each in surroundings],
        options=SERVER_OPTIONS,
        maximum_concurrent_rpcs=MAX_CONCURRENT_CALLS,
    )
    servicer = _add_services(server, app, config.instance)
    await _set_health(servicer, app, health_pb2.HealthCheckResponse.NOT_SERVING)
    port = _listen(server, join(config.host, config.port), _credentials(config, app))
    address = join(config.reachable_host, port)
    probed = _probe_server(config, servicer)
    await server.start()
    await probed.start()
    grace = 0.0
    try:
        if app.started is not None:
            await app.started(address)
        async with app.registration(address) if app.registration else nullcontext():
            await _set_health(servicer, app, health_pb2.HealthCheckResponse.SERVING)
            yield address
            grace = config.drain_seconds
            await servicer.enter_graceful_shutdown()
        if app.draining is not None:
            await app.draining()
    finally:
        await servicer.enter_graceful_shutdown()
        await server.stop(grace)
        await probed.stop(None)


def _add_services(server: grpc.aio.Server, app: App, instance: str) -> health.aio.HealthServicer:
    diagnostics_pb2_grpc.add_DiagnosticsServiceServicer_to_server(
        DiagnosticsServicer(instance, app.facts), server
    )
    for add, servicer in app.servicers:
        add(servicer, server)
    health_servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    names = (
        *app.service_names,
        _DIAGNOSTICS,
        health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
    )
    reflection.enable_server_reflection((*names, reflection.SERVICE_NAME), server)
    return health_servicer


def _probe_server(config: ServiceConfig, servicer: health.aio.HealthServicer) -> grpc.aio.Server:
    """A server of health checks alone, which listens nowhere unless a port is named."""
    server = grpc.aio.server(options=SERVER_OPTIONS)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    if config.health_port:
        _listen(server, join(config.host, config.health_port), None)
    return server


def _credentials(config: ServiceConfig, app: App) -> grpc.ServerCredentials | None:
    if not config.tls_dir:
        return None
    return server_credentials(TlsFolder(Path(config.tls_dir)), ask_clients=app.tokens is None)


def _listen(
    server: grpc.aio.Server, wanted: str, credentials: grpc.ServerCredentials | None
) -> int:
    """Listen; the port, where the kernel was to choose it."""
    try:
        if credentials is None:
            return int(server.add_insecure_port(wanted))
        return int(server.add_secure_port(wanted, credentials))
    except RuntimeError as error:
        raise Unavailable(f"cannot listen on {wanted}; is the port taken?") from error


async def _set_health(servicer: health.aio.HealthServicer, app: App, status: Any) -> None:
    for name in ("", *app.service_names, _DIAGNOSTICS):
        await servicer.set(name, status)


class _Signals:
    """SIGTERM and SIGINT: they cancel what is being built, and end `wait` after that."""

    def __init__(self) -> None:
        self.received = False
        self._task = asyncio.current_task()
        self._stop = asyncio.Event()
        self._waiting = False
        self._loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._receive)

    async def wait(self) -> None:
        self._waiting = True
        await self._stop.wait()

    def _receive(self) -> None:
        self.received = True
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.remove_signal_handler(number)  # so that a second one kills
        if self._waiting:
            self._stop.set()
        elif self._task is not None:
            self._task.cancel()
