"""Transfer plans: intersect what is wanted with what is there, pick replicas, make rounds.

``plan_transfer`` works for any two layouts of one model on any devices. ``source_endpoints[r]``
is the process that holds rank ``r`` of the source layout, likewise for the destination. Bytes
between two processes of one device are local traffic; a process that holds both sides sends
messages to itself. Padding is in no block: it stays as it is at the destination.

The way to a plan: `sides` describes both layouts per holder, `boxes` intersects them into
classes of atoms, `lines` lays the classes of all layers end to end, `routing` chooses who sends
what with least traffic and even load (`balance`), `schedule` deals it out to rounds, `traffic`
counts. The programs of the processes are made when asked for (`programs`).
"""

from collections import Counter
from collections.abc import Collection, Sequence

from realloc.core.errors import InvalidInput, Problem, raise_problems
from realloc.core.layout import Layout
from realloc.core.model import ModelArchitecture
from realloc.core.transfer import Endpoint, TransferPlan
from realloc.reallocation.families import canonical_names
from realloc.reallocation.layouts.provider import named_problems
from realloc.reallocation.limits import TransferLimits, element_bytes
from realloc.reallocation.lines import lines_between
from realloc.reallocation.programs import PlannedPrograms
from realloc.reallocation.routing import route
from realloc.reallocation.schedule import make_schedule
from realloc.reallocation.sides import side_of
from realloc.reallocation.traffic import traffic_of


def plan_transfer(
    architecture: ModelArchitecture,
    source: Layout,
    destination: Layout,
    *,
    source_endpoints: Sequence[Endpoint],
    destination_endpoints: Sequence[Endpoint],
    dtype: str,
    limits: TransferLimits | None = None,
    only: Collection[str] | None = None,
) -> TransferPlan:
    """Plan how the destination layout gets the source layout's weights.

    Args:
        dtype: element type on the way, a key of `limits.ELEMENT_BYTES`.
        limits: what may be in flight at once; the defaults suit one node of GPUs.
        only: names of the canonical tensors that move, such as those whose digest changed;
            what stores the others is not written. None for all.

    Raises:
        InvalidInput: a layout does not fit the model, the endpoints do not fit a layout, or
            the limits are too small.
    """
    limits, size = limits or TransferLimits(), element_bytes(dtype)
    numbers = _number_endpoints((*source_endpoints, *destination_endpoints))
    with named_problems(source):
        have = side_of(architecture, source, source_endpoints, numbers, "source_endpoints")
    with named_problems(destination):
        want = side_of(
            architecture, destination, destination_endpoints, numbers, "destination_endpoints"
        )
    names = canonical_names(architecture)
    if only is not None:
        unknown = set(only).difference(names)
        raise_problems(
            Problem("only", f"names {name}, which is unknown") for name in sorted(unknown)
        )
    lines = lines_between(architecture, have, want, only)
    routes = route(lines, have, want)
    return TransferPlan(
        endpoints=tuple(numbers),
        canonical_tensors=names,
        dtype=dtype,
        programs=PlannedPrograms(
            lines=lines,
            source=have,
            destination=want,
            routes=routes,
            schedule=make_schedule(lines, routes, len(numbers), size, limits),
            num_endpoints=len(numbers),
            least_run_elements=-(-limits.least_run_bytes // size),
        ),
        traffic=traffic_of(lines, have, want, routes, size),
    )


def _number_endpoints(endpoints: Sequence[Endpoint]) -> dict[Endpoint, int]:
    """Number the processes in the order of first sight.

    Raises:
        InvalidInput: one name stands for two different processes, or a device is in two nodes.
    """
    distinct = tuple(dict.fromkeys(endpoints))
    names = Counter(endpoint.name for endpoint in distinct)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise InvalidInput.at("endpoints", f"{twice[0]} is named with two devices or nodes")
    node_of: dict[int, int] = {}
    for endpoint in distinct:
        if node_of.setdefault(endpoint.device, endpoint.node) != endpoint.node:
            raise InvalidInput.at(
                "endpoints",
                f"device {endpoint.device} is said to be in node {node_of[endpoint.device]} and, "
                f"by {endpoint.name}, in node {endpoint.node}",
            )
    return {endpoint: index for index, endpoint in enumerate(distinct)}
