"""Training iterations as rows of a table: predict them, and read them from CSV files.

The format is vTrain's (arXiv 2312.12391): GPUs, global batch, micro batch, hidden size,
attention heads, layers, sequence length, tensor, data and pipeline degree, and, where it was
measured, the iteration in milliseconds; or another order, which a first line names. The models
are GPTs with a feed-forward block of 4 × hidden and 50,257 words, trained by Megatron-DeepSpeed in
float16 with full recomputation, 1F1B and gradients all-reduced behind the last micro-batch.
"""

import csv
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from realloc.core.errors import InvalidInput, Problem, raise_problems
from realloc.core.model import ModelArchitecture
from realloc.core.strategy import ParallelStrategy
from realloc.cost.choices import GradientReduction
from realloc.cost.hardware import Hardware
from realloc.cost.layers import Attention, Tokens
from realloc.cost.training import TrainingStyle, step_seconds

_VOCABULARY = 50_257
STYLE = TrainingStyle(
    element_bytes=2,
    gradient_bytes=2,
    recompute=True,
    reduction=GradientReduction.AFTER,
    attention=Attention.UNFUSED,
)
"""How the rows were trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IterationRow:
    """One training iteration."""

    gpus: int
    global_batch: int
    micro_batch: int
    hidden_size: int
    attention_heads: int
    layers: int
    sequence_length: int
    tensor: int
    data: int
    pipeline: int
    measured_ms: float | None = None

    @property
    def num_micro_batches(self) -> int:
        """Of one data rank; the last one may be smaller."""
        return -(-self.global_batch // (self.data * self.micro_batch))

    @property
    def architecture(self) -> ModelArchitecture:
        return ModelArchitecture(
            family="gpt2",
            num_layers=self.layers,
            hidden_size=self.hidden_size,
            intermediate_size=4 * self.hidden_size,
            num_attention_heads=self.attention_heads,
            num_key_value_heads=self.attention_heads,
            head_dim=self.hidden_size // self.attention_heads,
            vocab_size=_VOCABULARY,
            max_position_embeddings=self.sequence_length,
            rms_norm_eps=1e-5,
            rope_theta=10_000.0,
            tied_embeddings=True,
        )

    def contradictions(self) -> list[str]:
        """What does not fit together in the row; it is predicted as its degrees say."""
        product = self.tensor * self.data * self.pipeline
        found: list[str] = []
        if product != self.gpus:
            found.append(f"has {self.gpus} GPUs and tensor × data × pipeline is {product}")
        if self.global_batch % (self.data * self.micro_batch):
            found.append(
                f"has a global batch of {self.global_batch}, which {self.data} data ranks with "
                f"micro-batches of {self.micro_batch} do not divide"
            )
        return found


def predict_seconds(row: IterationRow, hardware: Hardware) -> float:
    """Seconds of a row's iteration."""
    return step_seconds(
        row.architecture,
        ParallelStrategy(data=row.data, tensor=row.tensor, pipeline=row.pipeline),
        Tokens(rows=row.micro_batch, length=row.sequence_length),
        row.num_micro_batches,
        STYLE,
        hardware,
    )


_FIELDS = (
    "gpus",
    "global_batch",
    "micro_batch",
    "hidden_size",
    "attention_heads",
    "layers",
    "sequence_length",
    "tensor",
    "data",
    "pipeline",
)
_TIME = "measured_ms"
_MILLISECONDS = {
    "ms": 1.0,
    "milliseconds": 1.0,
    "s": 1e3,
    "sec": 1e3,
    "seconds": 1e3,
    "us": 1e-3,
    "ns": 1e-6,
}
_NAMES = {
    "gpus": ("numgpus", "ngpus", "numberofgpus", "worldsize"),
    "global_batch": ("globalbatch", "globalbatchsize", "batchsize", "gbs"),
    "micro_batch": ("microbatch", "microbatchsize", "mbs"),
    "hidden_size": ("hiddensize", "hidden"),
    "attention_heads": ("attentionheads", "numattentionheads", "numheads", "heads"),
    "layers": ("numlayers", "numberoflayers"),
    "sequence_length": ("sequencelength", "seqlength", "seqlen", "sequence"),
    "tensor": ("tensorparallelism", "tensorparallel", "tensordegree", "tp", "t"),
    "data": ("dataparallelism", "dataparallel", "datadegree", "dp", "d"),
    "pipeline": ("pipelineparallelism", "pipelineparallel", "pipelinedegree", "pp", "p"),
    _TIME: ("iterationtime", "iteration", "time", "measured", "latency", *_MILLISECONDS),
}
"""What headings call a field, in small letters and digits, without a unit in brackets."""
_COUNT_AS_NAMED = 5
"""A first line is a heading of columns if it names so many fields; else their order is ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Columns:
    """Where each field stands, and the milliseconds of one unit of time."""

    places: Mapping[str, int]
    milliseconds: float = 1.0


_OUR_ORDER = _Columns(places={name: at for at, name in enumerate((*_FIELDS, _TIME))})


def read_rows(path: Path) -> tuple[IterationRow, ...]:
    """Read a CSV file; times may be missing. Columns stand in vTrain's order, or in any that a
    first line names; a unit in brackets behind the time's name is heeded.

    Raises:
        InvalidInput: the file cannot be read, or lines that are no rows; all at once.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = [(file_line, cells) for file_line, cells in enumerate(csv.reader(file), 1)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidInput.at(str(path), f"cannot be read: {reason}") from error
    rows: list[IterationRow] = []
    problems: list[Problem] = []
    columns = _OUR_ORDER
    for number, cells in lines:
        if not any(cell.strip() for cell in cells):
            continue
        if _is_heading(number, cells):
            columns = _named_columns(path, cells) or columns
            continue
        row = _parse(cells, columns)
        if isinstance(row, IterationRow):
            rows.append(row)
        else:
            problems.append(Problem(f"{path.name}:{number}", row))
    raise_problems(problems)
    return tuple(rows)


def _named_columns(path: Path, cells: Sequence[str]) -> _Columns | None:
    """The columns that a heading names; None where it is a comment."""
    fields = {alias: name for name, aliases in _NAMES.items() for alias in (name, *aliases)}
    fields |= {name.replace("_", ""): name for name in _NAMES}
    places: dict[str, int] = {}
    milliseconds = 1.0
    for at, cell in enumerate(cells):
        text, _, unit = cell.lower().lstrip(" #").partition("(")
        plain = re.sub(r"[^a-z0-9]", "", text)
        for suffix in ("ms", "seconds", "s") if plain.startswith(("iterationtime", "time")) else ():
            if not unit and plain.endswith(suffix) and plain.removesuffix(suffix) in fields:
                plain, unit = plain.removesuffix(suffix), suffix
        name = fields.get(plain)
        if name is not None and name not in places:
            places[name] = at
            if name == _TIME:
                milliseconds = _MILLISECONDS.get(unit.strip(" ).") or plain, 1.0)
    if len(places) < _COUNT_AS_NAMED:
        return None
    if missing := [name for name in _FIELDS if name not in places]:
        raise InvalidInput.at(str(path), f"has a heading without {', '.join(missing)}")
    return _Columns(places=places, milliseconds=milliseconds)


def _is_heading(number: int, cells: list[str]) -> bool:
    return cells[0].lstrip().startswith("#") or (number == 1 and not _is_number(cells[0]))


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _parse(cells: list[str], columns: _Columns) -> IterationRow | str:
    """A row, or what is wrong with it."""
    needed = 1 + max(columns.places[name] for name in _FIELDS)
    if len(cells) < needed:
        return f"has {len(cells)} columns and needs {needed}, with milliseconds one more"
    found = {name: cells[columns.places[name]] for name in _FIELDS}
    if not all(map(_is_number, found.values())):
        return "has a cell that is no number"
    values = {name: int(float(cell)) for name, cell in found.items()}
    if min(values.values()) < 1:
        return "has a cell below 1"
    at = columns.places.get(_TIME, len(cells))
    time = float(cells[at]) if at < len(cells) and _is_number(cells[at]) else 0.0
    return IterationRow(**values, measured_ms=columns.milliseconds * time or None)
