"""The options that a searcher still considers, call by call."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from realloc.search.problem import SearchProblem

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidates:
    """Option indices of all calls in one array, as compiled functions read them."""

    options: Ints
    """Options of call 0, then those of call 1, …"""
    starts: Ints
    """[C + 1], where each call's options begin."""

    def of(self, call: int) -> Ints:
        """The options of a call."""
        return self.options[self.starts[call] : self.starts[call + 1]]

    def keep(self, kept: NDArray[np.bool_]) -> "Candidates":
        """Those whose mark, indexed by option, is set."""
        calls = len(self.starts) - 1
        return gather([self.of(call)[kept[self.of(call)]] for call in range(calls)])


def gather(options: list[Ints]) -> Candidates:
    """Candidates from one array per call."""
    starts = np.cumsum([0, *(len(o) for o in options)]).astype(np.int64)
    return Candidates(options=np.concatenate(options).astype(np.int64), starts=starts)


def distinct_options(problem: SearchProblem) -> Candidates:
    """The options that fit a device by themselves, without exact duplicates.

    Nothing else is left out: under list scheduling a slower option can make a faster plan, and
    one that needs more memory may lie where memory is free. Of duplicates (same devices,
    seconds, bytes and layout) the first stays.
    """
    need = problem.option_resident_bytes + problem.option_active_bytes
    kept = []
    for call in range(problem.num_calls):
        options = problem.options_of(call)
        options = options[need[options] <= problem.device_memory_bytes]
        columns = (
            problem.option_first_device[options],
            problem.option_num_devices[options],
            problem.option_seconds[options].view(np.int64),
            problem.option_resident_bytes[options],
            problem.option_active_bytes[options],
            problem.option_layout[options],
        )
        _, first = np.unique(np.stack(columns, axis=1), axis=0, return_index=True)
        kept.append(options[np.sort(first)])
    return gather(kept)
