"""What must hold of a search problem's arrays; every violation becomes a `Problem`."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from realloc.core.errors import Problem

if TYPE_CHECKING:  # the problem calls its checks: a cycle of types only
    from realloc.search.problem import SearchProblem

_OPTION_ARRAYS = (
    "option_call",
    "option_first_device",
    "option_num_devices",
    "option_seconds",
    "option_resident_bytes",
    "option_active_bytes",
    "option_layout",
)
_MAX_BYTES = 2**62
_MAX_CALLS = 31
"""Compiled searchers keep calls, and the reallocations before them, as bits of an int64."""


def check_problem(problem: "SearchProblem") -> list[Problem]:
    """Every violation; later groups are checked only where the earlier ones make sense."""
    for group in (_check_shapes, _check_values, _check_relations):
        found = list(group(problem))
        if found:
            return found
    return []


def _check_shapes(p: "SearchProblem") -> Iterator[Problem]:
    calls = len(p.call_names)
    if calls == 0:
        yield Problem("call_names", "is empty; a plan needs at least one call")
    if calls > _MAX_CALLS:
        yield Problem("call_names", f"has {calls} calls and at most {_MAX_CALLS} are supported")
    for name in ("call_model", "call_kind"):
        shape = getattr(p, name).shape
        if shape != (calls,):
            yield Problem(name, f"has shape {list(shape)} and there are {calls} call_names")
    if p.edges.ndim != 2 or p.edges.shape[1] != 2:
        yield Problem("edges", f"has shape {list(p.edges.shape)} and must be [E, 2]")
    options = p.option_call.shape[0] if p.option_call.ndim == 1 else -1
    if options == -1:
        yield Problem("option_call", f"has {p.option_call.ndim} dims and must have 1")
        return
    for name in _OPTION_ARRAYS:
        shape = getattr(p, name).shape
        if shape != (options,):
            yield Problem(name, f"has shape {list(shape)} and option_call has [{options}]")
    for model, matrix in p.realloc_seconds.items():
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            shape = list(matrix.shape)
            yield Problem(f"realloc_seconds_{model}", f"has shape {shape} and must be [L, L]")


def _check_values(p: "SearchProblem") -> Iterator[Problem]:
    if p.num_devices < 1:
        yield Problem("num_devices", f"is {p.num_devices} and must be at least 1")
    if p.device_memory_bytes < 0:
        yield Problem("device_memory_bytes", f"is {p.device_memory_bytes}; it is below 0")
    for index, name in enumerate(p.call_names):
        if not name:
            yield Problem("call_names", f"[{index}] is empty")
        elif name in p.call_names[:index]:
            yield Problem("call_names", f"has {name!r} twice")
    calls = p.num_calls
    yield from _outside("call_model", p.call_model, p.call_model < 0, "at least 0")
    bad = (p.call_kind < 0) | (p.call_kind > 2)
    yield from _outside("call_kind", p.call_kind, bad, "0 generate, 1 inference or 2 train")
    bad = (p.edges < 0) | (p.edges >= calls)
    yield from _outside("edges", p.edges, bad, f"calls 0 to {calls - 1}")
    bad = (p.option_call < 0) | (p.option_call >= calls)
    yield from _outside("option_call", p.option_call, bad, f"calls 0 to {calls - 1}")
    first, num = p.option_first_device, p.option_num_devices
    yield from _outside("option_first_device", first, first < 0, "at least 0")
    yield from _outside("option_num_devices", num, num < 1, "at least 1")
    if p.num_devices >= 1:
        bad = (first >= 0) & (num >= 1) & (num > p.num_devices - first)
        last = first + num - 1
        wanted = f"below num_devices {p.num_devices}"
        yield from _outside("option_first_device + option_num_devices − 1", last, bad, wanted)
    seconds = p.option_seconds
    bad = ~np.isfinite(seconds) | (seconds < 0)
    yield from _outside("option_seconds", seconds, bad, "finite and at least 0")
    for name in ("option_resident_bytes", "option_active_bytes"):
        values = getattr(p, name)
        bad = (values < 0) | (values > _MAX_BYTES // (calls + 1))
        yield from _outside(name, values, bad, f"from 0 to {_MAX_BYTES // (calls + 1)}")
    layout = p.option_layout
    yield from _outside("option_layout", layout, layout < -1, "at least 0, or −1")
    for model, matrix in p.realloc_seconds.items():
        bad = ~np.isfinite(matrix) | (matrix < 0)
        yield from _outside(f"realloc_seconds_{model}", matrix, bad, "finite and at least 0")


def _outside(
    name: str, values: NDArray[Any], bad: NDArray[np.bool_], wanted: str
) -> Iterator[Problem]:
    """One problem for an array: its first bad value, and how many more there are."""
    places = np.argwhere(bad)
    if len(places) == 0:
        return
    where = tuple(int(index) for index in places[0])
    more = f" (and {len(places) - 1} more)" if len(places) > 1 else ""
    index = ", ".join(map(str, where))
    yield Problem(name, f"[{index}] is {values[where]} and must be {wanted}{more}")


def _check_relations(p: "SearchProblem") -> Iterator[Problem]:
    for call, name in enumerate(p.call_names):
        if not np.any(p.option_call == call):
            yield Problem("option_call", f"gives call {call} ({name}) no option")
    for model in np.unique(p.call_model):
        trains = np.flatnonzero((p.call_model == model) & (p.call_kind == 2))
        if len(trains) > 1:
            names = ", ".join(p.call_names[i] for i in trains)
            yield Problem("call_kind", f"gives model {model} more than one train call: {names}")
        else:
            yield from _check_layouts(p, int(model), trains)
    yield from _check_acyclic(p)


def _check_acyclic(p: "SearchProblem") -> Iterator[Problem]:
    left = set(range(p.num_calls))
    edges = [(int(a), int(b)) for a, b in p.edges]
    while True:
        blocked = {b for a, b in edges if a in left}
        free = left - blocked
        if not free:
            break
        left -= free
    # What is left lies on a cycle or behind one; going backwards drops the latter.
    while True:
        dead = left - {a for a, b in edges if b in left}
        if not dead:
            break
        left -= dead
    if left:
        names = ", ".join(p.call_names[i] for i in sorted(left))
        yield Problem("edges", f"has a cycle among {names}")


def _check_layouts(p: "SearchProblem", model: int, trains: NDArray[np.int64]) -> Iterator[Problem]:
    """One layout means one device range; and every move that a plan may make has seconds."""
    of_model = (p.call_model[p.option_call] == model) & (p.option_layout >= 0)
    options = np.flatnonzero(of_model)
    layouts, first = np.unique(p.option_layout[options], return_index=True)
    owner = options[first][np.searchsorted(layouts, p.option_layout[options])]
    differs = (p.option_first_device[owner] != p.option_first_device[options]) | (
        p.option_num_devices[owner] != p.option_num_devices[options]
    )
    if np.any(differs):
        one, two = owner[differs][0], options[differs][0]
        yield Problem(
            "option_layout",
            f"is {p.option_layout[two]} for options {one} and {two} of model {model}, which "
            "have different devices; a layout stands for devices and strategy",
        )
    if len(trains) == 0:
        return
    trained = p.option_call[options] == trains[0]
    sources = np.unique(p.option_layout[options[trained]])
    targets = np.unique(p.option_layout[options[~trained]])
    if len(sources) == 0 or len(targets) == 0 or len(np.union1d(sources, targets)) == 1:
        return
    matrix = p.realloc_seconds.get(model)
    name = f"realloc_seconds_{model}"
    highest = int(max(sources.max(), targets.max()))
    if matrix is None:
        yield Problem(name, f"is missing; model {model} trains and its layouts differ")
    elif matrix.shape[0] <= highest:
        yield Problem(name, f"is [{len(matrix)}, {len(matrix)}]; layout {highest} is used")
