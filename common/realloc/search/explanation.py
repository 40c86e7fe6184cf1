"""Why each call runs where the plan has it: what its best other place would cost."""

from dataclasses import dataclass

import numpy as np

from realloc.search.evaluator import evaluate, evaluate_fully
from realloc.search.options import PlanOption
from realloc.search.planning import PlannedIteration
from realloc.search.space import build_tables


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """A call's option against the best one on another mesh or under another strategy.

    The other calls stay as they are: a better plan may need several to change at once.
    """

    chosen: PlanOption
    runner_up: PlanOption | None
    """None where the call has no other option at all."""
    added_seconds: float
    """Per iteration, with the runner-up; infinite where it does not fit the memory."""
    added_call_seconds: float
    added_reallocation_seconds: float
    infeasible_others: int
    """Other options that would not fit beside the rest of the plan."""

    def __str__(self) -> str:
        place = f"{self.chosen.call}: {self.chosen.strategy} on {self.chosen.mesh}"
        other = self.runner_up
        if other is None:
            return f"{place}; there is no other option"
        name = f"{other.strategy} on {other.mesh}"
        if np.isinf(self.added_seconds):
            return f"{place}; no other option fits the memory beside the other calls"
        if self.added_seconds <= 1e-9:
            reason = "takes as long: either will do"
        else:
            reason = f"takes {self.added_seconds:.3g} s more per iteration ({self._parts()})"
        left_out = (
            f"; {self.infeasible_others} others do not fit the memory"
            if self.infeasible_others
            else ""
        )
        return f"{place}; the runner-up, {name}, {reason}{left_out}"

    def _parts(self) -> str:
        parts = [f"the call itself {self.added_call_seconds:+.3g} s"]
        if abs(self.added_reallocation_seconds) > 1e-9:
            parts.append(f"reallocation {self.added_reallocation_seconds:+.3g} s")
        waiting = self.added_seconds - self.added_call_seconds - self.added_reallocation_seconds
        if abs(waiting) > 1e-3 * max(self.added_seconds, 1e-9):
            parts.append(f"other calls waiting or overlapping {waiting:+.3g} s")
        return ", ".join(parts)


def explain_plan(planned: PlannedIteration) -> tuple[Explanation, ...]:
    """An explanation per call."""
    return tuple(_explain(planned, call) for call in range(planned.space.problem.num_calls))


def _explain(planned: PlannedIteration, call: int) -> Explanation:
    space = planned.space
    tables = build_tables(space.problem, planned.rules)
    plan = np.array(planned.result.options, dtype=np.int64)
    base = evaluate_fully(*tables, plan)
    chosen = space.options[plan[call]]
    best, best_seconds, infeasible = -1, np.inf, 0
    for option in space.problem.options_of(call):
        other = space.options[option]
        if (other.mesh, other.strategy) == (chosen.mesh, chosen.strategy):
            continue
        plan[call] = option
        seconds = evaluate(*tables, plan, np.inf)
        infeasible += bool(np.isinf(seconds))
        if seconds < best_seconds or best < 0:
            best, best_seconds = int(option), float(seconds)
    if best < 0:
        return Explanation(
            chosen=chosen,
            runner_up=None,
            added_seconds=np.inf,
            added_call_seconds=0.0,
            added_reallocation_seconds=0.0,
            infeasible_others=0,
        )
    plan[call] = best
    moved = space.reallocation_seconds([int(option) for option in plan])
    return Explanation(
        chosen=chosen,
        runner_up=space.options[best],
        added_seconds=best_seconds - base,
        added_call_seconds=space.options[best].seconds - chosen.seconds,
        added_reallocation_seconds=moved - space.reallocation_seconds(planned.result.options),
        infeasible_others=infeasible,
    )
