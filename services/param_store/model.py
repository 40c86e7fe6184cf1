"""Models, the layouts that hold them, and the version of the weights in each."""

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

    def __post_init__(self) -> None:
        if len(self.shards) != len(self.layout.devices):
            raise InvalidInput.at(
                "shards",
                f"names {len(self.shards)} processes and the layout has "
                f"{len(self.layout.devices)} ranks",
            )

    def same_place(self, other: "PlacedLayout") -> bool:
        """True where both are one layout on the same processes."""
        return (self.layout, self.shards) == (other.layout, other.shards)


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

    @property
    def source(self) -> PlacedLayout:
        """Where new versions are made."""
        return self.layouts[0]

    def placed(self, target: PlacedLayout) -> PlacedLayout | None:
        """The target as it is known, with its version."""
        return next((known for known in self.layouts if known.same_place(target)), None)

    def with_version(self, target: PlacedLayout, weight_version: int) -> "Model":
        """The model once a target, and its source, have a version.

        Raises:
            Conflict: the source is ahead of this version already.
        """
        if weight_version < self.source.weight_version:
            raise Conflict(
                f"{self.model_id} is at version {self.source.weight_version} and cannot go "
                f"back to {weight_version}"
            )
        arrived = replace(target, weight_version=weight_version)
        others = tuple(known for known in self.layouts[1:] if not known.same_place(target))
        source = replace(self.source, weight_version=weight_version)
        return replace(self, layouts=(source, *others, arrived))


def require(model: Model | None, job_id: str, model_id: str) -> Model:
    """The model, or `NotFound`."""
    if model is None:
        raise NotFound(f"job {job_id!r} has no model {model_id!r} here; register it first")
    return model
