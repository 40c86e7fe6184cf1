"""Calls that are cancelled, by those who made them and within their handlers."""

import asyncio
import gc

import pytest
from google.protobuf.wrappers_pb2 import StringValue

from realloc.core.errors import Unavailable
from tests.integration.echo_calls import (
    all_answers,
    echo_pair,
    failure_of,
    within,
)


@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
def test_cancelled_work_is_an_answer(stream: bool) -> None:
    """A handler whose awaited work was cancelled answers at once, not at the deadline."""

    async def work() -> None:
        async with echo_pair() as (_, _, stub):
            error = await failure_of(stub, "cancelled inside", stream, timeout=60)
            assert isinstance(error, Unavailable)
            assert "its work was cancelled" in str(error)

    within(work)


def test_leaving_a_stream_cancels_it() -> None:
    """`async with`, `cancel` from another task, and dropping a stream all end the handler."""

    async def work() -> None:
        async with echo_pair() as (echo, _, stub):
            async with stub.Repeat(StringValue(value="wait")) as stream:
                assert (await anext(stream)).value == "wait"
            await echo.cancelled.wait()

            echo.cancelled.clear()
            echo.entered.clear()
            stream = stub.Repeat(StringValue(value="wait"))
            reader = asyncio.create_task(all_answers(stream))
            await echo.entered.wait()
            stream.cancel()
            assert len(await reader) <= 3
            await echo.cancelled.wait()

            echo.cancelled.clear()
            echo.entered.clear()
            stream = stub.Repeat(StringValue(value="wait"))
            await echo.entered.wait()
            del stream
            gc.collect()
            await echo.cancelled.wait()

    within(work)


def test_a_cancelled_task_cancels_its_call() -> None:
    """Cancelling the caller's task ends the call on the server and raises in the task."""

    async def work() -> None:
        async with echo_pair() as (echo, _, stub):
            task = asyncio.create_task(failure_of(stub, "wait", stream=False))
            await echo.entered.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await echo.cancelled.wait()

    within(work)
