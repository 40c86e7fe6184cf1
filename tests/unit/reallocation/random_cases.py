"""Random models, layouts, devices and limits for the properties of plans.

Layouts are drawn from those that the engine accepts for the model: were they drawn first and
refused after, hardly any but the simplest would be left. Hypothesis draws nothing but a seed,
for what it draws piece by piece it varies piece by piece, and most cases are then alike.
"""

import random
from functools import lru_cache
from itertools import product

from hypothesis import strategies as st

from realloc.core.errors import InvalidInput
from realloc.core.layout import Layout, LayoutKind
from realloc.core.model import Head, ModelArchitecture
from realloc.core.strategy import ParallelStrategy
from realloc.reallocation.families import KNOWN_FAMILIES
from realloc.reallocation.layouts.provider import provider_of
from realloc.reallocation.limits import TransferLimits
from tests.unit.reallocation.cases import Case, architecture

MAX_RANKS = 16
NUM_DEVICES = 20
KINDS = {
    LayoutKind.MEGATRON: 3,
    LayoutKind.VLLM: 3,
    LayoutKind.FSDP: 1,
    LayoutKind.HUGGINGFACE: 1,
}
"""How often each is drawn."""


def random_case(seed: int) -> Case:
    """A reallocation within tight limits."""
    draw = random.Random(seed)
    model = _model(draw)
    return Case(
        model=model,
        source=_layout(draw, model),
        destination=_layout(draw, model),
        roles=draw.choice([("a", "b"), ("a", "a")]),
        node_size=draw.choice([1, 3, 8, 32]),
        limits=TransferLimits(
            staging_bytes=draw.choice([1 << 10, 5000, 1 << 20]),
            max_operations=draw.choice([24, 64]),
            least_run_bytes=draw.choice([1, 40, 4 << 20]),
        ),
    )


CASES = st.integers(0, 2**32 - 1).map(random_case)


def _model(draw: random.Random) -> ModelArchitecture:
    """Of any family; some degrees divide its heads, layers and hidden sizes."""
    groups = draw.choice([1, 2, 3, 6, 12])
    model = architecture(
        draw.choice(sorted(KNOWN_FAMILIES)),
        num_layers=draw.choice([1, 3, 4, 6, 8, 12]),
        hidden_size=draw.randint(1, 20),
        intermediate_size=draw.choice([12, 24, 36, 60]),
        num_attention_heads=groups * draw.choice([1, 2, 4, 12]),
        num_key_value_heads=groups,
        head_dim=draw.randint(1, 4),
        vocab_size=draw.choice([draw.randint(1, 128), draw.randint(129, 192)]),
        tied_embeddings=draw.random() < 0.5,
        qkv_bias=draw.random() < 0.5,
    )
    return model.with_head(draw.choice(list(Head)))


def _layout(draw: random.Random, model: ModelArchitecture) -> Layout:
    """One that the engine accepts for this model, on any devices."""
    (kind,) = draw.choices(list(KINDS), KINDS.values())
    strategy = draw.choice(_strategies(model, kind))
    devices = range(NUM_DEVICES)
    if draw.random() < 0.5:
        devices = range(strategy.num_ranks)  # so that meshes are often equal
    return Layout(
        kind=kind, strategy=strategy, devices=tuple(draw.sample(devices, strategy.num_ranks))
    )


@lru_cache(maxsize=1024)
def _strategies(model: ModelArchitecture, kind: LayoutKind) -> list[ParallelStrategy]:
    """All strategies of few ranks that the engine accepts for a model."""
    if kind in (LayoutKind.FSDP, LayoutKind.HUGGINGFACE):
        return [ParallelStrategy(data=data) for data in range(1, 7)]
    megatron = kind is LayoutKind.MEGATRON
    cuts = [
        ParallelStrategy(data=expert, tensor=tensor, expert=expert)
        for tensor, expert in product(range(1, 7), (1, 2, 3) if model.num_experts else (1,))
    ]
    found = [
        ParallelStrategy(
            data=cut.expert * replicas,
            tensor=cut.tensor,
            pipeline=pipeline,
            virtual_pipeline=chunks,
            expert=cut.expert,
            context=context,
        )
        for cut in cuts
        if _accepts(model, kind, cut)
        for replicas, pipeline in product((1, 2, 3), (1, 2, 3, 4))
        for chunks, context in product((1, 2, 3), (1, 2) if megatron else (1,))
    ]
    return [of for of in found if of.num_ranks <= MAX_RANKS and _accepts(model, kind, of)]


def _accepts(model: ModelArchitecture, kind: LayoutKind, strategy: ParallelStrategy) -> bool:
    provider = provider_of(kind)
    try:
        provider.check(model, strategy)
        provider.layer_stages(model, strategy)
        if strategy.pipeline == 1:  # how tensors are cut does not depend on the stages
            provider.layer(model, strategy, 0)
            provider.outer(model, strategy, 0, 0)
    except InvalidInput:
        return False
    return True


def features(case: Case) -> set[str]:
    """What is special about a case: the combinations that plans must be right for."""
    source, destination = case.source, case.destination
    found = {
        f"from {source.kind.value} to {destination.kind.value}",
        f"from interleaved stages to {destination.kind.value}"
        if source.strategy.virtual_pipeline > 1
        else "",
        case.model.family,
        _meshes(set(source.devices), set(destination.devices)),
    }
    degrees = sorted((source.strategy.tensor, destination.strategy.tensor))
    if degrees[1] % degrees[0]:
        found.add("tensor degrees of which none divides the other")
    for end, of in (("from", source), ("to", destination)):
        found |= {f"{end} {what}" for what in _side_features(case.model, of)}
    return found - {""}


def _side_features(model: ModelArchitecture, layout: Layout) -> set[str]:
    strategy, kind = layout.strategy, layout.kind
    experts = model.num_experts and strategy.expert > 1
    padded = {LayoutKind.VLLM: 64, LayoutKind.MEGATRON: strategy.tensor}.get(kind, 1)
    is_special = {
        "replicated KV heads": kind is LayoutKind.VLLM
        and strategy.tensor > model.num_key_value_heads,
        f"{kind.value} stages": strategy.pipeline > 1,
        "interleaved stages": strategy.virtual_pipeline > 1,
        "tied embeddings across stages": strategy.pipeline > 1 and model.tied_embeddings,
        f"{kind.value} expert ranks": experts,
        f"{kind.value} expert and tensor ranks": experts and strategy.tensor > 1,
        f"a vocabulary padded by {kind.value}": model.vocab_size % padded,
        "context ranks": strategy.context > 1,
    }
    return {what for what, holds in is_special.items() if holds}


def _meshes(have: set[int], want: set[int]) -> str:
    if have == want:
        return "equal meshes"
    return "overlapping meshes" if have & want else "disjoint meshes"
