import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realloc.core.kl_controller import (
    AdaptiveKlController,
    FixedKlController,
    initial_kl_controller,
)
from realloc.core.settings import PpoSettings

measured_kls = st.floats(-10, 100)


@given(st.lists(st.tuples(measured_kls, st.integers(0, 1000)), max_size=20))
def test_adaptive_controller_equals_the_reference(measurements):
    """The coefficient follows Ziegler's rule over any course of measurements."""
    controller = AdaptiveKlController(coefficient=0.1, target=6.0, horizon=10_000)
    expected = 0.1
    for kl, num_samples in measurements:
        controller = controller.updated(kl, num_samples)
        error = kl / 6.0 - 1
        error = 0.2 if error > 0.2 else -0.2 if error < -0.2 else error
        expected *= 1 + error * num_samples / 10_000
        assert controller.coefficient == pytest.approx(expected, rel=1e-12)


@given(measured_kls, st.integers(0, 10**9))
def test_the_penalty_never_becomes_a_bonus(kl, num_samples):
    """However many samples an iteration has, the coefficient stays at 0 or above."""
    controller = AdaptiveKlController(coefficient=0.1, target=6.0, horizon=100)
    assert controller.updated(kl, num_samples).coefficient >= 0


def test_the_coefficient_rises_above_the_target_and_falls_below():
    """More KL than wanted costs more from then on, less costs less, the target changes nothing."""
    controller = AdaptiveKlController(coefficient=1.0, target=2.0, horizon=1000)
    after = [controller.updated(kl, 100).coefficient for kl in (1.0, 2.0, 3.0)]
    assert after == [pytest.approx(0.98), 1.0, pytest.approx(1.02)]


def test_the_fixed_controller_does_not_react():
    """A fixed coefficient stays what it is."""
    controller = FixedKlController(coefficient=0.05)
    assert controller.updated(100.0, 1000) == controller


def test_settings_choose_the_controller():
    """A target makes the controller adaptive; 0 leaves it fixed."""
    assert initial_kl_controller(PpoSettings(kl_coefficient=0.3)) == FixedKlController(
        coefficient=0.3
    )
    adaptive = initial_kl_controller(PpoSettings(kl_coefficient=0.3, kl_target=6.0))
    assert adaptive == AdaptiveKlController(coefficient=0.3, target=6.0, horizon=10_000)


def test_controllers_need_no_torch():
    """The scheduler imports controllers without torch or numpy coming along."""
    code = (
        "import sys, realloc.core.kl_controller; "
        "sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
