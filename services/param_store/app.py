"""Constructs and connects the param-store."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from realloc.api.param_store.v1 import param_store_pb2, param_store_pb2_grpc
from realloc.coordination.etcd_store import store_of
from realloc.coordination.members import Members
from realloc.coordination.store import Store
from realloc.cost.hardware import hardware_of
from realloc.rpc.channels import Channels
from realloc.rpc.server import App
from realloc.security.tls import peer_security
from realloc.shard.registration import registration
from services.param_store.config import ParamStoreConfig
from services.param_store.device_queue import DeviceQueue
from services.param_store.leading import Leading
from services.param_store.participants import Processes
from services.param_store.plans import Plans
from services.param_store.preview import Previews
from services.param_store.reallocator import Reallocator
from services.param_store.registry import Registry
from services.param_store.servicer import ParamStoreServicer


@asynccontextmanager
async def build(config: ParamStoreConfig) -> AsyncIterator[App]:
    """The service; closed after the drain."""
    security = peer_security(config.tls_dir)
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(store_of(config))
        members = await stack.enter_async_context(Members(store))
        channels = await stack.enter_async_context(Channels(security))
        processes, plans = Processes(members, channels.get), Plans(config.max_cached_plans)
        registry = Registry(store)

        def make_reallocator(fenced: Store) -> Reallocator:
            return Reallocator(
                store=fenced,
                processes=processes,
                plans=plans,
                queue=DeviceQueue(config.max_waiting),
            )

        leading = Leading(store, make_reallocator)
        previews = Previews(
            registry=registry,
            processes=processes,
            plans=plans,
            hardware=hardware_of(config.device_kind),
        )
        servicer = ParamStoreServicer(registry, previews, leading, channels.get)
        led: list[asyncio.Task[None]] = []

        async def started(address: str) -> None:
            led.append(asyncio.create_task(leading.run(address), name="leading"))

        async def draining() -> None:
            for task in led:
                task.cancel()
            await asyncio.gather(*led, return_exceptions=True)

        stack.push_async_callback(draining)
        name = param_store_pb2.DESCRIPTOR.services_by_name["ParamStoreService"].full_name
        yield App(
            servicers=((param_store_pb2_grpc.add_ParamStoreServiceServicer_to_server, servicer),),
            service_names=(name,),
            started=started,
            registration=registration(store, config),
            draining=draining,
        )
