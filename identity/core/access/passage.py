"""Whether a request passes: the gate's decision, and what a request of a known caller counts against.

The gate asks for other services' routes; our own routes that name a tenant ask here too, so that neither is weaker. Rights are those of
now, whatever a token says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from identity.core.access.callers import Caller
from identity.core.people.tenancy import Belonging
from identity.errors import FORBIDDEN, MISSING_TENANT, Refused
from identity.instruments.limits import Policy


class Count(Protocol):
    """Counts this request against a policy. Raises Refused(RATE_LIMITED)."""

    def __call__(self, policy: Policy, key: str, *, budget: str | None = None) -> object: ...


class Demand(NamedTuple):
    """What a route asks of its callers: all of these roles and scopes, and a tenant where it needs one."""

    roles: Sequence[str] = ()
    scopes: Sequence[str] = ()
    tier: Policy = Policy.STANDARD
    needs_tenant: bool = True


class Passage(NamedTuple):
    """A request that may pass: for which tenant, and with which roles, those in the tenant and the global ones together."""

    tenant: str
    roles: frozenset[str]


def decide(caller: Caller, tenant: str, demand: Demand, count: Count) -> Passage:
    """Let a caller pass for `tenant`, or raise Refused(MISSING_TENANT), Refused(FORBIDDEN) or Refused(RATE_LIMITED).

    A stranger learns nothing about tenants, not even that one is missing: the caller is identified before this is asked.
    """
    # 1. Requests count against a tenant only once they are known to come from one of its own.
    held = count_request(caller, tenant, demand.tier, count)
    if not tenant and demand.needs_tenant:
        raise Refused(
            MISSING_TENANT,
            detail="the route needs a tenant, and the request names none in X-Tenant-Id",
            evidence={"expected": {"X-Tenant-Id": sorted(caller.memberships.roles())[:20]}},
        )
    if tenant:
        require_member(held, tenant)
    # 2. With which rights.
    roles = frozenset(caller.roles).union(held.roles if held else ())
    _require("role", demand.roles, roles)
    _require("scope", demand.scopes, frozenset(caller.scopes))
    return Passage(tenant, roles)


def count_request(caller: Caller, tenant: str, policy: Policy, count: Count) -> Belonging | None:
    """Count a request against the tenant that it names, by that tenant's budget, if the caller belongs to it; else against the caller.

    Gives what the caller is in that tenant, also in a disabled one, or None. Raises Refused(RATE_LIMITED).
    """
    held = caller.memberships.find(tenant)
    if held is None or not held.is_enabled:
        count(policy, f"subject {caller.subject}")
    else:
        count(policy, f"tenant {tenant}", budget=held.limits.get(policy))
    return held


def require_member(held: Belonging | None, tenant: str) -> None:
    """Raise Refused(FORBIDDEN) unless the caller belongs to a tenant that is enabled. Foreign, unknown and disabled look alike."""
    seen = {"seen": {"tenant": tenant[:64]}}
    if held is None:
        raise Refused(FORBIDDEN, detail="not a member of that tenant", evidence=seen)
    if not held.is_enabled:
        raise Refused(
            FORBIDDEN, detail="the tenant is disabled", evidence=seen | {"near_miss": "the caller is a member"}
        )


def _require(name: str, needed: Sequence[str], held: frozenset[str]) -> None:
    if needed and not held.issuperset(needed):
        evidence = {"expected": {name: sorted(needed)}, "seen": {name: sorted(held)}}
        raise Refused(FORBIDDEN, detail=f"lacks a {name}", evidence=evidence)
