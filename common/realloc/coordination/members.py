"""Who is there: the registered members, followed by a watch."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from types import TracebackType
from typing import Self

from realloc.coordination.membership import MEMBERS_PREFIX, Member
from realloc.coordination.store import Entry, Event, HistoryLost, Store
from realloc.core.errors import InvalidInput, NotFound, Unavailable

PAUSE_SECONDS = 0.2
"""Pause before the members are listed again, after the store could not be reached."""


class ChangeKind(Enum):
    """What a member did."""

    JOINED = "joined"
    LEFT = "left"


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberChange:
    """A member joined or left; one that restarted leaves as the old and joins as the new."""

    kind: ChangeKind
    member: Member


class Members:
    """The present members of a kind, or of all; ``async with`` follows them.

    While the store is out of reach the last known members stay: nobody is declared gone by a
    silence of etcd.
    """

    def __init__(self, store: Store, kind: str | None = None) -> None:
        """
        Args:
            kind: follow only these; None follows all kinds.
        """
        self._store = store
        self._prefix = f"{MEMBERS_PREFIX}{kind}/" if kind else MEMBERS_PREFIX
        self._present: dict[str, Member] = {}
        self._unreadable: dict[str, str] = {}
        self._changed = asyncio.Event()
        self._follower: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Read who is there and follow the changes from then on.

        Raises:
            Unavailable: the store was not reached.
        """
        revision = await self._read_all()
        self._follower = asyncio.create_task(self._follow(revision + 1), name="members")

    async def close(self) -> None:
        """Stop following; those who still wait for a change get `Unavailable`."""
        if self._follower:
            self._follower.cancel()
            await asyncio.wait([self._follower])

    def current(self, kind: str | None = None) -> tuple[Member, ...]:
        """Who is there, by kind, device and name."""
        members = [each for each in self._present.values() if kind in (None, each.kind)]
        return tuple(sorted(members, key=_order))

    def get(self, kind: str, name: str) -> Member:
        """One member.

        Raises:
            NotFound: it is not there.
        """
        for member in self._present.values():
            if (member.kind, member.name) == (kind, name):
                return member
        raise NotFound(f"no {kind} named {name}; there are {self._describe(kind)}")

    def is_present(self, member: Member) -> bool:
        """True while the same incarnation of the member is there."""
        present = self._present.get(member.key)
        return present is not None and present.incarnation == member.incarnation

    async def wait_for(
        self, counts: Mapping[str, int], *, timeout_seconds: float
    ) -> tuple[Member, ...]:
        """Wait until at least so many members of each kind are there.

        Returns:
            All members of those kinds.

        Raises:
            Unavailable: not in time; the message says who is missing.
        """
        try:
            async with asyncio.timeout(timeout_seconds):
                while self._missing(counts):
                    await self._next_change()
        except TimeoutError:
            raise Unavailable(
                f"after {timeout_seconds:g} s: {'; '.join(self._missing(counts))}"
            ) from None
        return tuple(member for member in self.current() if member.kind in counts)

    async def wait_left(self, members: Collection[Member]) -> Member:
        """The first of ``members`` that is gone, at once where one is gone already.

        It has no deadline; race it against the work that needs the members.

        Raises:
            Unavailable: the members are not followed any more.
        """
        while True:
            for member in members:
                if not self.is_present(member):
                    return member
            await self._next_change()

    async def changes(self) -> AsyncGenerator[MemberChange, None]:
        """Everybody who is there as joined, then who joins and leaves, endless.

        A slow reader gets the sum of what happened: one that joined and left meanwhile is not
        mentioned. So nothing is queued.
        """
        known: dict[str, Member] = {}
        while True:
            now = dict(self._present)
            for change in _changes(known, now):
                yield change
            known = now
            if known == self._present:
                await self._next_change()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def _follow(self, start_revision: int) -> None:
        try:
            while True:
                with contextlib.suppress(HistoryLost):
                    await self._apply_events(start_revision)
                start_revision = await self._read_until_reached() + 1
        finally:
            self._notify()  # those who wait for a change find that nobody follows

    async def _apply_events(self, start_revision: int) -> None:
        events = self._store.watch(self._prefix, start_revision=start_revision)
        async with contextlib.aclosing(events):
            async for event in events:
                self._apply(event)

    async def _read_until_reached(self) -> int:
        while True:
            try:
                return await self._read_all()
            except Unavailable:
                await asyncio.sleep(PAUSE_SECONDS)

    async def _read_all(self) -> int:
        listing = await self._store.list(self._prefix)
        self._present.clear()
        self._unreadable.clear()
        for entry in listing:
            self._accept(entry)
        self._notify()
        return listing.revision

    def _apply(self, event: Event) -> None:
        if event.entry is None:
            self._present.pop(event.key, None)
            self._unreadable.pop(event.key, None)
        else:
            self._accept(event.entry)
        self._notify()

    def _accept(self, entry: Entry) -> None:
        self._present.pop(entry.key, None)
        self._unreadable.pop(entry.key, None)
        try:
            self._present[entry.key] = Member.from_json(entry.value)
        except InvalidInput as error:
            self._unreadable[entry.key] = str(error)

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _next_change(self) -> None:
        if self._follower is None or self._follower.done():
            raise Unavailable("the members are not followed any more; open them anew")
        await self._changed.wait()

    def _missing(self, counts: Mapping[str, int]) -> list[str]:
        return [
            f"{count} {kind} wanted, there are {self._describe(kind)}"
            for kind, count in counts.items()
            if len(self.current(kind)) < count
        ]

    def _describe(self, kind: str) -> str:
        names = ", ".join(member.name for member in self.current(kind)) or "none"
        broken = [f"{k} is unreadable: {v}" for k, v in self._unreadable.items() if kind in k]
        return "; ".join([names, *broken])


def _order(member: Member) -> tuple[str, int, str]:
    return member.kind, -1 if member.device is None else member.device, member.name


def _changes(before: Mapping[str, Member], now: Mapping[str, Member]) -> list[MemberChange]:
    return [
        *(MemberChange(kind=ChangeKind.LEFT, member=each) for each in _beyond(before, now)),
        *(MemberChange(kind=ChangeKind.JOINED, member=each) for each in _beyond(now, before)),
    ]


def _beyond(members: Mapping[str, Member], others: Mapping[str, Member]) -> list[Member]:
    """Those of ``members`` whose incarnation is not among ``others``."""
    return [
        member
        for key, member in members.items()
        if key not in others or others[key].incarnation != member.incarnation
    ]
