"""Options of each call as a tree of ever smaller sets: all → one mesh size → alike → one.

Branch and bound refines one call's set at a time. *Alike* options have the same number of
devices, seconds and bytes; they differ in place and layout. Children stand together and go
from few seconds to many.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from realloc.search.candidates import Candidates
from realloc.search.compilation import compiled
from realloc.search.problem import SearchProblem

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

LEVELS = 3
"""Refinements from all options of a call to one."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OptionTree:
    """Sets (V) of options of all calls (C); `root` of a call is the set of all its options.

    A set is *coarse* unless it is one option; coarse sets have an index within their call (U).
    """

    root: Ints
    """[C]"""
    child_start: Ints
    """[V]"""
    child_count: Ints
    """[V], 0 for single options."""
    option: Ints
    """[V], the single option, or −1."""
    coarse: Ints
    """[V], index of the set, or of the set of alike options that a single one belongs to."""
    num_devices: Ints
    """[V], fewest devices of an option of the set."""
    seconds: Floats
    """[V], fewest seconds."""
    area: Floats
    """[V], fewest devices × seconds."""
    resident: Ints
    """[V], fewest resident bytes."""
    active: Ints
    """[V], fewest active bytes."""
    num_coarse: Ints
    """[C]"""

    def coarse_of_option(self, num_options: int) -> Ints:
        """[O], the coarse index of the alike options around each option; −1 if in no tree."""
        single = self.option >= 0
        found = np.full(num_options, -1, dtype=np.int64)
        found[self.option[single]] = self.coarse[single]
        return found


def build_option_tree(problem: SearchProblem, candidates: Candidates) -> OptionTree:
    """The tree over the candidates of each call."""
    builder = _Builder(problem)
    roots = [builder.add_call(candidates.of(call)) for call in range(problem.num_calls)]
    return builder.finish(roots)


class _Builder:
    """Collects sets, breadth first within each call."""

    def __init__(self, problem: SearchProblem) -> None:
        self._problem = problem
        self._members: list[Ints] = []
        self._children: list[tuple[int, int]] = []
        self._coarse: list[int] = []
        self._num_coarse: list[int] = []

    def add_call(self, options: Ints) -> int:
        root = len(self._members)
        self._add(options, 0)
        next_coarse = 1
        frontier = [root]
        for level in range(LEVELS):
            parts_of = [self._split(self._members[node], level) for node in frontier]
            created: list[int] = []
            for node, parts in zip(frontier, parts_of, strict=True):
                self._children[node] = (len(self._members), len(parts))
                for part in parts:
                    created.append(len(self._members))
                    is_single = level == LEVELS - 1
                    self._add(part, self._coarse[node] if is_single else next_coarse)
                    next_coarse += not is_single
            frontier = created
        self._num_coarse.append(next_coarse)
        return root

    def _add(self, members: Ints, coarse: int) -> None:
        self._members.append(members)
        self._children.append((0, 0))
        self._coarse.append(coarse)

    def _split(self, options: Ints, level: int) -> list[Ints]:
        p = self._problem
        if level == 0:
            keys = p.option_num_devices[options][:, None]
        elif level == 1:
            columns = (
                p.option_seconds[options].view(np.int64),
                p.option_resident_bytes[options],
                p.option_active_bytes[options],
            )
            keys = np.stack(columns, axis=1)
        else:
            keys = np.arange(len(options))[:, None]
        _, inverse = np.unique(keys, axis=0, return_inverse=True)
        inverse = inverse.ravel()
        parts = [options[inverse == index] for index in range(int(inverse.max()) + 1)]
        return sorted(parts, key=lambda part: float(p.option_seconds[part].min()))

    def finish(self, roots: list[int]) -> OptionTree:
        p = self._problem
        members = self._members
        begins = np.cumsum([0, *(len(part) for part in members[:-1])])
        flat = np.concatenate(members)
        sizes = np.array([len(part) for part in members])
        leaf = np.array([count for _, count in self._children]) == 0
        devices = p.option_num_devices[flat]
        seconds = p.option_seconds[flat]
        assert np.all(sizes[leaf] == 1)
        return OptionTree(
            root=np.array(roots),
            child_start=np.array([start for start, _ in self._children]),
            child_count=np.array([count for _, count in self._children]),
            option=np.where(leaf, flat[begins], -1),
            coarse=np.array(self._coarse),
            num_devices=np.minimum.reduceat(devices, begins),
            seconds=np.minimum.reduceat(seconds, begins),
            area=np.minimum.reduceat(devices * seconds, begins),
            resident=np.minimum.reduceat(p.option_resident_bytes[flat], begins),
            active=np.minimum.reduceat(p.option_active_bytes[flat], begins),
            num_coarse=np.array(self._num_coarse),
        )


def least_move_seconds(
    problem: SearchProblem, tree: OptionTree, train: int, call: int
) -> tuple[Floats, Floats, Floats]:
    """What two coarse sets of a model's options have in common, [U of train, U of call] each.

    Returns:
        Fewest seconds of a move between options of the two; 0 where some two have one layout,
        else 1; 0 where some two need no move, else 1.
    """
    rows, columns = int(tree.num_coarse[train]), int(tree.num_coarse[call])
    coarse = tree.coarse_of_option(problem.num_options)
    trains = [o for o in problem.options_of(train) if coarse[o] >= 0]
    others = [o for o in problem.options_of(call) if coarse[o] >= 0]
    matrix = problem.realloc_seconds.get(int(problem.call_model[call]), np.zeros((1, 1)))
    least = np.full((rows, columns), np.inf)
    apart = np.ones((rows, columns))
    moved = np.ones((rows, columns))
    _scatter_least(
        matrix,
        problem.option_layout[trains],
        coarse[trains],
        problem.option_layout[others],
        coarse[others],
        least,
        apart,
        moved,
    )
    row_parents = _coarse_parents(tree, train)
    column_parents = _coarse_parents(tree, call)
    for row in range(rows - 1, 0, -1):
        for table in (least, apart, moved):
            table[row_parents[row]] = np.minimum(table[row_parents[row]], table[row])
    for column in range(columns - 1, 0, -1):
        parent = column_parents[column]
        for table in (least, apart, moved):
            table[:, parent] = np.minimum(table[:, parent], table[:, column])
    return least, apart, moved


def _coarse_parents(tree: OptionTree, call: int) -> dict[int, int]:
    """Coarse index → that of the set which contains it; parents have smaller indices."""
    parents: dict[int, int] = {}
    frontier = [int(tree.root[call])]
    for _ in range(LEVELS - 1):
        inner = []
        for node in frontier:
            start, count = int(tree.child_start[node]), int(tree.child_count[node])
            for child in range(start, start + count):
                parents[int(tree.coarse[child])] = int(tree.coarse[node])
                inner.append(child)
        frontier = inner
    return parents


@compiled
def _scatter_least(
    matrix: Floats,
    from_layout: Ints,
    from_set: Ints,
    to_layout: Ints,
    to_set: Ints,
    least: Floats,
    apart: Floats,
    moved: Floats,
) -> None:
    for i in range(len(from_layout)):
        source = from_layout[i]
        for j in range(len(to_layout)):
            target = to_layout[j]
            seconds = 0.0
            if source >= 0 and target >= 0 and source != target:
                seconds = matrix[source, target]
            else:
                moved[from_set[i], to_set[j]] = 0.0
            if seconds < least[from_set[i], to_set[j]]:
                least[from_set[i], to_set[j]] = seconds
            if source >= 0 and source == target:
                apart[from_set[i], to_set[j]] = 0.0
