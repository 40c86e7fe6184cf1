"""A whole cluster on this machine: etcd, the five services, one shard of each kind per device."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from deploy.local.etcd_binary import find_etcd
from deploy.local.etcd_server import EtcdMember
from deploy.local.ports import ReservedPorts
from deploy.local.programs import service_program
from deploy.local.stages import Stages
from deploy.local.supervisor import Program, Supervised
from realloc.coordination.etcd_store import EtcdStore
from realloc.coordination.members import Members
from realloc.coordination.membership import Member

READY_SECONDS = 300.0
ENDPOINTS_FILE = "endpoints.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalSettings:
    """What the local cluster looks like."""

    run_dir: Path
    """Gets data, logs, traces and the endpoints file."""
    num_devices: int = 2
    """Devices; each hosts a trainer shard and a generation replica."""
    device_memory_bytes: int = 4 << 30
    """Memory that plans may use per device."""
    reward_roots: tuple[str, ...] = (".",)
    """Folders that reward functions may lie in."""
    etcd: Path | None = None
    """The etcd binary; looked for where it is None."""


class LocalCluster:
    """Starts in stages, later ones once etcd answers; stops in the reverse order."""

    def __init__(self, settings: LocalSettings, report: Callable[[str], None]) -> None:
        self._settings = settings
        self._report = report
        self._stages = Stages(report)
        self._ports = ReservedPorts(2)
        self._etcd_endpoint = ""
        self.endpoints: dict[str, str] = {}
        """Address of each process by name; filled when all are ready."""

    async def start(self) -> None:
        """Start everything and wait until every process is registered.

        Raises:
            EtcdNotFound: there is none, or it did not start; the message says what to do.
            Unavailable: not all were ready in time; the message says who is missing.
        """
        for folder in ("logs", "traces", "etcd"):
            (self._settings.run_dir / folder).mkdir(parents=True, exist_ok=True)
        (self._settings.run_dir / ENDPOINTS_FILE).unlink(missing_ok=True)
        member = EtcdMember.on(self._ports, "local", self._settings.run_dir / "etcd")
        binary = self._settings.etcd or find_etcd()
        self._report(f"starting etcd on {member.endpoint}")
        await self._stages.start([self._etcd(member, binary)])
        await member.answered(self._log("etcd"))
        self._report("starting services")
        for stage in self._service_stages(member.endpoint):
            await self._stages.start(stage)
        self._etcd_endpoint = member.endpoint
        await self.wait_ready()

    async def stop(self) -> None:
        """Stop all, the last stage first; it cannot be started again."""
        (self._settings.run_dir / ENDPOINTS_FILE).unlink(missing_ok=True)
        await self._stages.stop()
        self._ports.close()

    def supervised(self, name: str) -> Supervised:
        """The supervisor of one process."""
        return self._stages.supervised(name)

    def pids(self) -> Mapping[str, int]:
        """Process id of everything that runs, by name."""
        return self._stages.pids()

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    async def wait_ready(self) -> None:
        """Wait until every process is registered; then the endpoints are true.

        Raises:
            Unavailable: not all were ready in time; the message says who is missing.
        """
        etcd = self._etcd_endpoint
        counts = {
            "scheduler": 1,
            "plan_search": 1,
            "param_store": 1,
            "trainer": self._settings.num_devices,
            "generation": self._settings.num_devices,
        }
        async with EtcdStore((etcd,)) as store, Members(store) as members:
            ready: tuple[Member, ...] = await members.wait_for(
                counts, timeout_seconds=READY_SECONDS
            )
        self.endpoints = {"etcd": etcd, **{member.name: member.address for member in ready}}
        path = self._settings.run_dir / ENDPOINTS_FILE
        path.write_text(json.dumps(self.endpoints, indent=2) + "\n")

    def _etcd(self, member: EtcdMember, binary: Path) -> Program:
        return Program(
            name="etcd",
            command=member.command(binary),
            log=self._log("etcd"),
            environment={"ETCD_UNSUPPORTED_ARCH": "arm64"},
        )

    def _service_stages(self, etcd: str) -> list[list[Program]]:
        settings = self._settings
        roots = ",".join(settings.reward_roots)
        devices = range(settings.num_devices)
        return [
            [self._service("plan_search", etcd), self._service("param_store", etcd)],
            [self._service("trainer", etcd, device=str(each)) for each in devices]
            + [
                self._service("generation", etcd, device=str(each), reward_roots=roots)
                for each in devices
            ],
            [
                self._service(
                    "scheduler",
                    etcd,
                    devices_per_node=str(settings.num_devices),
                    device_memory_bytes=str(settings.device_memory_bytes),
                    reward_roots=roots,
                )
            ],
        ]

    def _service(self, kind: str, etcd: str, **fields: str) -> Program:
        run_dir = self._settings.run_dir
        common = {"etcd_endpoints": etcd, "trace_dir": str(run_dir / "traces")}
        return service_program(kind, run_dir, {**common, **fields})

    def _log(self, name: str) -> Path:
        return self._settings.run_dir / "logs" / f"{name}.log"
