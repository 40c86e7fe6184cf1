"""Gloo listens on the interface that has the configured address."""

import os

import pytest

from services.trainer.network import GLOO_INTERFACE, choose_gloo_interface, interface_of


def test_loopback() -> None:
    """The address 127.0.0.1 is the interface ``lo``."""
    assert interface_of("127.0.0.1") == "lo"


def test_unknown_host() -> None:
    """A name that nobody knows gives no interface, and no error."""
    assert interface_of("no-such-host.invalid") is None


def test_what_the_operator_says_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interface that is named in the environment is not replaced."""
    monkeypatch.setenv(GLOO_INTERFACE, "ib0")
    choose_gloo_interface("127.0.0.1")
    assert os.environ[GLOO_INTERFACE] == "ib0"
    os.environ.pop(GLOO_INTERFACE)
    choose_gloo_interface("127.0.0.1")
    assert os.environ[GLOO_INTERFACE] == "lo"
