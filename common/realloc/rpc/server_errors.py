"""The edge of a server: exceptions become statuses, once, for every handler.

A `ReallocError` travels as itself (see `status`). Any other exception is logged here with its
traceback and becomes INTERNAL with a text that leaks nothing. A handler that is cancelled
although its call is not (what it waited for was cancelled) becomes UNAVAILABLE: grpc alone
would leave the client waiting for its deadline.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import structlog
from google.rpc import status_pb2

from realloc.core.errors import ReallocError, Unavailable
from realloc.rpc.status import DETAILS_KEY, to_status

_INTERNAL_TEXT = "internal error; the server's log has the details"
_codes = {code.value[0]: code for code in grpc.StatusCode}


@asynccontextmanager
async def translated_errors(method: str, context: Any) -> AsyncIterator[None]:
    """Surrounds a call; see the module's text."""
    try:
        yield
    except ReallocError as error:
        await _abort(context, to_status(error))
    except grpc.aio.AbortError:
        raise
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        await _abort(context, to_status(Unavailable(f"{method}: its work was cancelled")))
    except Exception:
        structlog.get_logger(__name__).exception("call failed", method=method)
        await context.abort(grpc.StatusCode.INTERNAL, _INTERNAL_TEXT)


async def _abort(context: Any, status: status_pb2.Status) -> None:
    await context.abort(
        _codes[status.code],
        status.message,
        ((DETAILS_KEY, status.SerializeToString()),),
    )
