"""Constructs and connects plan-search."""

import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from realloc.api.plan_search.v1 import plan_search_pb2, plan_search_pb2_grpc
from realloc.coordination.etcd_store import store_of
from realloc.cost.profile_file import profile_to_json, read_profile
from realloc.rpc.server import App
from realloc.shard.registration import registration
from services.plan_search.config import PlanSearchConfig
from services.plan_search.plan_search import PlanSearch
from services.plan_search.profiles import Profiles
from services.plan_search.servicer import PlanSearchServicer


@asynccontextmanager
async def build(config: PlanSearchConfig) -> AsyncIterator[App]:
    """The service; closed after the drain."""
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(store_of(config))
        default = profile_to_json(read_profile(Path(config.profile))) if config.profile else ""
        search = PlanSearch(max_memory_bytes=config.max_memory_bytes)
        # A daemon: a service that is told to stop does not wait for the compiler.
        threading.Thread(target=search.warm_up, name="warm-up", daemon=True).start()
        servicer = PlanSearchServicer(search, Profiles(store, default), config)
        name = plan_search_pb2.DESCRIPTOR.services_by_name["PlanSearchService"].full_name
        yield App(
            servicers=((plan_search_pb2_grpc.add_PlanSearchServiceServicer_to_server, servicer),),
            service_names=(name,),
            registration=registration(store, config),
        )
