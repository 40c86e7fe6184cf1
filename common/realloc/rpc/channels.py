"""Channels by address, opened on first use and kept."""

from realloc.rpc.channel import Channel, connect
from realloc.security.tls import ChannelSecurity, TlsFiles


class Channels:
    """One channel per peer, shared by all calls to it; ``async with`` closes them."""

    def __init__(self, security: ChannelSecurity | None = None) -> None:
        self._security = security
        self._channels: dict[tuple[str, TlsFiles | None], Channel] = {}

    def get(self, address: str) -> Channel:
        """The channel to a peer; another one once this process has new certificates."""
        files = None if self._security is None else self._security.files()
        if (address, files) not in self._channels:
            self._channels[address, files] = connect(address, security=self._security)
        return self._channels[address, files]

    async def __aenter__(self) -> "Channels":
        return self

    async def __aexit__(self, *_: object) -> None:
        for channel in self._channels.values():
            await channel.close()
