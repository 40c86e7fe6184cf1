"""Hosts and ports: what is loopback, and under which address others reach this machine."""

import ipaddress
import socket
from collections.abc import Iterable


def is_loopback(host: str) -> bool:
    """Whether packets to this host never leave the machine; a name counts as leaving it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_wildcard(host: str) -> bool:
    """Whether it stands for every address of the machine, as 0.0.0.0 does."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def host_of(endpoint: str) -> str:
    """The host of ``host:port``, ``[::1]:port`` or ``https://host:port``."""
    address = endpoint.split("://", 1)[-1].rstrip("/")
    host, colon, port = address.rpartition(":")
    return (host if colon and port.isdigit() else address).strip("[]")


def join(host: str, port: int) -> str:
    """``host:port``, with the brackets that IPv6 needs."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def address_towards(peer: str) -> str | None:
    """This machine's address that packets to `peer` carry; None where no route is known."""
    try:
        family, _, _, _, target = socket.getaddrinfo(peer, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(target)  # sends nothing: the kernel chooses a route
            return str(probe.getsockname()[0])
    except OSError:
        return None


def routable_address(peers: Iterable[str]) -> str:
    """This machine's address towards the first peer elsewhere; its host name where all are here."""
    for peer in peers:
        found = address_towards(peer)
        if found is not None and not is_loopback(found):
            return found
    return socket.gethostname()
