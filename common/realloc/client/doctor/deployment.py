"""A deployment as the doctor found it: who is registered, and what each process answers."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from realloc.api.diagnostics.v1 import diagnostics_pb2 as pb
from realloc.api.diagnostics.v1 import diagnostics_pb2_grpc
from realloc.coordination.membership import MEMBERS_PREFIX, Member
from realloc.coordination.store import Store
from realloc.core.errors import InvalidInput, ReallocError
from realloc.core.mesh import Cluster, from_labels
from realloc.rpc.channel import Channel
from realloc.rpc.channels import Channels

_MOST_AT_ONCE = 64
"""Processes that are asked at the same time."""


class Reach:
    """Channels to processes: schedulers know people by tokens, others by certificates."""

    def __init__(self, peers: Channels, schedulers: Channels) -> None:
        self._peers = peers
        self._schedulers = schedulers

    def channel(self, member: Member) -> Channel:
        """The channel to a member."""
        channels = self._schedulers if member.kind == "scheduler" else self._peers
        return channels.get(member.address)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a process says about itself."""

    clock_offset_seconds: float
    """Its clock minus the doctor's, seen from the middle of the call."""
    round_trip_seconds: float
    """The offset is not known better than half of this."""
    num_gpus: int
    cuda_version: str
    job_id: str
    shm_free_bytes: int
    disk_free_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """Everybody who is registered, with an answer or the reason why there is none."""

    members: tuple[Member, ...]
    unreadable: Mapping[str, str]
    """Registrations that cannot be read, by key."""
    cluster: Cluster | None
    """What the scheduler was told to expect; None where no scheduler says it."""
    answers: Mapping[str, Answer]
    """By the member's key."""
    silent: Mapping[str, str]
    """Why a member gave no answer, by its key."""
    leaders: Mapping[str, bool]
    """Whether a service that needs a leader has one, by its kind."""

    def shards(self) -> tuple[Member, ...]:
        """Processes that own a device and answer."""
        return tuple(
            each for each in self.members if each.device is not None and each.key in self.answers
        )


async def read_deployment(
    store: Store,
    reach: Reach,
    *,
    timeout_seconds: float,
    clock: Callable[[], float] = time.time,
) -> Deployment:
    """Who is there, and what each says within the time.

    Raises:
        Unavailable: etcd does not answer.
    """
    listing = await store.list(MEMBERS_PREFIX)
    members, unreadable = [], {}
    for entry in listing:
        try:
            members.append(Member.from_json(entry.value))
        except InvalidInput as error:
            unreadable[entry.key] = str(error)
    answers, silent = await _ask(members, reach, timeout_seconds, clock)
    leaders = {}
    for kind in ("scheduler", "param_store"):
        leaders[kind] = bool((await store.list(f"/realloc/elections/{kind}/")).entries)
    return Deployment(
        members=tuple(sorted(members, key=lambda each: (each.kind, each.device or 0, each.name))),
        unreadable=unreadable,
        cluster=_cluster(members),
        answers=answers,
        silent=silent,
        leaders=leaders,
    )


async def _ask(
    members: Sequence[Member],
    reach: Reach,
    timeout_seconds: float,
    clock: Callable[[], float],
) -> tuple[dict[str, Answer], dict[str, str]]:
    gate = asyncio.Semaphore(_MOST_AT_ONCE)
    answers: dict[str, Answer] = {}
    silent: dict[str, str] = {}

    async def ask(member: Member) -> None:
        async with gate:
            try:
                answers[member.key] = await _inspect(member, reach, timeout_seconds, clock)
            except ReallocError as error:
                silent[member.key] = str(error)

    await asyncio.gather(*(ask(member) for member in members))
    return answers, silent


async def _inspect(
    member: Member, reach: Reach, timeout_seconds: float, clock: Callable[[], float]
) -> Answer:
    stub = diagnostics_pb2_grpc.DiagnosticsServiceStub(reach.channel(member))
    await stub.Inspect(pb.InspectRequest(), timeout=timeout_seconds)  # opens the connection
    before = clock()
    response = await stub.Inspect(pb.InspectRequest(), timeout=timeout_seconds)
    after = clock()
    return Answer(
        clock_offset_seconds=response.time_unix_nanos / 1e9 - (before + after) / 2,
        round_trip_seconds=after - before,
        num_gpus=response.num_gpus,
        cuda_version=response.cuda_version,
        job_id=response.job_id,
        shm_free_bytes=response.shm_free_bytes,
        disk_free_bytes=response.disk_free_bytes,
    )


def _cluster(members: Sequence[Member]) -> Cluster | None:
    for member in members:
        if member.kind == "scheduler":
            try:
                return from_labels(member.labels)
            except InvalidInput:
                continue
    return None
