"""Constructs and connects a generation replica."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from realloc.api.generation.v1 import generation_pb2, generation_pb2_grpc
from realloc.coordination.etcd_store import store_of
from realloc.rpc.server import App
from realloc.shard.app import shard_app
from realloc.shard.batches import BatchStore
from realloc.shard.place import settle_in
from realloc.shard.registration import registration
from realloc.shard.transfer_service import TransferServicer
from services.generation.config import GenerationConfig
from services.generation.rollout_worker import RolloutWorker
from services.generation.servicer import GenerationServicer
from services.generation.transfers import GenerationTransfers
from services.generation.vllm_engine import VllmEngine, prepare_environment


@asynccontextmanager
async def build(config: GenerationConfig) -> AsyncIterator[App]:
    """The service; its engine and reward process end with it."""
    prepare_environment()
    place = settle_in()
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(store_of(config))
        engine = VllmEngine(
            name=config.instance,
            transfer_host=config.reachable_host,
            first_device=config.device,
            staging_bytes=config.staging_bytes,
        )
        worker = RolloutWorker(engine, max_requests=config.max_requests)
        stack.push_async_callback(worker.close)
        batches = BatchStore(capacity_bytes=config.batch_bytes)
        weights = GenerationTransfers(worker)
        transfers = TransferServicer(weights)
        servicer = GenerationServicer(
            config=config, worker=worker, batches=batches, transfers=transfers, weights=weights
        )
        stack.push_async_callback(servicer.close)

        yield shard_app(
            own=(generation_pb2_grpc.add_GenerationServiceServicer_to_server, servicer),
            proto=generation_pb2.DESCRIPTOR,
            batches=batches,
            transfers=transfers,
            registration=registration(
                store,
                config,
                device=config.device,
                node=config.node,
                labels=place.labels() if place else {},
            ),
        )
