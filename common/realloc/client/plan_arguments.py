"""The arguments of ``realloc plan``; apart, so that ``--help`` loads nothing heavy."""

import argparse
from pathlib import Path

SEARCHERS = ("default", "heuristic", "mcmc", "exhaustive")
GENERATION = ("any", "colocated", "disjoint")
"""Values of `realloc.search.constraints.GenerationPlacement`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``realloc plan``."""
    parser.add_argument(
        "words",
        nargs="+",
        metavar="[explain] EXPERIMENT",
        help="YAML file; with explain: for each call why not the runner-up",
    )
    parser.add_argument(
        "--cluster", required=True, help="nodes x kind : devices per node, such as 16xH100:8@3200"
    )
    parser.add_argument(
        "--profile", default="", help="measured devices: a file of tools/profile_hardware.py"
    )
    parser.add_argument(
        "--links", type=Path, help="what realloc doctor --links measured, instead of a preset's"
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="time of the search")
    parser.add_argument("--seed", type=int, default=0, help="of the search")
    parser.add_argument("--searcher", default="default", choices=SEARCHERS)
    parser.add_argument("--prompt-tokens", type=float, help="mean tokens of a prompt")
    parser.add_argument(
        "--response-tokens", type=float, default=0.0, help="mean tokens of a response"
    )
    parser.add_argument("--staleness", type=int, default=0, help="versions generation may lag")
    parser.add_argument("--headroom", type=float, default=0.0, help="share of memory left free")
    parser.add_argument("--max-tensor", type=int, default=0, help="largest tensor degree")
    parser.add_argument(
        "--generation",
        default="any",
        choices=GENERATION,
        help="where rollouts run, seen from training",
    )
    parser.add_argument(
        "--avoid", type=int, nargs="*", default=[], metavar="NODE", help="nodes to leave out"
    )
    parser.add_argument("--ignore-pins", action="store_true", help="of the experiment")
    parser.add_argument("--trace", type=Path, help="write a trace for ui.perfetto.dev")
    parser.add_argument("--html", type=Path, help="write one self-contained page")
