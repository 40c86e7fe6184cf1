"""Data files are checked once and read by row."""

import json
from pathlib import Path

import pytest

from realloc.core.data_file import DataFile, checked_folder
from realloc.core.errors import InvalidInput


def test_rows_are_read_by_number_whatever_their_length(tmp_path: Path) -> None:
    """Blank lines are not rows; text beyond ASCII does not shift them."""
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": "a" * n + "é", "n": n} for n in (3, 0, 40)]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text(f"{lines[0]}\n\n{lines[1]}\n{lines[2]}")
    data = DataFile.scan(str(path))
    assert data.num_rows == 3
    assert list(data.lengths) == [4, 1, 41]
    assert data.read([2, 0, 1, 2]) == [rows[2], rows[0], rows[1], rows[2]]


def test_every_broken_line_is_named(tmp_path: Path) -> None:
    """One answer lists all of them as file:line."""
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "x"}\nnope\n[1]\n{"completion": "y"}\n')
    with pytest.raises(InvalidInput) as caught:
        DataFile.scan(str(path))
    assert [problem.path for problem in caught.value.problems] == [f"{path}:{n}" for n in (2, 3, 4)]


@pytest.mark.parametrize("content", [None, "", "\n\n"])
def test_a_file_without_rows_is_refused(tmp_path: Path, content: str | None) -> None:
    """Missing, empty and blank files each get one clear message."""
    path = tmp_path / "rows.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InvalidInput, match="cannot be read" if content is None else "no rows"):
        DataFile.scan(str(path))


def test_a_file_that_shrank_is_noticed(tmp_path: Path) -> None:
    """Rows that are gone are an error, not silence."""
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "x"}\n{"prompt": "y"}\n')
    data = DataFile.scan(str(path))
    path.write_text("")
    with pytest.raises(InvalidInput, match="has changed"):
        data.read([1])


def test_a_folder_is_checked_for_all_that_it_needs(tmp_path: Path) -> None:
    """Every missing file is named at once, under the user's field."""
    with pytest.raises(InvalidInput) as caught:
        checked_folder(str(tmp_path), "actor.checkpoint", weights=True)
    text = str(caught.value)
    assert all(name in text for name in ("config.json", "tokenizer.json", "*.safetensors"))
    assert {problem.path for problem in caught.value.problems} == {"actor.checkpoint"}
