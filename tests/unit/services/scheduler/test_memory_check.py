"""Plans that do not fit are refused with the table of what needs how much."""

import re
from dataclasses import replace

import pytest

from realloc.core.errors import InvalidInput
from realloc.core.mesh import Cluster
from realloc.core.model import Head
from realloc.cost.hardware import hardware_of
from realloc.cost.model_size import num_parameters
from services.scheduler.memory_check import check_memory
from tests.unit.services.scheduler.admitted import MODEL, admission, plan

CLUSTER = Cluster(
    num_nodes=1, devices_per_node=2, device_kind="cpu", device_memory_bytes=16 * 2**30
)


def refusal(device_memory_bytes: int, **strategies: str) -> str:
    admitted = admission()
    small = replace(CLUSTER, device_memory_bytes=device_memory_bytes)
    with pytest.raises(InvalidInput) as raised:
        check_memory(admitted, plan(admitted, **strategies), small)
    return str(raised.value)


def test_a_plan_that_fits_passes() -> None:
    """16 GiB hold three models of 50 million parameters."""
    admitted = admission()
    check_memory(admitted, plan(admitted), CLUSTER)


def test_what_does_not_fit_is_refused_with_a_table() -> None:
    """The message has both numbers, a line for each call, and what to do."""
    text = refusal(2**30)
    assert re.search(r"is 1,024 MiB, .* and device 0 needs \d,\d{3} MiB", text)
    assert "raise tensor or pipeline degrees" in text
    for word in ("weights", "gradients", "optimizer", "activations", "cache", "shadow", "staging"):
        assert word in text
    for call in ("actor_gen", "ref_inf", "actor_train", "critic_train", "processes"):
        assert re.search(rf"^{call} ", text, re.MULTILINE)


def test_weights_count_once_per_layout() -> None:
    """The need is models, one call's activations, and processes: no model twice on a trainer."""
    text = refusal(2**20, trainers="d2t1p1")
    needed = float(re.search(r"needs ([\d,]+) MiB", text)[1].replace(",", "")) * 2**20
    weights, critic = 4 * num_parameters(MODEL), 4 * num_parameters(MODEL.with_head(Head.VALUE))
    cpu = hardware_of("cpu")
    # Of what trains weights, gradients, and half the moments on each of two data ranks.
    trainers = (weights + critic) * (1 + 1 + 2 / 2) + weights
    engine = 2 * weights + weights  # live, shadow, and the staging buffers that move them
    processes = cpu.trainer_process_bytes + cpu.engine_process_bytes
    rest = needed - trainers - engine - processes
    (row,) = (line for line in text.splitlines() if line.startswith("actor_train"))
    activations = float(row.split()[4].replace(",", "")) * 2**20
    assert rest == pytest.approx(activations, rel=0.01)
