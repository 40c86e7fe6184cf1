"""A span per call on the server, a child of the client's span where one was sent along."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from opentelemetry import propagate
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer

from realloc.rpc.interception import AroundCall
from realloc.telemetry.names import WITHOUT_SPANS, Attribute, Metric, rpc_attributes
from realloc.telemetry.spans import record

_codes = {code.value[0]: code for code in grpc.StatusCode}


def traced_calls(tracer: Tracer) -> AroundCall:
    """Surrounds a call with a span named ``package.Service/Method``."""

    @asynccontextmanager
    async def around(method: str, context: Any) -> AsyncIterator[None]:
        if method.startswith(WITHOUT_SPANS):
            yield
            return
        carrier = dict(context.invocation_metadata() or ())
        started = time.monotonic()
        with tracer.start_as_current_span(
            method,
            context=propagate.extract(carrier),
            kind=SpanKind.SERVER,
            attributes=rpc_attributes(method),
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            code = grpc.StatusCode.OK
            try:
                yield
            except BaseException as error:
                code = _failed(span, error, context)
                raise
            finally:
                span.set_attribute(Attribute.RPC_STATUS_CODE, code.name)
                labels = {Attribute.RPC_METHOD: method, Attribute.RPC_STATUS_CODE: code.name}
                record(Metric.RPC_SECONDS, time.monotonic() - started, labels)

    return around


def _failed(span: Span, error: BaseException, context: Any) -> grpc.StatusCode:
    if isinstance(error, grpc.aio.AbortError):
        code, text = _code(context.code()), context.details()
    elif isinstance(error, asyncio.CancelledError | GeneratorExit):
        code, text = grpc.StatusCode.CANCELLED, "cancelled by the client, its deadline or a drain"
    else:
        code, text = grpc.StatusCode.UNKNOWN, type(error).__name__
    span.set_status(Status(StatusCode.ERROR, text or code.name))
    return code


def _code(found: Any) -> grpc.StatusCode:
    """grpc keeps whatever the handler set: the number or the member."""
    if isinstance(found, grpc.StatusCode):
        return found
    return _codes.get(found, grpc.StatusCode.UNKNOWN)
