"""Server interceptors as async context managers around a whole call.

    @asynccontextmanager
    async def around(method: str, context: grpc.aio.ServicerContext): ...
    server = grpc.aio.server(interceptors=[Around(around)])

The context manager is entered and left in the task of the call, for unary and streaming
handlers alike, also when the call is cancelled while a response waits to be sent.
"""

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any

import grpc

AroundCall = Callable[[str, Any], AbstractAsyncContextManager[None]]
"""(full method without the leading slash, servicer context) → what surrounds the call."""


class Around(grpc.aio.ServerInterceptor):
    """Runs every handler inside of a context manager."""

    def __init__(self, around: AroundCall) -> None:
        self._around = around

    async def intercept_service(
        self,
        continuation: Callable[[Any], Awaitable[Any]],
        handler_call_details: Any,
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method.removeprefix("/")
        return _wrapped(handler, lambda context: self._around(method, context))


def _wrapped(handler: Any, around: Callable[[Any], AbstractAsyncContextManager[None]]) -> Any:
    if handler.response_streaming:
        make = (
            grpc.stream_stream_rpc_method_handler
            if handler.request_streaming
            else grpc.unary_stream_rpc_method_handler
        )
        inner = handler.stream_stream if handler.request_streaming else handler.unary_stream
        behavior: Any = _streaming(inner, around)
    else:
        make = (
            grpc.stream_unary_rpc_method_handler
            if handler.request_streaming
            else grpc.unary_unary_rpc_method_handler
        )
        inner = handler.stream_unary if handler.request_streaming else handler.unary_unary
        behavior = _unary(inner, around)
    return make(
        behavior,
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )


def _unary(inner: Any, around: Callable[[Any], AbstractAsyncContextManager[None]]) -> Any:
    async def call(request: Any, context: Any) -> Any:
        async with around(context):
            return await inner(request, context)

    return call


def _streaming(inner: Any, around: Callable[[Any], AbstractAsyncContextManager[None]]) -> Any:
    # Writes instead of yielding: a generator that is cancelled while its response is being
    # sent would be closed later, in another task, by the garbage collector.
    async def call(request: Any, context: Any) -> None:
        async with around(context):
            if not inspect.isasyncgenfunction(inner):
                await inner(request, context)
                return
            responses: AsyncIterator[Any] = inner(request, context)
            async with aclosing(responses):  # type: ignore[type-var]  # a generator
                async for response in responses:
                    await context.write(response)

    return call
