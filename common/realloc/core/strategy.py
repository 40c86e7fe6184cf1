"""Parallel strategies and their compact text form, ``d2t4p1``."""

import re
from dataclasses import dataclass

from realloc.core.errors import InvalidInput

_FORM = re.compile(r"d([1-9]\d*)t([1-9]\d*)p([1-9]\d*)(?:v([1-9]\d*))?(?:e([1-9]\d*))?")


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class ParallelStrategy:
    """How one function call spreads a model over the devices of its mesh.

    Ranks count with the tensor axis fastest, then data, then pipeline (Megatron's order):
    ``rank = (pipeline_rank * data + data_rank) * tensor + tensor_rank``.
    """

    data: int = 1
    """Replicas of the model, each with a share of the batch."""
    tensor: int = 1
    """Ranks that share each matrix."""
    pipeline: int = 1
    """Stages of consecutive layers."""
    virtual_pipeline: int = 1
    """Model chunks per pipeline rank (interleaved 1F1B); 1 is the plain schedule."""
    expert: int = 1
    """Ranks that share the experts of a mixture-of-experts layer; divides ``data``."""

    def __post_init__(self) -> None:
        for name in ("data", "tensor", "pipeline", "virtual_pipeline", "expert"):
            if getattr(self, name) < 1:
                raise InvalidInput.at(name, f"is {getattr(self, name)} and must be at least 1")

    @property
    def num_ranks(self) -> int:
        return self.data * self.tensor * self.pipeline

    @staticmethod
    def parse(text: str) -> "ParallelStrategy":
        """Read ``d2t4p1``; ``v2`` (virtual pipeline) and ``e4`` (expert) may follow."""
        match = _FORM.fullmatch(text)
        if match is None:
            raise InvalidInput.at("strategy", f"{text!r} is not of the form d2t4p1")
        data, tensor, pipeline, virtual, expert = (int(group or 1) for group in match.groups())
        return ParallelStrategy(
            data=data, tensor=tensor, pipeline=pipeline, virtual_pipeline=virtual, expert=expert
        )

    def __str__(self) -> str:
        text = f"d{self.data}t{self.tensor}p{self.pipeline}"
        if self.virtual_pipeline > 1:
            text += f"v{self.virtual_pipeline}"
        if self.expert > 1:
            text += f"e{self.expert}"
        return text

    def rank(self, *, data: int, tensor: int, pipeline: int) -> int:
        """Rank within the mesh of a coordinate on the three axes."""
        return (pipeline * self.data + data) * self.tensor + tensor

    def coordinate(self, rank: int) -> "Coordinate":
        """Where a rank of the mesh stands on the three axes."""
        assert 0 <= rank < self.num_ranks, (rank, self)
        rest, tensor = divmod(rank, self.tensor)
        pipeline, data = divmod(rest, self.data)
        return Coordinate(data=data, tensor=tensor, pipeline=pipeline)


@dataclass(frozen=True, slots=True, kw_only=True)
class Coordinate:
    """A rank's place on the data, tensor and pipeline axes."""

    data: int
    tensor: int
    pipeline: int
