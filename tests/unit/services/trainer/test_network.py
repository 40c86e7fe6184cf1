"""The interface towards a peer is the kernel's choice."""

from services.trainer.network import interface_towards


def test_loopback() -> None:
    """Packets to this machine's loopback address leave by ``lo``."""
    assert interface_towards("127.0.0.1") == "lo"


def test_unknown_peer() -> None:
    """A name that nobody knows gives no interface, and no error."""
    assert interface_towards("no-such-host.invalid") is None
