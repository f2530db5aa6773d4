"""Group H: mails, signing keys, and what happened and why."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from operator import attrgetter
from typing import Any, Final

from identity import documents, paging
from identity.ambient import later
from identity.core.admin import keys, on_behalf, seek
from identity.core.mail import outbox
from identity.core.mail.outbox import State
from identity.core.record import audit, explain
from identity.errors import VALIDATION, Refused
from identity.wire.dialects import admin_record_schemas as records
from identity.wire.dialects import admin_schemas as schemas
from identity.wire.dialects.admin_dialect import ACKNOWLEDGED, ALWAYS, admin, by_of, deed, listing, show, sought
from identity.wire.dialects.lists import one, page
from identity.wire.endpoint import Call, Reply

_EVENT_FILTERS: Final = ("actor", "action", "target", "tenant", "credential", "address")


# Mail.


@listing("/admin/mails", "mails", records.MailAnswer, filters=("state",))
def list_mails(call: Call) -> Reply:
    """List mails, newest first, never what they say: all but void ones, or those in a `state`."""
    state = one(call, "state")
    if state is not None and state not in set(State):
        raise Refused(VALIDATION.saying("state is pending, sent, dead or void"), field="state")
    return page(
        call, "mails", documents.mail, lambda part: outbox.listing(call.rt, part, state=State(state) if state else None)
    )


@deed("POST", "/admin/mails/retry", body=records.MailBody, answer=records.RetriedAnswer)
def retry_mails(call: Call) -> Reply:
    """Send again now what waits or was given up: one mail, or all."""
    return Reply({"retried": on_behalf.retry_mails(call.rt, by_of(call), call.body.get("mailID"))})


# Signing keys.


@listing("/admin/signing-keys", "keys", schemas.SigningKeyAnswer)
def list_keys(call: Call) -> Reply:
    """List signing keys, oldest first: next, active or retired."""
    found = call.rt.ring.list()
    return page(
        call, "keys", documents.signing_key, lambda part: paging.cut(found, part, attrgetter("published_at", "kid"))
    )


@deed("POST", "/admin/signing-keys/rotate", answer=schemas.SigningKeyAnswer)
def rotate_key(call: Call) -> Reply:
    """Have the next key sign as soon as verifiers can have seen it."""
    return Reply(documents.signing_key(keys.rotate_key(call.rt, by_of(call))))


@deed("DELETE", "/admin/signing-key/{kid}")
def revoke_key(call: Call) -> Reply:
    """Withdraw a key that may be stolen: every token that it signed is refused at once."""
    keys.revoke_key(call.rt, by_of(call), call.params["kid"])
    return Reply(ACKNOWLEDGED)


# What happened, and why.


@listing("/admin/audit", "events", records.EventAnswer, filters=(*_EVENT_FILTERS, "since", "until"))
def list_events(call: Call) -> Reply:
    """List audit events, newest first; `since` and `until` are RFC 3339 or Unix seconds, names serve as `actor` and `target`."""
    filters: dict[str, Any] = {name: one(call, name) for name in ("action", "credential", "address")}
    filters |= {"tenant": one(call, "tenant"), **_period(call)}
    for name in ("actor", "target"):
        filters[name] = sought(call, name, partial(seek.subject, field=name))
    return page(call, "events", documents.event, lambda part: audit.listing(call.rt, part, **filters))


@listing(
    "/admin/errors",
    "errors",
    records.ExplanationAnswer,
    filters=("caller", "address", "error", "check", "since", "until"),
)
def list_errors(call: Call) -> Reply:
    """List refusals, newest first, and why each was refused; `caller` is who was refused, where that is known."""
    filters: dict[str, Any] = {name: one(call, name) for name in ("address", "error", "check")}
    filters |= {"caller": sought(call, "caller", partial(seek.subject, field="caller")), **_period(call)}
    return page(call, "errors", documents.explanation, lambda part: explain.listing(call.rt, part, **filters))


@admin.endpoint(
    "GET",
    "/admin/errors/counts",
    answer=records.CountsAnswer,
    query=("error", "check", "since"),
    ignores_body=True,
    refusals=ALWAYS,
)
def count_errors(call: Call) -> Reply:
    """Count refusals by error and check, and by hour, since a moment: an hour ago where none is named."""
    error, check = one(call, "error"), one(call, "check")
    since = one(call, "since")
    start = later(call.rt.clock.now(), -3_600) if since is None else documents.moment(since, field="since")
    counts = explain.counted(call.rt, since=start, error=error, check=check)
    hours = explain.by_hour(call.rt, since=start, error=error, check=check)
    return Reply(
        {
            "checks": [documents.counted_refusals(each) for each in counts],
            "hours": [{"at": documents.seconds(at), "count": count} for at, count in hours],
        }
    )


@show("/admin/error/{errorID}", records.ExplanationAnswer)
def explain_error(call: Call) -> Reply:
    """Say why the request that was answered with this `x-error-id` was refused."""
    return Reply(documents.explanation(explain.get(call.rt, call.params["errorID"])))


def _period(call: Call) -> dict[str, datetime | None]:
    """The moments that `since` and `until` name."""
    given = {name: one(call, name) for name in ("since", "until")}
    return {name: None if text is None else documents.moment(text, field=name) for name, text in given.items()}
