"""Errors as statuses: each class comes back as itself."""

import grpc
import pytest
from google.rpc import status_pb2

from realloc.core import errors
from realloc.core.errors import Conflict, InvalidInput, Problem, ReallocError
from realloc.rpc.status import MAX_DETAILS_BYTES, code_of, from_status, to_status


class Stale(Conflict):
    """A specialisation that the wire does not know."""


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("NotFound", grpc.StatusCode.NOT_FOUND),
        ("Conflict", grpc.StatusCode.FAILED_PRECONDITION),
        ("ResourceExhausted", grpc.StatusCode.RESOURCE_EXHAUSTED),
        ("Unavailable", grpc.StatusCode.UNAVAILABLE),
        ("JobFailed", grpc.StatusCode.ABORTED),
        ("ReallocError", grpc.StatusCode.INTERNAL),
    ],
)
def test_each_class_comes_back_as_itself(name: str, code: grpc.StatusCode) -> None:
    """Class, text and code survive."""
    error = getattr(errors, name)("needs 160 GiB — has 80")
    found = from_status(to_status(error))
    assert type(found) is type(error)
    assert str(found) == str(error)
    assert code_of(error) is code


def test_problems_come_back_with_their_paths() -> None:
    """InvalidInput carries each problem as a field violation."""
    error = InvalidInput(Problem("plan.calls[2].mesh", "has 3 devices"), Problem("", "is empty"))
    found = from_status(to_status(error))
    assert isinstance(found, InvalidInput)
    assert found.problems == error.problems


def test_no_class_of_the_tree_is_forgotten() -> None:
    """Every class of core.errors travels as itself."""
    for found in vars(errors).values():
        if isinstance(found, type) and issubclass(found, ReallocError):
            error = InvalidInput.at("a", "b") if found is InvalidInput else found("text")
            assert type(from_status(to_status(error))) is found


def test_subclasses_travel_as_what_they_specialise() -> None:
    """A class that the client does not know becomes its nearest known parent."""
    assert type(from_status(to_status(Stale("old leader")))) is Conflict


def test_large_errors_are_cut_to_what_fits() -> None:
    """A thousand problems become as many as fit and the number of the rest."""
    problems = [Problem(f"field[{i}]", "ü" * 100) for i in range(1000)]
    status = to_status(InvalidInput(*problems))
    assert status.ByteSize() < 2 * MAX_DETAILS_BYTES
    found = from_status(status)
    assert isinstance(found, InvalidInput)
    assert found.problems[0] == problems[0]
    kept = len(found.problems) - 1
    assert found.problems[-1] == Problem("", f"{1000 - kept} more problems")


def test_statuses_of_others_are_not_ours() -> None:
    """A status without our domain is left to its code."""
    assert from_status(status_pb2.Status(code=5, message="x")) is None
