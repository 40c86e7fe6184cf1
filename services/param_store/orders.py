"""What a reallocation is asked to do, and what it did."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

from realloc.core.errors import InvalidInput, Problem, raise_problems
from realloc.core.transfer import Traffic
from services.param_store.model import Model, PlacedLayout

NO_TRAFFIC = Traffic(
    total_bytes=0,
    local_bytes=0,
    cross_device_bytes=0,
    cross_device_bound=0,
    cross_node_bytes=0,
    cross_node_bound=0,
    busiest_send_bytes=0,
    busiest_receive_bytes=0,
    busiest_send_bound=0,
    busiest_receive_bound=0,
)
DTYPES = ("float32", "bfloat16")


class TransferMode(Enum):
    """Which tensors move."""

    ALL = "all"
    CHANGED = "changed"
    """Those whose digest differs from what the target got last; all where that is unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReallocationOrder:
    """What somebody asked for."""

    request_id: str
    job_id: str
    model_id: str
    target: PlacedLayout
    weight_version: int
    timeout_seconds: float
    dtype: str = "float32"
    """Element type of the target's parameters, and on the way."""
    mode: TransferMode = TransferMode.ALL

    def __post_init__(self) -> None:
        raise_problems(self._problems())

    def _problems(self) -> Iterator[Problem]:
        if not self.request_id:
            yield Problem("request_id", "is empty; it makes the request idempotent")
        if not self.timeout_seconds > 0:
            yield Problem("timeout_seconds", f"is {self.timeout_seconds} and must be positive")
        if self.weight_version < 0:
            yield Problem("weight_version", f"is {self.weight_version} and must not be negative")
        yield from dtype_problems(self.dtype)


def dtype_problems(dtype: str) -> Iterable[Problem]:
    """What is wrong with the name of an element type."""
    if dtype not in DTYPES:
        return (Problem("dtype", f"{dtype!r} is none of {', '.join(DTYPES)}"),)
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reallocation:
    """A reallocation that was committed."""

    weight_version: int
    bytes: int
    seconds: float
    plan_seconds: float
    prepare_seconds: float
    transfer_seconds: float
    commit_seconds: float
    digest_ok: bool
    num_digests: int
    traffic: Traffic
    num_tensors: int = 0
    """Canonical tensors that moved."""


def nothing_moved(weight_version: int) -> Reallocation:
    """The outcome where the target has the version already."""
    return Reallocation(
        weight_version=weight_version,
        bytes=0,
        seconds=0.0,
        plan_seconds=0.0,
        prepare_seconds=0.0,
        transfer_seconds=0.0,
        commit_seconds=0.0,
        digest_ok=True,
        num_digests=0,
        traffic=NO_TRAFFIC,
    )


def check_devices(model: Model, target: PlacedLayout) -> None:
    """Refuse a target that is the source's own layout on other processes of its devices.

    Raises:
        InvalidInput: the target's processes hold the source.
    """
    both = sorted(set(model.source.shards) & set(target.shards))
    if both and not model.source.same_place(target):
        raise InvalidInput.at(
            "shards", f"{', '.join(both)} holds the layout that trains and cannot receive another"
        )
