"""What a shard consists of: its own service, its batches and its transfers."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from google.protobuf.descriptor import FileDescriptor

from realloc.api.shard.v1 import shard_pb2, shard_pb2_grpc
from realloc.rpc.server import AddServicer, App
from realloc.shard.batch_service import BatchServicer
from realloc.shard.batches import BatchStore
from realloc.shard.facts import shard_facts
from realloc.shard.transfer_service import TransferServicer


class OwnService(Protocol):
    """The servicer that makes a shard a trainer or a generator."""

    @property
    def job_id(self) -> str:
        """The job that holds the shard; empty where none does."""
        ...


def shard_app(
    *,
    own: tuple[AddServicer, OwnService],
    proto: FileDescriptor,
    batches: BatchStore,
    transfers: TransferServicer,
    registration: Callable[[str], AbstractAsyncContextManager[Any]],
) -> App:
    """A shard as `serve` needs it.

    Args:
        proto: the file that declares the own service, first of all.
        batches: learns the shard's address.
    """

    async def started(address: str) -> None:
        batches.address = address

    services = [*proto.services_by_name.values(), *shard_pb2.DESCRIPTOR.services_by_name.values()]
    return App(
        servicers=(
            own,
            (shard_pb2_grpc.add_BatchServiceServicer_to_server, BatchServicer(batches)),
            (shard_pb2_grpc.add_TransferServiceServicer_to_server, transfers),
        ),
        service_names=tuple(service.full_name for service in services),
        started=started,
        facts=lambda: shard_facts(own[1].job_id),
        registration=registration,
    )
