"""Why was this refused? What somebody pastes, the refusals of a time by check and hour, and the box that finds things.

What is pasted travels by POST, and nothing of it is shown again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from identity.ambient import later
from identity.canonical import canonical_id
from identity.core.admin import naming, seek, users, why
from identity.core.people import tenancy
from identity.core.record import explain
from identity.errors import CONFLICT, NOT_FOUND, VALIDATION, Refused
from identity.wire.dialects.console_dialect import Visit, fault_of, redirect, visited_by_admins
from identity.wire.endpoint import Reply
from identity.wire.pages import Again

_PERIODS: Final = {"1h": 3_600, "24h": 86_400, "7d": 604_800}
_MOST_PASTED: Final = 20_000
_SHOWN: Final = 25
_CLAIMS: Final = ("iss", "sub", "client_id", "aud", "scope", "sid", "exp", "typ", "alg", "kid")


@visited_by_admins
def show_why(visit: Visit) -> Reply:
    """Show the form, and what was refused lately."""
    return visit.reply(_rendered(visit))


@visited_by_admins
def explain_pasted(visit: Visit) -> Reply:
    """Explain what was pasted: an id leads to the page of its refusal, a token is judged here."""
    pasted = visit.typed("pasted", most=_MOST_PASTED)
    try:
        error_id = why.error_id_in(pasted)
        if error_id is not None:
            return _refusal(visit, error_id)
        verdict = why.token(visit.rt, visit.by, pasted)
    except Refused as refused:
        raise Again(refused, _rendered(visit, fault=_fault(visit, refused))) from refused
    said = {**verdict.header, **verdict.claims}
    claims = {name: said[name] for name in _CLAIMS if name in said}
    return visit.show("why_token.html", verdict=verdict, claims=claims)


@visited_by_admins
def show_refusal(visit: Visit) -> Reply:
    """Explain a refusal."""
    return _refusal(visit, visit.call.params["id"])


@visited_by_admins
def show_refusals(visit: Visit) -> Reply:
    """List refusals, newest first, that fit every filter, with how many there were in each hour."""
    rt = visit.rt
    asked = {name: visit.asked(name) for name in ("error", "check", "caller", "address", "period")}
    since = later(rt.clock.now(), -_seconds(asked["period"] or "24h"))
    filters: dict[str, Any] = {name: asked[name] or None for name in ("error", "check", "address")}
    caller = seek.subject(rt, asked["caller"], field="caller") if asked["caller"] else None
    listed = explain.listing(rt, replace(visit.part(), counts=False), **filters, caller=caller, since=since)
    alone = {name: filters[name] for name in ("error", "check")}
    return visit.show(
        "refusals.html",
        asked=asked,
        listed=listed,
        names=naming.names(rt, [one.caller for one in listed.items if one.caller]),
        hours=[] if asked["caller"] or asked["address"] else explain.by_hour(rt, since=since, **alone),
        more=visit.more(listed, **asked),
    )


@visited_by_admins
def find(visit: Visit) -> Reply:
    """Find whatever was typed: a refusal, a user, an application or a tenant."""
    text = visit.typed("q", most=_MOST_PASTED)
    lookups: Mapping[str, Callable[[], str]] = {
        "user": lambda: users.find_user(visit.rt, text).id,
        "application": lambda: seek.application(visit.rt, text).id,
        "tenant": lambda: tenancy.describe(visit.rt, text).id,
    }
    for kind, lookup in lookups.items():
        try:
            page = visit.page_of(kind, lookup())
        except Refused as refused:
            if refused.problem.code not in (NOT_FOUND.code, VALIDATION.code, CONFLICT.code):
                raise
            continue
        if page:
            return redirect(page)
    error_id = canonical_id(text) or why.error_id_in(text)
    if error_id is not None:
        return visit.goes_on(f"/console/why/{error_id}")
    return visit.goes_on("/console/users", q=text[:200])


def _refusal(visit: Visit, error_id: str) -> Reply:
    found = why.refusal(visit.rt, visit.by, error_id)
    minute = [later(found.explanation.at, seconds).strftime("%Y-%m-%dT%H:%M:%SZ") for seconds in (-60, 60)]
    return visit.show("why_refusal.html", why=found, around=minute)


def _rendered(visit: Visit, *, fault: dict[str, Any] | None = None) -> str:
    rt, period = visit.rt, (visit.asked("period") or "1h") if visit.call.endpoint.method == "GET" else "1h"
    counted = explain.counted(rt, since=later(rt.clock.now(), -_seconds(period)))
    return visit.rendered(
        "why.html",
        fault=fault,
        period=period,
        periods=list(_PERIODS),
        counted=counted[:_SHOWN],
        total=sum(one.count for one in counted),
        most=explain.MOST_COUNTED,
        names=naming.names(rt, [one.most_caller for one in counted if one.most_caller]),
    )


def _seconds(period: str) -> int:
    if period not in _PERIODS:
        raise Refused(VALIDATION.saying("A period is 1h, 24h or 7d"), field="period")
    return _PERIODS[period]


def _fault(visit: Visit, refused: Refused) -> dict[str, Any]:
    fault = fault_of(visit, refused)
    if refused.problem.code == NOT_FOUND.code:
        fault["message"] = "No refusal has this id: it is not ours, too old, or one of too many in its minute."
    return fault
