"""Check of a shared folder: every shard writes, every shard sees what all wrote."""

import asyncio
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from realloc.api.diagnostics.v1 import diagnostics_pb2 as pb
from realloc.api.diagnostics.v1 import diagnostics_pb2_grpc
from realloc.client.doctor.deployment import Reach
from realloc.client.doctor.findings import CheckResult, Finding, Status
from realloc.coordination.membership import Member
from realloc.core.errors import Conflict, NotFound, ReallocError

_LIST_AGAIN_SECONDS = 0.5
_ADVICE = {
    NotFound: "mount the shared file system there",
    Conflict: "let the user of the process write there",
}


async def check_folder(
    folder: str, shards: Sequence[Member], reach: Reach, *, timeout_seconds: float
) -> CheckResult:
    """Write, list until all is seen or the time is over, remove."""
    probe = _Probe(folder, reach, timeout_seconds)
    written = await probe.all(shards, pb.FOLDER_PHASE_WRITE)
    try:
        good = [shard for shard in shards if not isinstance(written[shard.key], ReallocError)]
        seen = await _list_until_seen(probe, good, timeout_seconds)
    finally:
        await probe.all(shards, pb.FOLDER_PHASE_REMOVE)
    findings = [*_refusals(shards, written), *_unseen(folder, good, seen)]
    free = min((each.free_bytes for each in written.values() if _answered(each)), default=0)
    return CheckResult(
        name="folder",
        summary=f"{folder}: {len(good)} of {len(shards)} shards write there, "
        f"{free / 2**30:.1f} GiB free",
        findings=findings,
        data={"folder": folder, "free_bytes": free},
    )


class _Probe:
    """One test; its files have a name of their own."""

    def __init__(self, folder: str, reach: Reach, timeout_seconds: float) -> None:
        self._folder = folder
        self._reach = reach
        self._timeout_seconds = timeout_seconds
        self._token = secrets.token_hex(8)

    async def all(
        self, shards: Sequence[Member], phase: "pb.FolderPhase.ValueType"
    ) -> dict[str, Any]:
        """The answer or the error of each shard, by its key."""
        answers = await asyncio.gather(*(self._one(shard, phase) for shard in shards))
        return {shard.key: answer for shard, answer in zip(shards, answers, strict=True)}

    async def _one(self, shard: Member, phase: "pb.FolderPhase.ValueType") -> Any:
        stub = diagnostics_pb2_grpc.DiagnosticsServiceStub(self._reach.channel(shard))
        request = pb.CheckFolderRequest(folder=self._folder, token=self._token, phase=phase)
        try:
            return await stub.CheckFolder(request, timeout=self._timeout_seconds)
        except ReallocError as error:
            return error


async def _list_until_seen(
    probe: _Probe, shards: Sequence[Member], timeout_seconds: float
) -> Mapping[str, Any]:
    """What each shard sees in the end; network file systems show new files after seconds."""
    names = {shard.name for shard in shards}
    deadline = time.monotonic() + timeout_seconds
    while True:
        seen = await probe.all(shards, pb.FOLDER_PHASE_LIST)
        complete = all(_answered(each) and set(each.names) >= names for each in seen.values())
        if complete or time.monotonic() > deadline:
            return seen
        await asyncio.sleep(_LIST_AGAIN_SECONDS)


def _answered(answer: Any) -> bool:
    return not isinstance(answer, ReallocError)


def _refusals(shards: Sequence[Member], written: Mapping[str, Any]) -> Iterator[Finding]:
    for shard in shards:
        answer = written[shard.key]
        if isinstance(answer, ReallocError):
            yield Finding(
                status=Status.FAILED,
                subject=f"{shard.name} ({shard.host})",
                problem=str(answer),
                advice=_ADVICE.get(type(answer), "it answered a moment ago: read its log"),
            )


def _unseen(folder: str, shards: Sequence[Member], seen: Mapping[str, Any]) -> Iterator[Finding]:
    names = {shard.name for shard in shards}
    for shard in shards:
        answer = seen[shard.key]
        missing = names - (set(answer.names) if _answered(answer) else set())
        if missing:
            yield Finding(
                status=Status.FAILED,
                subject=f"{shard.name} ({shard.host})",
                problem=f"does not see what {', '.join(sorted(missing))} wrote to {folder}",
                advice="these are different folders: mount one shared file system on all hosts",
            )
