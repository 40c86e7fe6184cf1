"""Constructs and connects the param-store."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from realloc.api.param_store.v1 import param_store_pb2, param_store_pb2_grpc
from realloc.coordination.etcd_store import EtcdStore
from realloc.coordination.members import Members
from realloc.rpc.channels import Channels
from realloc.rpc.server import App
from realloc.shard.registration import registration
from services.param_store.config import ParamStoreConfig
from services.param_store.plans import Plans
from services.param_store.reallocator import Reallocator
from services.param_store.registry import Registry
from services.param_store.servicer import ParamStoreServicer


@asynccontextmanager
async def build(config: ParamStoreConfig) -> AsyncIterator[App]:
    """The service; closed after the drain."""
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(EtcdStore(config.etcd_endpoints))
        members = await stack.enter_async_context(Members(store))
        channels = await stack.enter_async_context(Channels())
        registry = Registry(store)
        reallocator = Reallocator(
            registry=registry,
            members=members,
            plans=Plans(config.max_cached_plans),
            connect=channels.get,
        )
        servicer = ParamStoreServicer(registry, reallocator)
        name = param_store_pb2.DESCRIPTOR.services_by_name["ParamStoreService"].full_name
        yield App(
            servicers=((param_store_pb2_grpc.add_ParamStoreServiceServicer_to_server, servicer),),
            service_names=(name,),
            registration=registration(store, config),
        )
