"""The processes of a reallocation, and one call to each of them at a time.

Errors of a process come back with its name and ranks in front.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from realloc.api.shard.v1 import shard_pb2_grpc
from realloc.coordination.members import Members
from realloc.coordination.membership import Member
from realloc.core.errors import (
    Conflict,
    InvalidInput,
    NotFound,
    Problem,
    ReallocError,
    Unavailable,
    raise_problems,
)
from services.param_store.model import Model, PlacedLayout
from services.param_store.plans import PlannedTransfer

Connect = Callable[[str], Any]
"""A channel to an address."""
Result = TypeVar("Result")
_STRAGGLER_SECONDS = 0.5
"""Between the first and the last failure of calls that fail for one reason."""
_MAX_ERRORS = 4
"""Errors in one message; a thousand shards may wait for one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Participant:
    """A process of a transfer and the ranks that it holds."""

    member: Member
    transfer: Any
    """Stub of its TransferService."""
    endpoints: tuple[int, ...] = ()
    """Indices in the plan, in local rank order."""
    is_source: bool = False
    is_destination: bool = False
    ranks: str = ""
    """What it holds, for errors."""

    def named_endpoints(self) -> Iterable[tuple[int, str]]:
        """Its endpoints, and how errors call each."""
        several = len(self.endpoints) > 1
        for local, endpoint in enumerate(self.endpoints):
            yield endpoint, f"{self.member.name}/{local}" if several else self.member.name

    async def call(self, method: str, request: Any, *, timeout_seconds: float) -> Any:
        """One call of its TransferService; an error names the process."""
        try:
            return await getattr(self.transfer, method)(request, timeout=timeout_seconds)
        except InvalidInput as error:
            raise InvalidInput(
                *(
                    Problem(f"{self.member.name}: {problem.path}", problem.reason)
                    for problem in error.problems
                )
            ) from error
        except ReallocError as error:
            raise type(error)(f"{self.member.name} ({self.ranks}): {error}") from error


class Processes:
    """Finds processes among the members, and their stubs."""

    def __init__(self, members: Members, connect: Connect) -> None:
        self._members = members
        self._connect = connect

    def find(self, name: str) -> Member | None:
        """The process of a name, if it is there."""
        return next((each for each in self._members.current() if each.name == name), None)

    def is_present(self, member: Member) -> bool:
        """True while the same incarnation is there."""
        return self._members.is_present(member)

    def incarnations(self, placed: PlacedLayout) -> tuple[str, ...]:
        """Incarnation of the process of each rank; empty text where there is none."""
        found = (self.find(shard) for shard in placed.shards)
        return tuple(member.incarnation if member else "" for member in found)

    def nodes(self, model: Model, target: PlacedLayout) -> dict[int, int]:
        """Node of every device of both layouts, from what its processes registered.

        Raises:
            NotFound: a process is not there; its ranks are named.
            InvalidInput: a process lives on another device than its first rank.
            Conflict: a process owns no device.
        """
        nodes = {
            member.device: member.node or 0
            for member in self._members.current()
            if member.device is not None
        }
        for placed in (model.source, target):
            self._check(placed)
            for device in placed.layout.devices:
                nodes.setdefault(device, 0)
        return nodes

    def participants(
        self, model: Model, target: PlacedLayout, planned: PlannedTransfer
    ) -> tuple[Participant, ...]:
        """The processes of a plan: endpoints of one process are named ``process`` or
        ``process/rank``."""
        by_process: dict[str, list[int]] = {}
        for index, endpoint in enumerate(planned.plan.endpoints):
            by_process.setdefault(endpoint.name.split("/")[0], []).append(index)
        return tuple(
            Participant(
                member=(member := self._require(process, model.source)),
                transfer=self.stub(member),
                endpoints=tuple(indices),
                is_source=process in model.source.shards,
                is_destination=process in target.shards,
                ranks=", ".join(planned.expected[index].rank for index in indices),
            )
            for process, indices in by_process.items()
        )

    def stub(self, member: Member) -> Any:
        """TransferService of a process."""
        return shard_pb2_grpc.TransferServiceStub(self._connect(member.address))

    def _check(self, placed: PlacedLayout) -> None:
        problems = []
        for shard in dict.fromkeys(placed.shards):
            member, first = self._require(shard, placed), placed.ranks_of(shard)[0]
            if member.device is None:
                raise Conflict(f"{shard} owns no device and cannot hold weights")
            if member.device != placed.layout.devices[first]:
                problems.append(
                    Problem(
                        f"shards[{first}]",
                        f"rank {first} of {placed.layout.short} lives on device "
                        f"{placed.layout.devices[first]} and {shard} owns device {member.device}",
                    )
                )
        raise_problems(problems)

    def _require(self, name: str, placed: PlacedLayout) -> Member:
        member = self.find(name)
        if member is None:
            ranks = ", ".join(map(str, placed.ranks_of(name)))
            raise NotFound(
                f"no process named {name} is registered"
                + (f"; it should hold rank {ranks} of {placed.layout.short}" if ranks else "")
            )
        return member


async def each(
    participants: Sequence[Participant],
    call: Callable[[Participant], Awaitable[Result]],
    *,
    due_seconds: float = math.inf,
) -> list[Result]:
    """One call per participant, all at once; the first error cancels the rest.

    Wrong inputs are waited for: all of them are reported together. So are the errors of those who
    become unavailable with the first one: one is the cause, the others waited for each other.

    Args:
        due_seconds: when every call should have ended. Whoever is silent after a failure later
            than that is the cause.
    """
    began = time.monotonic()
    failed: list[BaseException] = []
    tasks = [asyncio.ensure_future(_awaited(call(one), failed)) for one in participants]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        if failed:
            invalid = isinstance(failed[0], InvalidInput)
            await asyncio.wait(tasks, timeout=None if invalid else _STRAGGLER_SECONDS)
        raise_problems(
            problem for error in map(_invalid, tasks) if error for problem in error.problems
        )
        for error in failed:
            if not isinstance(error, Unavailable):
                raise error
        if failed:
            late = time.monotonic() - began >= due_seconds
            pairs = zip(participants, tasks, strict=True)
            silent = [one for one, task in pairs if late and not task.done()]
            raise _together(failed, silent, due_seconds)
        return [task.result() for task in tasks]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _together(
    failed: Sequence[BaseException], silent: Sequence[Participant], due_seconds: float
) -> Unavailable:
    """One error of several, the first ones first."""
    parts = list(dict.fromkeys(map(str, failed)))
    more = [f"and {len(parts) - _MAX_ERRORS} more"] if len(parts) > _MAX_ERRORS else []
    parts = [*parts[:_MAX_ERRORS], *more]
    if silent:
        names = ", ".join(f"{one.member.name} ({one.ranks})" for one in silent)
        parts = [f"{names} did not answer within {due_seconds:g} s", *parts]
    return Unavailable("; ".join(parts))


async def settled(calls: Iterable[Awaitable[Result]]) -> Mapping[int, BaseException]:
    """Wait for all calls, whatever they do; the errors by position."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    return {
        index: result for index, result in enumerate(results) if isinstance(result, BaseException)
    }


def _invalid(task: "asyncio.Future[Any]") -> InvalidInput | None:
    error = task.exception() if task.done() and not task.cancelled() else None
    return error if isinstance(error, InvalidInput) else None


async def _awaited(work: Awaitable[Result], failed: list[BaseException]) -> Result:
    try:
        return await work
    except Exception as error:
        failed.append(error)
        raise
