"""``python -m realloc.search PROBLEM.npz --seconds 10``: search a plan for a problem file."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from realloc.core.errors import ReallocError
from realloc.search.text import result_as_json, result_as_text

EXIT_WRONG_INPUT = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; wrong input ends in one line on stderr and exit status 2."""
    parsed = _parser().parse_args(arguments)
    try:
        _search(parsed)
    except ReallocError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_WRONG_INPUT
    except BrokenPipeError:
        sys.stderr.close()  # the reader has gone; no traceback for its sake
    return 0


def _search(parsed: argparse.Namespace) -> None:
    # Imported here so that --help does not wait for the compiler.
    from realloc.cost.simulator import SimulationRules
    from realloc.search.problem_file import load_problem
    from realloc.search.searchers import searcher_named, warm_up

    rules = SimulationRules(iterations=parsed.iterations, staleness=parsed.staleness)
    problem = load_problem(parsed.problem)
    searcher = searcher_named(parsed.searcher)
    warm_up(searcher)
    result = None
    for result in searcher.search(problem, seconds=parsed.seconds, seed=parsed.seed, rules=rules):
        if not parsed.json:
            print(
                f"{result.elapsed_seconds:8.2f} s  {result.seconds:.6g} s per iteration, "
                f"gap {result.gap:.2%}",
                file=sys.stderr,
            )
    assert result is not None, "every searcher yields a result or raises"
    if parsed.json:
        print(json.dumps(result_as_json(result)))
    else:
        print(result_as_text(problem, result, rules, timeline=parsed.timeline), end="")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m realloc.search",
        description="Search an execution plan for a problem file (see SearchProblem).",
    )
    parser.add_argument("problem", type=Path, metavar="PROBLEM.npz")
    parser.add_argument(
        "--seconds", type=_seconds, default=10.0, help="time limit of the search (default 10)"
    )
    parser.add_argument("--seed", type=int, default=0, help="equal seeds walk equal ways")
    parser.add_argument(
        "--searcher", default="default", help="default, exhaustive, heuristic or mcmc"
    )
    parser.add_argument("--iterations", type=int, default=5, help="iterations simulated")
    parser.add_argument("--staleness", type=int, default=0, help="versions generation may lag")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--timeline", action="store_true", help="print the plan's timeline, too")
    return parser


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0.0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number of seconds from 0")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
