"""A service for the tests of `realloc.rpc`: it does what the text of a request says."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf.wrappers_pb2 import StringValue

from realloc.core import errors
from realloc.core.errors import InvalidInput, Problem

SERVICE = "realloc.test.Echo"


class Echo:
    """Both methods answer with the text, or fail as the text says."""

    def __init__(self, elsewhere: Callable[[str], Awaitable[str]] | None = None) -> None:
        self.elsewhere = elsewhere
        self.cancelled = asyncio.Event()
        self.entered = asyncio.Event()

    async def Say(self, request: StringValue, context: Any) -> StringValue:
        with self._noticing_cancellation():
            await self._act(request.value)
        if self.elsewhere is not None:
            return StringValue(value=await self.elsewhere(request.value))
        return StringValue(value=request.value)

    async def Repeat(self, request: StringValue, context: Any) -> AsyncIterator[StringValue]:
        """Three answers, then whatever the text asks for."""
        with self._noticing_cancellation():
            for _ in range(3):
                yield StringValue(value=request.value)
            await self._act(request.value)

    @contextmanager
    def _noticing_cancellation(self) -> Iterator[None]:
        """Wherever it strikes: a client may leave while an answer is still being written."""
        try:
            yield
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.set()
            raise

    async def _act(self, text: str) -> None:
        self.entered.set()
        if text == "wait":
            await asyncio.Event().wait()
        if text == "cancelled inside":
            task = asyncio.ensure_future(asyncio.Event().wait())
            asyncio.get_running_loop().call_soon(task.cancel)
            await task
        if text == "InvalidInput":
            raise InvalidInput(Problem("a.b", "is 3 — not 4"), Problem("c[1]", "is missing"))
        if text == "many problems":
            raise InvalidInput(*(Problem(f"field[{i}]", "is — wrong" * 20) for i in range(1000)))
        if text == "bug":
            raise RuntimeError("/secret/path")
        if hasattr(errors, text):
            raise getattr(errors, text)(f"{text}: ümlaut")


def add_to_server(servicer: Echo, server: Any) -> None:
    """What protoc would generate."""
    shape = {
        "request_deserializer": StringValue.FromString,
        "response_serializer": StringValue.SerializeToString,
    }
    handlers = {
        "Say": grpc.unary_unary_rpc_method_handler(servicer.Say, **shape),
        "Repeat": grpc.unary_stream_rpc_method_handler(servicer.Repeat, **shape),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


class EchoStub:
    """What protoc would generate."""

    def __init__(self, channel: Any) -> None:
        shape = {
            "request_serializer": StringValue.SerializeToString,
            "response_deserializer": StringValue.FromString,
        }
        self.Say = channel.unary_unary(f"/{SERVICE}/Say", **shape)
        self.Repeat = channel.unary_stream(f"/{SERVICE}/Repeat", **shape)
