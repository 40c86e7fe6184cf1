"""One reallocation on its shards and in its record: prepare, transfer, verify, commit or abort.

Until COMMITTING is written in the record, every failure aborts; from the moment that it may
have been written only the record counts, and whoever finds it there commits.
"""

import asyncio
import time
import uuid
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import structlog

from realloc.core.errors import NotFound, ReallocError, Unavailable
from realloc.telemetry.names import Attribute, Span
from realloc.telemetry.spans import span
from services.param_store.baselines import Baselines
from services.param_store.digests import Digests, verify_digests
from services.param_store.measurements import (
    record_committed,
    record_phases,
    traffic_attributes,
)
from services.param_store.model import Model
from services.param_store.orders import Reallocation, ReallocationOrder, TransferMode
from services.param_store.participants import Processes
from services.param_store.phases import Phase, PhaseClock
from services.param_store.plans import PlannedTransfer, Plans
from services.param_store.records import (
    ReallocationRecord,
    Record,
    RecordedParticipant,
    Records,
)
from services.param_store.registry import Registry
from services.param_store.session import ABORT_SECONDS, Session, abort, commit

log = structlog.get_logger(__name__)

SETTLE_SECONDS = 30.0
"""Deadline for finishing what another param-store left."""


class Transactions:
    """Carries out reallocations whose devices are free, and settles those that others left."""

    def __init__(
        self, *, registry: Registry, records: Records, processes: Processes, plans: Plans
    ) -> None:
        self._registry = registry
        self._records = records
        self._processes = processes
        self._plans = plans
        self._baselines = Baselines()
        # Connections of shards are used again as long as nothing failed: those that were through
        # before a failure have not noticed it. Nor does a successor know of failures before.
        self._group_seed = uuid.uuid4().hex

    async def run(
        self, order: ReallocationOrder, model: Model, nodes: Mapping[int, int]
    ) -> Reallocation:
        """Bring the target to the version; it does not have it yet.

        Args:
            nodes: node of each device.

        Raises:
            InvalidInput, NotFound, Conflict, Unavailable: as `Reallocator.reallocate`.
        """
        clock = PhaseClock(time.monotonic())
        try:
            return await self._run(order, model, nodes, clock)
        finally:
            record_phases(order.model_id, clock)

    async def settle(self, record: Record) -> None:
        """Finish what has begun to commit; abort what has not."""
        value = record.value
        log.info("settling", request=value.request_id, phase=value.phase.value)
        self._group_seed = uuid.uuid4().hex
        if value.phase is Phase.COMMITTING:
            lost = await commit(value, self._processes, SETTLE_SECONDS)
            await self._close_record(record, None if lost else value.outcome)
        else:
            await record.advance(Phase.ABORTED)
            await abort(value, self._processes)

    def release(self, job_id: str) -> None:
        """Forget what was kept of a job."""
        self._baselines.release(job_id)

    async def _run(
        self, order: ReallocationOrder, model: Model, nodes: Mapping[int, int], clock: PhaseClock
    ) -> Reallocation:
        with span(Span.REALLOCATION_PLAN):
            planned = await self._plans.plan(model, order.target, dtype=order.dtype, node_of=nodes)
        plan_seconds = time.monotonic() - clock.started
        participants = self._processes.participants(model, order.target, planned)
        session = Session(order, participants, group_seed=self._group_seed)
        record = await self._records.new(_record_of(order, session))
        await record.begin(order.timeout_seconds)
        try:
            with span(Span.REALLOCATION_PREPARE) as current:
                await session.meet()
                await session.prepare(planned)
                digests: Digests | None = None
                if order.mode is TransferMode.CHANGED:
                    digests = await session.digest()
                    planned = await self._only_changed(order, model, nodes, planned, digests)
                    await session.prepare(planned)
                traffic = traffic_attributes(planned.plan.traffic)
                current.set_attributes({str(key): value for key, value in traffic.items()})
            clock.enter(Phase.TRANSFERRING, time.monotonic())
            with span(Span.REALLOCATION_TRANSFER, traffic):
                reports = await session.execute()
            clock.enter(Phase.VERIFYING, time.monotonic())
            with span(Span.REALLOCATION_VERIFY) as current:
                num_digests = verify_digests(reports, planned.plan)
                current.set_attribute(str(Attribute.DIGEST_OK), True)
        except BaseException:
            clock.enter(Phase.ABORTED, time.monotonic())
            await self._abort(record)
            raise
        outcome = _outcome(order, planned, clock, plan_seconds, num_digests)
        done = await _unbroken(self._commit(record, order, outcome, clock))
        self._baselines.remember(order, digests)
        return done

    async def _only_changed(
        self,
        order: ReallocationOrder,
        model: Model,
        nodes: Mapping[int, int],
        planned: PlannedTransfer,
        digests: Digests,
    ) -> PlannedTransfer:
        """The plan without the tensors that the target has already."""
        only = self._baselines.changed(order, model, planned, digests)
        if only is None:
            return planned
        return await self._plans.plan(
            model, order.target, dtype=order.dtype, node_of=nodes, only=only
        )

    async def _commit(
        self,
        record: Record,
        order: ReallocationOrder,
        outcome: Reallocation,
        clock: PhaseClock,
    ) -> Reallocation:
        """From here on it only goes forward."""
        clock.enter(Phase.COMMITTING, time.monotonic())
        try:
            with span(Span.REALLOCATION_COMMIT):
                await record.advance(Phase.COMMITTING, outcome=outcome)
                lost = await commit(record.value, self._processes, order.timeout_seconds)
                clock.enter(Phase.COMMITTED, time.monotonic())
                outcome = replace(
                    outcome,
                    seconds=time.monotonic() - clock.started,
                    commit_seconds=clock.seconds[Phase.COMMITTING],
                )
                await self._close_record(record, None if lost else outcome)
        except ReallocError:
            self._group_seed = uuid.uuid4().hex
            raise
        if lost:
            self._group_seed = uuid.uuid4().hex
            raise _lost_in_commit(record.value, lost)
        record_committed(order.model_id, outcome)
        log.info(
            "weights reallocated",
            model=order.model_id,
            version=order.weight_version,
            bytes=outcome.bytes,
            seconds=round(outcome.seconds, 4),
        )
        return outcome

    async def _close_record(self, record: Record, outcome: Reallocation | None) -> None:
        """Write the version down, then that all is done; safe to do twice."""
        value = record.value
        with suppress(NotFound):  # the job was released meanwhile
            await self._registry.set_version(
                value.job_id, value.model_id, value.target, value.target.weight_version
            )
        await record.advance(Phase.COMMITTED, outcome=outcome)

    async def _abort(self, record: Record) -> None:
        """Nobody writes COMMITTING any more: dropping what was staged is right in any case."""
        self._group_seed = uuid.uuid4().hex
        with span(Span.REALLOCATION_ABORT), suppress(ReallocError):
            await abort(record.value, self._processes)
            await record.advance(Phase.ABORTED, timeout_seconds=ABORT_SECONDS)


def _record_of(order: ReallocationOrder, session: Session) -> ReallocationRecord:
    return ReallocationRecord(
        request_id=order.request_id,
        job_id=order.job_id,
        model_id=order.model_id,
        target=order.target,
        session_id=session.session_id,
        participants=tuple(
            RecordedParticipant(
                name=each.member.name,
                incarnation=each.member.incarnation,
                is_destination=each.is_destination,
            )
            for each in session.participants
        ),
        phase=Phase.PREPARING,
    )


def _outcome(
    order: ReallocationOrder,
    planned: PlannedTransfer,
    clock: PhaseClock,
    plan_seconds: float,
    num_digests: int,
) -> Reallocation:
    """The outcome as far as it is known before the commit."""
    return Reallocation(
        weight_version=order.weight_version,
        bytes=planned.plan.traffic.total_bytes,
        seconds=time.monotonic() - clock.started,
        plan_seconds=plan_seconds,
        prepare_seconds=clock.seconds[Phase.PREPARING] - plan_seconds,
        transfer_seconds=clock.seconds[Phase.TRANSFERRING],
        commit_seconds=0.0,
        digest_ok=True,
        num_digests=num_digests,
        traffic=planned.plan.traffic,
        num_tensors=planned.num_tensors,
    )


def _lost_in_commit(value: ReallocationRecord, lost: tuple[str, ...]) -> Unavailable:
    return Unavailable(
        f"{', '.join(lost)} left while {value.model_id} version {value.target.weight_version} "
        "was committed; every other process serves that version"
    )


async def _unbroken(work: Coroutine[Any, Any, Reallocation]) -> Reallocation:
    """Await work to its end, also where the caller is cancelled; then the caller is."""
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
