"""Parallel strategies and their compact text form, ``d2t4p1``."""

import re
from dataclasses import dataclass

from realloc.core.errors import InvalidInput

_FORM = re.compile(
    r"d(?P<data>[1-9]\d*)t(?P<tensor>[1-9]\d*)p(?P<pipeline>[1-9]\d*)"
    r"(?:c(?P<context>[1-9]\d*))?(?:v(?P<virtual_pipeline>[1-9]\d*))?(?:e(?P<expert>[1-9]\d*))?"
)


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class ParallelStrategy:
    """How one function call spreads a model over the devices of its mesh.

    Ranks count with the tensor axis fastest, then context, data and pipeline (Megatron's order):
    ``rank = ((pipeline_rank * data + data_rank) * context + context_rank) * tensor + tensor_rank``.
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
    context: int = 1
    """Ranks that share each sequence (ring attention); to weights they are replicas."""

    def __post_init__(self) -> None:
        for name in ("data", "tensor", "pipeline", "virtual_pipeline", "expert", "context"):
            if getattr(self, name) < 1:
                raise InvalidInput.at(name, f"is {getattr(self, name)} and must be at least 1")

    @property
    def num_ranks(self) -> int:
        return self.data * self.context * self.tensor * self.pipeline

    @property
    def is_plain(self) -> bool:
        """Only data, tensor and pipeline axes: what the trainer and the engines run so far."""
        return self.context == self.virtual_pipeline == self.expert == 1

    @staticmethod
    def parse(text: str) -> "ParallelStrategy":
        """Read ``d2t4p1``; ``c2`` (context), ``v2`` (virtual pipeline), ``e4`` (expert) may follow,
        in this order."""
        match = _FORM.fullmatch(text)
        if match is None:
            raise InvalidInput.at("strategy", f"{text!r} is not of the form d2t4p1")
        degrees = {axis: int(degree or 1) for axis, degree in match.groupdict().items()}
        return ParallelStrategy(**degrees)

    def __str__(self) -> str:
        text = f"d{self.data}t{self.tensor}p{self.pipeline}"
        if self.context > 1:
            text += f"c{self.context}"
        if self.virtual_pipeline > 1:
            text += f"v{self.virtual_pipeline}"
        if self.expert > 1:
            text += f"e{self.expert}"
        return text

    def rank(self, *, data: int, tensor: int, pipeline: int, context: int = 0) -> int:
        """Rank within the mesh of a coordinate on the four axes."""
        return ((pipeline * self.data + data) * self.context + context) * self.tensor + tensor

    def coordinate(self, rank: int) -> "Coordinate":
        """Where a rank of the mesh stands on the four axes."""
        assert 0 <= rank < self.num_ranks, (rank, self)
        rest, tensor = divmod(rank, self.tensor)
        rest, context = divmod(rest, self.context)
        pipeline, data = divmod(rest, self.data)
        return Coordinate(data=data, tensor=tensor, pipeline=pipeline, context=context)


@dataclass(frozen=True, slots=True, kw_only=True)
class Coordinate:
    """A rank's place on the data, tensor, pipeline and context axes."""

    data: int
    tensor: int
    pipeline: int
    context: int = 0
