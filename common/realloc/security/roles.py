"""Who may call what, the whole of it.

People carry bearer tokens and speak to schedulers; processes carry certificates, whose common
name is their role, and speak to each other. What is not allowed here is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """What a caller is."""

    VIEWER = "viewer"
    USER = "user"
    OPERATOR = "operator"
    SCHEDULER = "scheduler"
    PLAN_SEARCH = "plan_search"
    PARAM_STORE = "param_store"
    TRAINER = "trainer"
    GENERATION = "generation"


PEOPLE = (Role.VIEWER, Role.USER, Role.OPERATOR)
"""Roles that a token may have; each may do what those before it may."""

PROCESSES = (
    Role.SCHEDULER,
    Role.PLAN_SEARCH,
    Role.PARAM_STORE,
    Role.TRAINER,
    Role.GENERATION,
)
"""Roles that a service's certificate may have, named as `ServiceConfig.service` is."""

CLIENT_SERVICE = "realloc.api.scheduler.v1.SchedulerService"
"""The one service that people call."""

READING_VERBS = ("Get", "List", "Watch")
"""Methods of the client service that a viewer may call begin with one of these."""

ALLOWED: Mapping[str, frozenset[Role]] = {
    CLIENT_SERVICE: frozenset({Role.USER}),
    "realloc.api.diagnostics.v1.DiagnosticsService": frozenset({Role.OPERATOR}),
    "realloc.api.plan_search.v1.PlanSearchService": frozenset({Role.SCHEDULER}),
    "realloc.api.param_store.v1.ParamStoreService": frozenset({Role.SCHEDULER, Role.PARAM_STORE}),
    "realloc.api.trainer.v1.TrainerService": frozenset({Role.SCHEDULER}),
    "realloc.api.generation.v1.GenerationService": frozenset({Role.SCHEDULER}),
    "realloc.api.shard.v1.BatchService": frozenset({Role.SCHEDULER, Role.TRAINER, Role.GENERATION}),
    "realloc.api.shard.v1.TransferService": frozenset({Role.SCHEDULER, Role.PARAM_STORE}),
}
"""Callers of each service, besides operators, who may call all of them."""

REFLECTION = "grpc.reflection."
"""Services that describe the others: whoever is known may ask."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Somebody who has shown who it is."""

    name: str
    role: Role


def may_call(role: Role, method: str) -> bool:
    """Whether a role may call ``package.Service/Method``."""
    service, _, verb = method.partition("/")
    if service.startswith(REFLECTION):
        return True
    allowed = ALLOWED.get(service, frozenset())
    if service == CLIENT_SERVICE and verb.startswith(READING_VERBS):
        allowed |= {Role.VIEWER}
    return bool(allowed & _stands_for(role))


def _stands_for(role: Role) -> frozenset[Role]:
    """A role and those whose rights it has, too."""
    if role is Role.OPERATOR:
        return frozenset(Role)
    if role in PEOPLE:
        return frozenset(PEOPLE[: PEOPLE.index(role) + 1])
    return frozenset({role})
