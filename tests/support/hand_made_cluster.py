"""A cluster of several hosts, made by typing what docs/deploy.md says, on network namespaces."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import yaml

from deploy.local.etcd_binary import find_etcd
from deploy.local.parent import ending_with_parent
from realloc.client.client import Client
from tests.support.network_namespaces import NetworkNamespaces

ROOT = Path(__file__).resolve().parents[2]
COUNT = 3
START_SECONDS = 600.0
STOP_SECONDS = 60.0


def documented_lines() -> list[str]:
    """What docs/deploy.md says to type, line by line."""
    text = (ROOT / "docs" / "deploy.md").read_text()
    section = text.split("## Several machines by hand", 1)[1].split("\n## ", 1)[0]
    blocks = re.findall(r"^```console\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]


class HandMadeCluster:
    """Types the documented lines, each where it says; the shell keeps what is exported."""

    def __init__(self, folder: Path, hosts: NetworkNamespaces) -> None:
        self.folder = folder
        self.hosts = hosts
        self.running: list[subprocess.Popen[bytes]] = []
        python = Path(sys.executable).parent
        self._environment = {
            **os.environ,
            **dict(zip("ABC", hosts.addresses, strict=True)),
            "DEVICES": "1",
            "PATH": f"{folder}:{python}:{os.environ['PATH']}",
            "PYTHONPATH": f"{ROOT / 'common'}:{ROOT}",
            "REALLOC_ETCD": str(find_etcd()),
        }
        command = folder / "realloc"  # what pip would install
        command.write_text(f'#!/bin/sh\nexec {sys.executable} -m realloc.client.cli "$@"\n')
        command.chmod(0o755)

    def type_lines(self) -> None:
        """All lines but the submission."""
        for line in documented_lines():
            command, _, where = line.partition("  # on ")
            if line.startswith("export "):
                self._export(line)
            elif where:
                self.start("ABC".index(where), command)
            elif not line.startswith("realloc submit"):
                self._shell(line)

    def start(self, index: int, command: str) -> None:
        """Run a line on a host, in the background."""
        words = ending_with_parent(self.hosts.inside(index, ["bash", "-c", f"exec {command}"]))
        with (self.folder / f"host-{index}.log").open("ab") as log:
            self.running.append(
                subprocess.Popen(
                    words, cwd=self.folder, env=self._environment, stdout=log, stderr=log
                )
            )

    def wait_ready(self) -> None:
        """Until every host says that the whole cluster is there."""
        deadline = time.monotonic() + START_SECONDS
        while not all("ready" in self.said(index) for index in range(COUNT)):
            assert all(each.poll() is None for each in self.running), self.said_all()
            assert time.monotonic() < deadline, self.said_all()
            time.sleep(0.1)

    def said(self, index: int) -> str:
        return (self.folder / f"host-{index}.log").read_text()

    def said_all(self) -> str:
        return "\n".join(f"{index}: {self.said(index)[-2000:]}" for index in range(COUNT))

    def submit(self, plain: Mapping[str, Any]) -> str:
        """Submit an experiment in the documented way; the id of the job."""
        (self.folder / "experiment.yaml").write_text(yaml.safe_dump(plain))
        line = next(line for line in documented_lines() if line.startswith("realloc submit"))
        said = self._shell(line.removesuffix(" --watch"))
        return said.split("submitted ")[1].split()[0]

    def client(self, index: int = 0) -> Client:
        """A client of the scheduler on a host."""
        return Client(
            f"{self.hosts.addresses[index]}:7070",
            authority=str(self.folder / "certs" / "client" / "ca.crt"),
            token=(self.folder / "ada.token").read_text().strip(),
        )

    @property
    def etcd_endpoints(self) -> list[str]:
        """Of its three members, by host."""
        return [f"{host}:2379" for host in self.hosts.addresses]

    def etcd(self, index: int) -> psutil.Process:
        """The member of etcd on a host."""
        children = psutil.Process(self.running[index].pid).children(recursive=True)
        return next(child for child in children if child.name() == "etcd")

    def stop(self) -> None:
        """Kill everything: who leaves in order waits for an etcd that leaves, too."""
        family = [psutil.Process(each.pid) for each in self.running]
        family += [child for each in family for child in each.children(True)]
        for each in family:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        for each in self.running:
            each.wait(STOP_SECONDS)
        _, left = psutil.wait_procs(family, timeout=STOP_SECONDS)
        assert not left, f"processes are left: {left}"

    def _export(self, line: str) -> None:
        said = self._shell(f"{line}; env -0")
        self._environment = dict(each.split("=", 1) for each in said.split("\0") if each)

    def _shell(self, line: str) -> str:
        return subprocess.run(
            ["bash", "-c", line],
            cwd=self.folder,
            env=self._environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=300,
        ).stdout
