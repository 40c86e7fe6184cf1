"""Channels by address, opened on first use and kept."""

from realloc.rpc.channel import Channel, connect


class Channels:
    """One channel per peer, shared by all calls to it; ``async with`` closes them."""

    def __init__(self) -> None:
        self._channels: dict[str, Channel] = {}

    def get(self, address: str) -> Channel:
        """The channel to a peer."""
        if address not in self._channels:
            self._channels[address] = connect(address)
        return self._channels[address]

    async def __aenter__(self) -> "Channels":
        return self

    async def __aexit__(self, *_: object) -> None:
        for channel in self._channels.values():
            await channel.close()
