"""Timelines as text: a table of the work and a chart of devices over time."""

from itertools import pairwise

from realloc.core.mesh import DeviceMesh
from realloc.cost.simulator import Timeline, Work, WorkKind

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def render_timeline(timeline: Timeline, *, num_devices: int, columns: int = 72) -> str:
    """A chart with one row per distinct group of devices, its legend, and the list of work.

    A capital is a call, the small letter the reallocation before it, ``·`` an idle device.
    Each row stands for consecutive devices that do the same work throughout.
    """
    lines = [f"{timeline.seconds:.6g} seconds per iteration", ""]
    lines += [render_chart(timeline, num_devices=num_devices, columns=columns), ""]
    lines += _table(timeline)
    return "\n".join(lines) + "\n"


def render_chart(timeline: Timeline, *, num_devices: int, columns: int = 72) -> str:
    """The chart and its legend only."""
    names = list(dict.fromkeys(work.name for work in timeline.works))
    letters = {name: _LETTERS[index % len(_LETTERS)] for index, name in enumerate(names)}
    lines = _chart(timeline, letters, num_devices, columns)
    return "\n".join([*lines, "", *(f"{letter} {name}" for name, letter in letters.items())])


def _chart(
    timeline: Timeline, letters: dict[str, str], num_devices: int, columns: int
) -> list[str]:
    span = max(timeline.iteration_ends) or 1.0
    groups = _device_groups(timeline, num_devices)
    width = max(len(str(group)) for group in groups)
    rows = []
    for group in groups:
        row = ["·"] * columns
        for work in timeline.works:
            if any(group.overlaps(mesh) for mesh in work.meshes) and work.end > work.start:
                letter = letters[work.name]
                letter = letter if work.kind is WorkKind.CALL else letter.lower()
                first = min(int(work.start / span * columns), columns - 1)
                last = max(first + 1, round(work.end / span * columns))
                row[first:last] = letter * (min(last, columns) - first)
        rows.append(f"{group!s:>{width}} |{''.join(row)}|")
    rows.append(f"{'':{width}} 0{f'{span:.6g} s':>{columns + 1}}")
    return rows


def _device_groups(timeline: Timeline, num_devices: int) -> list[DeviceMesh]:
    meshes = {mesh for work in timeline.works for mesh in work.meshes}
    edges = {0, num_devices}
    for mesh in meshes:
        edges |= {mesh.first_device, mesh.first_device + mesh.num_devices}
    cuts = sorted(edges)
    return [DeviceMesh(first_device=a, num_devices=b - a) for a, b in pairwise(cuts)]


def _table(timeline: Timeline) -> list[str]:
    rows = [("iteration", "work", "devices", "ready", "start", "end")]
    rows += [_row(work) for work in timeline.works]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    aligned = ("<", "<", "<", ">", ">", ">")
    return [
        "  ".join(
            f"{cell:{align}{width}}"
            for cell, align, width in zip(row, aligned, widths, strict=True)
        ).rstrip()
        for row in rows
    ]


def _row(work: Work) -> tuple[str, str, str, str, str, str]:
    name = work.name if work.kind is WorkKind.CALL else f"reallocate for {work.name}"
    devices = " + ".join(dict.fromkeys(str(mesh) for mesh in work.meshes))
    times = (f"{work.ready:.6g}", f"{work.start:.6g}", f"{work.end:.6g}")
    return (str(work.iteration), name, devices, *times)
