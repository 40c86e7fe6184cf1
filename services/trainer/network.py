"""Which network interface the ranks of a job talk over."""

import os
import socket

from realloc.addresses import address_towards

GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"
"""Environment variable that gloo reads whenever a group is made."""


def choose_gloo_interface(host: str) -> None:
    """Make gloo listen on the interface that has this address of the machine, unless it is told.

    By itself gloo listens where the host's own name resolves to, which need not be reachable,
    and on many machines is loopback.
    """
    name = interface_of(host)
    if name is not None:
        os.environ.setdefault(GLOO_INTERFACE, name)


def interface_of(host: str) -> str | None:
    """Name of the interface with this address; None where the machine has no such address."""
    address = address_towards(host)  # of the machine's own address: itself; names are resolved
    if address is None:
        return None
    return next((name for _, name in socket.if_nameindex() if _address(name) == address), None)


def _address(interface: str) -> str | None:
    """IPv4 address of an interface (Linux)."""
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        request = interface.encode()[:15].ljust(256, b"\0")
        try:
            answer = fcntl.ioctl(probe, 0x8915, request)  # SIOCGIFADDR
        except OSError:
            return None
        return socket.inet_ntoa(answer[20:24])
