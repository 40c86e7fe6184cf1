"""Lines: everything that the same ranks have and the same ranks want, laid end to end.

A *line* is an atom class in the layers of one pair of stages (or once, for outer tensors):
its elements, layer by layer and atom by atom, count from 0. Every rank of ``sources`` holds
the whole line and every rank of ``destinations`` wants the whole of it, so which replica sends
what is a matter of cutting the line. The number of lines depends on the layouts, hardly on the
model: layers are alike.
"""

from collections.abc import Collection
from dataclasses import dataclass
from itertools import chain, product

import numpy as np

from realloc.core.model import ModelArchitecture
from realloc.core.transfer import Int64
from realloc.reallocation.boxes import AtomClass, intersect
from realloc.reallocation.families import ModelTensor, layer_tensors, outer_tensors
from realloc.reallocation.layouts.provider import CanonicalNumbering
from realloc.reallocation.sides import Side


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Atoms:
    """The atoms of all classes, class by class, and where each holder keeps them."""

    first_atom: Int64
    """[classes + 1] class c is atoms first_atom[c] … first_atom[c + 1] − 1."""
    elements: Int64
    """[classes] elements of one instance (one layer) of the class."""
    base: Int64
    """[classes] elements of all classes before."""
    begin: Int64
    """[atoms] first element, counted over all classes: base + place within the class."""
    rows: Int64
    cols: Int64
    canonical: Int64
    """[atoms] canonical tensor in layer 0, or the outer tensor."""
    canonical_start: Int64
    canonical_stride: Int64
    place_tensor: Int64
    """[places] local parameter within the layer, or among the outer ones."""
    place_start: Int64
    place_stride: Int64


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line; a *place* is where the class's atoms begin in the arrays of places."""

    atom_class: int
    first_instance: int
    num_elements: int
    sources: tuple[int, ...]
    """Source ranks that hold the line."""
    source_places: tuple[int, ...]
    destinations: tuple[int, ...]
    """Destination ranks that want it."""
    destination_places: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lines:
    """All lines of a plan, and their instances: the layers of each line in order."""

    lines: tuple[Line, ...]
    line_class: Int64
    line_first_instance: Int64
    """[lines] the same as in ``lines``, as arrays."""
    atoms: Atoms
    instance_layer: Int64
    """[instances] layer; −1 for outer tensors."""
    tensors_per_layer: int
    """Canonical tensors from one layer to the next."""

    def atom_at(self, line: Int64, element: Int64) -> Int64:
        """Atom to which elements of lines belong."""
        return np.searchsorted(self.atoms.begin, self._in_class(line, element), side="right") - 1

    def into_row(self, line: Int64, element: Int64) -> Int64:
        """How far elements of lines lie behind the start of their atom's row."""
        atom = self.atom_at(line, element)
        excess = self._in_class(line, element) - self.atoms.begin[atom]
        return excess % self.atoms.cols[atom]

    def _in_class(self, line: Int64, element: Int64) -> Int64:
        of = self.line_class[line]
        return self.atoms.base[of] + element % self.atoms.elements[of]


def lines_between(
    architecture: ModelArchitecture,
    source: Side,
    destination: Side,
    only: Collection[str] | None = None,
) -> Lines:
    """Cut a model into lines.

    Args:
        only: names of the canonical tensors that move; None for all.

    Raises:
        InvalidInput: the source layout lacks something that the destination wants.
    """
    outer, layer = outer_tensors(architecture), layer_tensors(architecture)
    numbering = CanonicalNumbering.of(architecture)
    draft = _Draft()
    once = draft.add_instances(np.array([-1]))
    moved = {i for i, of in enumerate(outer) if only is None or of.tensor.name in only}
    for atom_class in intersect(outer, source.outer_holders, destination.outer_holders, moved):
        draft.add_class(atom_class, numbering.outer, numbering.outer_cols)
        draft.add_line(once, source.outer_ranks, destination.outer_ranks)
    for tensors, layers in _alike(layer, architecture.num_layers, only):
        stages = []
        for have, want in product(
            range(len(source.slice_ranks)), range(len(destination.slice_ranks))
        ):
            held = (source.layer_stage[layers] == have) & (destination.layer_stage[layers] == want)
            if held.any():
                run = draft.add_instances(layers[held])
                stages.append((run, source.slice_ranks[have], destination.slice_ranks[want]))
        for atom_class in intersect(
            layer, source.layer_holders, destination.layer_holders, tensors
        ):
            draft.add_class(atom_class, numbering.layer(0), numbering.layer_cols)
            for run, sources, destinations in stages:
                draft.add_line(run, sources, destinations)
    return draft.finish(len(layer))


def _alike(
    layer: tuple[ModelTensor, ...], num_layers: int, only: Collection[str] | None
) -> list[tuple[set[int], Int64]]:
    """Groups of layers of which the same tensors move: the tensors, and the layers."""
    if only is None:
        return [(set(range(len(layer))), np.arange(num_layers))]
    groups: dict[tuple[int, ...], list[int]] = {}
    for number in range(num_layers):
        prefix = f"model.layers.{number}."
        tensors = tuple(i for i, of in enumerate(layer) if prefix + of.tensor.name in only)
        groups.setdefault(tensors, []).append(number)
    return [(set(tensors), np.array(layers)) for tensors, layers in groups.items() if tensors]


_RanksByHolder = tuple[tuple[int, ...], ...]


class _Draft:
    """Collects classes, instances and lines."""

    def __init__(self) -> None:
        self._classes: list[AtomClass] = []
        self._canonical: list[Int64] = []
        self._stride: list[Int64] = []
        self._lines: list[Line] = []
        self._instances: list[Int64] = []
        self._num_instances = 0
        self._num_places = 0

    def add_instances(self, layers: Int64) -> range:
        """Layers (or −1) that lines run over; their places in the list of instances."""
        self._instances.append(layers)
        self._num_instances += len(layers)
        return range(self._num_instances - len(layers), self._num_instances)

    def add_class(
        self, atom_class: AtomClass, numbers: tuple[int, ...] | range, cols: tuple[int, ...]
    ) -> None:
        """Open a class, to which the next lines belong."""
        self._classes.append(atom_class)
        self._canonical.append(np.array(numbers, dtype=np.int64)[atom_class.tensor])
        self._stride.append(np.array(cols, dtype=np.int64)[atom_class.tensor])
        size = len(atom_class.tensor)
        sources, destinations = len(atom_class.sources), len(atom_class.destinations)
        self._source_places = range(self._num_places, self._num_places + size * sources, size)
        self._num_places += size * sources
        self._destination_places = range(
            self._num_places, self._num_places + size * destinations, size
        )
        self._num_places += size * destinations
        self._num_elements = atom_class.num_elements

    def add_line(self, run: range, sources: _RanksByHolder, destinations: _RanksByHolder) -> None:
        """A line of the open class over a run of instances."""
        of = self._classes[-1]
        self._lines.append(
            Line(
                atom_class=len(self._classes) - 1,
                first_instance=run.start,
                num_elements=self._num_elements * len(run),
                sources=_ranks(sources, of.sources),
                source_places=_places(sources, of.sources, self._source_places),
                destinations=_ranks(destinations, of.destinations),
                destination_places=_places(destinations, of.destinations, self._destination_places),
            )
        )

    def finish(self, tensors_per_layer: int) -> Lines:
        classes = self._classes
        rows = _joined([c.rows for c in classes])
        cols = _joined([c.cols for c in classes])
        stride = _joined(self._stride)
        start = _joined([c.row for c in classes]) * stride
        ends = np.cumsum(rows * cols)
        elements = np.array([c.num_elements for c in classes], dtype=np.int64)
        places = [
            side.transpose(1, 0, 2).reshape(3, -1)
            for c in classes
            for side in (c.source_places, c.destination_places)
        ]
        return Lines(
            lines=tuple(self._lines),
            line_class=np.array([line.atom_class for line in self._lines], dtype=np.int64),
            line_first_instance=np.array(
                [line.first_instance for line in self._lines], dtype=np.int64
            ),
            atoms=Atoms(
                first_atom=np.cumsum([0, *(len(c.tensor) for c in classes)], dtype=np.int64),
                elements=elements,
                base=np.cumsum(elements) - elements,
                begin=ends - rows * cols,
                rows=rows,
                cols=cols,
                canonical=_joined(self._canonical),
                canonical_start=start + _joined([c.col for c in classes]),
                canonical_stride=stride,
                place_tensor=_joined([of[0] for of in places]),
                place_start=_joined([of[1] for of in places]),
                place_stride=_joined([of[2] for of in places]),
            ),
            instance_layer=np.concatenate(self._instances),
            tensors_per_layer=tensors_per_layer,
        )


def _joined(arrays: list[Int64]) -> Int64:
    return np.concatenate([np.zeros(0, dtype=np.int64), *arrays])


def _ranks(ranks: _RanksByHolder, holders: tuple[int, ...]) -> tuple[int, ...]:
    if len(holders) == 1:
        return ranks[holders[0]]
    return tuple(chain.from_iterable(ranks[holder] for holder in holders))


def _places(ranks: _RanksByHolder, holders: tuple[int, ...], places: range) -> tuple[int, ...]:
    if len(holders) == 1:
        return (places[0],) * len(ranks[holders[0]])
    return tuple(
        place for holder, place in zip(holders, places, strict=True) for _ in ranks[holder]
    )
