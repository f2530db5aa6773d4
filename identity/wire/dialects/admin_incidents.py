"""Group H: what a leaked credential has touched, and ending it with all that it earned."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from identity import documents
from identity.core.admin import incidents
from identity.core.admin.incidents import Incident, Kind
from identity.core.admin.traces import Touched
from identity.documents import Document, seconds
from identity.errors import NOT_FOUND, VALIDATION, Refused
from identity.wire.dialects import machine_schemas
from identity.wire.dialects.admin_dialect import ALWAYS, admin, by_of, deed
from identity.wire.dialects.lists import one
from identity.wire.endpoint import Call, Reply

_KINDS: Final = tuple(str(kind) for kind in Kind)


@admin.endpoint(
    "GET",
    "/admin/incident",
    answer=machine_schemas.IncidentAnswer,
    query=(*_KINDS, "since"),
    ignores_body=True,
    refusals=(*ALWAYS, NOT_FOUND),
)
def show_incident(call: Call) -> Reply:
    """Tell what a credential that may have leaked has touched: a `secret`, a `key` (pair), a `trust`, or the `kid` of a signing key.

    Tokens by hour and address, sessions, routes and deeds, of the last 90 days or from `since` on; also of one that is gone.
    """
    kind, name = _meant({each: one(call, each) for each in _KINDS})
    return Reply(_incident(incidents.describe(call.rt, kind, name, since=_since(one(call, "since")))))


@deed("POST", "/admin/incident", body=machine_schemas.IncidentBody, answer=machine_schemas.IncidentAnswer)
def contain_incident(call: Call) -> Reply:
    """With `contain`: end a leaked credential and every token that it earned, tell who answers for it by mail, and keep the report.

    With `made` too, the credentials that it has made end in the same transaction (key pairs, secrets, trusts, key sets, invitations,
    signing keys; accounts are disabled), and what those have made. What was contained stays so: doing it again changes nothing. Without
    `contain` it only tells what the credential has touched.
    """
    kind, name = _meant({each: call.body.get(each) for each in _KINDS})
    since = _since(call.body.get("since"))
    ends_made = call.body.get("made", False)
    if call.body.get("contain", False):
        return Reply(_incident(incidents.contain(call.rt, by_of(call), kind, name, since=since, ends_made=ends_made)))
    if ends_made:
        raise Refused(VALIDATION.saying("What it made is ended with it: `made` needs `contain`"), field="made")
    return Reply(_incident(incidents.describe(call.rt, kind, name, since=since)))


def _meant(given: dict[str, str | None]) -> tuple[Kind, str]:
    """The one credential that is named."""
    named = [(Kind(kind), text) for kind, text in given.items() if text]
    if len(named) != 1:
        raise Refused(VALIDATION.saying("Name one of secret, key, trust or kid"), field="secret")
    return named[0]


def _since(text: str | None) -> datetime | None:
    return None if text is None else documents.moment(text, field="since")


def _incident(found: Incident) -> Document:
    suspect, contained = found.suspect, found.containment
    return {
        "kind": str(suspect.kind),
        "id": suspect.id,
        "name": suspect.name,
        "lives": suspect.lives,
        "userID": suspect.user,
        "clientId": suspect.application,
        "tenant": suspect.tenant,
        **_touched(found.touched),
        "made": [
            {"kind": str(each.sort), "id": each.id, "of": each.of or None, "lives": each.lives} for each in found.made
        ],
        "contained": None
        if contained is None
        else {
            "at": seconds(contained.at),
            "by": contained.actor,
            "told": contained.told,
            "report": _touched(contained.touched),
        },
    }


def _touched(touched: Touched) -> dict[str, Any]:
    return {
        "since": seconds(touched.since),
        "until": seconds(touched.until),
        "counts": dict(touched.counts),
        "earned": [
            {"hour": seconds(each.hour), "address": each.address or None, "tokens": each.tokens}
            for each in touched.earned
        ],
        "routes": [
            {"route": each.route, "status": each.status, "uses": each.uses, "lastHour": seconds(each.last_hour)}
            for each in touched.used
        ],
        "addresses": [
            {
                "address": each.address or None,
                "uses": each.uses,
                "firstHour": seconds(each.first_hour),
                "lastHour": seconds(each.last_hour),
            }
            for each in touched.seen
        ],
        "sessions": [
            {
                "sessionID": each.session_id,
                "userID": each.user_id,
                "createdAt": seconds(each.opened_at),
                "ip": each.address,
                "userAgent": each.user_agent,
            }
            for each in touched.opened
        ],
        "deeds": [
            {
                "eventID": each.event_id,
                "at": seconds(each.at),
                "action": each.action,
                "actor": each.actor,
                "target": each.target,
                "address": each.address,
            }
            for each in touched.deeds
        ],
    }
