"""A span per call on the server, a child of the client's span where one was sent along."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from opentelemetry import propagate
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer

from realloc.rpc.interception import AroundCall
from realloc.telemetry import names

UNTRACED = ("grpc.health.", "grpc.reflection.")
_codes = {code.value[0]: code for code in grpc.StatusCode}


def traced_calls(tracer: Tracer) -> AroundCall:
    """Surrounds a call with a span named ``package.Service/Method``."""

    @asynccontextmanager
    async def around(method: str, context: Any) -> AsyncIterator[None]:
        if method.startswith(UNTRACED):
            yield
            return
        carrier = dict(context.invocation_metadata() or ())
        with tracer.start_as_current_span(
            method,
            context=propagate.extract(carrier),
            kind=SpanKind.SERVER,
            attributes=names.rpc_attributes(method),
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield
            except BaseException as error:
                _record(span, error, context)
                raise
            span.set_attribute(names.RPC_STATUS_CODE, grpc.StatusCode.OK.name)

    return around


def _record(span: Span, error: BaseException, context: Any) -> None:
    if isinstance(error, grpc.aio.AbortError):
        code, text = _codes.get(context.code(), grpc.StatusCode.UNKNOWN), context.details()
    elif isinstance(error, asyncio.CancelledError | GeneratorExit):
        code, text = grpc.StatusCode.CANCELLED, "cancelled by the client, its deadline or a drain"
    else:
        code, text = grpc.StatusCode.UNKNOWN, type(error).__name__
    span.set_attribute(names.RPC_STATUS_CODE, code.name)
    span.set_status(Status(StatusCode.ERROR, text or code.name))
