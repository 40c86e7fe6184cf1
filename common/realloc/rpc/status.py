"""Our errors as google.rpc.Status and back: the same class on both sides of a call.

| class             | status code         | details                                          |
|-------------------|---------------------|--------------------------------------------------|
| InvalidInput      | INVALID_ARGUMENT    | ErrorInfo, BadRequest with each field's problem  |
| NotFound          | NOT_FOUND           | ErrorInfo                                        |
| Conflict          | FAILED_PRECONDITION | ErrorInfo                                        |
| ResourceExhausted | RESOURCE_EXHAUSTED  | ErrorInfo                                        |
| Unavailable       | UNAVAILABLE         | ErrorInfo                                        |
| JobFailed         | ABORTED             | ErrorInfo                                        |

ErrorInfo is (reason = class name, domain = ``realloc``). A status of someone else, such as a
broken connection, becomes the class of its code: UNAVAILABLE, DEADLINE_EXCEEDED and a
cancellation by the other side are `Unavailable`; what stays unknown is a plain `ReallocError`.
"""

from collections.abc import Iterable

import grpc
from google.rpc import error_details_pb2, status_pb2

from realloc.core.errors import (
    Conflict,
    InvalidInput,
    JobFailed,
    NotFound,
    PermissionDenied,
    Problem,
    ReallocError,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)

DOMAIN = "realloc"
DETAILS_KEY = "grpc-status-details-bin"

MAX_MESSAGE_BYTES = 1024
MAX_DETAILS_BYTES = 3072
"""Trailing metadata above 8 KiB is refused by receivers; message and details share it."""

_CODES: dict[type[ReallocError], grpc.StatusCode] = {
    InvalidInput: grpc.StatusCode.INVALID_ARGUMENT,
    Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    NotFound: grpc.StatusCode.NOT_FOUND,
    Conflict: grpc.StatusCode.FAILED_PRECONDITION,
    ResourceExhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
    JobFailed: grpc.StatusCode.ABORTED,
}
_BY_REASON = {known.__name__: known for known in _CODES}
_BY_CODE: dict[grpc.StatusCode, type[ReallocError]] = {
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: Conflict,
    grpc.StatusCode.FAILED_PRECONDITION: Conflict,
    grpc.StatusCode.ABORTED: Conflict,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: Unavailable,
    grpc.StatusCode.CANCELLED: Unavailable,
}


def code_of(error: ReallocError) -> grpc.StatusCode:
    """The status code that an error travels under."""
    return _CODES.get(_known_class(error), grpc.StatusCode.INTERNAL)


def to_status(error: ReallocError) -> status_pb2.Status:
    """The status of an error, cut to what fits into trailing metadata."""
    status = status_pb2.Status(
        code=code_of(error).value[0], message=_cut(str(error), MAX_MESSAGE_BYTES)
    )
    reason = _known_class(error).__name__
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN))
    if isinstance(error, InvalidInput):
        status.details.add().Pack(_bad_request(error.problems))
    return status


def from_rpc_error(error: grpc.RpcError, method: str, address: str) -> ReallocError:
    """The error class behind a failed call, sync or aio."""
    code, details = error.code(), error.details() or ""
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY:
            found = from_status(status_pb2.Status.FromString(value))
            if found is not None:
                return found
    where = f"{method} at {address}"
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        return InvalidInput.at("", f"{where}: {details}")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return Unavailable(f"{where} did not answer in time")
    return _BY_CODE.get(code, ReallocError)(f"{where}: {code.name}: {details}")


def from_status(status: status_pb2.Status) -> ReallocError | None:
    """The error that `to_status` made; None where the status is not one of ours."""
    info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(bad_request)
    if info.domain != DOMAIN:
        return None
    if info.reason == InvalidInput.__name__:
        violations = bad_request.field_violations
        return InvalidInput(*(Problem(each.field, each.description) for each in violations))
    return _BY_REASON.get(info.reason, ReallocError)(status.message)


def _known_class(error: ReallocError) -> type[ReallocError]:
    """The nearest class of the error tree: subclasses travel as what they specialise."""
    for owner in type(error).__mro__:
        if owner in _CODES:
            return owner
    return ReallocError


def _bad_request(problems: Iterable[Problem]) -> error_details_pb2.BadRequest:
    found = error_details_pb2.BadRequest()
    problems = tuple(problems)
    for index, problem in enumerate(problems):
        found.field_violations.add(
            field=_cut(problem.path, 256), description=_cut(problem.reason, MAX_MESSAGE_BYTES)
        )
        if found.ByteSize() > MAX_DETAILS_BYTES:
            del found.field_violations[-1]
            found.field_violations.add(description=f"{len(problems) - index} more problems")
            break
    return found


def _cut(text: str, max_bytes: int) -> str:
    data = text.encode()
    return text if len(data) <= max_bytes else data[: max_bytes - 3].decode(errors="ignore") + "…"
