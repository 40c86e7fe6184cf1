"""A job's training state on one rank: what it owns of it, copied out and filled in again.

Megatron-core's distributed optimizer gives every element of a parameter to one data rank. So
the ranges of all ranks together hold each element's float32 master weight and Adam moments
once per tensor replica.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from realloc.core.transfer import Blocks
from realloc.reallocation.families import canonical_tensors
from realloc.reallocation.layouts.provider import RankLayout, local_parameters
from services.trainer.megatron_model import MegatronModel
from services.trainer.megatron_optimizer import create_state
from services.trainer.pieces import blocks_by_parameter, copies, piece_name, pieces_of_block
from services.trainer.saved_state import SavedState
from services.trainer.snapshot import Snapshot

WEIGHT = "weight"
KINDS = (WEIGHT, "exp_avg", "exp_avg_sq")
"""The float32 master weight, and Adam's first and second moment; all have a parameter's shape."""
_MEGATRON_NAMES = {WEIGHT: "param"}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OwnedRange:
    """Elements ``start`` to ``end`` of a parameter's flat storage, and their state."""

    parameter: str
    """Megatron's name."""
    start: int
    end: int
    state: Mapping[str, Tensor]
    """By kind, float32 [end - start], live."""
    step: Tensor
    """Optimizer steps so far, float32 0-d, live."""


def owned_ranges(model: MegatronModel) -> Iterator[OwnedRange]:
    """Every range that this rank owns."""
    optimizer = model.optimizer
    assert not optimizer.config.use_precision_aware_optimizer  # its states come as copies
    create_state(optimizer.optimizer)  # before its first step Adam has none
    for name, parameter in model.module.named_parameters():
        if parameter not in optimizer.model_param_gbuf_map:
            continue  # all of it belongs to other data ranks
        within = optimizer._get_model_param_range_map(parameter)["param"]
        state = optimizer._get_main_param_and_optimizer_states(parameter)
        yield OwnedRange(
            parameter=name,
            start=within.start,
            end=within.end,
            state={
                kind: state[_MEGATRON_NAMES.get(kind, kind)].detach().view(-1) for kind in KINDS
            },
            step=state["step"],
        )


def frozen_ranges(model: MegatronModel) -> Iterator[OwnedRange]:
    """Whole parameters that the optimizer does not know: their weights, of the first data rank."""
    for name, parameter in model.module.named_parameters():
        if not parameter.requires_grad and model.groups.place.data == 0:
            flat = parameter.detach().view(-1)
            yield OwnedRange(
                parameter=name,
                start=0,
                end=flat.numel(),
                state={WEIGHT: flat},
                step=torch.tensor(float(model.weight_version)),
            )


def set_step(model: MegatronModel, step: int) -> None:
    """Tell Adam how many steps it has made: its moments' bias correction depends on it."""
    with torch.no_grad():
        for owned in owned_ranges(model):
            owned.step.fill_(step)


def rank_layout(model: MegatronModel) -> RankLayout:
    """What this rank stores of a model."""
    place = model.groups.place
    rank = model.groups.strategy.rank(data=place.data, tensor=place.tensor, pipeline=place.pipeline)
    return local_parameters(model.spec.architecture, model.spec.layout, rank)


def take_snapshot(models: Mapping[str, MegatronModel], device: torch.device) -> Snapshot:
    """Copy to host memory what this rank owns of the models that train."""
    pieces: dict[str, Tensor] = {}
    for model_id, model in models.items():
        if model.optimizer is not None:
            pieces |= _model_pieces(model_id, model)
    return Snapshot(pieces=pieces, random_state=_random_state(device).numpy().tobytes())


def _model_pieces(model_id: str, model: MegatronModel) -> dict[str, Tensor]:
    layout = rank_layout(model)
    tensors = canonical_tensors(model.spec.architecture)
    blocks = blocks_by_parameter(layout, copies(layout.blocks, _earlier_blocks(model)))
    found = {}
    for owned in (*owned_ranges(model), *frozen_ranges(model)):
        assert int(owned.step) == model.weight_version, (int(owned.step), model.weight_version)
        if not blocks[owned.parameter]:
            continue
        for kind, values in owned.state.items():
            copied = values.to("cpu", torch.float32, copy=True)
            for index in blocks[owned.parameter]:
                tensor = tensors[layout.blocks.canonical[index]]
                for piece in pieces_of_block(layout.blocks, index, tensor, owned.start, owned.end):
                    box = piece.box
                    name = piece_name(model_id, kind, tensor.name, box.row, box.col)
                    found[name] = piece.view(copied)
    return found


def _earlier_blocks(model: MegatronModel) -> list[Blocks]:
    """Blocks of the ranks before this one in its replica: what they have too, they write."""
    place, strategy = model.groups.place, model.groups.strategy
    earlier = [
        strategy.rank(data=place.data, tensor=tensor, pipeline=pipeline)
        for pipeline in range(strategy.pipeline)
        for tensor in range(strategy.tensor)
        if (pipeline, tensor) < (place.pipeline, place.tensor)
    ]
    return [
        local_parameters(model.spec.architecture, model.spec.layout, rank).blocks
        for rank in earlier
    ]


def restore_model(model_id: str, model: MegatronModel, state: SavedState) -> None:
    """Fill a model's weights, master weights, moments and step."""
    layout = rank_layout(model)
    tensors = canonical_tensors(model.spec.architecture)
    parameters, blocks = model.parameters(), layout.blocks
    with torch.no_grad():
        for index, number in enumerate(blocks.canonical.tolist()):
            flat = parameters[layout.parameters[blocks.tensor[index]].name].view(-1)
            for piece in pieces_of_block(blocks, index, tensors[number], 0, flat.numel()):
                piece.view(flat).copy_(state.read(model_id, WEIGHT, piece.tensor, piece.box))
        by_parameter = blocks_by_parameter(layout, frozenset())
        for owned in owned_ranges(model):
            for index in by_parameter[owned.parameter]:
                tensor = tensors[blocks.canonical[index]]
                for piece in pieces_of_block(blocks, index, tensor, owned.start, owned.end):
                    for kind, values in owned.state.items():
                        piece.view(values).copy_(state.read(model_id, kind, tensor, piece.box))
    model.weight_version = state.manifest.weight_versions[model_id]
    set_step(model, model.weight_version)


def _random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def restore_random_state(state: bytes, device: torch.device) -> None:
    """Let the rank's generator go on where it was."""
    values = torch.frombuffer(bytearray(state), dtype=torch.uint8)
    if device.type == "cuda":
        torch.cuda.set_rng_state(values, device)
    else:
        torch.set_rng_state(values)
