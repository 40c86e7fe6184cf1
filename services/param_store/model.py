"""Models, the layouts that hold them, and the version of the weights in each."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from realloc.core.errors import Conflict, InvalidInput, NotFound
from realloc.core.layout import Layout
from realloc.core.model import Head


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedLayout:
    """A layout and the process that holds each of its ranks."""

    layout: Layout
    shards: tuple[str, ...]
    """Name of the process that holds each rank, in rank order."""
    weight_version: int = -1
    """Version of the weights there; -1 before the first reallocation."""
    incarnations: tuple[str, ...] = ()
    """Incarnation of each rank's process when the weights came; empty where none came."""

    def __post_init__(self) -> None:
        ranks = len(self.layout.devices)
        if len(self.shards) != ranks:
            missing = ", ".join(map(str, range(len(self.shards), ranks)))
            raise InvalidInput.at(
                "shards",
                f"names {len(self.shards)} processes and {self.layout.short} has {ranks} ranks"
                + (f"; nobody holds rank {missing}" if missing else ""),
            )

    def same_place(self, other: "PlacedLayout") -> bool:
        """True where both are one layout on the same processes."""
        return (self.layout, self.shards) == (other.layout, other.shards)

    def ranks_of(self, shard: str) -> tuple[int, ...]:
        """Ranks that a process holds."""
        return tuple(rank for rank, name in enumerate(self.shards) if name == shard)


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model of a job."""

    job_id: str
    model_id: str
    hf_config: str
    """Text of the Hugging Face config.json."""
    head: Head
    layouts: tuple[PlacedLayout, ...]
    """First the one that trains, then the others."""
    run_id: str = ""
    """Start of the job that registered it."""

    @property
    def source(self) -> PlacedLayout:
        """Where new versions are made."""
        return self.layouts[0]

    def placed(self, target: PlacedLayout) -> PlacedLayout | None:
        """The target as it is known, with its version."""
        return next((known for known in self.layouts if known.same_place(target)), None)

    def has(self, target: PlacedLayout, weight_version: int, incarnations: Sequence[str]) -> bool:
        """True where a target holds a version, in the processes that run now."""
        known = self.placed(target)
        if known is None or known.weight_version != weight_version:
            return False
        # Where the model trains, versions are made, whatever came there.
        return known is self.source or known.incarnations == tuple(incarnations)

    def check_forward(self, weight_version: int) -> None:
        """Refuse a version that is older than the one that trains.

        Raises:
            Conflict: the source is ahead of this version already.
        """
        if weight_version < self.source.weight_version:
            raise Conflict(
                f"{self.model_id} is at version {self.source.weight_version} and cannot go "
                f"back to {weight_version}"
            )

    def with_version(self, target: PlacedLayout, weight_version: int) -> "Model":
        """The model once a target, and its source, have a version.

        Raises:
            Conflict: the source is ahead of this version already.
        """
        self.check_forward(weight_version)
        source = replace(self.source, weight_version=weight_version)
        if target.same_place(source):
            return replace(self, layouts=(source, *self.layouts[1:]))
        arrived = replace(target, weight_version=weight_version)
        others = tuple(known for known in self.layouts[1:] if not known.same_place(target))
        return replace(self, layouts=(source, *others, arrived))


def require(model: Model | None, job_id: str, model_id: str) -> Model:
    """The model, or `NotFound`."""
    if model is None:
        raise NotFound(f"job {job_id!r} has no model {model_id!r} here; register it first")
    return model
