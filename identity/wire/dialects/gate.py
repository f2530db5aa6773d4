"""Group G: one hop that tells a proxy whether a request may pass, and as whom (docs/interfaces.md).

What a route demands stands in the query, which the proxy's configuration writes. Who the caller is, and what they may do, comes from the
rows of now and never from what their token says. `docs/recipes/gate.md` shows the proxies' side.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Final, TypeVar

from marshmallow import Schema

from identity.canonical import encode_base64url
from identity.core.access import callers, passage
from identity.core.access.passage import Demand
from identity.core.people.tenancy import LIMITED_TIERS
from identity.errors import (
    FORBIDDEN,
    INVALID_TOKEN,
    KEY_MISMATCH,
    LOCKED_OUT,
    MALFORMED,
    MISSING_TENANT,
    RATE_LIMITED,
    TOKEN_EXPIRED,
    TWO_CREDENTIALS,
    UNAUTHENTICATED,
    VALIDATION,
    Refused,
)
from identity.instruments.limits import Policy
from identity.wire.endpoint import ENVELOPE, Call, Dialect, Reads, Reply

# nginx keeps the headers of a refused subrequest and drops its body: the code must stand in a header to reach the client.
_SHAPE: Final = replace(ENVELOPE, headers_of=lambda refused: (("X-Auth-Error", refused.problem.code),))
gate = Dialect("G: the gate", shape=_SHAPE)

_TIERS: Final = {str(tier): tier for tier in LIMITED_TIERS}
_TENANT: Final = {"required": True, "optional": False}
_T = TypeVar("_T")
NOT_THE_PROXYS: Final = MALFORMED.saying(
    "The query of this check was written by the client, not by the proxy's configuration"
)


GATE_HEADERS: Final = (
    "X-Auth-Subject",
    "X-Auth-Type",
    "X-Auth-Tenant",
    "X-Auth-Roles",
    "X-Auth-Scopes",
    "X-Auth-Session",
)


class Passed(Schema):
    """Nothing: what a pass has to say stands in its headers."""


@gate.endpoint(
    "GET",
    "/verify",
    any_method=True,
    reads=Reads.BEARER_OR_KEY,
    limit=Policy.STANDARD,
    limits_itself=True,
    hot=True,
    repeats=True,
    ignores_body=True,
    query=("role", "scope", "tier", "tenant", "claims"),
    answer=Passed,
    answer_headers=GATE_HEADERS,
    refusals=(
        NOT_THE_PROXYS,
        MISSING_TENANT,
        TWO_CREDENTIALS,
        UNAUTHENTICATED,
        INVALID_TOKEN,
        TOKEN_EXPIRED,
        KEY_MISMATCH,
        FORBIDDEN,
        RATE_LIMITED,
        LOCKED_OUT,
        VALIDATION,
    ),
)
def verify(call: Call) -> Reply:
    """Tell a proxy whether a request may pass, and as whom: nginx `auth_request`, Traefik ForwardAuth, Envoy `ext_authz`."""
    _refuse_a_clients_query(call)
    tier = _choice(call, "tier", _TIERS, Policy.STANDARD)
    needs_tenant = _choice(call, "tenant", _TENANT, True)
    # 1. Who is asking. A stranger learns nothing about tenants, not even that one is missing.
    caller = call.identified = callers.identify(call.rt, call.origin, call.presented, own_routes=False)
    # 2. For which tenant, and with which rights.
    demand = Demand(call.query.get("role", ()), call.query.get("scope", ()), tier, needs_tenant)
    passed = passage.decide(
        call.rt, call.origin, caller, tenant=call.header("x-tenant-id") or "", demand=demand, count=call.limit
    )
    told: tuple[tuple[str, str], ...] = ()
    if _choice(call, "claims", {"1": True}, False):
        custom = passage.claims_of(call.rt, caller)
        told = (("X-Auth-Claims", encode_base64url(json.dumps(custom, separators=(",", ":")).encode())),)
    # All six, always: a proxy that copies them must overwrite whatever the client sent under these names.
    return Reply(
        raw=b"{}",
        headers=(
            ("X-Auth-Subject", caller.subject),
            ("X-Auth-Type", caller.kind),
            ("X-Auth-Tenant", passed.tenant),
            ("X-Auth-Roles", ",".join(sorted(passed.roles))),
            ("X-Auth-Scopes", " ".join(caller.scopes)),
            ("X-Auth-Session", caller.session_id),
            *told,
        ),
    )


def _refuse_a_clients_query(call: Call) -> None:
    """Fail closed where a proxy passes its client's query on, which would choose what is demanded: Caddy's `uri /verify` does."""
    query, forwarded = call.request.query, call.header("x-forwarded-uri")
    if not query or forwarded is None:
        return
    # Repeated fields are joined by commas, and a query may hold some itself.
    if query in (uri.partition("?")[2] for uri in (forwarded, *forwarded.split(","))):
        raise Refused(
            NOT_THE_PROXYS,
            detail="the proxy passes its client's query on: give the gate's address one of its own, as in `uri /verify?tenant=required`",
            evidence={
                "expected": "a query from the proxy's configuration",
                "seen": {"the query of": "X-Forwarded-Uri"},
            },
        )


def _choice(call: Call, name: str, known: dict[str, _T], default: _T) -> _T:
    """What the query says of `name`, at most once and only in words that we know."""
    values = call.query.get(name)
    if values is None:
        return default
    if len(values) > 1 or values[0] not in known:
        raise Refused(VALIDATION.saying(f"The {name} must be one of: {', '.join(known)}"), field=name)
    return known[values[0]]
