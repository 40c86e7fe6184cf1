"""Training iterations as rows of a table: predict them, and read them from CSV files.

The format is vTrain's (arXiv 2312.12391): GPUs, global batch, micro batch, hidden size,
attention heads, layers, sequence length, tensor, data and pipeline degree, and, where it was
measured, the iteration in milliseconds; a first line of names may stand above. The models are
GPTs with a feed-forward block of 4 × hidden and 50,257 words, trained by Megatron-DeepSpeed in
float16 with full recomputation, 1F1B and gradients all-reduced behind the last micro-batch.
"""

import csv
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


def read_rows(path: Path) -> tuple[IterationRow, ...]:
    """Read a CSV file; the milliseconds may be missing.

    Raises:
        InvalidInput: the file cannot be read, or lines that are no rows; all at once.
    """
    try:
        with path.open(newline="") as file:
            lines = [(file_line, cells) for file_line, cells in enumerate(csv.reader(file), 1)]
    except OSError as error:
        raise InvalidInput.at(str(path), f"cannot be read: {error.strerror}") from error
    rows: list[IterationRow] = []
    problems: list[Problem] = []
    for number, cells in lines:
        if not cells or _is_heading(number, cells):
            continue
        row = _parse(cells)
        if isinstance(row, IterationRow):
            rows.append(row)
        else:
            problems.append(Problem(f"{path.name}:{number}", row))
    raise_problems(problems)
    return tuple(rows)


def _is_heading(number: int, cells: list[str]) -> bool:
    return cells[0].lstrip().startswith("#") or (number == 1 and not _is_number(cells[0]))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _parse(cells: list[str]) -> IterationRow | str:
    """A row, or what is wrong with it."""
    if len(cells) < len(_FIELDS):
        return f"has {len(cells)} columns and needs {len(_FIELDS)}, with milliseconds one more"
    if not all(_is_number(cell) for cell in cells[: len(_FIELDS)]):
        return "has a cell that is no number"
    values = {name: int(float(cell)) for name, cell in zip(_FIELDS, cells, strict=False)}
    if min(values.values()) < 1:
        return "has a cell below 1"
    measured = cells[len(_FIELDS)] if len(cells) > len(_FIELDS) else ""
    return IterationRow(**values, measured_ms=float(measured) if _is_number(measured) else None)
