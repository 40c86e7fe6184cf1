"""Writing a model as a Hugging Face folder, one canonical tensor at a time.

The ranks of the first replica send their parts to the layout's rank 0, which writes them.
Files go to a folder beside the wanted one, which is renamed when whole; the marker is written
last, so that a folder with a marker is complete whatever was killed when.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from realloc.core.errors import InvalidInput
from realloc.reallocation.families import CanonicalTensor, canonical_tensors
from realloc.reallocation.layouts.provider import RankLayout, local_parameters
from services.trainer.hf_config import export_config
from services.trainer.megatron_model import MegatronModel
from services.trainer.progress import Progress, ignore_progress
from services.trainer.safetensors_writer import SafetensorsWriter
from services.trainer.weights import PIECE_ELEMENTS, Box, block_box, block_view, pieces_of

MARKER = "COMPLETE"
"""Name of the file that is written when all else is in place."""
MAX_FILE_BYTES = 5 * 2**30
"""Tensors go to another file where this one would grow larger."""
_TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """Blocks of one canonical tensor on one rank."""

    rank: int
    """Rank of the layout."""
    blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Buffers:
    """What the writer gathers in; empty on other ranks."""

    whole: Tensor
    """Room for the largest tensor, on the CPU."""
    piece: Tensor
    """Room for the largest piece, on the model's device."""


def save_checkpoint(
    model: MegatronModel,
    folder: Path,
    source: Path | None,
    progress: Progress = ignore_progress,
) -> None:
    """Write a Hugging Face folder. Collective over the layout's ranks.

    Args:
        model: what to write, in float32.
        folder: to make or to replace.
        source: folder with the tokenizer and further configuration to carry over; None for
            none.
        progress: told after each tensor, in elements.

    Raises:
        InvalidInput: the folder cannot be made, on every rank.
    """
    groups = model.groups
    writes = dist.get_rank() == groups.ranks[0]
    partial = folder.with_name(f".{folder.name}.partial")
    _prepare(model, partial if writes else None, folder)
    if groups.place.data == 0:
        tensors = canonical_tensors(model.spec.architecture)
        stream = _counted(_gather_tensors(model, tensors), tensors, progress)
        if writes:
            _write_tensors(partial, tensors, stream)
        else:
            for _ in stream:
                pass
    if writes:
        _write_configuration(model, partial, source)
        _replace(partial, folder)
        (folder / MARKER).write_text(f"{model.weight_version}\n")
    dist.barrier(groups.everyone)


def _prepare(model: MegatronModel, partial: Path | None, folder: Path) -> None:
    """Make the writer's empty folder; every rank learns whether that went well."""
    failed = torch.zeros(1, device=model.device)
    try:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
    except OSError:
        failed += 1
    dist.all_reduce(failed, group=model.groups.everyone)
    if failed.item():
        raise InvalidInput.at("folder", f"{folder} cannot be written")


def _gather_tensors(model: MegatronModel, tensors: Sequence[CanonicalTensor]) -> Iterator[Tensor]:
    """Each canonical tensor on the CPU of the layout's rank 0, until the next one is asked for;
    empty tensors elsewhere."""
    strategy, spec = model.groups.strategy, model.spec
    first_replica = [
        strategy.rank(data=0, tensor=tensor, pipeline=pipeline)
        for pipeline in range(strategy.pipeline)
        for tensor in range(strategy.tensor)
    ]
    layouts = {
        rank: local_parameters(spec.architecture, spec.layout, rank) for rank in first_replica
    }
    by_tensor = {rank: _blocks_by_tensor(layout) for rank, layout in layouts.items()}
    buffers = _buffers(model, tensors)
    for number, tensor in enumerate(tensors):
        parts = _choose_parts(tensor, number, layouts, by_tensor)
        yield _gather_tensor(model, tensor, parts, layouts, buffers)


def _buffers(model: MegatronModel, tensors: Sequence[CanonicalTensor]) -> _Buffers:
    """Made once: memory that comes and goes with each tensor stays in the allocator's hands."""
    writes = dist.get_rank() == model.groups.ranks[0]
    whole = max(tensor.num_elements for tensor in tensors)
    piece = min(max(PIECE_ELEMENTS, *(tensor.cols for tensor in tensors)), whole)
    return _Buffers(
        whole=torch.empty(whole if writes else 0),
        piece=torch.empty(piece if writes else 0, device=model.device),
    )


def _counted(
    stream: Iterator[Tensor], tensors: Sequence[CanonicalTensor], progress: Progress
) -> Iterator[Tensor]:
    """The same stream; each tensor counts once its taker comes back for the next."""
    done, total = 0, sum(tensor.num_elements for tensor in tensors)
    for tensor in tensors:
        yield next(stream)
        done += tensor.num_elements
        progress(done, total)
    next(stream, None)


def _blocks_by_tensor(layout: RankLayout) -> dict[int, tuple[int, ...]]:
    found: dict[int, list[int]] = {}
    for index, number in enumerate(layout.blocks.canonical.tolist()):
        found.setdefault(number, []).append(index)
    return {number: tuple(blocks) for number, blocks in found.items()}


def _choose_parts(
    tensor: CanonicalTensor,
    number: int,
    layouts: dict[int, RankLayout],
    by_tensor: dict[int, dict[int, tuple[int, ...]]],
) -> list[_Part]:
    """Which rank gives which blocks: the first that has them; replicas give nothing."""
    parts: list[_Part] = []
    missing = tensor.num_elements
    for rank, layout in layouts.items():
        blocks = by_tensor[rank].get(number, ())
        if not blocks or not missing:
            continue
        parts.append(_Part(rank=rank, blocks=blocks))
        missing -= int((layout.blocks.rows * layout.blocks.cols)[list(blocks)].sum())
    assert missing == 0, (tensor, missing)
    return parts


def _gather_tensor(
    model: MegatronModel,
    tensor: CanonicalTensor,
    parts: Sequence[_Part],
    layouts: dict[int, RankLayout],
    buffers: _Buffers,
) -> Tensor:
    """Piece by piece: the writer holds the whole tensor and one piece, the others one piece."""
    ranks = model.groups.ranks
    me, writer = dist.get_rank(), ranks[0]
    whole = buffers.whole[: tensor.num_elements].view(-1, tensor.cols)
    for part in parts:
        owner, table = ranks[part.rank], layouts[part.rank]
        boxes = [(index, block_box(table.blocks, index, tensor)) for index in part.blocks]
        for index, box in boxes if me in (owner, writer) else ():
            held = _held(model, table, index, box) if me == owner else None
            for piece in pieces_of(box, tensor):
                target = whole[piece.row : piece.row + piece.rows, box.col : box.col + box.cols]
                if held is None:
                    received = buffers.piece[: piece.rows * piece.cols]
                    dist.recv(received, owner)
                    target.copy_(received.view(piece.rows, piece.cols))
                    continue
                own = held[piece.row - box.row : piece.row - box.row + piece.rows]
                if me == writer:
                    target.copy_(own)
                else:
                    dist.send(own.contiguous(), writer)
    return whole


def _held(model: MegatronModel, table: RankLayout, index: int, box: Box) -> Tensor:
    """A block of this rank, [rows, columns] of its box."""
    name = table.parameters[table.blocks.tensor[index]].name
    return block_view(model.parameters()[name].view(-1), table.blocks, index).view(
        box.rows, box.cols
    )


def _write_tensors(
    folder: Path, tensors: Sequence[CanonicalTensor], stream: Iterator[Tensor]
) -> None:
    files = _split(tensors)
    several = len(files) > 1
    index: dict[str, str] = {}
    for number, members in enumerate(files, 1):
        name = "model.safetensors"
        if several:
            name = f"model-{number:05}-of-{len(files):05}.safetensors"
        with SafetensorsWriter(folder / name, members) as writer:
            for member in members:
                writer.write(next(stream).numpy())
                index[member.name] = name
    next(stream, None)
    if several:
        total = 4 * sum(tensor.num_elements for tensor in tensors)
        content = {"metadata": {"total_size": total}, "weight_map": index}
        (folder / "model.safetensors.index.json").write_text(json.dumps(content, indent=2))


def _split(tensors: Sequence[CanonicalTensor]) -> list[list[CanonicalTensor]]:
    """Runs of tensors that fit into a file each."""
    files: list[list[CanonicalTensor]] = [[]]
    size = 0
    for tensor in tensors:
        num_bytes = 4 * tensor.num_elements
        if files[-1] and size + num_bytes > MAX_FILE_BYTES:
            files.append([])
            size = 0
        files[-1].append(tensor)
        size += num_bytes
    return files


def _write_configuration(model: MegatronModel, folder: Path, source: Path | None) -> None:
    base: dict[str, Any] = {}
    if source is not None:
        for name in _TOKENIZER_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
        if (source / "config.json").is_file():
            base = json.loads((source / "config.json").read_text())
    config = export_config(model.spec.architecture, base)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _replace(partial: Path, folder: Path) -> None:
    """Put the new folder in the place of the old one, if any."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
