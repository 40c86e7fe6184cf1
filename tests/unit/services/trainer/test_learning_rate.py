"""The learning rate rises linearly and then stays."""

from realloc.core.settings import OptimizerSettings
from services.trainer.training import learning_rate


def test_warm_up() -> None:
    """With four steps of warm-up the rate is a quarter in the first step, whole from the fourth."""
    settings = OptimizerSettings(learning_rate=2.0, warmup_steps=4)
    assert [learning_rate(settings, step) for step in range(6)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]


def test_no_warm_up() -> None:
    """Without warm-up the first step has the whole rate."""
    assert learning_rate(OptimizerSettings(learning_rate=2.0), 0) == 2.0
