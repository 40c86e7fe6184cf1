"""Process groups of models that lie over some ranks of a job's world.

Megatron-core's global parallel state knows one layout per process; a job has several models
with layouts of their own, so every model gets an explicit collection of groups instead.
Creating a group is collective over the whole world: every rank must create the same models
in the same order. Groups of equal ranks are created once and shared.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection

from realloc.core.strategy import Coordinate, ParallelStrategy


class WorldGroups:
    """The process groups made in this world so far, by their ranks."""

    def __init__(self, timeout_seconds: float) -> None:
        self._timeout = timedelta(seconds=timeout_seconds)
        self._groups: dict[tuple[int, ...], dist.ProcessGroup] = {}

    def mine(self, groups: Sequence[Sequence[int]]) -> dist.ProcessGroup | None:
        """Create all these groups of world ranks; the one with this rank, if any."""
        rank = dist.get_rank()
        found = None
        for ranks in map(tuple, groups):
            if ranks not in self._groups:
                self._groups[ranks] = dist.new_group(list(ranks), timeout=self._timeout)
            if rank in ranks:
                found = self._groups[ranks]
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelGroups:
    """Where this rank stands in a model's layout, and with whom it communicates."""

    collection: ProcessGroupCollection
    """As Megatron-core wants them."""
    strategy: ParallelStrategy
    place: Coordinate
    """This rank's place in the layout."""
    ranks: tuple[int, ...]
    """World rank of each rank of the layout."""
    everyone: dist.ProcessGroup
    """All ranks of the layout."""
    tensor: dist.ProcessGroup
    data: dist.ProcessGroup
    pipeline: dist.ProcessGroup

    @property
    def is_first_stage(self) -> bool:
        return self.place.pipeline == 0

    @property
    def is_last_stage(self) -> bool:
        return self.place.pipeline == self.strategy.pipeline - 1

    @property
    def reports(self) -> bool:
        """True on the one rank of each replica that speaks for it: it has the outputs."""
        return self.is_last_stage and self.place.tensor == 0


def create_groups(
    world: WorldGroups, ranks: Sequence[int], strategy: ParallelStrategy
) -> ModelGroups | None:
    """Create the groups of a model whose layout rank r is world rank ``ranks[r]``.

    Collective over the world. Returns None on ranks outside the layout.
    """
    data, tensor, pipeline = (range(n) for n in (strategy.data, strategy.tensor, strategy.pipeline))

    def at(d: int, t: int, p: int) -> int:
        return ranks[strategy.rank(data=d, tensor=t, pipeline=p)]

    tp = world.mine([[at(d, t, p) for t in tensor] for p in pipeline for d in data])
    dp = world.mine([[at(d, t, p) for d in data] for p in pipeline for t in tensor])
    pp = world.mine([[at(d, t, p) for p in pipeline] for d in data for t in tensor])
    mp = world.mine([[at(d, t, p) for p in pipeline for t in tensor] for d in data])
    stage = world.mine([[at(d, t, p) for d in data for t in tensor] for p in pipeline])
    ends = sorted({0, strategy.pipeline - 1})
    embedding = world.mine([[at(d, t, p) for p in ends] for d in data for t in tensor])
    first = world.mine([[at(d, t, 0)] for d in data for t in tensor])
    single = world.mine([[rank] for rank in ranks])
    everyone = world.mine([ranks])
    if tp is None or dp is None or pp is None or everyone is None:
        return None
    collection = ProcessGroupCollection()
    collection.tp, collection.dp, collection.pp, collection.mp = tp, dp, pp, mp
    collection.embd, collection.pos_embd = embedding, first
    collection.cp = collection.ep = single
    collection.hcp = None
    collection.tp_cp = collection.expt_tp = collection.tp_ep = tp
    collection.tp_ep_pp = mp
    collection.dp_cp = collection.expt_dp = dp
    collection.intra_dp_cp = collection.intra_expt_dp = dp
    collection.tp_dp_cp = stage
    # One instance of the distributed optimizer spans the whole layout: its gradient norm does.
    collection.inter_dist_opt, collection.intra_dist_opt = None, everyone
    return ModelGroups(
        collection=collection,
        strategy=strategy,
        place=strategy.coordinate(list(ranks).index(dist.get_rank())),
        ranks=tuple(ranks),
        everyone=everyone,
        tensor=tp,
        data=dp,
        pipeline=pp,
    )
