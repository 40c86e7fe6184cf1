"""The arguments of ``realloc plan``; apart, so that ``--help`` loads nothing heavy."""

import argparse
from pathlib import Path

SEARCHERS = ("default", "heuristic", "mcmc", "exhaustive")
OBJECTIVES = ("seconds", "cost")
"""Values of `realloc.search.front.Objective`."""
GENERATION = ("any", "colocated", "disjoint")
"""Values of `realloc.core.settings.GenerationPlacement`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``realloc plan``."""
    parser.add_argument(
        "words",
        nargs="+",
        metavar="[explain] EXPERIMENT",
        help="YAML file; with explain: for each call why not the runner-up",
    )
    parser.add_argument(
        "--cluster",
        required=True,
        help="nodes x kind : devices per node, such as 16xH100:8@3200, or 8xH100:8+4xA100-80:8",
    )
    parser.add_argument(
        "--profile", default="", help="measured devices: a file of tools/profile_hardware.py"
    )
    parser.add_argument(
        "--links", type=Path, help="what realloc doctor --links measured, instead of a preset's"
    )
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="longest time of the search (default: 10)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the search (default: 0)")
    parser.add_argument("--searcher", default="default", choices=SEARCHERS)
    parser.add_argument("--prompt-tokens", type=float, help="mean tokens of a prompt")
    parser.add_argument(
        "--response-tokens",
        type=float,
        default=0.0,
        help="mean tokens of a response (default: the most)",
    )
    parser.add_argument(
        "--staleness",
        type=int,
        default=0,
        help="versions that generation may lag behind (default: 0)",
    )
    _add_constraints(parser)
    parser.add_argument(
        "--objective",
        default="seconds",
        choices=OBJECTIVES,
        help="cost: device-seconds per sample, on as few devices as pay off",
    )
    parser.add_argument(
        "--pareto", action="store_true", help="all plans of which none is both faster and cheaper"
    )
    parser.add_argument("--trace", type=Path, help="write a trace for ui.perfetto.dev")
    parser.add_argument("--html", type=Path, help="write one self-contained page")


def _add_constraints(parser: argparse.ArgumentParser) -> None:
    """Each overrides what the experiment's `placement` and `pins` say."""
    parser.add_argument("--headroom", type=float, help="share of memory left free")
    parser.add_argument("--max-tensor", type=int, help="largest tensor degree")
    parser.add_argument(
        "--generation", choices=GENERATION, help="where rollouts run, seen from training"
    )
    parser.add_argument(
        "--avoid", type=int, nargs="*", metavar="NODE", help="nodes to leave out, from 0"
    )
    parser.add_argument(
        "--keep-on-device", action="store_true", help="nothing waits in the host's memory"
    )
    parser.add_argument(
        "--pin",
        action="append",
        default=[],
        metavar="CALL=PLACE",
        help="fix a call's place: actor_gen=d2t4p1@0-7, or only d2t4p1, or only @0-7",
    )
    parser.add_argument("--ignore-pins", action="store_true", help="of the experiment")
