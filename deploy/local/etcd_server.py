"""etcd: a member's command line, and a process on loopback that can be killed and restarted."""

import asyncio
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
from deploy.local.ports import LOOPBACK, ReservedPorts
from realloc.addresses import is_loopback, join

READY_SECONDS = 60.0
STOP_SECONDS = 10.0
"""Longest waits for a start and for an orderly stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdMember:
    """Where one member of an etcd cluster listens and keeps its data."""

    name: str
    client_port: int
    peer_port: int
    data: Path
    host: str = LOOPBACK
    """Address that it listens on and is reached under."""
    tls_dir: Path | None = None
    """Folder with ca.crt, tls.crt and tls.key, which clients and members need one of, too; None
    talks in the clear."""

    @staticmethod
    def on(
        ports: ReservedPorts,
        name: str,
        data: Path,
        *,
        host: str = LOOPBACK,
        tls_dir: Path | None = None,
    ) -> "EtcdMember":
        """A member on the first two of reserved ports."""
        client_port, peer_port = ports.numbers[:2]
        return EtcdMember(
            name=name,
            client_port=client_port,
            peer_port=peer_port,
            data=data,
            host=host,
            tls_dir=tls_dir,
        )

    @property
    def endpoint(self) -> str:
        """``host:port`` for clients."""
        return join(self.host, self.client_port)

    @property
    def peer_url(self) -> str:
        """Where the other members reach it."""
        return f"{self._scheme}://{join(self.host, self.peer_port)}"

    def command(self, binary: Path, *others: "EtcdMember") -> list[str]:
        """The command line of this member of a cluster with ``others``.

        On one machine an election need not take longer than 200 ms.
        """
        quick = is_loopback(self.host)
        options = {
            "name": self.name,
            "data-dir": str(self.data),
            "listen-client-urls": f"{self._scheme}://{self.endpoint}",
            "advertise-client-urls": f"{self._scheme}://{self.endpoint}",
            "listen-peer-urls": self.peer_url,
            "initial-advertise-peer-urls": self.peer_url,
            "initial-cluster": ",".join(f"{m.name}={m.peer_url}" for m in (self, *others)),
            "heartbeat-interval": "20" if quick else "100",
            "election-timeout": "200" if quick else "1000",
            "logger": "zap",
            "log-outputs": "stderr",
            **self._tls_options(),
        }
        return [str(binary), *(f"--{name}={value}" for name, value in options.items())]

    @property
    def _scheme(self) -> str:
        return "http" if self.tls_dir is None else "https"

    def _tls_options(self) -> Mapping[str, str]:
        """Clients need a certificate of the authority; members one that says etcd."""
        if self.tls_dir is None:
            return {}
        options = {}
        for prefix in ("", "peer-"):
            options[f"{prefix}cert-file"] = str(self.tls_dir / "tls.crt")
            options[f"{prefix}key-file"] = str(self.tls_dir / "tls.key")
            options[f"{prefix}trusted-ca-file"] = str(self.tls_dir / "ca.crt")
            options[f"{prefix}client-cert-auth"] = "true"
        options["peer-cert-allowed-cn"] = "etcd"
        return options

    def environment(self) -> Mapping[str, str]:
        """The process's environment: without ``ETCD_*``, which would override the options."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}
        if platform.machine() == "aarch64":
            kept["ETCD_UNSUPPORTED_ARCH"] = "arm64"  # etcd 3.4 runs there, but wants to be told
        return kept

    def answers(self) -> bool:
        """True where something accepts connections on the client's port."""
        try:
            socket.create_connection((self.host, self.client_port), timeout=1.0).close()
        except OSError:
            return False
        return True

    async def answered(self, log: Path) -> None:
        """Wait until it does.

        Raises:
            EtcdNotFound: it did not in time; the message names its log.
        """
        try:
            async with asyncio.timeout(READY_SECONDS):
                while not await asyncio.to_thread(self.answers):
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise EtcdNotFound(
                f"etcd did not listen on {self.endpoint} within {READY_SECONDS:g} s; see {log}"
            ) from None


class EtcdServer:
    """A running member; ``with`` starts it and stops it."""

    def __init__(
        self, binary: Path, folder: Path, *, name: str = "local", tls_dir: Path | None = None
    ) -> None:
        """``folder``: gets the data and the log, by the member's name."""
        self._ports = ReservedPorts(2)
        self.member = EtcdMember.on(self._ports, name, folder / f"{name}-data", tls_dir=tls_dir)
        self.others: tuple[EtcdMember, ...] = ()
        self._binary = binary
        self._log = folder / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def cluster(
        binary: Path, folder: Path, size: int, *, tls_dir: Path | None = None
    ) -> "list[EtcdServer]":
        """Servers that know each other and are not started; `launch` all, then `wait_ready`."""
        servers = [
            EtcdServer(binary, folder, name=f"etcd-{i}", tls_dir=tls_dir) for i in range(size)
        ]
        for server in servers:
            server.others = tuple(each.member for each in servers if each is not server)
        return servers

    @property
    def endpoint(self) -> str:
        """``host:port`` for clients, the same after a restart."""
        return self.member.endpoint

    def start(self) -> None:
        """Start on the same ports and data as before, and wait until it listens.

        Raises:
            EtcdNotFound: it ended or did not listen in time; the message names its log.
        """
        self.launch()
        self.wait_ready()

    def launch(self) -> None:
        """Start the process only."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self.member.command(self._binary, *self.others),
                env=self.member.environment(),
                stdout=log,
                stderr=log,
            )

    def wait_ready(self) -> None:
        """Wait until it listens, see `start`."""
        deadline = time.monotonic() + READY_SECONDS
        while not self.member.answers():
            ended = self._process is None or self._process.poll() is not None
            if ended or time.monotonic() > deadline:
                self.kill()
                raise EtcdNotFound(f"etcd did not start; see {self._log}")
            time.sleep(0.02)

    def kill(self) -> None:
        """End it with SIGKILL, as a crash does."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it with SIGTERM, and with SIGKILL where that takes too long."""
        self._end(signal.SIGTERM)

    def close(self) -> None:
        """End it for good, as a crash does, and give its ports back."""
        self.kill()
        self._ports.close()

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
        self._ports.close()
