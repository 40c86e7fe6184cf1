"""Keeps a node's shards running and answers, as one service, for the health of all."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from deploy.local.supervisor import Supervised
from deploy.node.config import NodeConfig
from deploy.node.shards import Shard, shards_of
from realloc.core.errors import Unavailable

POLL_SECONDS = 1.0
"""Pause between two looks at the shards."""
CHECK_SECONDS = 3.0
"""Longest wait for a shard to say how it is."""

ALIVE = "alive"
"""Service name that is healthy as long as the supervisor runs, whatever its shards do: they
restart by themselves, and killing all of them because of one would end every job."""

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@asynccontextmanager
async def node(
    config: NodeConfig, report: Callable[[str], None]
) -> AsyncIterator[Sequence[Supervised]]:
    """A node whose shards run as long as the context is open.

    Yields:
        Their supervisors, trainers first.

    Raises:
        Unavailable: the health port is taken.
    """
    shards = shards_of(config)
    running = [Supervised(shard.program, report) for shard in shards]
    servicer = health.aio.HealthServicer()
    server = _server(servicer, f"{config.health_host}:{config.health_port}")
    await servicer.set("", NOT_SERVING)
    await servicer.set(ALIVE, SERVING)
    await server.start()
    watching = asyncio.create_task(_watch(shards, servicer, report), name="health")
    try:
        await asyncio.gather(*(each.start() for each in running))
        yield running
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await servicer.set("", NOT_SERVING)
        await asyncio.gather(*(each.stop() for each in running))
        await server.stop(None)


def _server(servicer: health.aio.HealthServicer, address: str) -> grpc.aio.Server:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    try:
        server.add_insecure_port(address)
    except RuntimeError as error:
        raise Unavailable(f"cannot listen on {address}; is the port taken?") from error
    return server


async def _watch(
    shards: Sequence[Shard], servicer: health.aio.HealthServicer, report: Callable[[str], None]
) -> None:
    """Healthy are all or none; every change is said once, with the shards that are not."""
    said = ""
    while True:
        states = await asyncio.gather(*(_is_serving(shard) for shard in shards))
        missing = [s.program.name for s, good in zip(shards, states, strict=True) if not good]
        await servicer.set("", NOT_SERVING if missing else SERVING)
        text = f"waiting for {', '.join(missing)}" if missing else f"all {len(shards)} shards serve"
        if text != said:
            report(text)
            said = text
        await asyncio.sleep(POLL_SECONDS)


async def _is_serving(shard: Shard) -> bool:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{shard.health_port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=CHECK_SECONDS)
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.status == SERVING)
