"""Constructs and connects a generation replica."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from realloc.api.generation.v1 import generation_pb2, generation_pb2_grpc
from realloc.api.shard.v1 import shard_pb2, shard_pb2_grpc
from realloc.coordination.etcd_store import store_of
from realloc.rpc.server import App
from realloc.shard.batch_service import BatchServicer
from realloc.shard.batches import BatchStore
from realloc.shard.facts import shard_facts
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

        async def started(address: str) -> None:
            batches.address = address

        shard = shard_pb2.DESCRIPTOR.services_by_name
        yield App(
            servicers=(
                (generation_pb2_grpc.add_GenerationServiceServicer_to_server, servicer),
                (shard_pb2_grpc.add_BatchServiceServicer_to_server, BatchServicer(batches)),
                (shard_pb2_grpc.add_TransferServiceServicer_to_server, transfers),
            ),
            service_names=(
                generation_pb2.DESCRIPTOR.services_by_name["GenerationService"].full_name,
                shard["BatchService"].full_name,
                shard["TransferService"].full_name,
            ),
            started=started,
            facts=lambda: shard_facts(servicer.job_id),
            registration=registration(
                store,
                config,
                device=config.device,
                node=config.node,
                labels=place.labels() if place else {},
            ),
        )
