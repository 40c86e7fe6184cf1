"""A process makes itself known under its name for as long as it lives."""

import asyncio
import contextlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from types import NoneType, TracebackType
from typing import Any, Self

from realloc.coordination.lease import Lease, until_lost
from realloc.coordination.store import Compare, CompareFailed, Entry, Store
from realloc.core.errors import (
    InvalidInput,
    NotFound,
    Problem,
    ReallocError,
    Unavailable,
    raise_problems,
)

MEMBERS_PREFIX = "/realloc/members/"

_KEYS_AT_ONCE = 100
"""etcd takes 128 operations per transaction by default."""

PAUSE_SECONDS = 0.2
"""Pause before a member registers again, after the store could not be reached."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One process of the cluster."""

    kind: str
    """What it is: ``scheduler``, ``plan_search``, ``param_store``, ``trainer``, ``generation``."""
    name: str
    """Unique within the kind, kept over restarts: ``trainer-0``."""
    address: str
    """``host:port`` of its gRPC server."""
    incarnation: str
    """Differs between two runs of the same member: one that restarted has lost its models."""
    host: str
    """Name of its machine."""
    device: int | None = None
    """Global index of the device it owns; None for a process without one."""
    node: int | None = None
    """Index of the node that holds the device."""
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Whatever else others should know."""

    @property
    def key(self) -> str:
        """Where it stands in the store."""
        return f"{MEMBERS_PREFIX}{self.kind}/{self.name}"

    def to_json(self) -> bytes:
        """Its value in the store."""
        return json.dumps(asdict(self), sort_keys=True).encode()

    @staticmethod
    def from_json(value: bytes) -> "Member":
        """The opposite of `to_json`; fields that this version does not know are ignored.

        Raises:
            InvalidInput: not an object, or fields are missing or of another type.
        """
        try:
            raw = json.loads(value)
        except ValueError as error:
            raise InvalidInput.at("member", f"is not JSON: {error}") from None
        if not isinstance(raw, dict):
            raise InvalidInput.at("member", "is not a JSON object")
        raise_problems(_problems(raw))
        return Member(**{name: raw[name] for name in _FIELD_TYPES if name in raw})


_FIELD_TYPES: dict[str, tuple[type, ...]] = {
    "kind": (str,),
    "name": (str,),
    "address": (str,),
    "incarnation": (str,),
    "host": (str,),
    "device": (int, NoneType),
    "node": (int, NoneType),
    "labels": (dict,),
}
_OPTIONAL = {"device", "node", "labels"}


def _problems(raw: dict[str, Any]) -> Iterator[Problem]:
    for name, types in _FIELD_TYPES.items():
        if name not in raw and name not in _OPTIONAL:
            yield Problem(name, "is missing")
        elif name in raw and type(raw[name]) not in types:
            yield Problem(
                name, f"is {raw[name]!r}, wanted {' or '.join(t.__name__ for t in types)}"
            )
    labels = raw.get("labels")
    if isinstance(labels, dict) and not all(isinstance(each, str) for each in labels.values()):
        yield Problem("labels", "has values that are not strings")


class Registration:
    """Keeps a member registered; ``async with`` registers and, at its end, takes it away.

    The key goes with a lease, so a process that dies or is cut off leaves by itself. When the
    lease was lost, or the key deleted, it registers anew.

    Attributes:
        replaced: set when another incarnation took the name: this process should end.
    """

    def __init__(self, store: Store, member: Member, *, ttl_seconds: int = 10) -> None:
        """
        Args:
            ttl_seconds: a member that fell silent for so long has left. Its event loop may be
                held up for half of that, by imports or a busy machine, without harm.
        """
        self.member = member
        self.replaced = asyncio.Event()
        self._store = store
        self._ttl_seconds = ttl_seconds
        self._lease: Lease | None = None
        self._keeper: asyncio.Task[None] | None = None

    async def register(self) -> None:
        """Take the name, also from an earlier incarnation whose lease has not ended yet.

        Raises:
            Unavailable: the store was not reached.
        """
        entry = await self._put(compare=())
        self._keeper = asyncio.create_task(self._keep(entry), name=f"member {self.member.name}")

    async def withdraw(self) -> None:
        """Leave at once.

        Raises:
            Unavailable: the store was not reached; the member leaves with its TTL.
        """
        if self._keeper:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        if self._lease:
            await self._lease.revoke()

    async def __aenter__(self) -> Self:
        await self.register()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with contextlib.suppress(ReallocError):
            await self.withdraw()

    async def _keep(self, entry: Entry) -> None:
        while not self.replaced.is_set():
            assert self._lease is not None
            with contextlib.suppress(Unavailable):
                await until_lost(self._lease, self._store.wait_changed(entry))
            entry = await self._register_again(entry)

    async def _register_again(self, entry: Entry) -> Entry:
        """Put the key anew as soon as the store answers, unless the name is taken."""
        while True:
            try:
                present = await self._store.get(self.member.key)
                if present and present.value != entry.value:
                    self.replaced.set()
                    return present
                seen = Compare.unchanged(present) if present else Compare.absent(self.member.key)
                return await self._put(compare=[seen])
            except (Unavailable, NotFound, CompareFailed):
                await asyncio.sleep(PAUSE_SECONDS)

    async def _put(self, compare: Collection[Compare]) -> Entry:
        if self._lease is None or self._lease.lost.is_set():
            self._lease = await self._store.grant(ttl_seconds=self._ttl_seconds)
        key, value = self.member.key, self.member.to_json()
        revision = await self._store.transact(compare=compare, put={key: value}, lease=self._lease)
        return Entry(
            key=key,
            value=value,
            create_revision=revision,
            mod_revision=revision,
            lease_id=self._lease.id,
        )


async def forget_members(store: Store) -> None:
    """Drop all registrations, such as those of a run whose leases have not ended yet.

    A process that lives registers anew at once.

    Raises:
        Unavailable: the store was not reached.
    """
    keys = [entry.key for entry in await store.list(MEMBERS_PREFIX)]
    for first in range(0, len(keys), _KEYS_AT_ONCE):
        await store.transact(delete=keys[first : first + _KEYS_AT_ONCE])
