"""The phases of a reallocation, as a transition table.

    PREPARING → TRANSFERRING → VERIFYING → COMMITTING → COMMITTED
         └────────────┴─────────────┴──→ ABORTED

Until COMMITTING nothing has changed anywhere, so every failure aborts. From COMMITTING on the
weights are whole and proven at every destination, so it only goes forward: commits repeat.
"""

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType


class Phase(Enum):
    """How far a reallocation is."""

    PREPARING = "preparing"
    TRANSFERRING = "transferring"
    VERIFYING = "verifying"
    COMMITTING = "committing"
    COMMITTED = "committed"
    ABORTED = "aborted"


NEXT: Mapping[Phase, frozenset[Phase]] = MappingProxyType(
    {
        Phase.PREPARING: frozenset({Phase.TRANSFERRING, Phase.ABORTED}),
        Phase.TRANSFERRING: frozenset({Phase.VERIFYING, Phase.ABORTED}),
        Phase.VERIFYING: frozenset({Phase.COMMITTING, Phase.ABORTED}),
        Phase.COMMITTING: frozenset({Phase.COMMITTED}),
        Phase.COMMITTED: frozenset(),
        Phase.ABORTED: frozenset(),
    }
)


class PhaseClock:
    """The phase that a reallocation is in, and the seconds that each took."""

    def __init__(self, now: float) -> None:
        self.phase = Phase.PREPARING
        self.started = now
        self.seconds: dict[Phase, float] = {}
        self._since = now

    def enter(self, phase: Phase, now: float) -> None:
        """Go on to a phase that may follow the present one."""
        assert phase in NEXT[self.phase], (self.phase, phase)
        self.seconds[self.phase] = now - self._since
        self._since = now
        self.phase = phase
