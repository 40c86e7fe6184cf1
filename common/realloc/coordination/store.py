"""The Store: the few shared facts of a cluster, with revisions, leases and watches.

Invariants that every implementation keeps (``tests/contract/test_store.py``):

- Every change of the store has a revision, one more than the change before it. All writes of
  one transaction share a revision.
- A watch yields every event of its prefix from ``start_revision`` on, once, in the order of the
  revisions, over lost connections and restarts; where it cannot, it raises `HistoryLost`.
- A lease that may have ended on the server has ``lost`` set before.
- Every call ends within its deadline. Until then reads, `put`, `delete` and `update` are tried
  again when no answer comes. `Unavailable` leaves open whether a write was applied: the caller
  repeats it, so every write must be idempotent (a fence or a compare makes it so).
- Keys are text, values are bytes of at most `MAX_VALUE_BYTES`. Nothing large lives here.
"""

import asyncio
import contextlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from types import TracebackType
from typing import Self, TypeVar

from realloc.coordination.lease import Lease
from realloc.core.errors import Conflict, InvalidInput, Problem, Unavailable, raise_problems

MAX_VALUE_BYTES = 1 << 20
"""Largest value in bytes; etcd refuses requests above 1.5 MiB."""

MAX_OPERATIONS = 128
"""Most compares, and most writes, of one transaction; etcd's default ``--max-txn-ops``."""

ATTEMPT_SECONDS = 1.5
"""After so long a call that may safely happen twice is tried again."""
_PAUSE_SECONDS = 0.1

Result = TypeVar("Result")


class HistoryLost(Unavailable):
    """A watch cannot go on: the events after its revision are gone; list again, then watch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One key and its value at one revision."""

    key: str
    value: bytes
    create_revision: int
    """Revision that created the key (anew, where it had been deleted)."""
    mod_revision: int
    """Revision of the last put."""
    lease_id: int = 0
    """The lease that the key ends with; 0 for none."""

    def is_same_write(self, other: "Entry") -> bool:
        """True where both are what one and the same put left."""
        return (self.key, self.mod_revision, self.lease_id, self.value) == (
            other.key,
            other.mod_revision,
            other.lease_id,
            other.value,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """All entries under a prefix at one revision, in the order of their keys."""

    entries: tuple[Entry, ...]
    revision: int
    """Revision of the whole store; a watch from ``revision + 1`` continues this listing."""

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


class EventKind(Enum):
    """What happened to a key."""

    PUT = "put"
    DELETE = "delete"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One change of one key."""

    kind: EventKind
    key: str
    revision: int
    entry: Entry | None
    """The entry after a put; None after a deletion, also one by the end of a lease."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compare:
    """A condition of a transaction on one key; both revisions are checked where both are given."""

    key: str
    create_revision: int | None = None
    """The key was created at this revision; 0: it does not exist."""
    mod_revision: int | None = None
    """The key was last put at this revision; 0: it does not exist."""

    @staticmethod
    def absent(key: str) -> "Compare":
        """The key does not exist."""
        return Compare(key=key, create_revision=0)

    @staticmethod
    def unchanged(entry: Entry) -> "Compare":
        """The key still has the value that was read as ``entry``."""
        return Compare(key=entry.key, mod_revision=entry.mod_revision)

    def holds(self, entry: Entry | None) -> bool:
        """True where the condition is met by the key's present entry (None: no such key)."""
        created, modified = (entry.create_revision, entry.mod_revision) if entry else (0, 0)
        return self.create_revision in (None, created) and self.mod_revision in (None, modified)


class CompareFailed(Conflict):
    """A transaction changed nothing, because conditions of it do not hold."""

    def __init__(self, failed: Collection[Compare]) -> None:
        self.failed = tuple(failed)
        keys = ", ".join(compare.key for compare in self.failed)
        super().__init__(f"changed by somebody else: {keys}; read again and decide anew")


class Unanswered(Unavailable):
    """The store did not answer, or said that it cannot now, as it does while its members elect a
    leader. What was to be written may have been."""


async def until_answered(
    call: Callable[[float], Awaitable[Result]], timeout_seconds: float
) -> Result:
    """Repeat a call that may safely happen twice.

    A member that loses its leader keeps a request for seconds and then gives it up, although the
    others have a new leader long since; so no attempt waits for the whole of the time.

    Args:
        call: gets the seconds that this attempt may take.
        timeout_seconds: for all attempts together.

    Raises:
        Unanswered: by the last attempt.
    """
    loop = asyncio.get_running_loop()
    deadline, left = loop.time() + timeout_seconds, timeout_seconds
    for attempt in itertools.count(1):
        try:
            return await call(min(left, ATTEMPT_SECONDS))
        except Unanswered as error:
            left = deadline - loop.time() - _PAUSE_SECONDS
            if left <= 0 and attempt == 1:
                raise
            if left <= 0:
                tried = f"the last of {attempt} attempts in {timeout_seconds:g} s"
                raise Unanswered(f"{error} ({tried})") from error
        await asyncio.sleep(_PAUSE_SECONDS)
    raise AssertionError("unreachable")


class Store(ABC):
    """A small consistent key-value store; ``async with`` closes it.

    ``timeout_seconds`` of a call is its deadline; None takes the store's default.
    """

    @property
    @abstractmethod
    def timeout_seconds(self) -> float:
        """Deadline of a call that gives none."""

    @abstractmethod
    async def get(self, key: str, *, timeout_seconds: float | None = None) -> Entry | None:
        """The key's entry, or None; sees every write that was acknowledged before the call."""

    @abstractmethod
    async def list(self, prefix: str, *, timeout_seconds: float | None = None) -> Listing:
        """All entries whose key starts with ``prefix``, at one revision."""

    @abstractmethod
    async def transact(
        self,
        *,
        compare: Collection[Compare] = (),
        put: Mapping[str, bytes] | None = None,
        delete: Collection[str] = (),
        lease: Lease | None = None,
        timeout_seconds: float | None = None,
    ) -> int:
        """Do all writes at once if every condition holds, otherwise nothing.

        Args:
            put: values by key; those keys end with ``lease`` where one is given.
            delete: keys; one that does not exist is no error.

        Returns:
            The revision of the writes.

        Raises:
            CompareFailed: a condition does not hold; nothing was written.
            NotFound: the lease is over; nothing was written.
            InvalidInput: an empty key, a value too large, one key written twice.
            Unavailable: no answer in time; the writes may have happened.
        """

    @abstractmethod
    async def grant(self, *, ttl_seconds: int, timeout_seconds: float | None = None) -> Lease:
        """A new lease, kept alive in the background until it is revoked or lost.

        Args:
            ttl_seconds: whole seconds ≥ 1 after which the server ends the lease when it hears
                nothing; the server may grant more, see ``Lease.ttl_seconds``.
        """

    @abstractmethod
    def watch(self, prefix: str, *, start_revision: int) -> AsyncGenerator[Event, None]:
        """Events of all keys that start with ``prefix``, from ``start_revision`` on, endless.

        Connections that break are made again and nothing is missed. A reader that leaves the
        loop early closes the generator: ``async with aclosing(store.watch(...)) as events``.

        Raises:
            HistoryLost: events from ``start_revision`` on were compacted, or the store came back
                without its data.
        """

    @abstractmethod
    async def close(self) -> None:
        """Stop all keepalives and watches; leases end with their TTL unless revoked before."""

    async def put(
        self,
        key: str,
        value: bytes,
        *,
        lease: Lease | None = None,
        timeout_seconds: float | None = None,
    ) -> int:
        """Write one key, whatever it was before; the revision of the write."""

        async def once(seconds: float) -> int:
            return await self.transact(put={key: value}, lease=lease, timeout_seconds=seconds)

        return await until_answered(once, self._deadline(timeout_seconds))

    async def delete(self, key: str, *, timeout_seconds: float | None = None) -> int:
        """Delete one key if it exists; the store's revision after that."""

        async def once(seconds: float) -> int:
            return await self.transact(delete=[key], timeout_seconds=seconds)

        return await until_answered(once, self._deadline(timeout_seconds))

    async def update(
        self,
        key: str,
        change: Callable[[Entry | None], bytes],
        *,
        compare: Collection[Compare] = (),
        timeout_seconds: float | None = None,
    ) -> int:
        """Read a key, change its value, write it if nobody else did; again until that holds.

        Args:
            change: new value from the present entry; called again when somebody was faster, and
                when no answer came: then its earlier result may be the present value.
            compare: further conditions, such as a leader's guard; these are not tried again.

        Raises:
            CompareFailed: one of ``compare`` does not hold.
        """

        async def once(seconds: float) -> int | None:
            entry = await self.get(key, timeout_seconds=seconds)
            mine = Compare.unchanged(entry) if entry else Compare.absent(key)
            try:
                return await self.transact(
                    compare=[mine, *compare],
                    put={key: change(entry)},
                    timeout_seconds=seconds,
                )
            except CompareFailed as error:
                if any(failed != mine for failed in error.failed):
                    raise
            return None

        deadline = self._deadline(timeout_seconds)
        while (revision := await until_answered(once, deadline)) is None:
            await asyncio.sleep(0)
        return revision

    async def wait_changed(self, entry: Entry) -> None:
        """Return as soon as the key is no longer as it was read: put again, or deleted.

        It has no deadline; race it against one, or against a lease.

        Raises:
            Unavailable: the store is closed, or could not be asked after a lost history.
        """
        start_revision = entry.mod_revision + 1
        while True:
            events = self.watch(entry.key, start_revision=start_revision)
            try:
                async with contextlib.aclosing(events):
                    async for event in events:
                        if event.key == entry.key:
                            return
            except HistoryLost:
                listing = await self.list(entry.key)
                if not any(entry.is_same_write(present) for present in listing):
                    return
                start_revision = listing.revision + 1

    def _deadline(self, timeout_seconds: float | None) -> float:
        return self.timeout_seconds if timeout_seconds is None else timeout_seconds

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()


def check_transaction(
    compare: Collection[Compare], put: Mapping[str, bytes], delete: Collection[str]
) -> None:
    """Refuse what etcd would refuse, with every problem at once.

    Raises:
        InvalidInput: see `Store.transact`.
    """
    problems = [
        Problem(f"put[{key}]", f"{len(value)} bytes, at most {MAX_VALUE_BYTES} are stored here")
        for key, value in put.items()
        if len(value) > MAX_VALUE_BYTES
    ]
    keys = [*put, *delete, *(condition.key for condition in compare)]
    if not all(keys):
        problems.append(Problem("key", "is empty"))
    if len(set(delete) | set(put)) < len(delete) + len(put):
        problems.append(Problem("delete", "names a key twice or one that is put as well"))
    if max(len(compare), len(put) + len(delete)) > MAX_OPERATIONS:
        problems.append(
            Problem("transaction", f"has more than {MAX_OPERATIONS} compares or writes; split it")
        )
    raise_problems(problems)


def check_ttl(ttl_seconds: int) -> None:
    """Refuse a lease shorter than the second that etcd counts in."""
    if ttl_seconds < 1:
        raise InvalidInput.at("ttl_seconds", f"is {ttl_seconds}, must be at least 1")
