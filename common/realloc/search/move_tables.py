"""What is known of the moves between two sets of options of one model."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from realloc.search.compilation import compiled
from realloc.search.option_tree import OptionTree
from realloc.search.problem import SearchProblem

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class MoveTables(NamedTuple):
    """For groups of train options (rows) and of another call's options (columns)."""

    least: Floats
    """Fewest seconds of a move between options of the two that are not in one layout; 0 where
    some two need none, infinity where all are in one."""
    moved: Floats
    """0 where some two that are not in one layout need no move, else 1."""


def move_tables(problem: SearchProblem, tree: OptionTree, train: int, call: int) -> MoveTables:
    """The tables of a call and its model's train call."""
    rows, columns = int(tree.num_groups[train]), int(tree.num_groups[call])
    row_of, row_parent = _groups(tree, train)
    column_of, column_parent = _groups(tree, call)
    tables = MoveTables(
        least=np.full((rows, columns), np.inf),
        moved=np.ones((rows, columns)),
    )
    matrix = problem.realloc_seconds.get(int(problem.call_model[call]), np.zeros((1, 1)))
    _scatter_least(
        matrix,
        problem.option_layout[row_of[0]],
        row_of[1],
        problem.option_layout[column_of[0]],
        column_of[1],
        *tables,
    )
    for table in tables:
        # Parents have smaller numbers than their children.
        for row in range(rows - 1, 0, -1):
            table[row_parent[row]] = np.minimum(table[row_parent[row]], table[row])
        for column in range(columns - 1, 0, -1):
            parent = column_parent[column]
            table[:, parent] = np.minimum(table[:, parent], table[:, column])
    return tables


def _groups(tree: OptionTree, call: int) -> tuple[tuple[Ints, Ints], Ints]:
    """The call's single options with their groups; and each group's parent."""
    sets = tree.sets_of(call)
    single = tree.single_sets(call)
    parent = np.zeros(int(tree.num_groups[call]), dtype=np.int64)
    _find_parents(sets, tree.child_start, tree.child_count, tree.group, parent)
    return (tree.option[single], tree.group[single]), parent


@compiled
def _find_parents(
    sets: Ints, child_start: Ints, child_count: Ints, group: Ints, parent: Ints
) -> None:
    for v in sets:
        for child in range(child_start[v], child_start[v] + child_count[v]):
            if group[child] != group[v]:
                parent[group[child]] = group[v]


@compiled
def _scatter_least(
    matrix: Floats,
    from_layout: Ints,
    from_group: Ints,
    to_layout: Ints,
    to_group: Ints,
    least: Floats,
    moved: Floats,
) -> None:
    for i in range(len(from_layout)):
        source = from_layout[i]
        for j in range(len(to_layout)):
            target = to_layout[j]
            if source >= 0 and source == target:
                continue
            seconds = 0.0
            if source >= 0 and target >= 0:
                seconds = matrix[source, target]
            else:
                moved[from_group[i], to_group[j]] = 0.0
            if seconds < least[from_group[i], to_group[j]]:
                least[from_group[i], to_group[j]] = seconds
