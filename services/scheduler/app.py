"""Constructs and connects the scheduler."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import structlog

from realloc.api.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from realloc.coordination.election import Election
from realloc.coordination.etcd_store import store_of
from realloc.coordination.leadership import Leadership
from realloc.coordination.members import Members
from realloc.coordination.store import Store
from realloc.core.errors import ReallocError
from realloc.core.mesh import Cluster, to_labels
from realloc.rpc.channel import connect
from realloc.rpc.server import App
from realloc.security.tls import peer_security
from realloc.security.tokens import TokenFile
from realloc.shard.registration import registration
from services.scheduler.config import SchedulerConfig
from services.scheduler.dispatcher import Dispatcher, DispatcherSettings
from services.scheduler.job_store import JobStore
from services.scheduler.measurements import JobMeasurements, observe_cluster
from services.scheduler.pausing import pause_jobs
from services.scheduler.resumption import Resumption
from services.scheduler.servicer import SchedulerServicer

log = structlog.get_logger(__name__)


@asynccontextmanager
async def build(config: SchedulerConfig) -> AsyncIterator[App]:
    """The service; when it ends, the jobs that it runs end first."""
    settings = DispatcherSettings(
        cluster=Cluster(
            num_nodes=config.num_nodes,
            devices_per_node=config.devices_per_node,
            device_kind=config.device_kind,
            device_memory_bytes=config.device_memory_bytes,
        ),
        reward_roots=tuple(Path(root) for root in config.reward_roots),
        output_roots=tuple(Path(root) for root in config.output_roots),
        search_seconds=config.search_seconds,
        member_timeout_seconds=config.member_timeout_seconds,
        recovery_timeout_seconds=config.recovery_timeout_seconds,
    )
    tokens = TokenFile(Path(config.tokens_file)) if config.tokens_file else None
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(store_of(config))
        members = await stack.enter_async_context(Members(store))
        jobs = JobStore(store)
        measurements = JobMeasurements(jobs)
        observe_cluster(members, settings.cluster, measurements)
        led = asyncio.create_task(_lead(store, members, settings, config, measurements))
        resumption = Resumption(jobs, settings.admit)
        servicer = SchedulerServicer(jobs, resumption, config.trace_dir)

        async def draining() -> None:
            if config.pause_seconds > 0:
                await pause_jobs(jobs, timeout_seconds=config.pause_seconds)
            led.cancel()
            await asyncio.wait([led])
            servicer.close()

        name = scheduler_pb2.DESCRIPTOR.services_by_name["SchedulerService"].full_name
        yield App(
            servicers=((scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server, servicer),),
            service_names=(name,),
            registration=registration(store, config, labels=to_labels(settings.cluster)),
            draining=draining,
            tokens=tokens,
        )


async def _lead(
    store: Store,
    members: Members,
    settings: DispatcherSettings,
    config: SchedulerConfig,
    measurements: JobMeasurements,
) -> None:
    """Dispatch whenever this process is the leader."""
    security = peer_security(config.tls_dir)
    election = Election(store, "scheduler")
    while True:
        leadership = await election.campaign(config.instance.encode())
        log.info("leading")
        dispatcher = Dispatcher(
            jobs=JobStore(leadership.store),
            members=members,
            connect=partial(connect, security=security),
            settings=settings,
        )
        with contextlib.suppress(ReallocError):
            async with leadership, measurements.following():
                await _dispatch(leadership, dispatcher)


async def _dispatch(leadership: Leadership, dispatcher: Dispatcher) -> None:
    """Dispatch until the leadership is lost; then every job of this process stops."""
    work = asyncio.create_task(dispatcher.run())
    lost = asyncio.create_task(leadership.lost.wait())
    try:
        await asyncio.wait([work, lost], return_when=asyncio.FIRST_COMPLETED)
        log.info("leadership ended", lost=leadership.lost.is_set())
        if work.done():
            work.result()
    finally:
        lost.cancel()
        work.cancel()
        await asyncio.gather(work, lost, return_exceptions=True)
