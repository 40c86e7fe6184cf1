"""Which member of an etcd cluster leads the others: its death is the one that hurts."""

import asyncio
from collections.abc import Sequence

from aetcd import rpc

from realloc.coordination.etcd_channel import open_channel
from realloc.security.tls import ChannelSecurity

SECONDS = 60.0


async def leading_member(endpoints: Sequence[str], security: ChannelSecurity | None = None) -> int:
    """Index of the endpoint whose member leads; waits for one that does."""
    async with asyncio.timeout(SECONDS):
        while True:
            for index, endpoint in enumerate(endpoints):
                async with open_channel([endpoint], security) as channel:
                    status = await rpc.MaintenanceStub(channel).Status(
                        rpc.StatusRequest(), timeout=SECONDS, wait_for_ready=True
                    )
                    if status.leader == status.header.member_id:
                        return index
            await asyncio.sleep(0.05)  # between elections nobody leads
