"""The first node of a Slurm job: starts the cluster, and ends it before Slurm does.

    TERM   the job was cancelled: stop everything
    USR1   its time is nearly over: pause the jobs at a checkpoint, stop, and queue again

Runs inside the job, in place of its batch script.
"""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from deploy.local.etcd_server import EtcdMember
from deploy.local.ports import ReservedPorts
from deploy.local.stages import Stages
from deploy.slurm.certificates import prepare_certificates, token_file
from deploy.slurm.commands import address_of, hostnames, slurm
from deploy.slurm.devices import known_devices
from deploy.slurm.jobs import PausedJobs
from deploy.slurm.programs import (
    Place,
    control_programs,
    etcd_program,
    folders,
    nodes_program,
)
from deploy.slurm.settings import SlurmSettings, read_settings
from deploy.slurm.shared_folder import check_shared
from realloc.addresses import address_towards
from realloc.coordination.etcd_store import EtcdStore
from realloc.coordination.members import Members
from realloc.coordination.membership import forget_members
from realloc.core.errors import ReallocError
from realloc.plain_data import ConfigError
from realloc.security.tls import ETCD_NAME, peer_security

READY_SECONDS = 600.0
_STOP_SECONDS = 30.0
"""Of the margin before the time limit, what stopping the cluster may take."""
ENDPOINTS_FILE = "endpoints.json"


class Head:
    """The cluster of one Slurm job."""

    def __init__(self, settings: SlurmSettings) -> None:
        self._settings = settings
        self._endpoints = settings.run_dir / ENDPOINTS_FILE
        self._stages = Stages(_say)
        self._ports: ReservedPorts | None = None

    async def start(self) -> None:
        """Start everything and publish the endpoints.

        Raises:
            Unavailable: a node does not see the folder, or processes are missing.
        """
        settings = self._settings
        folders(settings.run_dir)
        self._endpoints.unlink(missing_ok=True)
        await check_shared(settings)
        host = self._own_address()
        place = Place(
            host=host,
            etcd_endpoints=settings.etcd_endpoints,
            certificates=prepare_certificates(settings, host),
        )
        if not settings.etcd_endpoints:
            place = await self._start_etcd(place)
        async with self._store(place) as store:
            await forget_members(store)  # a requeued job finds those of its last run
        _say(f"starting services on {host}")
        await self._stages.start(control_programs(settings, place))
        _say(f"starting {settings.nodes} nodes of {settings.num_local_devices} devices")
        await self._stages.start([nodes_program(settings, place)])
        endpoints = await self._wait_ready(place)
        endpoints |= _access(place)
        self._publish(endpoints)
        await self._paused_jobs(endpoints).resume()

    async def pause_jobs(self) -> None:
        """Save what can be resumed, in the time that is left for it."""
        if self._endpoints.exists():
            endpoints = json.loads(self._endpoints.read_text())
            seconds = self._settings.margin_seconds - _STOP_SECONDS
            await self._paused_jobs(endpoints).pause(timeout_seconds=seconds)

    def _paused_jobs(self, endpoints: Mapping[str, str]) -> PausedJobs:
        access = {"REALLOC_ADDRESS": endpoints["scheduler"]}
        if "authority" in endpoints:
            access["REALLOC_CA"] = endpoints["authority"]
            access["REALLOC_TOKEN_FILE"] = endpoints["token_file"]
        return PausedJobs(
            path=self._settings.run_dir / "slurm" / "paused-jobs.json",
            report=_say,
            environment={**os.environ, **access},
        )

    async def stop(self) -> None:
        """Stop everything, the nodes first; scancel has signalled every process already."""
        self._endpoints.unlink(missing_ok=True)
        await self._stages.stop()
        if self._ports is not None:
            self._ports.close()

    def _own_address(self) -> str:
        """The address of this node that the other nodes and the login node reach."""
        others = hostnames(os.environ["SLURM_JOB_NODELIST"])[1:]
        peers = [address_of(node) for node in others[:1]]
        peers.append(os.environ.get("SLURM_SUBMIT_HOST", ""))
        return next(filter(None, map(address_towards, peers)), "127.0.0.1")

    async def _start_etcd(self, place: Place) -> Place:
        self._ports = ReservedPorts(2, place.host)
        member = EtcdMember.on(
            self._ports,
            "slurm",
            self._settings.run_dir / "etcd",
            host=place.host,
            tls_dir=place.tls_dir("etcd"),
        )
        _say(f"starting etcd on {member.endpoint}")
        await self._stages.start([etcd_program(self._settings, member)])
        await member.answered(self._settings.run_dir / "logs" / "etcd.log")
        return replace(place, etcd_endpoints=(member.endpoint,))

    async def _wait_ready(self, place: Place) -> dict[str, str]:
        num_devices = self._settings.nodes * self._settings.num_local_devices
        counts = {"scheduler": 1, "plan_search": 1, "param_store": 1}
        counts |= {"trainer": num_devices, "generation": num_devices}
        async with self._store(place) as store, Members(store) as members:
            waiting = asyncio.create_task(
                members.wait_for(counts, timeout_seconds=READY_SECONDS), name="ready"
            )
            while not waiting.done():
                _say(", ".join(f"{len(members.current(k))}/{n} {k}" for k, n in counts.items()))
                await asyncio.wait([waiting], timeout=10)
            ready = waiting.result()
        etcd = {"etcd": ",".join(place.etcd_endpoints)}
        return etcd | {member.name: member.address for member in ready}

    def _store(self, place: Place) -> EtcdStore:
        security = peer_security(str(place.tls_dir("operator") or ""), server_name=ETCD_NAME)
        return EtcdStore(place.etcd_endpoints, security=security)

    def _publish(self, endpoints: dict[str, str]) -> None:
        """Write the endpoints file; whoever sees it sees all of it."""
        facts = {**endpoints, "slurm_job": os.environ["SLURM_JOB_ID"]}
        partial = self._endpoints.with_suffix(".partial")
        partial.write_text(json.dumps(facts, indent=2) + "\n")
        partial.replace(self._endpoints)
        _say(f"ready: scheduler at {endpoints['scheduler']}")


def _access(place: Place) -> dict[str, str]:
    """What the endpoints file says about TLS, for clients and the doctor."""
    if place.certificates is None:
        return {}
    return {
        "authority": str(place.certificates / "client" / "ca.crt"),
        "token_file": str(token_file(place.certificates)),
        "tls_dir": str(place.tls_dir("operator")),
    }


async def run(settings: SlurmSettings) -> int:
    """Keep the cluster up until a signal; the exit status."""
    received: asyncio.Queue[signal.Signals] = asyncio.Queue(maxsize=1)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        asyncio.get_running_loop().add_signal_handler(number, _note, received, number)
    head = Head(settings)
    signalled = asyncio.create_task(received.get(), name="signalled")
    starting = asyncio.create_task(head.start(), name="starting")
    try:
        await asyncio.wait([signalled, starting], return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
        number = await signalled
        if number is signal.SIGUSR1:
            _say("time is nearly over: pausing jobs")
            await head.pause_jobs()
    finally:
        starting.cancel()
        signalled.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        _say("stopping")
        await head.stop()
    if number is signal.SIGUSR1:
        _say("queueing again")
        slurm("scontrol", "requeue", os.environ["SLURM_JOB_ID"])
    _say("stopped")
    return 0


def _note(received: "asyncio.Queue[signal.Signals]", number: signal.Signals) -> None:
    if received.empty():
        received.put_nowait(number)


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def main() -> int:
    try:
        settings = known_devices(read_settings(Path(sys.argv[1])))
        return asyncio.run(run(settings))
    except (ReallocError, ConfigError, RuntimeError) as error:
        _say(f"failed: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
