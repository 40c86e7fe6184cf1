"""A span per call on the client. Without OpenTelemetry installed it is nothing at all."""

from typing import Any

from realloc.telemetry import names

try:
    from opentelemetry import propagate, trace
except ImportError:  # the light client
    trace = None  # type: ignore[assignment]  # the light client has no OpenTelemetry


class ClientSpan:
    """Starts with the call; ends once, with the name of its status code."""

    def __init__(self, method: str, address: str, tracer: Any = None) -> None:
        self.metadata: tuple[tuple[str, str], ...] = ()
        """What the call sends along so that the server's span becomes a child."""
        self._span: Any = None
        if trace is None or method.startswith(names.WITHOUT_SPANS):
            return
        tracer = tracer or trace.get_tracer("realloc.rpc")
        attributes = names.rpc_attributes(method) | {names.Attribute.SERVER_ADDRESS: address}
        self._span = tracer.start_span(method, kind=trace.SpanKind.CLIENT, attributes=attributes)
        carrier: dict[str, str] = {}
        propagate.inject(carrier, trace.set_span_in_context(self._span))
        self.metadata = tuple(carrier.items())

    def end(self, code: str = "OK", text: str = "") -> None:
        """End the span; a second call does nothing."""
        span, self._span = self._span, None
        if span is None:
            return
        span.set_attribute(names.Attribute.RPC_STATUS_CODE, code)
        if code != "OK":
            span.set_status(trace.Status(trace.StatusCode.ERROR, text or code))
        span.end()
