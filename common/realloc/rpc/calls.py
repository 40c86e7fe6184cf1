"""What a channel does around each call, sync and aio alike."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import grpc

from realloc.core.errors import ReallocError
from realloc.rpc.client_span import ClientSpan
from realloc.rpc.status import from_rpc_error

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""Of any one message; batches stream in chunks of 1 MiB, transfer programs are the largest."""

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # A peer whose machine vanished is noticed within 30 s, also in a silent stream.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    # A restarted server is found again at once, not after grpc's two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallDefaults:
    """What holds for every call of a channel."""

    address: str
    timeout_seconds: float
    """Deadline of a call with one response, where the call names none."""
    stream_timeout_seconds: float
    """Deadline of a call that streams responses, where the call names none."""
    tracer: Any = None
    """An OpenTelemetry tracer; None takes the global one, where there is any."""

    def begin(self, method: str, metadata: Iterable[tuple[str, Any]] | None) -> "ClientCall":
        """Start the span of a call."""
        name = method.removeprefix("/")
        span = ClientSpan(name, self.address, self.tracer)
        return ClientCall(
            method=name,
            address=self.address,
            span=span,
            metadata=(*(metadata or ()), *span.metadata),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientCall:
    """One call under way."""

    method: str
    address: str
    span: ClientSpan
    metadata: tuple[tuple[str, Any], ...]

    def failed(self, error: grpc.RpcError) -> ReallocError:
        """End the span; the error to raise instead."""
        found = from_rpc_error(error, self.method, self.address)
        self.span.end(error.code().name, str(found))
        return found

    def cancelled(self) -> None:
        """End the span of a call that the caller gave up."""
        self.span.end("CANCELLED", "cancelled by the caller")
