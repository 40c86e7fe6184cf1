"""All checks in their order, each with a deadline: the doctor never hangs on a dead process."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from realloc.client.doctor import processes
from realloc.client.doctor.certificates import check_certificates
from realloc.client.doctor.deployment import Deployment, Reach, read_deployment
from realloc.client.doctor.etcd import check_etcd
from realloc.client.doctor.findings import CheckResult, Finding, Status, skipped
from realloc.client.doctor.folder import check_folder
from realloc.client.doctor.links import check_links, free_trainers
from realloc.coordination.etcd_store import EtcdStore
from realloc.core.errors import ReallocError
from realloc.rpc.channels import Channels
from realloc.security.tls import AUTHORITY_FILE, ETCD_NAME, client_security, peer_security

LINKS_SECONDS = 900.0
"""Longest measurement of links, whatever the size of the cluster."""
_OF_PROCESSES = (
    processes.check_membership,
    processes.check_versions,
    processes.check_clocks,
    processes.check_devices,
    processes.check_space,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """What to check."""

    etcd_endpoints: Sequence[str]
    tls_dir: str = ""
    """Folder with an operator's certificate; empty where the cluster talks in the clear."""
    token: str = ""
    """Who the doctor is towards schedulers; needs to be an operator's."""
    folder: str = ""
    """Folder that all shards should share; empty checks none."""
    measures_links: bool = True
    message_bytes: int = 8 << 20
    timeout_seconds: float = 10.0
    """Deadline of every call to a process."""


async def examine(
    what: Examination, progress: Callable[[str], object] = str
) -> AsyncIterator[CheckResult]:
    """The results as they come.

    Args:
        progress: told what is being done, before each part that takes time.
    """
    progress("asking etcd")
    security = peer_security(what.tls_dir, server_name=ETCD_NAME)
    etcd = await _bounded(
        "etcd",
        check_etcd(what.etcd_endpoints, security, timeout_seconds=what.timeout_seconds),
        4 * what.timeout_seconds,
    )
    yield etcd
    async with EtcdStore(what.etcd_endpoints, security=security) as store, _reach(what) as reach:
        progress("asking every process")
        found: Deployment | ReallocError
        try:
            found = await read_deployment(store, reach, timeout_seconds=what.timeout_seconds)
        except ReallocError as error:
            found = error
        if what.tls_dir:
            progress("looking at certificates")
            yield await _check_certificates(what, etcd, found)
        if isinstance(found, ReallocError):
            reason = f"etcd does not say who is there: {found}"
            yield skipped("processes", reason, "mend etcd first")
            return
        for check in _OF_PROCESSES:
            yield check(found)
        async for result in _examine_shards(what, found, reach, progress):
            yield result


async def _check_certificates(
    what: Examination, etcd: CheckResult, found: Deployment | ReallocError
) -> CheckResult:
    """Those of etcd also where nobody can be found: an expired one may be why."""
    addresses = {f"etcd {endpoint}": endpoint for endpoint in etcd.data.get("members", ())}
    if isinstance(found, Deployment):
        addresses |= {member.name: member.address for member in found.members}
    dates = check_certificates(what.tls_dir, addresses, timeout=what.timeout_seconds)
    return await _bounded("certificates", dates, 4 * what.timeout_seconds)


@asynccontextmanager
async def _reach(what: Examination) -> AsyncIterator[Reach]:
    """Channels to every process, with the certificate and the token of an operator."""
    if not what.tls_dir:
        async with Channels() as channels:
            yield Reach(channels, channels)
        return
    people = client_security(Path(what.tls_dir, AUTHORITY_FILE), what.token)
    async with Channels(peer_security(what.tls_dir)) as peers, Channels(people) as schedulers:
        yield Reach(peers, schedulers)


async def _examine_shards(
    what: Examination,
    deployment: Deployment,
    reach: Reach,
    progress: Callable[[str], object],
) -> AsyncIterator[CheckResult]:
    """The checks in which shards act."""
    if what.folder:
        progress(f"writing to {what.folder} from every shard")
        yield await _bounded(
            "folder",
            check_folder(
                what.folder,
                deployment.shards(),
                reach,
                timeout_seconds=what.timeout_seconds,
            ),
            4 * what.timeout_seconds,
        )
    else:
        yield skipped("folder", "none was named", "give --folder, where checkpoints go")
    if what.measures_links:
        progress(f"measuring the links between {len(free_trainers(deployment))} trainers")
        measured = check_links(deployment, reach, message_bytes=what.message_bytes)
        yield await _bounded("links", measured, LINKS_SECONDS)


async def _bounded(name: str, check: Awaitable[CheckResult], seconds: float) -> CheckResult:
    """A check that ends, whatever it meets."""
    began = time.monotonic()
    try:
        result = await asyncio.wait_for(check, seconds)
    except (ReallocError, TimeoutError) as error:
        reason = str(error) or f"did not end within {seconds:.0f} s"
        result = CheckResult(
            name=name,
            summary=reason,
            findings=(
                Finding(
                    status=Status.FAILED,
                    subject=name,
                    problem=reason,
                    advice="see the logs of the processes that it asks",
                ),
            ),
        )
    return replace(result, seconds=time.monotonic() - began)
