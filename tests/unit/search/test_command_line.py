"""``python -m realloc.search``: JSON for programs, one line for wrong input."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from realloc.search.__main__ import main
from realloc.search.problem_file import load_problem, save_problem
from realloc.search.searchers import NAMES, tiny_problem


@pytest.fixture
def problem_file(tmp_path: Path) -> Path:
    path = tmp_path / "problem.npz"
    save_problem(tiny_problem(), path)
    return path


@pytest.mark.parametrize("searcher", NAMES)
def test_json_has_the_keys_of_the_design(
    problem_file: Path, capsys: pytest.CaptureFixture[str], searcher: str
) -> None:
    """And its figures are those of the simulator."""
    arguments = [str(problem_file), "--seconds", "0.2", "--seed", "1", "--json"]
    assert main([*arguments, "--searcher", searcher]) == 0
    found = json.loads(capsys.readouterr().out)
    problem = load_problem(problem_file)
    assert found["seconds"] == problem.simulate(found["options"]).seconds
    assert found["peak_bytes"] == problem.peak_bytes(found["options"])
    assert 0 <= found["lower_bound"] <= found["seconds"]
    assert found["gap"] == (found["seconds"] - found["lower_bound"]) / found["seconds"]
    assert found["evaluations_per_second"] > 0
    assert found["trace"][-1]["seconds"] == found["seconds"]


def test_text_shows_the_plan_and_its_timeline(
    problem_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """For people: a table and a chart."""
    assert main([str(problem_file), "--seconds", "1", "--timeline"]) == 0
    text = capsys.readouterr().out
    assert "proven optimal" in text
    assert "A generate" in text


def test_wrong_input_is_one_line_and_exit_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No file, an infeasible problem, an unknown searcher."""
    none = tmp_path / "none.npz"
    tight = tmp_path / "tight.npz"
    save_problem(replace(tiny_problem(), device_memory_bytes=7), tight)
    cases = {
        (str(none),): "no such file",
        (str(tight),): "is 7 and no plan fits; the smallest that would do is 10 ",
        (str(tight), "--searcher", "best"): "'best' is not one of default, exhaustive",
        (str(tight), "--iterations", "1"): "is 1 and must be at least 2",
    }
    for arguments, message in cases.items():
        assert main(list(arguments)) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert message in error


def test_help_needs_no_compiler() -> None:
    """The package answers --help without numba or numpy."""
    code = (
        "import sys; from realloc.search.__main__ import _parser; _parser().format_help(); "
        "sys.exit('numba' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
