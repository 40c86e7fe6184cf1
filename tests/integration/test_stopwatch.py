"""The stopwatch sees every part of a call, and leaves the model as it was."""

import time

import pytest

from realloc.core.model import ModelArchitecture
from services.trainer.profiling import TrainerModel, settings_of
from services.trainer.stopwatch import Stopwatch
from tests.unit.cost.models import llama

MODEL: ModelArchitecture = llama(
    hidden=64, intermediate=128, layers=2, heads=4, kv_heads=2, vocabulary=256
)


def test_parts_add_up_to_no_more_than_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes and steps of a train call lie within its time, and make up most of it; the hooks
    are gone afterwards."""
    # What this process works: whatever else the machine does between two parts is not counted.
    monkeypatch.setattr(time, "perf_counter", time.process_time)
    with TrainerModel.built(MODEL) as built:
        batch = built.random_batch(64, 32)

        def train() -> float:
            started = time.perf_counter()
            built.engine.train(built.model_id, settings_of("ppo_actor"), [batch, batch])
            return time.perf_counter() - started

        train()
        plain_step = built.model.optimizer.step
        with Stopwatch(built.model) as stopwatch:
            whole = train()
        passes, steps = stopwatch.passes(), stopwatch.steps()
        assert len(passes) == len(steps) == 2
        for each in passes:
            assert min(each.layer_forward, each.layer_backward, each.head) > 0
        inside = sum(each.seconds for each in passes) + sum(steps)
        assert 0.3 * whole < inside <= whole
        assert built.model.optimizer.step == plain_step
        assert not built.model.module.decoder.layers[0]._forward_pre_hooks


def test_inference_has_no_backward_pass() -> None:
    """Layers take time forward only."""
    with TrainerModel.built(MODEL) as built:
        batch = built.random_batch(16, 16)
        with Stopwatch(built.model) as stopwatch:
            built.engine.infer(built.model_id, settings_of("logprobs"), batch)
        (only,) = stopwatch.passes()
        assert only.layer_backward == 0
        assert only.layer_forward > 0
        assert stopwatch.steps() == ()
        assert only.seconds == pytest.approx(
            only.embedding_forward + 2 * only.layer_forward + only.head
        )
