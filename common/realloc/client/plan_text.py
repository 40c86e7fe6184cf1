"""A planned iteration as text: table, timeline, memory, comparison."""

from collections.abc import Sequence
from itertools import groupby

from realloc.cost.timeline_text import render_chart
from realloc.search.front import PlanFront
from realloc.search.planning import PlannedIteration

_SHOWN_ITERATIONS = 2
_BAR = 40


def render_plan(planned: PlannedIteration) -> str:
    """All of it."""
    parts = [
        _summary(planned),
        _placements(planned),
        _timeline(planned),
        _memory(planned),
    ]
    return "\n\n".join(parts) + "\n"


def _summary(planned: PlannedIteration) -> str:
    result = planned.result
    percent = 100 * (planned.speedup - 1)
    return "\n".join(
        (
            f"{result.seconds:.2f} s per iteration, {result.proof} "
            f"(lower bound {result.lower_bound:.2f} s)",
            f"{planned.heuristic_seconds:.2f} s with every call on the whole cluster: "
            f"this plan does {percent:.0f} % more iterations per hour",
        )
    )


def render_front(front: PlanFront) -> str:
    """A line per plan, from slow and cheap to fast and dear."""
    rows = [("devices", "s per iteration", "device-s per sample", "bound", "gap")]
    for planned in front.plans:
        result = planned.result
        rows.append(
            (
                str(planned.num_devices),
                f"{result.seconds:.2f}",
                f"{planned.cost:.3f}",
                f"{result.lower_bound:.2f}",
                f"{100 * result.gap:.1f} %",
            )
        )
    return aligned(rows, right=(0, 1, 2, 3, 4)) + "\n"


def _placements(planned: PlannedIteration) -> str:
    heads = ("call", "devices", "strategy", "micro-batch", "with", "seconds", "GiB")
    rows = [heads]
    for option in planned.chosen:
        rows.append(
            (
                option.call,
                str(option.mesh),
                str(option.strategy),
                f"{option.micro_batch_tokens:,} tok" if option.micro_batch_tokens else "",
                ", ".join(option.notes),
                f"{option.seconds:.2f}",
                f"{option.cost.peak_bytes / 2**30:.1f}",
            )
        )
    rows.append(
        (
            "reallocation",
            *("",) * 4,
            f"{planned.plan.predicted_reallocation_seconds:.2f}",
            "",
        )
    )
    return aligned(rows, right=(3, 5, 6))


def _timeline(planned: PlannedIteration) -> str:
    chart = render_chart(
        planned.timeline(_SHOWN_ITERATIONS),
        num_devices=planned.space.task.cluster.num_devices,
    )
    return f"Predicted timeline of {_SHOWN_ITERATIONS} iterations\n{chart}"


def _memory(planned: PlannedIteration) -> str:
    task = planned.space.task
    capacity, used = task.cluster.device_memory_bytes, planned.device_bytes()
    lines = [
        f"Memory per device, of {capacity / 2**30:.1f} GiB "
        f"({(capacity - task.usable_bytes) / 2**30:.1f} kept free)"
    ]
    first = 0
    for size, devices in groupby(used):
        last = first + len(list(devices)) - 1
        name = str(first) if first == last else f"{first}-{last}"
        filled = min(_BAR, round(_BAR * size / capacity))
        bar = "█" * filled + "·" * (_BAR - filled)
        lines.append(f"{name:>9} |{bar}| {size / 2**30:5.1f} GiB")
        first = last + 1
    return "\n".join(lines)


def aligned(rows: Sequence[tuple[str, ...]], *, right: tuple[int, ...] = ()) -> str:
    """Rows as columns; those in `right` flush right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            f"{cell:>{width}}" if column in right else f"{cell:<{width}}"
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
