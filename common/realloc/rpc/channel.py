"""Channels whose calls have deadlines, raise our errors, and carry the trace along.

    async with connect("host:port") as channel:               # grpc.aio
        stub = JobsStub(channel)
        job = await stub.GetJob(request)                       # 30 s unless timeout=…
        async with stub.WatchJob(request, timeout=600) as events:
            async for event in events: ...

    with connect_sync("host:port") as channel:                 # threads; 3 times the bandwidth
        for chunk in ShardStub(channel).PullBatch(request, timeout=60): ...

Every failure is a class of `realloc.core.errors`: the server's own one, or `Unavailable` with
method and address for a peer that is gone or too slow. With `security` calls are encrypted, and
a certificate that the other side does not take is `Unauthenticated`. A stream that is left early is
cancelled by ``async with`` or by ``cancel()``; then iteration just ends. Works without
OpenTelemetry and structlog installed. Channels may be shared by all tasks (or threads).
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from realloc.core.errors import ReallocError
from realloc.rpc.calls import CallDefaults, ClientCall
from realloc.rpc.sync_channel import SyncChannel
from realloc.security.tls import ChannelSecurity

DEFAULT_TIMEOUT_SECONDS = 30.0
DEFAULT_STREAM_TIMEOUT_SECONDS = 3600.0


def connect(
    address: str,
    *,
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    stream_timeout_seconds: float = DEFAULT_STREAM_TIMEOUT_SECONDS,
    security: ChannelSecurity | None = None,
    tracer: Any = None,
) -> "Channel":
    """A channel for asyncio; connects on the first call."""
    defaults = CallDefaults(
        address=address,
        timeout_seconds=timeout_seconds,
        stream_timeout_seconds=stream_timeout_seconds,
        security=security,
        tracer=tracer,
    )
    if security is None:
        return Channel(grpc.aio.insecure_channel(address, options=defaults.options), defaults)
    credentials = security.credentials()
    return Channel(
        grpc.aio.secure_channel(address, credentials, options=defaults.options), defaults
    )


def connect_sync(
    address: str,
    *,
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    stream_timeout_seconds: float = DEFAULT_STREAM_TIMEOUT_SECONDS,
    security: ChannelSecurity | None = None,
    tracer: Any = None,
) -> SyncChannel:
    """A channel for threads; connects on the first call."""
    defaults = CallDefaults(
        address=address,
        timeout_seconds=timeout_seconds,
        stream_timeout_seconds=stream_timeout_seconds,
        security=security,
        tracer=tracer,
    )
    if security is None:
        return SyncChannel(grpc.insecure_channel(address, options=defaults.options), defaults)
    credentials = security.credentials()
    return SyncChannel(
        grpc.secure_channel(address, credentials, options=defaults.options), defaults
    )


class Channel(grpc.aio.Channel):
    """What generated stubs take for a grpc.aio channel."""

    def __init__(self, inner: grpc.aio.Channel, defaults: CallDefaults) -> None:
        self._inner = inner
        self._defaults = defaults

    @property
    def address(self) -> str:
        return self._defaults.address

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return _Unary(self._inner.unary_unary(method, *args, **kwargs), method, self._defaults)

    def stream_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return _Unary(self._inner.stream_unary(method, *args, **kwargs), method, self._defaults)

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return _Stream(self._inner.unary_stream(method, *args, **kwargs), method, self._defaults)

    def stream_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return _Stream(self._inner.stream_stream(method, *args, **kwargs), method, self._defaults)

    async def __aenter__(self) -> "Channel":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        await self._inner.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._inner.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._inner.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._inner.channel_ready()


class _Unary:
    """Calls with one response."""

    def __init__(self, inner: Any, method: str, defaults: CallDefaults) -> None:
        self._inner = inner
        self._method = method
        self._defaults = defaults

    async def __call__(
        self, request: Any, *, timeout: float | None = None, metadata: Any = None, **options: Any
    ) -> Any:
        if timeout is None:
            timeout = self._defaults.timeout_seconds
        call = self._defaults.begin(self._method, metadata)
        try:
            response = await self._inner(
                request, timeout=timeout, metadata=call.metadata, **options
            )
        except grpc.aio.AioRpcError as error:
            raise await _failed(call, error) from error
        except BaseException:
            call.cancelled()
            raise
        call.span.end()
        return response


class _Stream:
    """Calls with a stream of responses."""

    def __init__(self, inner: Any, method: str, defaults: CallDefaults) -> None:
        self._inner = inner
        self._method = method
        self._defaults = defaults

    def __call__(
        self, request: Any, *, timeout: float | None = None, metadata: Any = None, **options: Any
    ) -> "ResponseStream":
        if timeout is None:
            timeout = self._defaults.stream_timeout_seconds
        call = self._defaults.begin(self._method, metadata)
        inner = self._inner(request, timeout=timeout, metadata=call.metadata, **options)
        return ResponseStream(inner, call)


class ResponseStream:
    """Responses as they come. Leave it early by ``async with`` or `cancel`."""

    def __init__(self, inner: Any, call: ClientCall) -> None:
        self._inner = inner
        self._call = call
        self._messages: AsyncIterator[Any] = aiter(inner)

    def __aiter__(self) -> "ResponseStream":
        return self

    async def __anext__(self) -> Any:
        try:
            return await anext(self._messages)
        except StopAsyncIteration:
            self._call.span.end()
            raise
        except grpc.aio.AioRpcError as error:
            raise await _failed(self._call, error) from error
        except asyncio.CancelledError:
            self._call.cancelled()
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # Only the call was cancelled, by `cancel`: its reader is to go on.
            raise StopAsyncIteration from None

    async def __aenter__(self) -> "ResponseStream":
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()

    def cancel(self) -> None:
        """Give the rest up; nothing happens where the stream has ended."""
        if self._inner.cancel():
            self._call.cancelled()

    def __del__(self) -> None:
        self.cancel()


async def _failed(call: ClientCall, error: grpc.aio.AioRpcError) -> ReallocError:
    if call.may_be_refused(error):
        return await asyncio.to_thread(call.failed, error)
    return call.failed(error)
