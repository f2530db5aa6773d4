"""Whether a request passes: the gate's decision, and what a request of a known caller counts against.

The gate asks for other services' routes; our own routes that name a tenant ask here too, so that neither is weaker. Rights are those of
now, whatever a token says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from identity.ambient import Origin
from identity.core.access.callers import Caller, CallerKind
from identity.core.people import policy, tenancy
from identity.core.people.policy import Login
from identity.core.people.tenancy import LIMITED_TIERS, OWNER_ROLE, Belonging
from identity.core.tokens import custom_claims
from identity.errors import FORBIDDEN, MISSING_TENANT, Refused
from identity.instruments.limits import Policy
from identity.runtime import Runtime


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


def decide(rt: Runtime, origin: Origin, caller: Caller, *, tenant: str, demand: Demand, count: Count) -> Passage:
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
        require_member(rt, origin, caller, held, tenant)
    # 2. With which rights.
    roles = frozenset(caller.roles).union(held.roles if held else ())
    _require("role", demand.roles, roles)
    _require("scope", demand.scopes, frozenset(caller.scopes))
    return Passage(tenant, roles)


def count_request(caller: Caller, tenant: str, tier: Policy, count: Count) -> Belonging | None:
    """Count a request against the tenant that it names, by that tenant's budget, if the caller belongs to it; else against the caller.

    Gives what the caller is in that tenant, also in a disabled one, or None. Raises Refused(RATE_LIMITED).
    """
    held = caller.memberships.find(tenant)
    if held is None or not held.is_enabled:
        count(tier, f"subject {caller.subject}")
    else:
        count(tier, f"tenant {tenant}", budget=held.limits.get(tier))
    return held


def require_member(rt: Runtime, origin: Origin, caller: Caller, held: Belonging | None, tenant: str) -> None:
    """Raise Refused(FORBIDDEN) unless the caller belongs to a tenant that is enabled, and meets its policy.

    Foreign, unknown and disabled tenants, and those whose policy is not met, look alike; `explain` tells them apart.
    """
    seen = {"seen": {"tenant": tenant[:64]}}
    if held is None:
        raise Refused(FORBIDDEN, detail="not a member of that tenant", evidence=seen)
    if not held.is_enabled:
        raise Refused(
            FORBIDDEN, detail="the tenant is disabled", evidence=seen | {"near_miss": "the caller is a member"}
        )
    fault = policy.unmet(rt, held, login_of(caller, origin.address or None), rt.clock.now())
    if fault is not None:
        evidence = {"tenant": tenant, "rule": fault.rule, "expected": fault.expected, "seen": fault.seen}
        raise Refused(FORBIDDEN, detail=f"the tenant's policy: {fault.rule}", evidence=evidence)


def login_of(caller: Caller, address: str | None) -> Login:
    """What a tenant's policy asks of this caller; `address` None: the caller is not who asks."""
    return Login(
        user_id=caller.subject,
        amr=caller.amr,
        auth_time=caller.auth_time,
        address=address,
        issued_at=caller.claims.issued_at if caller.claims else None,
        is_machine=caller.kind is CallerKind.APPLICATION,
    )


def tenants_of(rt: Runtime, caller: Caller) -> dict[str, tuple[str, ...]]:
    """The tenants in which this caller can act, with the roles in each: those that a token of theirs would name now."""
    address = caller.session.session.ip or None if caller.session else None
    return policy.named(rt, caller.memberships, login_of(caller, address), rt.clock.now()).roles


def administer(
    rt: Runtime, origin: Origin, caller: Caller, tenant: str, count: Count, *, recent: bool, credential: bool
) -> str:
    """The tenant that a caller administers by what they are in it; decided before anything else of the request is read.

    Its owners do (a user's bearer or key pair), and so do administrators of the whole service. `recent`: only soon after signing in, which
    a key pair never is; `credential`: not by a key pair, whose own would outlive it. Raises Refused(MISSING_TENANT), Refused(FORBIDDEN),
    Refused(NOT_FOUND) for an administrator's slip, Refused(STALE_LOGIN), Refused(RATE_LIMITED).
    """
    held = count_request(caller, tenant, Policy.STANDARD, count)
    if not tenant:
        raise Refused(MISSING_TENANT, detail="the route is about the tenant in X-Tenant-Id")
    if caller.is_admin:
        tenancy.describe(rt, tenant)
    else:
        require_member(rt, origin, caller, held, tenant)
        roles = held.roles if held is not None and caller.kind is not CallerKind.APPLICATION else ()
        _require("role", (OWNER_ROLE,), frozenset(roles))
    if credential and (caller.kind is CallerKind.KEY or "key" in caller.amr):
        evidence = {"expected": "a login of a person", "seen": "a key pair"}
        raise Refused(FORBIDDEN, detail="a key pair makes no other credential", evidence=evidence)
    if recent:
        caller.require_recent_login(rt)
    return tenant


def claims_of(rt: Runtime, caller: Caller) -> dict[str, Any]:
    """The claims of one's own that a token of this caller would carry now, for the audiences of what was presented."""
    if caller.claims is not None:
        audiences: Sequence[str] = caller.claims.audience
    else:
        audiences = (caller.session.session.resource if caller.session else rt.settings.default_audience,)
    if caller.kind is CallerKind.APPLICATION:
        return custom_claims.of(rt, audiences, client_id=caller.subject)
    return custom_claims.of(rt, _meant_for(rt, audiences), user_id=caller.subject)


def _meant_for(rt: Runtime, audiences: Sequence[str]) -> Sequence[str]:
    """The audiences of a user's token without our own, which stands in every one of them, unless it stands there alone."""
    return [one for one in audiences if one != rt.settings.issuer] or audiences


def budgets(rt: Runtime, tenant: str) -> dict[str, Any]:
    """The budgets in force for a tenant by tier, and the names of those that are its own."""
    own = tenancy.describe(rt, tenant).limits
    usual = {str(tier): getattr(rt.settings, f"limit_{tier.name.lower()}") for tier in LIMITED_TIERS}
    return {"limits": {**usual, **own}, "own": sorted(own)}


def _require(name: str, needed: Sequence[str], held: frozenset[str]) -> None:
    if needed and not held.issuperset(needed):
        evidence = {"expected": {name: sorted(needed)}, "seen": {name: sorted(held)}}
        raise Refused(FORBIDDEN, detail=f"lacks a {name}", evidence=evidence)
