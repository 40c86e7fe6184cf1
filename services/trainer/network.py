"""Which network interface the ranks of a job talk over."""

import os
import socket

GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"
"""Environment variable that gloo reads whenever a group is made."""


def choose_gloo_interface(peer: str) -> None:
    """Make gloo listen on the interface that leads to `peer`.

    By itself gloo listens where the host's own name resolves to, which need not be reachable,
    and on many machines is loopback.
    """
    name = interface_towards(peer)
    if name is not None:
        os.environ[GLOO_INTERFACE] = name


def interface_towards(peer: str) -> str | None:
    """Name of the interface that packets to `peer` leave by; None where it cannot be told."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((peer, 9))  # sends nothing: the kernel chooses a route
            address = probe.getsockname()[0]
        except OSError:
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
