"""Carries out reallocations: prepare, transfer, verify, then commit or abort."""

import asyncio
import hashlib
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import structlog

from realloc.api.shard.v1 import shard_pb2, shard_pb2_grpc
from realloc.coordination.members import Members
from realloc.coordination.membership import Member
from realloc.core.errors import Conflict, NotFound, ReallocError, Unavailable
from realloc.core.transfer import Traffic, TransferPlan, TransferSession
from realloc.telemetry.names import Attribute, Span
from realloc.telemetry.spans import Attributes, span
from realloc.wire.convert import to_proto
from services.param_store.model import Model, PlacedLayout
from services.param_store.phases import Phase, PhaseClock
from services.param_store.plans import Plans
from services.param_store.registry import Registry

log = structlog.get_logger(__name__)

_ABORT_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reallocation:
    """A reallocation that was committed."""

    weight_version: int
    bytes: int
    seconds: float
    plan_seconds: float
    prepare_seconds: float
    transfer_seconds: float
    commit_seconds: float
    digest_ok: bool
    num_digests: int
    traffic: Traffic


@dataclass(frozen=True, slots=True, kw_only=True)
class ReallocationOrder:
    """What somebody asked for."""

    request_id: str
    job_id: str
    model_id: str
    target: PlacedLayout
    weight_version: int
    sequences: Mapping[str, int]
    """Per shard its place in the order of the job's calls."""
    timeout_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Participant:
    """A process of a transfer and the ranks that it holds."""

    member: Member
    transfer: Any
    endpoints: tuple[int, ...]
    """Indices in the plan, in local rank order."""
    is_destination: bool


class Reallocator:
    """Moves weights. Requests with one id are carried out once."""

    def __init__(
        self,
        *,
        registry: Registry,
        members: Members,
        plans: Plans,
        connect: Callable[[str], Any],
    ) -> None:
        self._registry = registry
        self._members = members
        self._plans = plans
        self._connect = connect
        self._running: dict[str, asyncio.Task[Reallocation]] = {}
        self._failures = 0

    async def plan(self, job_id: str, model_id: str, target: PlacedLayout) -> TransferPlan:
        """What a reallocation would move."""
        model = await self._registry.get(job_id, model_id)
        nodes = self._nodes((*model.source.shards, *target.shards))
        return await self._plans.plan(model, target, dtype="float32", node_of=nodes)

    async def reallocate(self, order: ReallocationOrder) -> Reallocation:
        """Bring a target to a version; a request id that came before gets its outcome."""
        task = self._running.get(order.request_id)
        if task is None:
            task = asyncio.create_task(self._reallocate(order), name=order.request_id)
            self._running[order.request_id] = task
            while len(self._running) > 1024:
                self._running.pop(next(iter(self._running)))
        return await asyncio.shield(task)

    def forget(self, job_id: str) -> None:
        """Drop the outcomes of a job's requests."""
        for request_id in [key for key in self._running if key.startswith(f"{job_id}/")]:
            del self._running[request_id]

    async def _reallocate(self, order: ReallocationOrder) -> Reallocation:
        clock = PhaseClock(time.monotonic())
        model = await self._registry.get(order.job_id, order.model_id)
        attributes: Attributes = {
            Attribute.JOB_ID: order.job_id,
            Attribute.MODEL_ID: order.model_id,
            Attribute.WEIGHT_VERSION: order.weight_version,
        }
        with span(Span.REALLOCATION, attributes) as current:
            nodes = self._nodes((*model.source.shards, *order.target.shards))
            plan = await self._plans.plan(model, order.target, dtype="float32", node_of=nodes)
            plan_seconds = time.monotonic() - clock.started
            participants = self._participants(model, order.target, plan)
            session = await self._session(order, plan, participants)
            num_digests = await self._move(order, session, plan, participants, clock)
            await self._registry.set_version(
                order.job_id, order.model_id, order.target, order.weight_version
            )
            seconds = time.monotonic() - clock.started
            current.set_attribute(Attribute.MOVED_BYTES, plan.traffic.total_bytes)
            current.set_attribute(Attribute.DIGEST_OK, True)
        log.info(
            "weights reallocated",
            model=order.model_id,
            version=order.weight_version,
            bytes=plan.traffic.total_bytes,
            seconds=round(seconds, 4),
        )
        return Reallocation(
            weight_version=order.weight_version,
            bytes=plan.traffic.total_bytes,
            seconds=seconds,
            plan_seconds=plan_seconds,
            prepare_seconds=clock.seconds[Phase.PREPARING] - plan_seconds,
            transfer_seconds=clock.seconds[Phase.TRANSFERRING],
            commit_seconds=clock.seconds[Phase.COMMITTING],
            digest_ok=True,
            num_digests=num_digests,
            traffic=plan.traffic,
        )

    async def _move(
        self,
        order: ReallocationOrder,
        session: TransferSession,
        plan: TransferPlan,
        participants: Sequence[Participant],
        clock: PhaseClock,
    ) -> int:
        """All phases; the number of digests that agreed. Any failure before the commit aborts."""
        try:
            with span(Span.REALLOCATION_PREPARE):
                await self._prepare(order, session, plan, participants)
            clock.enter(Phase.TRANSFERRING, time.monotonic())
            with span(Span.REALLOCATION_TRANSFER):
                reports = await self._execute(order, session, participants)
            clock.enter(Phase.VERIFYING, time.monotonic())
            with span(Span.REALLOCATION_VERIFY):
                num_digests = verify_digests(reports, plan)
            clock.enter(Phase.COMMITTING, time.monotonic())
        except BaseException:
            clock.enter(Phase.ABORTED, time.monotonic())
            self._failures += 1
            await self._abort(session, participants)
            raise
        with span(Span.REALLOCATION_COMMIT):
            await self._commit(order, session, participants)
        clock.enter(Phase.COMMITTED, time.monotonic())
        return num_digests

    async def _prepare(
        self,
        order: ReallocationOrder,
        session: TransferSession,
        plan: TransferPlan,
        participants: Sequence[Participant],
    ) -> None:
        message = to_proto(session, shard_pb2.TransferSession)
        await _all(
            each.transfer.PrepareTransfer(
                shard_pb2.PrepareTransferRequest(
                    session=message,
                    job_id=order.job_id,
                    model_id=order.model_id,
                    programs=[
                        to_proto(plan.programs[index], shard_pb2.TransferProgram)
                        for index in each.endpoints
                    ],
                ),
                timeout=order.timeout_seconds,
            )
            for each in participants
        )

    async def _execute(
        self,
        order: ReallocationOrder,
        session: TransferSession,
        participants: Sequence[Participant],
    ) -> list[shard_pb2.ExecuteTransferResponse]:
        return await _all(
            each.transfer.ExecuteTransfer(
                shard_pb2.ExecuteTransferRequest(
                    session_id=session.session_id,
                    sequence=order.sequences.get(each.member.name, 0),
                ),
                timeout=order.timeout_seconds,
            )
            for each in participants
        )

    async def _commit(
        self,
        order: ReallocationOrder,
        session: TransferSession,
        participants: Sequence[Participant],
    ) -> None:
        """Make the staged weights live everywhere; a lost answer is asked for again."""
        request = shard_pb2.CommitTransferRequest(
            session_id=session.session_id, weight_version=order.weight_version
        )

        async def one(participant: Participant) -> None:
            deadline = time.monotonic() + order.timeout_seconds
            while True:
                try:
                    await participant.transfer.CommitTransfer(
                        request, timeout=order.timeout_seconds
                    )
                    return
                except Unavailable:
                    gone = not self._members.is_present(participant.member)
                    if gone or time.monotonic() > deadline:
                        raise
                    await asyncio.sleep(0.1)

        await _all(one(each) for each in participants)

    async def _abort(self, session: TransferSession, participants: Sequence[Participant]) -> None:
        request = shard_pb2.AbortTransferRequest(session_id=session.session_id)

        async def one(participant: Participant) -> None:
            with suppress(ReallocError):
                await participant.transfer.AbortTransfer(request, timeout=_ABORT_SECONDS)

        await asyncio.gather(*(one(each) for each in participants))

    def _participants(
        self, model: Model, target: PlacedLayout, plan: TransferPlan
    ) -> tuple[Participant, ...]:
        """The processes of a plan: endpoints of one process are named ``process`` or
        ``process/rank``."""
        destinations = set(target.shards)
        by_process: dict[str, list[int]] = {}
        for index, endpoint in enumerate(plan.endpoints):
            by_process.setdefault(endpoint.name.split("/")[0], []).append(index)
        found = []
        for process, indices in by_process.items():
            member = self._member(process)
            channel = self._connect(member.address)
            found.append(
                Participant(
                    member=member,
                    transfer=shard_pb2_grpc.TransferServiceStub(channel),
                    endpoints=tuple(indices),
                    is_destination=process in destinations,
                )
            )
        return tuple(found)

    async def _session(
        self, order: ReallocationOrder, plan: TransferPlan, participants: Sequence[Participant]
    ) -> TransferSession:
        """A session that meets at the first process, in a world that lives as long as all do."""
        host = participants[0]
        meeting = await host.transfer.GetRendezvous(
            shard_pb2.GetRendezvousRequest(), timeout=order.timeout_seconds
        )
        incarnations = "\n".join(
            f"{each.member.name} {each.member.incarnation}" for each in participants
        )
        # After a failure those that were through before it have not noticed: meet anew.
        meeting_id = f"{order.job_id}\n{self._failures}\n{incarnations}"
        group = hashlib.sha256(meeting_id.encode()).hexdigest()[:16]
        return TransferSession(
            session_id=uuid.uuid4().hex,
            group_id=group,
            store_host=meeting.host,
            store_port=meeting.port,
            num_endpoints=len(plan.endpoints),
            canonical_tensors=plan.canonical_tensors,
            dtype=plan.dtype,
            timeout_seconds=order.timeout_seconds,
        )

    def _member(self, name: str) -> Member:
        for member in self._members.current():
            if member.name == name:
                return member
        raise NotFound(f"no process named {name} is registered")

    def _nodes(self, shards: Sequence[str]) -> dict[int, int]:
        """Node of every device, from what its processes registered."""
        nodes = {
            member.device: member.node or 0
            for member in self._members.current()
            if member.device is not None
        }
        for shard in shards:
            if self._member(shard).device is None:
                raise Conflict(f"{shard} owns no device and cannot hold weights")
        return nodes


async def _all(work: Any) -> list[Any]:
    """All results; the first error cancels the rest and is raised as it is."""
    tasks: list[asyncio.Future[Any]] = [asyncio.ensure_future(_awaited(each)) for each in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _awaited(work: Awaitable[Any]) -> Any:
    return await work


def verify_digests(reports: Sequence[shard_pb2.ExecuteTransferResponse], plan: TransferPlan) -> int:
    """Compare what was sent with what lies at each destination.

    Returns:
        How many digests agreed: canonical tensors times destinations.

    Raises:
        Unavailable: one differs; the message names the tensor and the process.
    """
    sent: dict[tuple[int, int], int] = {}
    received: dict[tuple[int, int], int] = {}
    for report in reports:
        for digest in report.sent:
            key = (digest.endpoint, digest.canonical)
            sent[key] = (sent.get(key, 0) + digest.value) % 2**64
        for digest in report.received:
            received[(digest.endpoint, digest.canonical)] = digest.value
    for endpoint, canonical in sorted(sent.keys() | received.keys()):
        if sent.get((endpoint, canonical)) != received.get((endpoint, canonical)):
            raise Unavailable(
                f"{plan.canonical_tensors[canonical]} arrived damaged at "
                f"{plan.endpoints[endpoint].name}: its digest differs from what was sent; "
                "nothing was changed, ask again"
            )
    return len(received)
