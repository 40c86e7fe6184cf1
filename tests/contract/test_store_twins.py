"""The in-memory store is etcd's twin: the same calls give the same answers and events."""

import asyncio
import contextlib
from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from realloc.coordination.store import Compare, CompareFailed, Entry, Store
from realloc.core.errors import InvalidInput, NotFound
from tests.contract.store_backends import EtcdBackend, MemoryBackend, StoreBackend

KEYS = ["a", "a/b", "a/c", "é", "b"]

conditions = st.builds(
    lambda key, create, mod: (key, create, mod),
    st.sampled_from(KEYS),
    st.none() | st.integers(0, 6),
    st.none() | st.integers(0, 6),
)
transactions = st.fixed_dictionaries(
    {
        "compare": st.lists(conditions, max_size=2),
        "put": st.dictionaries(st.sampled_from(KEYS), st.binary(max_size=3), max_size=2),
        "delete": st.lists(st.sampled_from(KEYS), max_size=2),
        "lease": st.none() | st.integers(0, 1),
    }
)
steps = st.lists(
    st.tuples(st.just("transact"), transactions)
    | st.tuples(st.just("revoke"), st.integers(0, 1))
    | st.tuples(st.just("list"), st.sampled_from(["", "a", "a/", "z"])),
    min_size=1,
    max_size=12,
)


class Player:
    """Plays steps on one store; tells what happened with revisions counted from its start."""

    def __init__(self, backend: StoreBackend) -> None:
        self.backend = backend
        self.answers: list[object] = []

    async def play(self, script: list[tuple[str, object]]) -> None:
        """Run the steps, then read the whole history by a watch."""
        store = await self.backend.open()
        self.start = await store.put(self.backend.prefix + "start", b"")
        self.leases = [await store.grant(ttl_seconds=60) for _ in range(2)]
        for verb, argument in script:
            step = getattr(self, verb)
            self.answers.append(await step(store, argument))
        end = await store.put(self.backend.prefix + "end", b"")
        self.answers.append(await self._history(store, end))
        for lease in self.leases:
            await lease.revoke()

    async def transact(self, store: Store, step: dict[str, object]) -> object:
        """One transaction: its revision, or the error's name and failed conditions."""
        prefix = self.backend.prefix
        compare = [
            Compare(
                key=prefix + key,
                create_revision=self._revision(create),
                mod_revision=self._revision(mod),
            )
            for key, create, mod in step["compare"]  # type: ignore[attr-defined]
        ]
        lease = step["lease"]
        try:
            revision = await store.transact(
                compare=compare,
                put={prefix + k: v for k, v in step["put"].items()},  # type: ignore[attr-defined]
                delete=[prefix + key for key in step["delete"]],  # type: ignore[attr-defined]
                lease=None if lease is None else self.leases[lease],  # type: ignore[call-overload]
            )
            return revision - self.start
        except CompareFailed as error:
            return "failed", [compare.index(each) for each in error.failed]
        except (NotFound, InvalidInput) as error:
            return type(error).__name__

    async def revoke(self, store: Store, index: int) -> object:
        """End a lease; again has no effect."""
        await self.leases[index].revoke()
        return None

    async def list(self, store: Store, prefix: str) -> object:
        """What is there."""
        listing = await store.list(self.backend.prefix + prefix)
        return [self._plain(entry) for entry in listing], listing.revision - self.start

    async def _history(self, store: Store, end: int) -> object:
        """All events from the start to the end, in the order of the watch."""
        events = []
        watch = store.watch(self.backend.prefix, start_revision=self.start)
        async with contextlib.aclosing(watch):
            async for event in watch:
                entry = self._plain(event.entry) if event.entry else None
                key = event.key.removeprefix(self.backend.prefix)
                events.append((event.kind, key, event.revision - self.start, entry))
                if event.revision == end:
                    break
        return events

    def _revision(self, relative: int | None) -> int | None:
        return relative and self.start + relative

    def _plain(self, entry: Entry) -> Entry:
        lease_ids = [0, *(lease.id for lease in self.leases)]
        return replace(
            entry,
            key=entry.key.removeprefix(self.backend.prefix),
            create_revision=entry.create_revision - self.start,
            mod_revision=entry.mod_revision - self.start,
            lease_id=lease_ids.index(entry.lease_id),
        )


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(script=steps)
def test_both_stores_answer_alike(shared_etcd: object, script: list[tuple[str, object]]) -> None:
    """Random transactions, leases and listings have equal answers, revisions and histories."""

    async def play_both() -> None:
        backends: list[StoreBackend] = [MemoryBackend(), EtcdBackend(shared_etcd)]  # type: ignore[arg-type]
        players = [Player(backend) for backend in backends]
        try:
            for player in players:
                await player.play(script)
        finally:
            for backend in backends:
                await backend.close()
        assert players[0].answers == players[1].answers

    asyncio.run(play_both())
