"""Group M: the pages behind mailed links, and the front page (docs/interfaces.md); and the invitation as JSON.

GET shows and POST acts: whatever fetches links out of mails before their reader does uses nothing up. Nothing here needs a script.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

from marshmallow import Schema, fields

from identity.core.access import callers
from identity.core.access.callers import CallerKind
from identity.core.signin import invited, new_password
from identity.core.signin.invited import ANOTHER_ADDRESS, LINK_OVER, Accepted, Asks, Invited
from identity.errors import (
    CONFLICT,
    FORBIDDEN,
    INVALID_CODE,
    INVALID_CREDENTIALS,
    INVALID_TOKEN,
    LOCKED_OUT,
    MFA_REQUIRED,
    NOT_FOUND,
    RATE_LIMITED,
    UNAVAILABLE,
    VALIDATION,
    Refused,
)
from identity.instruments.limits import Policy
from identity.instruments.transports import mail_directory
from identity.wire import pages
from identity.wire.endpoint import ENVELOPE, HTML, Call, Dialect, Reads, Reply
from identity.wire.fields import Body, Text
from identity.wire.head import has_credential, read_credentials
from identity.wire.home import has_console
from identity.wire.pages import PAGE, Again

welcome = Dialect("M: pages", shape=PAGE)

_LONGEST: Final = {"fullName": 200, "alias": 64, "password": 4096, "code": 64, "deed": 16}
_WRONG_LINK: Final = (LINK_OVER, LOCKED_OUT, RATE_LIMITED)


class Page(Schema):
    """A page to read."""


class AcceptBody(Body):
    """An invitation to accept; name, alias and password only from who has no account."""

    token = Text(required=True, max_length=200)
    fullName = Text(max_length=200)
    alias = Text(max_length=64)
    password = Text(max_length=4096)


class AcceptedAnswer(Schema):
    """Who accepted, and what they are in the tenant now."""

    userID = fields.String(required=True)
    tenant = fields.String(required=True, allow_none=True)
    roles = fields.List(fields.String(), required=True)


@welcome.endpoint("GET", "/", is_page=True, ignores_body=True, produces=HTML, refusals=(NOT_FOUND,), shape=ENVELOPE)
def front(call: Call) -> Reply:
    """Say to a browser what this is, and where to go; there is nothing here for other clients."""
    if "text/html" not in call.request.headers.get("accept", ""):
        raise Refused(NOT_FOUND, detail="the front page is for browsers: Accept names no text/html")
    places = []
    if mail_directory(call.rt.settings) is not None:
        places.append({"path": "/dev/inbox", "name": "Inbox", "text": "the mails that were sent, on this machine only"})
    if has_console(call.rt.settings, call.request):
        places.append({"path": "/console", "name": "Console", "text": "for administrators and owners of tenants"})
    return pages.page(call.rt, "front.html", places=places)


@welcome.endpoint(
    "GET", "/style.css", is_page=True, ignores_body=True, cacheable=True, produces="text/css; charset=utf-8"
)
def style(call: Call) -> Reply:
    """The style sheet of the pages."""
    tag = f'"{hashlib.sha256(pages.style()).hexdigest()[:16]}"'
    headers = (("Cache-Control", "public, max-age=3600"), ("ETag", tag))
    if call.header("if-none-match") == tag:
        return Reply(raw=b"", status=304, headers=headers)
    return Reply(raw=pages.style(), content_type="text/css; charset=utf-8", headers=headers)


@welcome.endpoint(
    "GET",
    "/invitation/{token}",
    limit=Policy.AUTH,
    ignores_body=True,
    answer=Page,
    produces=HTML,
    refusals=_WRONG_LINK,
)
def show_invitation(call: Call) -> Reply:
    """Show an invitation: who invites, to what, and what to do. Looking uses nothing up."""
    found = invited.look(call.rt, call.origin, call.params["token"])
    return pages.page(call.rt, "invitation.html", holds_token=True, **_of_invitation(call, found))


@welcome.endpoint(
    "POST",
    "/invitation/{token}",
    limit=Policy.AUTH,
    form=True,
    answer=Page,
    produces=HTML,
    refusals=(*_WRONG_LINK, INVALID_CREDENTIALS, INVALID_CODE, MFA_REQUIRED, FORBIDDEN, CONFLICT, VALIDATION),
)
def accept_invitation(call: Call) -> Reply:
    """Accept an invitation by its form; one that is not in order is shown again."""
    rt, origin, token = call.rt, call.origin, call.params["token"]
    given = {name: pages.text(call, name, most=most) for name, most in _LONGEST.items()}
    found = invited.look(rt, origin, token)
    if given["deed"] == "mail":
        invited.mail_password_link(rt, origin, token)
        return pages.page(rt, "invitation.html", holds_token=True, **_of_invitation(call, found, sent=True))
    try:
        _accept(call, found, given)
    except Refused as refused:
        if refused.problem in (LINK_OVER, ANOTHER_ADDRESS) or refused.problem.code == UNAVAILABLE.code:
            raise
        shown = pages.rendered(rt, "invitation.html", **_of_invitation(call, found, fault=refused, filled=given))
        raise Again(refused, shown) from refused
    what = f"You belong to {found.open.tenant_name} now." if found.open.tenant else "Your password is saved."
    return pages.page(
        rt,
        "message.html",
        holds_token=True,
        heading="Done",
        text=f"{what} You can close this page and sign in.",
        error_id="",
    )


@welcome.endpoint(
    "PUT",
    "/invitation",
    limit=Policy.AUTH,
    body=AcceptBody,
    answer=AcceptedAnswer,
    status=202,
    shape=ENVELOPE,
    refusals=(*_WRONG_LINK, INVALID_TOKEN, FORBIDDEN, CONFLICT, VALIDATION),
)
def accept_by_json(call: Call) -> Reply:
    """Accept an invitation: with the bearer of whoever has an account, or with name, alias and password of who has none."""
    user_id = None
    if has_credential(call.request.headers):
        presented = read_credentials(call.request.headers, Reads.BEARER)
        caller = call.identified = callers.identify(call.rt, call.origin, presented)
        if caller.kind is not CallerKind.USER or "key" in caller.amr:
            raise Refused(FORBIDDEN, detail="only a person accepts, not an application and not a key pair")
        user_id = caller.subject
    body = dict(call.body)
    names = {"full_name": body.get("fullName"), "alias": body.get("alias"), "password": body.get("password")}
    made = invited.accept(call.rt, call.origin, body["token"], user_id=user_id, **names)
    return Reply({"userID": made.user_id, "tenant": made.tenant, "roles": list(made.roles)})


@welcome.endpoint(
    "GET",
    "/password-reset/{token}",
    limit=Policy.AUTH,
    ignores_body=True,
    answer=Page,
    produces=HTML,
    refusals=(INVALID_CODE, RATE_LIMITED),
)
def show_reset(call: Call) -> Reply:
    """Show the form for a new password. Looking uses nothing up, and does not tell whether the link's code is right."""
    if not new_password.can_reset(call.rt, call.params["token"]):
        raise Refused(INVALID_CODE.saying("This link is not right or no longer valid"), detail="no code can be tried")
    return pages.page(call.rt, "password_reset.html", holds_token=True, fault=None, shortest=_shortest(call))


@welcome.endpoint(
    "POST",
    "/password-reset/{token}",
    limit=Policy.AUTH,
    form=True,
    answer=Page,
    produces=HTML,
    refusals=(INVALID_CODE, LOCKED_OUT, RATE_LIMITED, VALIDATION),
)
def reset_password(call: Call) -> Reply:
    """Save a new password by its form; a weak one is asked for again."""
    password = pages.text(call, "password")
    try:
        new_password.reset_by_link(call.rt, call.origin, call.params["token"], new_password=password)
    except Refused as refused:
        if refused.problem.code != VALIDATION.code:
            raise
        at_field = Refused(refused.problem, detail=refused.detail, field="password", cause=refused)
        shown = pages.rendered(call.rt, "password_reset.html", fault=_fault(at_field), shortest=_shortest(call))
        raise Again(at_field, shown) from refused
    return pages.page(
        call.rt,
        "message.html",
        holds_token=True,
        heading="Your new password is saved",
        text="Every session of yours has ended. You can close this page and sign in.",
        error_id="",
    )


def _accept(call: Call, found: Invited, given: dict[str, str]) -> Accepted:
    rt, origin, token = call.rt, call.origin, call.params["token"]
    if found.asks is Asks.SIGN_IN:
        code = "".join(given["code"].split()) or None
        return invited.accept_by_password(rt, origin, token, password=given["password"], code=code)
    names = {"full_name": given["fullName"], "alias": given["alias"]} if found.asks is Asks.ACCOUNT else {}
    return invited.accept(rt, origin, token, user_id=None, password=given["password"], **names)


def _of_invitation(
    call: Call,
    found: Invited,
    *,
    fault: Refused | None = None,
    filled: dict[str, str] | None = None,
    sent: bool = False,
) -> dict[str, Any]:
    """What the page of an invitation shows."""
    opened = found.open
    return {
        "tenant": opened.tenant_name,
        "inviter": opened.inviter,
        "address": opened.address,
        "roles": opened.roles,
        "until": opened.expires_at.strftime("%Y-%m-%d %H:%M UTC"),
        "asks": found.asks.name,
        "fault": _fault(fault) if fault else None,
        "filled": {"fullName": "", "alias": "", **(filled or {})},
        "shortest": _shortest(call),
        "sent": sent,
    }


def _fault(refused: Refused) -> dict[str, str]:
    return {"message": f"{refused.problem.message}.", "field": refused.field or ""}


def _shortest(call: Call) -> int:
    return call.rt.settings.password_min_length
