"""The processes that work for one job, and the order in which each gets its calls."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from realloc.api.generation.v1 import generation_pb2_grpc
from realloc.api.param_store.v1 import param_store_pb2_grpc
from realloc.api.shard.v1 import shard_pb2_grpc
from realloc.api.trainer.v1 import trainer_pb2_grpc
from realloc.coordination.membership import Member
from realloc.core.errors import ReallocError, Unavailable
from realloc.core.mesh import DeviceMesh
from realloc.core.strategy import ParallelStrategy

Connect = Callable[[str], grpc.aio.Channel]
"""Opens a channel to an address."""

_ALIVE_SECONDS = 10.0
"""Longest wait for a sign of life."""


@dataclass(slots=True, kw_only=True)
class TrainerShard:
    """A trainer and the number of the last call it was given."""

    member: Member
    trainer: Any
    batches: Any
    transfer: Any
    last_sequence: int = 0

    def next_sequence(self) -> int:
        """The place of the next call; given out in the same order on every shard."""
        self.last_sequence += 1
        return self.last_sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationShard:
    """A generation replica."""

    member: Member
    generation: Any
    batches: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class JobShards:
    """Trainers and generation replicas by device, and the param-store."""

    trainers: Mapping[int, TrainerShard]
    """By global device id; the ranks of the job's world in ascending order."""
    generators: Mapping[int, GenerationShard]
    """By the device of the replica's first rank."""
    param_store: Any
    members: tuple[Member, ...]
    """Everyone whose loss ends the job."""
    channels: Sequence[grpc.aio.Channel] = field(default=())

    async def close(self) -> None:
        """Close all connections."""
        for channel in self.channels:
            await channel.close()


async def is_alive(connect: Connect, member: Member) -> bool:
    """Whether a registered process answers, whatever it says of its health."""
    channel = connect(member.address)
    try:
        request = health_pb2.HealthCheckRequest()
        await health_pb2_grpc.HealthStub(channel).Check(request, timeout=_ALIVE_SECONDS)
    except Unavailable:
        return False
    except ReallocError:
        return True  # it refuses: the job's first call will say why
    finally:
        await channel.close()
    return True


def replica_devices(mesh: DeviceMesh, strategy: ParallelStrategy) -> tuple[int, ...]:
    """First device of each generation replica; tensor ranks of a replica are neighbours."""
    return tuple(mesh.first_device + replica * strategy.tensor for replica in range(strategy.data))


def connect_shards(
    connect: Connect,
    *,
    trainers: Mapping[int, Member],
    generators: Mapping[int, Member],
    param_store: Member,
) -> JobShards:
    """Open a channel to every process of a job."""
    members = (*trainers.values(), *generators.values(), param_store)
    channels = {member.address: connect(member.address) for member in members}
    return JobShards(
        trainers={
            device: TrainerShard(
                member=member,
                trainer=trainer_pb2_grpc.TrainerServiceStub(channels[member.address]),
                batches=shard_pb2_grpc.BatchServiceStub(channels[member.address]),
                transfer=shard_pb2_grpc.TransferServiceStub(channels[member.address]),
            )
            for device, member in sorted(trainers.items())
        },
        generators={
            device: GenerationShard(
                member=member,
                generation=generation_pb2_grpc.GenerationServiceStub(channels[member.address]),
                batches=shard_pb2_grpc.BatchServiceStub(channels[member.address]),
            )
            for device, member in sorted(generators.items())
        },
        param_store=param_store_pb2_grpc.ParamStoreServiceStub(channels[param_store.address]),
        members=members,
        channels=tuple(channels.values()),
    )
