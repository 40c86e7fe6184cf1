"""Models in the store: ``/realloc/models/<job>/<model>``."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from realloc.api.param_store.v1 import param_store_pb2 as pb
from realloc.coordination.store import Compare, CompareFailed, Entry, Store, until_answered
from realloc.core.errors import Conflict, NotFound, Problem, raise_problems
from realloc.reallocation.layouts.provider import provider_of
from realloc.wire.convert import from_proto, to_proto
from services.param_store.model import Model, PlacedLayout, require
from services.param_store.plans import architecture_of

_MODELS = "/realloc/models/"


class Registry:
    """What is known of models; any param-store process sees the same."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def register(self, model: Model) -> Model:
        """Add a model; the same again changes nothing.

        Raises:
            InvalidInput: names that cannot be keys, or a configuration or layout that does not
                fit.
            Conflict: another model has this name.
        """
        _check(model)
        try:
            await until_answered(
                lambda seconds: self._store.transact(
                    compare=[Compare.absent(_key(model.job_id, model.model_id))],
                    put={_key(model.job_id, model.model_id): _encode(model)},
                    timeout_seconds=seconds,
                ),
                self._store.timeout_seconds,
            )
        except CompareFailed:
            known = await self.get(model.job_id, model.model_id)
            same = (known.hf_config, known.head) == (model.hf_config, model.head)
            if not same or not known.source.same_place(model.source):
                raise Conflict(
                    f"job {model.job_id} has another model named {model.model_id}"
                ) from None
            return known
        return model

    async def get(self, job_id: str, model_id: str) -> Model:
        """One model.

        Raises:
            NotFound: it was never registered, or its job was released.
        """
        entry = await self._store.get(_key(job_id, model_id))
        return require(_decode(entry) if entry else None, job_id, model_id)

    async def list(self, job_id: str = "") -> tuple[Model, ...]:
        """Models of a job, or all, by job and name."""
        prefix = f"{_MODELS}{job_id}/" if job_id else _MODELS
        return tuple(_decode(entry) for entry in await self._store.list(prefix))

    async def watch(self, job_id: str, model_id: str) -> AsyncGenerator[Model, None]:
        """The model now and at every change; ends when its job is released."""
        key = _key(job_id, model_id)
        listing = await self._store.list(key)
        yield await self.get(job_id, model_id)
        watched = self._store.watch(key, start_revision=listing.revision + 1)
        async with aclosing(watched) as events:
            async for event in events:
                if event.key == key and event.entry is None:
                    return
                if event.key == key and event.entry is not None:
                    yield _decode(event.entry)

    async def set_version(
        self, job_id: str, model_id: str, target: PlacedLayout, weight_version: int
    ) -> None:
        """Record that a target has a version."""

        def change(entry: Entry | None) -> bytes:
            model = require(_decode(entry) if entry else None, job_id, model_id)
            return _encode(model.with_version(target, weight_version))

        await self._store.update(_key(job_id, model_id), change)

    async def release(self, job_id: str) -> None:
        """Forget the models of a job."""
        if not job_id or "/" in job_id:
            raise NotFound(f"there is no job {job_id!r}")
        for entry in await self._store.list(f"{_MODELS}{job_id}/"):
            await self._store.delete(entry.key)


def _check(model: Model) -> None:
    """Refuse what could never be reallocated."""
    names = {"model.job_id": model.job_id, "model.model_id": model.model_id}
    raise_problems(
        Problem(path, f"is {name!r}; a name is not empty and has no slash")
        for path, name in names.items()
        if not name or "/" in name
    )
    layout = model.source.layout
    provider_of(layout.kind).check(architecture_of(model), layout.strategy)


def _key(job_id: str, model_id: str) -> str:
    return f"{_MODELS}{job_id}/{model_id}"


def _encode(model: Model) -> bytes:
    return to_proto(model, pb.Model).SerializeToString()


def _decode(entry: Entry) -> Model:
    return from_proto(pb.Model.FromString(entry.value), Model)
