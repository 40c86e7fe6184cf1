"""Problem files: what is written is read back, and what is wrong is named."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from realloc.core.errors import InvalidInput, NotFound
from realloc.search.problem import INT_ARRAYS, SearchProblem
from realloc.search.problem_file import load_problem, save_problem
from realloc.search.searchers import tiny_problem
from tests.unit.search.random_problems import random_problem


def test_a_saved_problem_is_loaded_equal(tmp_path: Path) -> None:
    """Every array and scalar survives, for random problems."""
    rng = random.Random(1)
    for index in range(20):
        problem = random_problem(rng)
        path = tmp_path / f"{index}.npz"
        save_problem(problem, path)
        loaded = load_problem(path)
        assert loaded.call_names == problem.call_names
        assert loaded.num_devices == problem.num_devices
        assert loaded.device_memory_bytes == problem.device_memory_bytes
        for name in (*INT_ARRAYS, "option_seconds"):
            np.testing.assert_array_equal(getattr(loaded, name), getattr(problem, name))
        for model, matrix in problem.realloc_seconds.items():
            np.testing.assert_array_equal(loaded.realloc_seconds[model], matrix)


def test_the_file_holds_the_arrays_of_the_design(tmp_path: Path) -> None:
    """Names, and int64 scalars."""
    path = tmp_path / "problem.npz"
    save_problem(tiny_problem(), path)
    with np.load(path, allow_pickle=False) as arrays:
        assert set(arrays.files) == {
            "num_devices",
            "device_memory_bytes",
            "call_names",
            *INT_ARRAYS,
            "option_seconds",
            "realloc_seconds_0",
        }
        assert arrays["num_devices"].dtype == np.int64
        assert arrays["num_devices"].shape == ()
        assert arrays["option_seconds"].dtype == np.float64


def _arrays() -> dict[str, Any]:
    problem = tiny_problem()
    names = ("num_devices", "device_memory_bytes", *INT_ARRAYS, "option_seconds")
    arrays: dict[str, Any] = {name: np.array(getattr(problem, name)) for name in names}
    arrays["call_names"] = np.array(problem.call_names)
    arrays["realloc_seconds_0"] = problem.realloc_seconds[0]
    return arrays


def _load(tmp_path: Path, arrays: dict[str, Any]) -> SearchProblem:
    path = tmp_path / "problem.npz"
    np.savez(path, **arrays)
    return load_problem(path)


def _changed(name: str, index: Any, value: Any) -> dict[str, Any]:
    arrays = _arrays()
    arrays[name] = arrays[name].copy()
    arrays[name][index] = value
    return arrays


@pytest.mark.parametrize(
    ("name", "index", "value", "message"),
    [
        ("num_devices", (), 0, "num_devices: is 0 and must be at least 1"),
        ("call_kind", 1, 3, r"call_kind: \[1\] is 3"),
        ("call_kind", 0, 2, "more than one train call: generate, train"),
        ("call_names", 0, "train", "'train' twice"),
        ("edges", (0, 1), 2, r"edges: \[0, 1\] is 2"),
        ("edges", (0, 1), 0, "cycle among generate"),
        ("option_call", 2, 7, r"option_call: \[2\] is 7"),
        ("option_first_device", 0, -1, r"option_first_device: \[0\] is -1"),
        ("option_num_devices", 1, 2, "is 2 and must be below num_devices 2"),
        ("option_num_devices", 1, 2**63 - 1, "num_devices"),
        ("option_seconds", 3, np.nan, r"option_seconds: \[3\] is nan"),
        ("option_seconds", 3, -1.0, r"option_seconds: \[3\] is -1.0"),
        ("option_active_bytes", 0, -5, r"option_active_bytes: \[0\] is -5"),
        ("option_layout", 0, -2, r"option_layout: \[0\] is -2"),
        ("option_layout", 1, 0, "a layout stands for devices and strategy"),
        ("option_layout", 2, 9, r"realloc_seconds_0: is \[4, 4\]; layout 9 is used"),
        ("realloc_seconds_0", (1, 2), np.inf, r"realloc_seconds_0: \[1, 2\] is inf"),
    ],
)
def test_a_wrong_value_is_named(
    tmp_path: Path, name: str, index: Any, value: Any, message: str
) -> None:
    """The array, the place and what would be right."""
    with pytest.raises(InvalidInput, match=message):
        _load(tmp_path, _changed(name, index, value))


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    """Three wrong arrays give three problems."""
    arrays = _changed("option_seconds", 0, -1.0)
    arrays["call_kind"] = np.array([0, 9])
    arrays["option_layout"] = np.array([-3, -4, 0, 1, 2, 3])
    with pytest.raises(InvalidInput) as caught:
        _load(tmp_path, arrays)
    assert [p.path for p in caught.value.problems] == [
        "call_kind",
        "option_seconds",
        "option_layout",
    ]
    assert "and 1 more" in str(caught.value)


def test_missing_arrays_wrong_types_and_wrong_shapes_are_named(tmp_path: Path) -> None:
    """Before anything is computed from them."""
    arrays = _arrays()
    del arrays["edges"], arrays["option_seconds"]
    with pytest.raises(InvalidInput, match=r"edges: is missing.*option_seconds: is missing"):
        _load(tmp_path, arrays)
    arrays = _arrays() | {"option_call": np.zeros(6), "num_devices": np.array([2, 3])}
    with pytest.raises(InvalidInput, match=r"num_devices: .*option_call: is float64"):
        _load(tmp_path, arrays)
    arrays = _arrays() | {"option_layout": np.zeros(5, dtype=np.int64)}
    with pytest.raises(InvalidInput, match=r"option_layout: has shape \[5\] and option_call"):
        _load(tmp_path, arrays)
    arrays = _arrays() | {"realloc_seconds_0": np.zeros((4, 3))}
    with pytest.raises(InvalidInput, match=r"realloc_seconds_0: has shape \[4, 3\]"):
        _load(tmp_path, arrays)
    arrays = _arrays()
    del arrays["realloc_seconds_0"]
    with pytest.raises(InvalidInput, match="realloc_seconds_0: is missing; model 0 trains"):
        _load(tmp_path, arrays)
    arrays = _arrays() | {"option_call": np.array([0, 0, 0, 0, 0, 0])}
    with pytest.raises(InvalidInput, match=r"gives call 1 \(train\) no option"):
        _load(tmp_path, arrays)


def test_files_that_are_no_archives_are_named(tmp_path: Path) -> None:
    """Missing, empty, text, a single array, pickled objects: one clear error each."""
    with pytest.raises(NotFound, match="no such file"):
        load_problem(tmp_path / "none.npz")
    path = tmp_path / "file.npz"
    for content in (b"", b"hello", b"PK\x03\x04 broken"):
        path.write_bytes(content)
        with pytest.raises(InvalidInput, match=r"not a readable \.npz archive"):
            load_problem(path)
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(InvalidInput, match=r"one \.npy array"):
        load_problem(path)
    arrays = _arrays() | {"call_names": np.array(["a", None], dtype=object)}
    np.savez(path, **arrays)
    with pytest.raises(InvalidInput, match=r"not a readable \.npz archive"):
        load_problem(path)
