"""Unlike devices that work together: as slow, and as small, as the least of them."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from realloc.cost.hardware import Efficiency, Hardware, Link

_COSTS = ("latency_seconds", "latency_seconds_per_rank", "reserved_bytes", "reduction_passes")


def slowest_of(kinds: Sequence[Hardware]) -> Hardware:
    """The hardware of a mesh over nodes of several kinds.

    Each figure is the worst of theirs, because a collective ends with its last rank: the least
    rate, memory and efficiency, the most overhead and latency.
    """
    if len({kind.name for kind in kinds}) == 1:
        return kinds[0]
    return _worst(kinds, name="+".join(dict.fromkeys(kind.name for kind in kinds)))


def _worst(values: Sequence[Hardware], name: str) -> Hardware:
    found: dict[str, Any] = {}
    for each in fields(Hardware):
        column = [getattr(value, each.name) for value in values]
        if isinstance(column[0], Link | Efficiency):
            found[each.name] = _worst_part(column)
        elif isinstance(column[0], int | float):
            found[each.name] = _worst_number(each.name, column)
    return replace(values[0], name=name, **found)


def _worst_part(values: Sequence[Any]) -> Any:
    found: dict[str, Any] = {
        each.name: _worst_number(each.name, [getattr(value, each.name) for value in values])
        for each in fields(values[0])
    }
    return replace(values[0], **found)


def _worst_number(name: str, values: Sequence[float]) -> float:
    is_cost = name in _COSTS or (name.endswith("_seconds") and "per_second" not in name)
    return max(values) if is_cost else min(values)
