"""The searchers by name, and their warm-up."""

from dataclasses import replace

import numpy as np

from realloc.core.errors import InvalidInput
from realloc.search.default import DefaultSearcher
from realloc.search.exhaustive import ExhaustiveSearcher
from realloc.search.heuristic import HeuristicSearcher
from realloc.search.mcmc import McmcSearcher
from realloc.search.memory import smallest_memory
from realloc.search.problem import SearchProblem
from realloc.search.result import Searcher, search_to_end

NAMES = ("default", "exhaustive", "heuristic", "mcmc")


def searcher_named(name: str) -> Searcher:
    """A searcher with its default settings.

    Raises:
        InvalidInput: no such searcher.
    """
    searchers: tuple[Searcher, ...] = (
        DefaultSearcher(),
        ExhaustiveSearcher(),
        HeuristicSearcher(),
        McmcSearcher(),
    )
    for searcher in searchers:
        if searcher.name == name:
            return searcher
    raise InvalidInput.at("searcher", f"{name!r} is not one of {', '.join(NAMES)}")


def warm_up(searcher: Searcher) -> None:
    """Compile what a searcher needs, or read it from the cache, before a clock runs.

    The compiled functions do not depend on the problem; a tiny one calls each of them.
    """
    problem, seconds = tiny_problem(), 0.01
    if isinstance(searcher, DefaultSearcher):
        # Small turns, so that each kind of turn comes before the proof is complete. Time stands
        # still: a busy machine would end the search before everything is compiled.
        searcher = replace(searcher, slice_plans=1, slice_choices=1, clock=lambda: 0.0)
    search_to_end(searcher, problem, seconds=seconds)
    smallest_memory(problem)


def tiny_problem() -> SearchProblem:
    """Two calls of one model on two devices; plans that do not fit, moves and ties included."""
    options = [(0, 1), (1, 1), (0, 2)]
    return SearchProblem(
        num_devices=2,
        device_memory_bytes=10,
        call_names=("generate", "train"),
        call_model=np.array([0, 0]),
        call_kind=np.array([0, 2]),
        edges=np.array([[0, 1]]),
        option_call=np.repeat([0, 1], 3),
        option_first_device=np.array([first for first, _ in options] * 2),
        option_num_devices=np.array([num for _, num in options] * 2),
        option_seconds=np.array([2.0, 2.0, 1.5, 3.0, 3.0, 2.0]),
        option_resident_bytes=np.array([4, 4, 5, 9, 9, 5]),
        option_active_bytes=np.array([1, 1, 1, 3, 1, 1]),
        option_layout=np.array([0, 1, 2, 0, 1, 3]),
        realloc_seconds={0: np.full((4, 4), 0.25)},
    )
