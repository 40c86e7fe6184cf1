"""What a channel does around each call, sync and aio alike."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import grpc

from realloc.core.errors import ReallocError, Unauthenticated
from realloc.rpc.client_span import ClientSpan
from realloc.rpc.status import from_rpc_error
from realloc.security.handshake import find_refusal, may_be_refused
from realloc.security.tls import ChannelSecurity

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
    # Also the longest handshake: a busy process may take a while over TLS.
    ("grpc.min_reconnect_backoff_ms", 5_000),
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
    security: ChannelSecurity | None = None
    """TLS; None talks in the clear."""
    tracer: Any = None
    """An OpenTelemetry tracer; None takes the global one, where there is any."""

    @property
    def options(self) -> tuple[tuple[str, int | str], ...]:
        """Of the channel."""
        if self.security is None:
            return CHANNEL_OPTIONS
        return (*CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", self.security.server_name))

    def begin(self, method: str, metadata: Iterable[tuple[str, Any]] | None) -> "ClientCall":
        """Start the span of a call."""
        name = method.removeprefix("/")
        span = ClientSpan(name, self.address, self.tracer)
        return ClientCall(
            method=name,
            address=self.address,
            security=self.security,
            span=span,
            metadata=(*(metadata or ()), *span.metadata),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientCall:
    """One call under way."""

    method: str
    address: str
    security: ChannelSecurity | None
    span: ClientSpan
    metadata: tuple[tuple[str, Any], ...]

    def may_be_refused(self, error: grpc.RpcError) -> bool:
        """Whether `failed` has to ask the server once more, and so may take a moment."""
        return may_be_refused(error.details() or "")

    def failed(self, error: grpc.RpcError) -> ReallocError:
        """End the span; the error to raise instead. Blocks where `may_be_refused`."""
        found = self._refusal(error) or from_rpc_error(error, self.method, self.address)
        self.span.end(error.code().name, str(found))
        return found

    def _refusal(self, error: grpc.RpcError) -> ReallocError | None:
        if not self.may_be_refused(error):
            return None
        reason = find_refusal(self.address, self.security)
        return Unauthenticated(f"{self.method} at {self.address}: {reason}") if reason else None

    def cancelled(self) -> None:
        """End the span of a call that the caller gave up."""
        self.span.end("CANCELLED", "cancelled by the caller")
