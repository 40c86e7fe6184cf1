"""Hosts on one machine: network namespaces on a bridge. Root only; gone when left.

The names carry the process id, so that several test runs can stand side by side.
"""

import os
import shutil
import subprocess
from collections.abc import Sequence
from types import TracebackType
from typing import Self


def why_not() -> str:
    """Why there can be no namespaces here; empty where there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need iproute2"
    tried = subprocess.run(["ip", "netns", "add", _name(99)], capture_output=True, text=True)
    if tried.returncode == 0:
        subprocess.run(["ip", "netns", "del", _name(99)], check=True)
        return ""
    return f"this machine allows no network namespaces: {tried.stderr.strip()}"


class NetworkNamespaces:
    """Hosts ``0 … count-1``, which reach each other and this process over a bridge."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._bridge = f"rlb{os.getpid()}"
        pid = os.getpid()
        self._subnet = f"10.{64 + (pid >> 8) % 128}.{pid % 256}"

    @property
    def addresses(self) -> tuple[str, ...]:
        """Address of each host."""
        return tuple(f"{self._subnet}.{index + 1}" for index in range(self.count))

    def inside(self, index: int, command: Sequence[str]) -> list[str]:
        """The command line that runs a command on a host."""
        return ["ip", "netns", "exec", _name(index), *command]

    def cut(self, index: int) -> None:
        """Let packets of a host vanish: its link stays up and nobody is told."""
        _ip("link", "set", self._veth(index), "nomaster")

    def heal(self, index: int) -> None:
        """Undo `cut`."""
        _ip("link", "set", self._veth(index), "master", self._bridge)

    def __enter__(self) -> Self:
        try:
            _ip("link", "add", self._bridge, "type", "bridge")
            _ip("addr", "add", f"{self._subnet}.254/24", "dev", self._bridge)
            _ip("link", "set", self._bridge, "up")
            for index in range(self.count):
                self._add(index)
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._remove()

    def _add(self, index: int) -> None:
        name, veth = _name(index), self._veth(index)
        _ip("netns", "add", name)
        _ip("link", "add", veth, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("link", "set", veth, "master", self._bridge, "up")
        _ip("-n", name, "addr", "add", f"{self.addresses[index]}/24", "dev", "eth0")
        _ip("-n", name, "link", "set", "eth0", "up")
        _ip("-n", name, "link", "set", "lo", "up")

    def _remove(self) -> None:
        for index in range(self.count):
            subprocess.run(["ip", "netns", "del", _name(index)], capture_output=True)
        subprocess.run(["ip", "link", "del", self._bridge], capture_output=True)

    def _veth(self, index: int) -> str:
        return f"rlv{os.getpid()}-{index}"


def _name(index: int) -> str:
    return f"realloc-{os.getpid()}-{index}"


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
