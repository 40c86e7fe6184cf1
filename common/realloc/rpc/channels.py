"""Channels by address, opened on first use and kept."""

from realloc.rpc.channel import Channel, connect
from realloc.security.tls import ChannelSecurity


class Channels:
    """One channel per peer, shared by all calls to it; ``async with`` closes them."""

    def __init__(self, security: ChannelSecurity | None = None) -> None:
        self._security = security
        self._channels: dict[str, Channel] = {}

    def get(self, address: str) -> Channel:
        """The channel to a peer."""
        if address not in self._channels:
            self._channels[address] = connect(address, security=self._security)
        return self._channels[address]

    async def __aenter__(self) -> "Channels":
        return self

    async def __aexit__(self, *_: object) -> None:
        for channel in self._channels.values():
            await channel.close()
