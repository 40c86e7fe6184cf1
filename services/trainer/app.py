"""Constructs and connects a trainer shard."""

import os
import warnings
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import structlog
import torch

from realloc.api.trainer.v1 import trainer_pb2, trainer_pb2_grpc
from realloc.coordination.etcd_store import store_of
from realloc.rpc.server import App
from realloc.security.tls import peer_security
from realloc.shard.app import shard_app
from realloc.shard.batch_reader import BatchReader
from realloc.shard.batches import BatchStore
from realloc.shard.ordered_calls import OrderedCalls
from realloc.shard.place import settle_in
from realloc.shard.registration import registration
from realloc.shard.transfer_service import TransferServicer
from realloc.transfer.endpoint import TransferEndpoint
from realloc.transfer.link_meter import measure_links
from services.trainer.call_inputs import CallInputs
from services.trainer.config import TrainerConfig
from services.trainer.job_calls import JobCalls
from services.trainer.megatron_engine import MegatronEngine
from services.trainer.model_locks import ModelLocks
from services.trainer.servicer import TrainerServicer
from services.trainer.transfers import TrainerTransfers

log = structlog.get_logger(__name__)

_EXIT_STATUS = 75
"""EX_TEMPFAIL: the supervisor starts the process anew."""

_READ_SECONDS = 60.0


@asynccontextmanager
async def build(config: TrainerConfig) -> AsyncIterator[App]:
    """The service; the engine's thread ends with it."""
    place = settle_in()
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(store_of(config))
        # Megatron-core 0.16.1 calls collectives by names that torch 2.13 deprecates, each step.
        warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
        cuda = torch.device("cuda") if torch.cuda.is_available() else None
        engine = MegatronEngine(config.reachable_host)
        calls = OrderedCalls("megatron")
        stack.callback(calls.close)
        batches = BatchStore(capacity_bytes=config.batch_bytes)
        reader = BatchReader(
            batches, timeout_seconds=_READ_SECONDS, security=peer_security(config.tls_dir)
        )
        stack.callback(reader.close)
        endpoint = TransferEndpoint(
            config.reachable_host,
            config.instance,
            device=config.device,
            cuda_device=cuda,
            staging_bytes=config.staging_bytes,
        )
        stack.callback(endpoint.close)
        locks = ModelLocks()
        sources = TrainerTransfers(engine, endpoint, locks)
        stack.callback(sources.close)
        transfers = TransferServicer(sources)
        job = JobCalls(engine=engine, calls=calls, locks=locks, abandon=_exit)
        servicer = TrainerServicer(
            engine=engine,
            job=job,
            inputs=CallInputs(job, reader),
            locks=locks,
            batches=batches,
            transfers=transfers,
            measure=partial(
                measure_links,
                host=config.reachable_host,
                device=cuda or torch.device("cpu"),
            ),
        )
        yield shard_app(
            own=(trainer_pb2_grpc.add_TrainerServiceServicer_to_server, servicer),
            proto=trainer_pb2.DESCRIPTOR,
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


def _exit(reason: str) -> None:
    """Leave at once: a broken process group cannot be mended, a new process can."""
    log.error("ending this process", reason=reason)
    os._exit(_EXIT_STATUS)
