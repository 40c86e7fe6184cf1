"""The door of a server: who calls, and may it? Before anything is done for the call.

Health checks are answered to anybody who gets as far as asking.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import structlog

from realloc.core.errors import PermissionDenied, ReallocError, Unauthenticated
from realloc.rpc.interception import AroundCall
from realloc.security.roles import Caller, Role, may_call
from realloc.security.tokens import TokenFile

log = structlog.get_logger(__name__)

_OPEN = "grpc.health."
_BEARER = "bearer "


def checked_access(tokens: TokenFile | None) -> AroundCall:
    """Surrounds a call that the role of its caller may make.

    Args:
        tokens: those of the clients; None knows callers by their certificates.
    """

    @asynccontextmanager
    async def around(method: str, context: Any) -> AsyncIterator[None]:
        try:
            _check(method, tokens, context)
        except ReallocError as error:
            log.info("call refused", method=method, peer=context.peer(), reason=str(error))
            raise
        yield

    return around


def _check(method: str, tokens: TokenFile | None, context: Any) -> None:
    if method.startswith(_OPEN):
        return
    caller = _by_certificate(context) if tokens is None else _by_token(tokens, context)
    if not may_call(caller.role, method):
        raise PermissionDenied(f"{caller.name} is a {caller.role} here and may not call {method}")


def _by_token(tokens: TokenFile, context: Any) -> Caller:
    for key, value in context.invocation_metadata() or ():
        if key == "authorization" and isinstance(value, str) and value.lower().startswith(_BEARER):
            return tokens.caller(value[len(_BEARER) :].strip())
    raise Unauthenticated(
        "this call carries no token; set REALLOC_TOKEN or REALLOC_TOKEN_FILE, or pass token=…"
    )


def _by_certificate(context: Any) -> Caller:
    """The handshake has verified the certificate; its common name is the role."""
    names = context.auth_context().get("x509_common_name", ())
    if not names:
        raise Unauthenticated("this call shows no certificate; set tls_dir")
    name = names[0].decode(errors="replace")
    try:
        return Caller(name=name, role=Role(name))
    except ValueError:
        raise PermissionDenied(f"the certificate's common name {name!r} is no role") from None
