"""How far reallocations are, in the store: ``/realloc/reallocations/<job>/<model>/<target>``.

One record per target, of its latest reallocation, so their number is bounded. Whoever drives a
reallocation writes its record before it goes on, each time on condition that the record is as
it left it. So of a param-store that was thought dead and its successor only one can begin to
commit, and only what has begun to commit is ever finished.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from realloc.api.param_store.v1 import param_store_pb2 as pb
from realloc.coordination.store import Compare, CompareFailed, Entry, Store
from realloc.core.errors import Conflict, Unavailable
from realloc.wire.convert import from_proto, to_proto
from services.param_store.model import PlacedLayout
from services.param_store.orders import Reallocation
from services.param_store.phases import NEXT, Phase

_RECORDS = "/realloc/reallocations/"
_PAUSE_SECONDS = 0.1
_NEXT_WRITTEN = {
    Phase.PREPARING: frozenset({Phase.COMMITTING, Phase.ABORTED}),
    Phase.COMMITTING: frozenset({Phase.COMMITTED}),
}
"""Phases between PREPARING and COMMITTING are not written: they all are aborted alike."""
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedParticipant:
    """A process that takes part."""

    name: str
    incarnation: str
    is_destination: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ReallocationRecord:
    """What somebody else needs to finish or abort a reallocation, and its outcome."""

    request_id: str
    job_id: str
    model_id: str
    target: PlacedLayout
    """With the version that it gets, and the incarnations that take part."""
    session_id: str
    participants: tuple[RecordedParticipant, ...]
    phase: Phase
    outcome: Reallocation | None = None
    """Once committed at every destination."""

    @property
    def is_final(self) -> bool:
        """True where nothing is left to do."""
        return not NEXT[self.phase]

    @property
    def devices(self) -> frozenset[int]:
        """Devices of the target."""
        return frozenset(self.target.layout.devices)


class Record:
    """A record and the state of its entry, as the one who drives it knows it."""

    def __init__(self, store: Store, value: ReallocationRecord, entry: Entry | None) -> None:
        self._store = store
        self.value = value
        self._mod_revision = entry.mod_revision if entry else 0

    async def begin(self, timeout_seconds: float) -> None:
        """Write the record for the first time, in place of an earlier one of the target.

        Raises:
            Conflict: somebody else began a reallocation of the target.
            Unavailable: the store was not reached.
        """
        await self._write(self.value, timeout_seconds)

    async def advance(
        self, phase: Phase, *, outcome: Reallocation | None = None, timeout_seconds: float = 10.0
    ) -> None:
        """Write that a phase begins; only then it may.

        Raises:
            Conflict: somebody else has taken this reallocation over.
            Unavailable: the store was not reached; whether it was written is not known.
        """
        assert phase in _NEXT_WRITTEN[self.value.phase], (self.value.phase, phase)
        value = replace(self.value, phase=phase, outcome=outcome)
        await self._write(value, timeout_seconds)

    async def _write(self, value: ReallocationRecord, timeout_seconds: float) -> None:
        """Compare and put; repeated while the store does not answer, since that is harmless."""
        data = to_proto(value, pb.ReallocationRecord).SerializeToString()
        key = _key(value)
        before = Compare.absent(key)
        if self._mod_revision:
            before = Compare(key=key, mod_revision=self._mod_revision)

        async def put() -> int:
            try:
                return await self._store.transact(compare=[before], put={key: data})
            except CompareFailed as error:
                # An attempt whose answer was lost may have been this very write.
                present = await self._store.get(key)
                if before in error.failed and present is not None and present.value == data:
                    return present.mod_revision
                raise Conflict(
                    f"the reallocation of {value.model_id} was taken over by another param-store"
                ) from None

        self._mod_revision = await _until_answered(put, timeout_seconds)
        self.value = value


class Records:
    """The records of all jobs."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def list(self, job_id: str = "", model_id: str = "") -> tuple[Record, ...]:
        """Records of all jobs, of a job, or of one of its models."""
        prefix = _RECORDS + "".join(f"{part}/" for part in (job_id, model_id) if part)
        return tuple(
            Record(self._store, _decode(entry), entry) for entry in await self._store.list(prefix)
        )

    async def new(self, value: ReallocationRecord) -> Record:
        """A record that is about to begin."""
        return Record(self._store, value, await self._store.get(_key(value)))

    async def release(self, job_id: str) -> None:
        """Forget the records of a job."""
        for entry in await self._store.list(f"{_RECORDS}{job_id}/"):
            await self._store.delete(entry.key)


async def _until_answered(call: Callable[[], Awaitable[Result]], timeout_seconds: float) -> Result:
    """Repeat a harmless call while the store is out of reach."""
    deadline = asyncio.get_running_loop().time() + timeout_seconds
    while True:
        try:
            return await call()
        except Unavailable:
            if asyncio.get_running_loop().time() > deadline:
                raise
        await asyncio.sleep(_PAUSE_SECONDS)


def _key(value: ReallocationRecord) -> str:
    target = f"{value.target.layout}\n{','.join(value.target.shards)}"
    name = hashlib.sha256(target.encode()).hexdigest()[:16]
    return f"{_RECORDS}{value.job_id}/{value.model_id}/{name}"


def _decode(entry: Entry) -> ReallocationRecord:
    return from_proto(pb.ReallocationRecord.FromString(entry.value), ReallocationRecord)
