"""The console's record and its living sessions: what needs a person, what happened, and who is signed in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from identity import documents
from identity.core.admin import naming, needs, on_behalf, seek
from identity.core.record import audit
from identity.core.record.audit import Action
from identity.core.tokens import sessions
from identity.errors import VALIDATION, Refused
from identity.wire.dialects.console_dialect import Deed, Visit, perform, said, visited, visited_by_admins
from identity.wire.endpoint import Reply

_EVENT_FILTERS: Final = ("actor", "action", "target", "credential", "address", "since", "until")
_OWNERS: Final = ("user", "of", "application")


@visited
def show_overview(visit: Visit) -> Reply:
    """Show what needs a person, and nothing else."""
    found = needs.of_service(visit.rt) if visit.by.tenant is None else needs.of_tenant(visit.rt, visit.by)
    return visit.show("overview.html", needs=found)


# What happened.


@visited
def show_audit(visit: Visit) -> Reply:
    """List events, newest first, that fit every filter: all, or those of an owner's tenant."""
    rt = visit.rt
    asked = {name: visit.asked(name) for name in (*_EVENT_FILTERS, "of")}
    filters: dict[str, Any] = {"action": asked["action"] or None}
    for name in ("since", "until"):
        filters[name] = documents.moment(asked[name], field=name) if asked[name] else None
    if visit.by.tenant is None:
        filters |= {name: asked[name] or None for name in ("credential", "address")}
        filters["tenant"] = asked["of"] or None
        for name in ("actor", "target"):
            filters[name] = seek.subject(rt, asked[name], field=name) if asked[name] else None
    else:
        filters["tenant"] = visit.by.tenant
        asked |= dict.fromkeys(("actor", "target", "credential", "address", "of"), "")
    # Counting a million events would take longer than showing these.
    listed = audit.listing(rt, replace(visit.part(), counts=False), **filters)
    events = naming.happenings(rt, listed.items, tenant=visit.by.tenant)
    return visit.show("audit.html", asked=asked, events=events, actions=list(Action), more=visit.more(listed, **asked))


# Who is signed in.


@visited_by_admins
def show_sessions(visit: Visit) -> Reply:
    """List living sessions, newest first."""
    return visit.reply(_sessions(visit))


@visited_by_admins
def change_sessions(visit: Visit) -> Reply:
    """End one session, or all that the filter names."""
    owners = {name: visit.typed(name) for name in _OWNERS}
    called = ", ".join(f"{'tenant' if name == 'of' else name} {value}" for name, value in owners.items() if value)
    return perform(visit, DEEDS, "", called=called or "everybody", show=lambda **values: _sessions(visit, **values))


def _sessions(visit: Visit, *, fault: Mapping[str, Any] | None = None) -> str:
    rt, is_post = visit.rt, visit.call.endpoint.method == "POST"
    asked = {name: visit.typed(name) if is_post else visit.asked(name) for name in _OWNERS}
    listed = sessions.listing(rt, visit.part(), **_owners(visit, asked))
    return visit.rendered(
        "sessions.html",
        asked=asked,
        listed=listed,
        names=naming.names(rt, [one for info in listed.items for one in (info.user_id, info.client_id) if one]),
        more=visit.more(listed, **asked),
        fault=fault,
        done="" if is_post else said(visit, DEEDS),
    )


def _owners(visit: Visit, asked: Mapping[str, str]) -> dict[str, str | None]:
    rt = visit.rt
    return {
        "user": seek.user_id(rt, asked["user"]) if asked["user"] else None,
        "tenant": seek.tenant_id(rt, asked["of"], field="of") if asked["of"] else None,
        "application": seek.client_id(rt, asked["application"]) if asked["application"] else None,
    }


def _end(visit: Visit, _subject: str) -> None:
    on_behalf.revoke_session(visit.rt, visit.by, visit.typed("session", most=64))


def _end_these(visit: Visit, _subject: str) -> None:
    owners = _owners(visit, {name: visit.typed(name) for name in _OWNERS})
    if sum(value is not None for value in owners.values()) > 1:
        raise Refused(VALIDATION.saying("Name one of user, tenant and application"), field="user")
    on_behalf.revoke_sessions(visit.rt, visit.by, **owners)


DEEDS: Final = {
    "end-session": Deed(_end, "The session has ended.", recent=True),
    "end-these": Deed(
        _end_these,
        "They have ended.",
        asks="End every session of {called}? They can sign in again.",
        button="End them",
        recent=True,
    ),
}
