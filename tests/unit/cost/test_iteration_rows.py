"""Rows of iterations from CSV files."""

from pathlib import Path

import pytest

from realloc.core.errors import InvalidInput
from realloc.cost.iteration_rows import read_rows

HEADING = "# GPUs,global batch,micro batch,hidden size,heads,layers,sequence,t,d,p,ms\n"


def test_milliseconds_may_be_missing(tmp_path: Path) -> None:
    """A heading is skipped, a row without a measurement is a row."""
    path = tmp_path / "rows.csv"
    path.write_text(HEADING + "8,32,4,1024,16,24,1024,2,2,2,219.7\n8,32,4,1024,16,24,1024,2,2,2\n")
    first, second = read_rows(path)
    assert first.measured_ms == 219.7
    assert second.measured_ms is None
    assert first.num_micro_batches == 4


def test_all_wrong_rows_are_reported_with_their_lines(tmp_path: Path) -> None:
    """Each with its line number."""
    path = tmp_path / "rows.csv"
    path.write_text(HEADING + "1,2,3\n8,32,4,1024,16,24,1024,2,2,0\n8,x,4,1024,16,24,1024,2,2,2\n")
    with pytest.raises(InvalidInput) as caught:
        read_rows(path)
    texts = [str(problem) for problem in caught.value.problems]
    assert texts[0].startswith("rows.csv:2: has 3 columns")
    assert texts[1] == "rows.csv:3: has a cell below 1"
    assert texts[2] == "rows.csv:4: has a cell that is no number"


def test_contradictions_are_told_apart_from_wrong_rows(tmp_path: Path) -> None:
    """A row whose numbers disagree is a row, and says what disagrees."""
    path = tmp_path / "rows.csv"
    path.write_text("8,32,4,1024,16,24,1024,2,2,1\n8,30,4,1024,16,24,1024,2,2,2\n")
    first, second = read_rows(path)
    assert first.contradictions() == ["has 8 GPUs and tensor × data × pipeline is 4"]
    assert second.contradictions()[0].startswith("has a global batch of 30")
    assert second.num_micro_batches == 4
