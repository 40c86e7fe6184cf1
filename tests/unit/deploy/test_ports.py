"""Reserved ports are given to nobody else, and their servers may come and go."""

import socket
from contextlib import closing

import pytest

from deploy.local.ports import LOOPBACK, ReservedPorts, reserved


def test_a_server_may_come_and_go_on_a_reserved_port() -> None:
    """Before and after it connections are refused, and nobody but a server gets the port."""
    with closing(ReservedPorts(2)) as ports:
        for port in ports.numbers * 2:
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((LOOPBACK, port))
            with socket.create_server((LOOPBACK, port)):
                socket.create_connection((LOOPBACK, port)).close()


def test_a_reserved_port_is_given_to_nobody_who_asks_for_any() -> None:
    """Nor to another reservation, although both would share their port with a server."""
    with closing(ReservedPorts(50)) as ports:
        others = [reserved() for _ in range(500)]
        given = {each.getsockname()[1] for each in others}
        for each in others:
            each.close()
    assert len(given) == 500
    assert not given & set(ports.numbers)


def test_a_port_on_which_somebody_listens_cannot_be_reserved() -> None:
    """The error is the system's."""
    with socket.create_server((LOOPBACK, 0)) as server, pytest.raises(OSError, match="in use"):
        reserved(port=server.getsockname()[1])
