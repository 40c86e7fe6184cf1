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


def test_named_columns_may_stand_in_any_order(tmp_path: Path) -> None:
    """A heading's names decide, whatever they are called, and a unit in brackets is heeded."""
    usual = tmp_path / "usual.csv"
    usual.write_text("8,32,4,1024,16,24,2048,2,2,2,219.5\n")
    other = tmp_path / "other.csv"
    other.write_text(
        "Iteration time (s),PP,DP,TP,seq_len,num layers,heads,Hidden Size,MBS,GBS,GPUs,note\n"
        "0.2195,2,2,2,2048,24,16,1024,4,32,8,first\n"
    )
    assert read_rows(other) == read_rows(usual)


def test_a_comment_above_leaves_the_usual_order(tmp_path: Path) -> None:
    """A first line that names no columns is passed over."""
    path = tmp_path / "rows.csv"
    path.write_text("# measured in May\n8,32,4,1024,16,24,2048,2,2,2\n\n")
    (row,) = read_rows(path)
    assert (row.gpus, row.pipeline, row.measured_ms) == (8, 2, None)


def test_a_heading_without_a_field_is_refused(tmp_path: Path) -> None:
    """The message names what is missing."""
    path = tmp_path / "rows.csv"
    path.write_text("gpus,gbs,mbs,hidden,heads,layers,tp,dp,pp\n8,32,4,1024,16,24,2,2,2\n")
    with pytest.raises(InvalidInput, match="without sequence_length"):
        read_rows(path)
