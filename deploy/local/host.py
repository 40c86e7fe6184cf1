"""One host of a cluster of several, without Kubernetes or Slurm; the same line on each of them:

    python -m deploy.local.host --hosts 10.0.0.1,10.0.0.2,10.0.0.3 --index 0 --devices 8 \\
        --certs certs --tokens tokens.json

The first three hosts (of fewer than three, the first) also run a member of etcd and the control
services. Everything restarts what ends, and Ctrl-C stops this host's part.
"""

import argparse
import asyncio
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.local.etcd_binary import find_etcd
from deploy.local.etcd_server import EtcdMember
from deploy.local.programs import service_program
from deploy.local.stages import Stages
from deploy.local.supervisor import Program
from realloc.addresses import join
from realloc.config import ServiceConfig
from realloc.coordination.etcd_store import EtcdStore, store_of
from realloc.coordination.members import Members
from realloc.core.errors import InvalidInput, Problem, ReallocError, Unavailable, raise_problems

ETCD_CLIENT_PORT, ETCD_PEER_PORT = 2379, 2380
_WAIT_SECONDS = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSettings:
    """The whole cluster, and which of its hosts this is."""

    hosts: tuple[str, ...]
    """IP address of every host, in the order of the nodes."""
    index: int
    """Which of them this one is, from 0."""
    devices: int
    """Devices of each host; each hosts a trainer shard and a generation replica."""
    certs: Path
    """Folder of `realloc certs init`, with at least the roles that run here."""
    tokens: Path
    """File of `realloc tokens create`."""
    run_dir: Path
    """Gets logs and etcd's data, per host, and traces; shared between the hosts or not."""
    scheduler_port: int = 7070
    """Where clients reach the schedulers."""
    device_memory_bytes: int = 4 << 30
    """Memory that plans may use per device."""
    reward_roots: tuple[str, ...] = (".",)
    """Folders that reward functions may lie in."""

    def __post_init__(self) -> None:
        raise_problems(self._problems())

    @property
    def num_controlling(self) -> int:
        """Hosts that run etcd and the control services, the first ones."""
        return 3 if len(self.hosts) >= 3 else 1

    @property
    def host(self) -> str:
        """This host's address."""
        return self.hosts[self.index]

    @property
    def members(self) -> tuple[EtcdMember, ...]:
        """All members of etcd."""
        return tuple(
            EtcdMember(
                name=f"etcd-{index}",
                client_port=ETCD_CLIENT_PORT,
                peer_port=ETCD_PEER_PORT,
                data=self.run_dir / f"host-{index}" / "etcd",
                host=host,
                tls_dir=self.certs / "etcd",
            )
            for index, host in enumerate(self.hosts[: self.num_controlling])
        )

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Of etcd, for clients."""
        return tuple(member.endpoint for member in self.members)

    def _problems(self) -> Iterator[Problem]:
        if not 0 <= self.index < len(self.hosts):
            yield Problem("--index", f"is {self.index}, and there are {len(self.hosts)} hosts")
        if len(set(self.hosts)) < len(self.hosts):
            yield Problem("--hosts", "names a host twice")
        if self.devices < 1:
            yield Problem("--devices", f"is {self.devices} and must be at least 1")
        if not (self.certs / "trainer").is_dir():
            yield Problem("--certs", f"{self.certs} holds none; `realloc certs init` makes them")
        if not self.tokens.is_file():
            yield Problem("--tokens", f"{self.tokens} is absent; `realloc tokens create` makes it")


def etcd_programs(settings: HostSettings, etcd: Path) -> list[Program]:
    """This host's member of etcd, if it has one."""
    if settings.index >= settings.num_controlling:
        return []
    member = settings.members[settings.index]
    others = [each for each in settings.members if each != member]
    return [
        Program(
            name=member.name,
            command=member.command(etcd, *others),
            log=_folder(settings) / "logs" / "etcd.log",
            environment={"ETCD_UNSUPPORTED_ARCH": "arm64"},
        )
    ]


def service_stages(settings: HostSettings) -> list[list[Program]]:
    """This host's services, in the order of their start."""
    devices = range(settings.index * settings.devices, (settings.index + 1) * settings.devices)
    roots = ",".join(settings.reward_roots)
    shards = []
    for device in devices:
        place = {"device": str(device), "node": str(settings.index)}
        shards.append(_service(settings, "trainer", **place))
        shards.append(_service(settings, "generation", **place, reward_roots=roots))
    if settings.index >= settings.num_controlling:
        return [shards]
    scheduler = _service(
        settings,
        "scheduler",
        name=f"scheduler-{settings.index}",
        port=str(settings.scheduler_port),
        tokens_file=str(settings.tokens.absolute()),
        num_nodes=str(len(settings.hosts)),
        devices_per_node=str(settings.devices),
        device_memory_bytes=str(settings.device_memory_bytes),
        reward_roots=roots,
    )
    control = [
        _service(settings, kind, name=f"{kind}-{settings.index}")
        for kind in ("plan_search", "param_store")
    ]
    return [control, shards, [scheduler]]


async def run_host(settings: HostSettings, stop: asyncio.Event) -> None:
    """Keep this host's part of the cluster up until told to stop.

    Raises:
        EtcdNotFound: this host is to run etcd and has none.
        Unauthenticated: etcd does not take the certificates.
    """
    etcd = find_etcd() if settings.index < settings.num_controlling else Path()
    for folder in (_folder(settings) / "logs", _folder(settings) / "etcd"):
        folder.mkdir(parents=True, exist_ok=True)
    stages = Stages(_say)
    starting = asyncio.create_task(_start(settings, stages, etcd))
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([starting, stopped], return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            await stopped
        _say("stopping")
    finally:
        starting.cancel()
        stopped.cancel()
        await asyncio.gather(starting, stopped, return_exceptions=True)
        await stages.stop()


async def _start(settings: HostSettings, stages: Stages, etcd: Path) -> None:
    await stages.start(etcd_programs(settings, etcd))
    config = ServiceConfig(
        host=settings.host,
        etcd_endpoints=settings.endpoints,
        tls_dir=str(settings.certs / "trainer"),
    )
    async with store_of(config) as store:
        await _wait_for_etcd(store)
        for stage in service_stages(settings):
            await stages.start(stage)
        await _wait_for_all(settings, store)
    addresses = [
        join(host, settings.scheduler_port) for host in settings.hosts[: settings.num_controlling]
    ]
    _say(f"ready; schedulers: {', '.join(addresses)}")


async def _wait_for_etcd(store: EtcdStore) -> None:
    """A majority of the members has to be up; their hosts may start in any order."""
    while True:
        try:
            await store.get("/realloc/history")
            return
        except Unavailable as error:
            _say(f"waiting for etcd: {error}")


async def _wait_for_all(settings: HostSettings, store: EtcdStore) -> None:
    counts = dict.fromkeys(("scheduler", "plan_search", "param_store"), settings.num_controlling)
    counts |= dict.fromkeys(("trainer", "generation"), settings.devices * len(settings.hosts))
    async with Members(store) as members:
        while True:
            try:
                await members.wait_for(counts, timeout_seconds=_WAIT_SECONDS)
                return
            except Unavailable as error:
                _say(f"waiting for the other hosts: {error}")


def _service(settings: HostSettings, kind: str, **fields: str) -> Program:
    common = {
        "host": settings.host,
        "tls_dir": str((settings.certs / kind).absolute()),
        "etcd_endpoints": ",".join(settings.endpoints),
        "trace_dir": str(settings.run_dir.absolute() / "traces"),
    }
    return service_program(kind, _folder(settings), {**common, **fields})


def _folder(settings: HostSettings) -> Path:
    return settings.run_dir.absolute() / f"host-{settings.index}"


def _parse(argv: Sequence[str] | None) -> HostSettings:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hosts", required=True, help="IP address of every host, comma-separated")
    parser.add_argument("--index", type=int, required=True, help="which of them this is, from 0")
    parser.add_argument("--devices", type=int, required=True, help="devices of each host")
    parser.add_argument("--certs", type=Path, required=True, help="folder of `realloc certs init`")
    parser.add_argument("--tokens", type=Path, required=True, help="of `realloc tokens create`")
    parser.add_argument("--run-dir", type=Path, default=Path("run"), help="data, logs, traces")
    parser.add_argument("--device-memory-bytes", type=int, default=4 << 30)
    parser.add_argument("--reward-roots", default=".", help="folders, comma-separated")
    found = parser.parse_args(argv)
    return HostSettings(
        hosts=tuple(found.hosts.split(",")),
        index=found.index,
        devices=found.devices,
        certs=found.certs,
        tokens=found.tokens,
        run_dir=found.run_dir,
        device_memory_bytes=found.device_memory_bytes,
        reward_roots=tuple(found.reward_roots.split(",")),
    )


async def _run(settings: HostSettings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await run_host(settings, stop)


def main(argv: Sequence[str] | None = None) -> int:
    """Run until Ctrl-C; 1 after an error."""
    try:
        asyncio.run(_run(_parse(argv)))
    except InvalidInput as error:
        for problem in error.problems:
            print(f"host: {problem}", file=sys.stderr)
        return 2
    except (ReallocError, RuntimeError) as error:
        print(f"host: {error}", file=sys.stderr)
        return 1
    return 0


def _say(text: str) -> None:
    print(f"host: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
