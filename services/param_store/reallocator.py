"""Takes reallocations: each request once, each device for one at a time, leftovers first.

Only the leading param-store has a `Reallocator`. How one is carried out, and what may fail when,
stands in `services.param_store.transaction`.
"""

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from realloc.coordination.store import Store
from realloc.core.errors import Conflict, ReallocError, Unavailable
from realloc.telemetry.names import Attribute, Span
from realloc.telemetry.spans import Attributes, span
from services.param_store.device_queue import DeviceQueue
from services.param_store.orders import (
    Reallocation,
    ReallocationOrder,
    check_devices,
    nothing_moved,
)
from services.param_store.participants import Processes
from services.param_store.phases import Phase
from services.param_store.plans import Plans
from services.param_store.records import ReallocationRecord, Records
from services.param_store.registry import Registry
from services.param_store.transaction import SETTLE_SECONDS, Transactions


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
        self._queue = queue
        self._transactions = Transactions(
            registry=self._registry, records=self._records, processes=processes, plans=plans
        )
        self._running: dict[tuple[str, str], _Running] = {}
        self._recovering: set[asyncio.Task[None]] = set()

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

    async def release(self, job_id: str, run_id: str = "") -> None:
        """End the reallocations of a job; forget its models and all about them.

        Args:
            run_id: only where the models are of this start of the job; empty for any.
        """
        if run_id and any(each.run_id != run_id for each in await self._registry.list(job_id)):
            return
        await _end(each.task for key, each in self._running.items() if key[0] == job_id)
        self._transactions.release(job_id)
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
            model = await self._registry.get(order.job_id, order.model_id)
            check_devices(model, order.target)
            devices = {*model.source.layout.devices, *order.target.layout.devices}
            async with self._queue.held(devices, order.timeout_seconds):
                return await self._in_turn(order)

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
            return nothing_moved(order.weight_version)
        return await self._transactions.run(replace(order, target=target), model, nodes)

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
                await self._transactions.settle(record)

    async def _recover(self, left: ReallocationRecord) -> None:
        with suppress(ReallocError):
            model = await self._registry.get(left.job_id, left.model_id)
            devices = {*model.source.layout.devices, *left.devices}
            async with self._queue.held(devices, SETTLE_SECONDS):
                for record in await self._records.list(left.job_id, left.model_id):
                    if record.value.session_id == left.session_id and not record.value.is_final:
                        await self._transactions.settle(record)


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


async def _end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait for their ends."""
    ending = list(tasks)
    for task in ending:
        task.cancel()
    await asyncio.gather(*ending, return_exceptions=True)
