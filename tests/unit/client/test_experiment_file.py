"""Experiments as YAML."""

from pathlib import Path

import pytest

from realloc.client.experiment_file import load_experiment, parse_experiment
from realloc.core.errors import InvalidInput
from realloc.core.mesh import DeviceMesh

MINIMAL = {
    "name": "x",
    "algorithm": "ppo",
    "iterations": 1,
    "actor": {"checkpoint": "m"},
    "data": {"path": "d.jsonl", "batch_size": 2},
}


def test_pins_are_strategy_at_devices() -> None:
    """``d1t2p1@2-3`` is a mesh and a strategy; one device needs no range."""
    pins = {"actor_train": "d1t2p1@2-3", "actor_gen": "d1t1p1@0"}
    experiment = parse_experiment({**MINIMAL, "pins": pins})
    assert experiment.pins[0].mesh == DeviceMesh(first_device=2, num_devices=2)
    assert experiment.pins[1].mesh == DeviceMesh(first_device=0, num_devices=1)
    assert str(experiment.pins[0].strategy) == "d1t2p1"


def test_paths_become_absolute() -> None:
    """Services have another working folder than the client."""
    experiment = parse_experiment({**MINIMAL, "reward": {"function": "r.py:f"}})
    assert experiment.actor.checkpoint == str(Path("m").absolute())
    assert experiment.reward.function == f"{Path('r.py').absolute()}:f"
    assert experiment.output == ""


def test_unknown_and_missing_fields_are_named_at_once() -> None:
    """Every problem of the file comes in one answer."""
    with pytest.raises(InvalidInput) as caught:
        parse_experiment({"name": "x", "algorithm": "ppo", "iteration": 3, "data": {"pth": "d"}})
    text = str(caught.value)
    for field in ("iteration", "iterations", "actor", "data.pth", "data.path"):
        assert field in text


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "just text"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    """Broken YAML names the file."""
    path = tmp_path / "e.yaml"
    path.write_text(text)
    with pytest.raises(InvalidInput, match=r"e\.yaml"):
        load_experiment(str(path))


def test_a_pin_of_another_form_is_refused() -> None:
    """The message shows the form."""
    with pytest.raises(InvalidInput, match="d2t1p1@0-1"):
        parse_experiment({**MINIMAL, "pins": {"actor_gen": "everywhere"}})
