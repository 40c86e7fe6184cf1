"""Search results for programs and for people."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the command line asks for --help without numpy and the compiler
    from realloc.cost.simulator import SimulationRules
    from realloc.search.problem import SearchProblem
    from realloc.search.result import SearchResult


def result_as_json(result: "SearchResult") -> dict[str, Any]:
    """Plain values under the names of DESIGN section 7."""
    return {
        "searcher": result.searcher,
        "options": list(result.options),
        "seconds": result.seconds,
        "peak_bytes": result.peak_bytes,
        "lower_bound": result.lower_bound,
        "gap": result.gap,
        "evaluations": result.evaluations,
        "evaluations_per_second": result.evaluations_per_second,
        "elapsed_seconds": result.elapsed_seconds,
        "trace": [
            {
                "elapsed_seconds": improvement.elapsed_seconds,
                "evaluations": improvement.evaluations,
                "seconds": improvement.seconds,
            }
            for improvement in result.trace
        ],
    }


def result_as_text(
    problem: "SearchProblem",
    result: "SearchResult",
    rules: "SimulationRules",
    *,
    timeline: bool = False,
) -> str:
    """The plan as a table, what was proved, and the timeline where wanted."""
    from realloc.cost.timeline_text import render_timeline

    lines = [
        f"{result.seconds:.6g} seconds per iteration, {result.proof}"
        f" (lower bound {result.lower_bound:.6g})",
        f"peak {result.peak_bytes / 2**30:.1f} of "
        f"{problem.device_memory_bytes / 2**30:.1f} GiB on the fullest device",
        f"{result.evaluations_per_second:,.0f} plans per second, "
        f"{result.elapsed_seconds:.2f} seconds",
        "",
        f"{'call':20} {'option':>7} {'devices':>11} {'seconds':>10} {'layout':>7}",
    ]
    for call, option in zip(problem.place(result.options), result.options, strict=True):
        lines.append(
            f"{call.name:20} {option:7} {call.devices!s:>11} {call.seconds:10.4g} {call.layout:7}"
        )
    text = "\n".join(lines) + "\n"
    if timeline:
        rendered = problem.simulate(result.options, rules)
        text += "\n" + render_timeline(rendered, num_devices=problem.num_devices)
    return text
