"""Parameters of models and of their pipeline stages."""

from realloc.core.model import Head, ModelArchitecture

_TWO_MATRIX_MLP = frozenset({"gpt2", "gpt_neox", "gpt_bigcode", "opt", "phi"})
"""Families without a gate: up and down projections only."""


def mlp_matrices(architecture: ModelArchitecture) -> int:
    """Matrices of hidden × intermediate size in one feed-forward block: 3 where it is gated."""
    return 2 if architecture.family in _TWO_MATRIX_MLP else 3


def layer_parameters(architecture: ModelArchitecture) -> int:
    """Parameters of one layer, all experts included."""
    a = architecture
    attention = 2 * a.hidden_size * (a.query_size + a.key_value_size)
    return attention + expert_parameters(a) * max(1, a.num_experts) + 2 * a.hidden_size


def expert_parameters(architecture: ModelArchitecture) -> int:
    """Parameters of one feed-forward block: of one expert, where there are several."""
    a = architecture
    width = a.expert_intermediate_size if a.num_experts else a.intermediate_size
    return mlp_matrices(a) * a.hidden_size * width


def embedding_parameters(architecture: ModelArchitecture) -> int:
    """Parameters of the token embedding."""
    return architecture.vocab_size * architecture.hidden_size


def head_parameters(architecture: ModelArchitecture) -> int:
    """Parameters of the head beside the embedding: none where they are tied."""
    a = architecture
    if a.head is Head.VALUE:
        return a.hidden_size
    return 0 if a.tied_embeddings else embedding_parameters(a)


def num_parameters(architecture: ModelArchitecture) -> int:
    """Parameters of the whole model."""
    a = architecture
    layers = a.num_layers * layer_parameters(a)
    return layers + embedding_parameters(a) + head_parameters(a) + a.hidden_size


def stage_expert_parameters(
    architecture: ModelArchitecture, *, tensor: int, pipeline: int, expert: int
) -> float:
    """Of one rank of the fullest stage's parameters those of experts; 0 in a dense model."""
    a = architecture
    layers = -(-a.num_layers // pipeline)
    return layers * expert_parameters(a) * a.num_experts / expert / tensor


def stage_parameters(
    architecture: ModelArchitecture, *, tensor: int, pipeline: int, expert: int = 1
) -> float:
    """Parameters on one rank of the fullest stage.

    The fullest is the first or the last: its share of the layers with the embedding or the
    head, and both where there is one stage.
    """
    a = architecture
    layer: float = layer_parameters(a)
    if a.num_experts:
        experts = expert_parameters(a) * a.num_experts
        layer = layer - experts + experts / expert
    ends = [embedding_parameters(a), head_parameters(a)]
    if a.tied_embeddings and pipeline > 1:
        ends[1] = embedding_parameters(a)  # a copy on the last stage
    extra = sum(ends) if pipeline == 1 else max(ends)
    return (-(-a.num_layers // pipeline) * layer + extra) / tensor
