"""One etcd member on loopback: its command line, and a process that can be killed and restarted."""

import os
import platform
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from deploy.local.etcd_binary import EtcdNotFound

READY_SECONDS = 20.0
STOP_SECONDS = 10.0
"""Longest waits for a start and for an orderly stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdMember:
    """Where the only member of a local etcd listens and keeps its data."""

    client_port: int
    peer_port: int
    data: Path

    @staticmethod
    def on_free_ports(data: Path) -> "EtcdMember":
        """A member on two ports of loopback that nobody listens on now."""
        with socket.create_server(("127.0.0.1", 0)) as one:
            with socket.create_server(("127.0.0.1", 0)) as other:
                return EtcdMember(
                    client_port=one.getsockname()[1], peer_port=other.getsockname()[1], data=data
                )

    @property
    def endpoint(self) -> str:
        """``host:port`` for clients."""
        return f"127.0.0.1:{self.client_port}"

    def command(self, binary: Path) -> list[str]:
        """The command line. On one machine an election need not take longer than 200 ms."""
        client, peer = f"http://{self.endpoint}", f"http://127.0.0.1:{self.peer_port}"
        options = {
            "name": "local",
            "data-dir": str(self.data),
            "listen-client-urls": client,
            "advertise-client-urls": client,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": f"local={peer}",
            "heartbeat-interval": "20",
            "election-timeout": "200",
            "logger": "zap",
            "log-outputs": "stderr",
        }
        return [str(binary), *(part for item in options.items() for part in _option(*item))]

    def environment(self) -> Mapping[str, str]:
        """The process's environment: without ``ETCD_*``, which would override the options."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}
        if platform.machine() == "aarch64":
            kept["ETCD_UNSUPPORTED_ARCH"] = "arm64"  # etcd 3.4 runs there, but wants to be told
        return kept

    def answers(self) -> bool:
        """True where something accepts connections on the client's port."""
        try:
            socket.create_connection(("127.0.0.1", self.client_port), timeout=1.0).close()
        except OSError:
            return False
        return True


class EtcdServer:
    """A running member; ``with`` starts it and stops it."""

    def __init__(self, binary: Path, folder: Path) -> None:
        """``folder``: gets the data and the log; an own one for each server."""
        self.member = EtcdMember.on_free_ports(folder / "data")
        self._binary = binary
        self._log = folder / "etcd.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """``host:port`` for clients, the same after a restart."""
        return self.member.endpoint

    def start(self) -> None:
        """Start on the same ports and data as before, and wait until it listens.

        Raises:
            EtcdNotFound: it ended or did not listen in time; the message names its log.
        """
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self.member.command(self._binary),
                env=self.member.environment(),
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + READY_SECONDS
        while not self.member.answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise EtcdNotFound(f"etcd did not start; see {self._log}")
            time.sleep(0.02)

    def kill(self) -> None:
        """End it with SIGKILL, as a crash does."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it with SIGTERM, and with SIGKILL where that takes too long."""
        self._end(signal.SIGTERM)

    def pause(self) -> None:
        """Let it hang with its connections open, as a partition does."""
        if self._process:
            self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Undo `pause`."""
        if self._process:
            self._process.send_signal(signal.SIGCONT)

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(how)
        self.resume()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


def _option(name: str, value: str) -> tuple[str, str]:
    return f"--{name}", value
