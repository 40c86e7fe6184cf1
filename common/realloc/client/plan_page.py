"""A planned iteration as one self-contained page: devices × time, placements, memory."""

from html import escape

from realloc.core.mesh import DeviceMesh
from realloc.cost.simulator import Work, WorkKind
from realloc.search.front import PlanFront
from realloc.search.planning import PlannedIteration

_COLORS = (
    "#3b6fb6",
    "#d9822b",
    "#3d9970",
    "#b64d57",
    "#7d5ba6",
    "#8c6d46",
    "#c06fa8",
    "#5f6b73",
    "#a3a82f",
)
_WIDTH = 1000
_HEIGHT = 360
_LEFT = 80

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1100px; color: #222; }
table { border-collapse: collapse; } td, th { padding: .25rem .8rem; text-align: left; }
tr { border-bottom: 1px solid #ddd; } td.n { text-align: right; }
svg { width: 100%; height: auto; } text { font: 12px system-ui, sans-serif; fill: #333; }
.key { display: inline-block; width: .8em; height: .8em; margin: 0 .4em 0 1em; }
"""


def render_page(planned: PlannedIteration, front: PlanFront | None = None) -> str:
    """HTML without anything to load."""
    names = [option.call for option in planned.chosen]
    colors = {name: _COLORS[index % len(_COLORS)] for index, name in enumerate(names)}
    cluster = planned.space.task.cluster
    title = f"{cluster.num_nodes} × {cluster.devices_per_node} {cluster.device_kind}"
    keys = "".join(
        f'<span class="key" style="background:{color}"></span>{escape(name)}'
        for name, color in colors.items()
    )
    result = planned.result
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Plan for {escape(title)}</title>
<style>{_STYLE}</style>
<h1>{result.seconds:.2f} s per iteration on {escape(title)}</h1>
<p>{result.proof.capitalize()} (lower bound {result.lower_bound:.2f} s). Every call on the whole
cluster: {planned.heuristic_seconds:.2f} s; this plan does
{100 * (planned.speedup - 1):.0f} % more iterations per hour.</p>
<h2>Devices over time</h2><p>{keys}; pale: reallocation</p>
{_chart(planned, colors)}
<h2>Placements</h2>{_placements(planned)}
<h2>Memory</h2>{_memory(planned)}
{_front(front) if front else ""}
</html>
"""


def _chart(planned: PlannedIteration, colors: dict[str, str]) -> str:
    timeline = planned.timeline()
    span = max(timeline.iteration_ends) or 1.0
    devices = planned.space.task.cluster.num_devices
    bars = [
        _bar(work, mesh, span, devices, colors)
        for work in timeline.works
        for mesh in dict.fromkeys(work.meshes)
    ]
    lines = [_iteration_line(end, span) for end in timeline.iteration_ends]
    return (
        f'<svg viewBox="0 0 {_WIDTH + _LEFT} {_HEIGHT + 30}" role="img">'
        f'<text x="0" y="12">device 0</text><text x="0" y="{_HEIGHT}">device {devices - 1}</text>'
        f"{''.join(bars)}{''.join(lines)}</svg>"
    )


def _bar(work: Work, mesh: DeviceMesh, span: float, devices: int, colors: dict[str, str]) -> str:
    x = _LEFT + _WIDTH * work.start / span
    width = max(0.5, _WIDTH * (work.end - work.start) / span)
    y = _HEIGHT * mesh.first_device / devices
    height = _HEIGHT * mesh.num_devices / devices - 0.5
    moves = work.kind is WorkKind.REALLOCATION
    label = f"{'reallocate for ' if moves else ''}{work.name}, iteration {work.iteration}"
    return (
        f'<rect x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}" '
        f'fill="{colors[work.name]}" opacity="{0.35 if moves else 0.9}"><title>{escape(label)}: '
        f"{work.start:.2f} to {work.end:.2f} s</title></rect>"
    )


def _iteration_line(end: float, span: float) -> str:
    x = _LEFT + _WIDTH * end / span
    return (
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{_HEIGHT + 8}" stroke="#222"/>'
        f'<text x="{x - 45:.1f}" y="{_HEIGHT + 24}">{end:.1f} s</text>'
    )


def _placements(planned: PlannedIteration) -> str:
    rows = "".join(
        f"<tr><td>{escape(option.call)}<td>{option.mesh}<td>{option.strategy}"
        f'<td class="n">{option.micro_batch_tokens:,}<td>{", ".join(option.notes)}'
        f'<td class="n">{option.seconds:.2f}<td class="n">{option.cost.peak_bytes / 2**30:.1f}'
        for option in planned.chosen
    )
    return (
        "<table><tr><th>call<th>devices<th>strategy<th>micro-batch tokens<th>with"
        f"<th>seconds<th>GiB{rows}</table>"
    )


def _memory(planned: PlannedIteration) -> str:
    task = planned.space.task
    capacity, used = task.cluster.device_memory_bytes, planned.device_bytes()
    width = _WIDTH / len(used)
    bars = "".join(
        f'<rect x="{_LEFT + device * width:.2f}" y="{120 * (1 - size / capacity):.2f}" '
        f'width="{max(0.5, width - 1):.2f}" height="{120 * size / capacity:.2f}" fill="#5f6b73">'
        f"<title>device {device}: {size / 2**30:.1f} GiB</title></rect>"
        for device, size in enumerate(used)
    )
    return (
        f"<p>Predicted peak per device, of {capacity / 2**30:.1f} GiB.</p>"
        f'<svg viewBox="0 0 {_WIDTH + _LEFT} 125"><line x1="{_LEFT}" x2="{_LEFT + _WIDTH}" y1="0" '
        f'y2="0" stroke="#b64d57"/>{bars}</svg>'
    )


def _front(front: PlanFront) -> str:
    """Seconds per iteration over device-seconds per sample, and the same as a table."""
    slowest = max(plan.seconds for plan in front.plans)
    dearest = max(plan.cost for plan in front.plans)
    dots, rows = "", ""
    for plan in front.plans:
        x = _LEFT + 0.9 * _WIDTH * plan.cost / dearest
        y = 20 + 180 * (1 - plan.seconds / slowest)
        label = f"{plan.num_devices} devices"
        dots += f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="#3b6fb6"><title>{label}</title>'
        dots += f'</circle><text x="{x + 8:.1f}" y="{y + 4:.1f}">{label}</text>'
        rows += (
            f'<tr><td class="n">{plan.num_devices}<td class="n">{plan.seconds:.2f}'
            f'<td class="n">{plan.cost:.3f}'
        )
    axes = (
        f'<line x1="{_LEFT}" x2="{_LEFT}" y1="10" y2="200" stroke="#222"/>'
        f'<line x1="{_LEFT}" x2="{_LEFT + _WIDTH}" y1="200" y2="200" stroke="#222"/>'
        f'<text x="0" y="20">{slowest:.1f} s</text>'
        f'<text x="{_WIDTH - 180}" y="218">device-seconds per sample, to {dearest:.2f}</text>'
    )
    return (
        "<h2>What more devices buy</h2>"
        f'<svg viewBox="0 0 {_WIDTH + _LEFT} 225" role="img">{axes}{dots}</svg>'
        f"<table><tr><th>devices<th>seconds per iteration<th>device-seconds per sample{rows}"
        "</table>"
    )
