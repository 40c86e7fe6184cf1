"""Under which of its addresses a node is reached."""

import socket


def address_towards(*peers: str) -> str:
    """This machine's address that packets to the first peer with a route carry."""
    for peer in peers:
        host = peer.rpartition(":")[0] if ":" in peer else peer
        try:
            target = socket.getaddrinfo(host, 9, socket.AF_INET, socket.SOCK_DGRAM)[0][4]
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                probe.connect(target)  # sends nothing: the kernel chooses a route
                return str(probe.getsockname()[0])
        except OSError:
            continue
    return "127.0.0.1"
