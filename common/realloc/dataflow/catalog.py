"""The algorithms that an experiment can name."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from realloc.core.errors import InvalidInput
from realloc.core.experiment import Experiment
from realloc.dataflow.graph import DataflowGraph
from realloc.dataflow.ppo import ppo_graph
from realloc.dataflow.sft import sft_graph

ALGORITHMS: Mapping[str, Callable[[Experiment], DataflowGraph]] = MappingProxyType(
    {"ppo": ppo_graph, "sft": sft_graph}
)


def build_graph(experiment: Experiment) -> DataflowGraph:
    """The dataflow graph of an experiment.

    Raises:
        InvalidInput: the algorithm is not in the catalogue.
    """
    if experiment.algorithm not in ALGORITHMS:
        known = ", ".join(sorted(ALGORITHMS))
        raise InvalidInput.at("algorithm", f"{experiment.algorithm!r} is unknown; known: {known}")
    return ALGORITHMS[experiment.algorithm](experiment)
