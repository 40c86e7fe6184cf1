"""Carries out reallocations: prepare, transfer, verify, then commit or abort.

Only the leading param-store has one. Until COMMITTING is written in the record of a
reallocation, every failure aborts it; from the moment that it may have been written only the
record counts, and whoever finds it there commits.
"""

import asyncio
import time
import uuid
from collections.abc import Coroutine, Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import structlog

from realloc.api.shard.v1 import shard_pb2
from realloc.coordination.store import Store
from realloc.core.errors import Conflict, NotFound, ReallocError, Unavailable
from realloc.telemetry.names import Attribute, Span
from realloc.telemetry.spans import Attributes, span
from services.param_store.device_queue import DeviceQueue
from services.param_store.digests import Baseline, Digests, changed_tensors, verify_digests
from services.param_store.measurements import (
    record_committed,
    record_phases,
    traffic_attributes,
)
from services.param_store.model import Model, PlacedLayout
from services.param_store.orders import (
    Reallocation,
    ReallocationOrder,
    TransferMode,
    check_devices,
    nothing_moved,
)
from services.param_store.participants import Participant, Processes
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

_SETTLE_SECONDS = 30.0
"""Deadline for finishing what another param-store left."""


class Reallocator:
    """Moves weights. Requests with one id are carried out once."""

    def __init__(
        self, *, store: Store, processes: Processes, plans: Plans, queue: DeviceQueue
    ) -> None:
        """
        Args:
            store: writes to it fail once another param-store leads.
        """
        self._registry = Registry(store)
        self._records = Records(store)
        self._processes = processes
        self._plans = plans
        self._queue = queue
        self._running: dict[tuple[str, str], _Running] = {}
        self._recovering: set[asyncio.Task[None]] = set()
        self._baselines: dict[tuple[str, str, PlacedLayout], Baseline] = {}
        # Connections of shards are used again as long as nothing failed: those that were through
        # before a failure have not noticed it. Nor does a successor know of failures before.
        self._group_seed = uuid.uuid4().hex

    async def recover(self) -> None:
        """Begin to finish or abort what another param-store left; devices wait for it."""
        for record in await self._records.list():
            if not record.value.is_final:
                task = asyncio.create_task(self._recover(record.value), name="recover")
                self._recovering.add(task)
                task.add_done_callback(self._recovering.discard)

    async def reallocate(self, order: ReallocationOrder) -> Reallocation:
        """Bring a target to a version; a request id that was committed gets its outcome.

        Raises:
            InvalidInput: every tensor and rank that does not fit.
            NotFound: no such model, or a process of the target is not there.
            Conflict: the request id stands for something else, or the version goes back.
            ResourceExhausted: too many wait for their devices.
            Unavailable: a process did not answer, or weights arrived damaged. Nothing changed,
                unless the message says that a process was lost in the commit.
        """
        key = (order.job_id, order.request_id)
        running = self._running.get(key)
        if running is None:
            task = asyncio.create_task(self._run(order), name=f"reallocate {order.request_id}")
            running = self._running[key] = _Running(order, task)
            task.add_done_callback(lambda _: self._running.pop(key, None))
        elif not running.is_for(order):
            raise Conflict(f"request id {order.request_id!r} stands for another reallocation")
        try:
            return await asyncio.shield(running.task)
        except asyncio.CancelledError:
            if not running.task.cancelled():
                raise  # only the caller left
            raise Unavailable(
                f"the reallocation of {order.model_id} was ended: its job was released, or this "
                "param-store leads no more"
            ) from None

    async def release(self, job_id: str) -> None:
        """End the reallocations of a job; forget its models and all about them."""
        await _end(each.task for key, each in self._running.items() if key[0] == job_id)
        for key in [key for key in self._baselines if key[0] == job_id]:
            del self._baselines[key]
        await self._records.release(job_id)
        await self._registry.release(job_id)

    async def close(self) -> None:
        """End all reallocations; those that commit go on to their end."""
        await _end(each.task for each in self._running.values())
        await _end(self._recovering)

    # ---- one reallocation ----

    async def _run(self, order: ReallocationOrder) -> Reallocation:
        attributes: Attributes = {
            Attribute.JOB_ID: order.job_id,
            Attribute.MODEL_ID: order.model_id,
            Attribute.WEIGHT_VERSION: order.weight_version,
            Attribute.LAYOUT: str(order.target.layout),
        }
        with span(Span.REALLOCATION, attributes):
            known = await self._known_outcome(order)
            if known is not None:
                return known
            try:
                model = await self._registry.get(order.job_id, order.model_id)
                check_devices(model, order.target)
                devices = {*model.source.layout.devices, *order.target.layout.devices}
                async with self._queue.held(devices, order.timeout_seconds):
                    return await self._in_turn(order)
            except _Recorded as error:
                raise error.cause from error.cause.__cause__
            except BaseException:
                await self._give_back(order)
                raise

    async def _in_turn(self, order: ReallocationOrder) -> Reallocation:
        """What is done once the devices are free."""
        await self._settle_model(order)
        known = await self._known_outcome(order)
        if known is not None:
            return known
        model = await self._registry.get(order.job_id, order.model_id)
        model.check_forward(order.weight_version)
        nodes = self._processes.nodes(model, order.target)
        target = replace(
            order.target,
            weight_version=order.weight_version,
            incarnations=self._processes.incarnations(order.target),
        )
        trains_there = target.same_place(model.source)
        if trains_there or model.has(target, order.weight_version, target.incarnations):
            await self._registry.set_version(
                order.job_id, order.model_id, target, order.weight_version
            )
            await self._give_back(order)
            return nothing_moved(order.weight_version)
        clock = PhaseClock(time.monotonic())
        try:
            return await self._move(replace(order, target=target), model, nodes, clock)
        finally:
            record_phases(order.model_id, clock)

    async def _move(
        self, order: ReallocationOrder, model: Model, nodes: dict[int, int], clock: PhaseClock
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
        except BaseException as error:
            clock.enter(Phase.ABORTED, time.monotonic())
            await self._abort(record)
            raise _Recorded(error) from error
        outcome = _outcome(order, planned, clock, plan_seconds, num_digests)
        done = await _unbroken(self._commit(record, order, outcome, clock))
        self._remember(order, digests)
        return done

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
        except ReallocError as error:
            self._group_seed = uuid.uuid4().hex
            raise _Recorded(error) from error
        if lost:
            self._group_seed = uuid.uuid4().hex
            raise _Recorded(_lost_in_commit(record.value, lost))
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

    async def _give_back(self, order: ReallocationOrder) -> None:
        """Let the shards go on to the call after this one."""

        async def one(shard: str) -> None:
            member = self._processes.find(shard)
            places = order.places(shard)
            if member is not None and places:
                participant = Participant(member=member, transfer=self._processes.stub(member))
                request = shard_pb2.AbortTransferRequest(sequences=places)
                with suppress(ReallocError):
                    await participant.call("AbortTransfer", request, timeout_seconds=ABORT_SECONDS)

        await asyncio.gather(*(one(shard) for shard in order.sequences))

    # ---- what changed ----

    async def _only_changed(
        self,
        order: ReallocationOrder,
        model: Model,
        nodes: dict[int, int],
        planned: PlannedTransfer,
        digests: Digests,
    ) -> PlannedTransfer:
        """The plan without the tensors that the target has already."""
        baseline = self._baselines.get(_target_key(order))
        known = model.placed(order.target)
        if (
            baseline is None
            or known is None
            or baseline.dtype != order.dtype
            or baseline.incarnations != order.target.incarnations
            or known.weight_version != baseline.weight_version
        ):
            return planned
        only = changed_tensors(baseline.digests, digests, planned.plan)
        if len(only) == len(planned.plan.canonical_tensors):
            return planned
        return await self._plans.plan(
            model, order.target, dtype=order.dtype, node_of=nodes, only=only
        )

    def _remember(self, order: ReallocationOrder, digests: Digests | None) -> None:
        if digests is None:
            self._baselines.pop(_target_key(order), None)
        else:
            self._baselines[_target_key(order)] = Baseline(
                weight_version=order.weight_version,
                incarnations=order.target.incarnations,
                dtype=order.dtype,
                digests=digests,
            )

    # ---- what others left ----

    async def _known_outcome(self, order: ReallocationOrder) -> Reallocation | None:
        """The outcome of the same request, if it was carried out before.

        Raises:
            Conflict: the id was used for another target or version.
        """
        for record in await self._records.list(order.job_id):
            value = record.value
            if value.request_id != order.request_id or value.phase is not Phase.COMMITTED:
                continue
            if not _is_record_of(value, order):
                raise Conflict(f"request id {order.request_id!r} stands for another reallocation")
            if value.outcome is not None:
                return value.outcome
        return None

    async def _settle_model(self, order: ReallocationOrder) -> None:
        """Finish what is left of earlier reallocations of the model; the devices are ours."""
        for record in await self._records.list(order.job_id, order.model_id):
            if not record.value.is_final:
                await self._settle(record)

    async def _recover(self, left: ReallocationRecord) -> None:
        with suppress(ReallocError):
            model = await self._registry.get(left.job_id, left.model_id)
            devices = {*model.source.layout.devices, *left.devices}
            async with self._queue.held(devices, _SETTLE_SECONDS):
                for record in await self._records.list(left.job_id, left.model_id):
                    if record.value.session_id == left.session_id and not record.value.is_final:
                        await self._settle(record)

    async def _settle(self, record: Record) -> None:
        """Finish what has begun to commit; abort what has not."""
        value = record.value
        log.info("settling", request=value.request_id, phase=value.phase.value)
        self._group_seed = uuid.uuid4().hex
        if value.phase is Phase.COMMITTING:
            lost = await commit(value, self._processes, _SETTLE_SECONDS)
            await self._close_record(record, None if lost else value.outcome)
        else:
            await record.advance(Phase.ABORTED)
            await abort(value, self._processes)


class _Recorded(Exception):
    """An error after the record was begun: nothing has to be given back any more."""

    def __init__(self, cause: BaseException) -> None:
        self.cause = cause
        super().__init__(str(cause))


class _Running:
    """A reallocation under way, and what it is for."""

    def __init__(self, order: ReallocationOrder, task: "asyncio.Task[Reallocation]") -> None:
        self.order = order
        self.task = task

    def is_for(self, order: ReallocationOrder) -> bool:
        """True where another order asks for the same."""
        mine = self.order
        return (
            mine.model_id == order.model_id
            and mine.target.same_place(order.target)
            and (mine.weight_version, mine.dtype) == (order.weight_version, order.dtype)
        )


def _is_record_of(value: ReallocationRecord, order: ReallocationOrder) -> bool:
    return (
        value.model_id == order.model_id
        and value.target.same_place(order.target)
        and value.target.weight_version == order.weight_version
    )


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
                sequences=order.places(each.member.name),
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


def _target_key(order: ReallocationOrder) -> tuple[str, str, PlacedLayout]:
    return order.job_id, order.model_id, replace(order.target, weight_version=0, incarnations=())


async def _unbroken(work: Coroutine[Any, Any, Reallocation]) -> Reallocation:
    """Await work to its end, also where the caller is cancelled; then the caller is."""
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


async def _end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait for their ends."""
    ending = list(tasks)
    for task in ending:
        task.cancel()
    await asyncio.gather(*ending, return_exceptions=True)
