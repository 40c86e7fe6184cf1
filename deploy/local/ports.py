"""Ports of this machine for servers that must know theirs before they listen.

A reserved port is bound to a socket that does not listen: connections are refused, and Linux
gives the port to nobody who asks for any. A server that sets SO_REUSEADDR, as those of etcd, gRPC
and asyncio do, can listen on it nevertheless.
"""

import socket

LOOPBACK = "127.0.0.1"


class ReservedPorts:
    """Ports of the kernel's choice that stay one's own until closed, also while their servers
    restart."""

    def __init__(self, count: int, host: str = LOOPBACK) -> None:
        self._sockets = [reserved(host) for _ in range(count)]
        self.numbers: tuple[int, ...] = tuple(each.getsockname()[1] for each in self._sockets)

    def close(self) -> None:
        """Give them back; servers that listen on them are not disturbed."""
        for each in self._sockets:
            each.close()


def reserved(host: str = LOOPBACK, port: int = 0) -> socket.socket:
    """A socket that keeps a port, or one of the kernel's choice, for its server.

    Raises:
        OSError: the port is taken.
    """
    held = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind((host, port))
    except BaseException:
        held.close()
        raise
    return held
