"""The console's way in and out: password and code, or a link that whoever holds the host has printed.

What somebody was about to do when they had to sign in travels along in the form, and is offered again once they are in.
"""

from __future__ import annotations

import re
from typing import Any, Final

from identity.core.admin import console as visiting
from identity.core.signin import console as entering
from identity.core.signin.factors import Factor
from identity.core.tokens.sessions import Opened
from identity.errors import INVALID_CODE, VALIDATION, Refused
from identity.instruments.limits import Policy
from identity.wire import pages
from identity.wire.dialects.console_dialect import (
    KEPT,
    Visit,
    bearer_of,
    cookie,
    redirect,
    require_open,
    require_own_page,
    sign_in_page,
)
from identity.wire.endpoint import HTML, Call, Reply
from identity.wire.pages import Again

_PLACE: Final = re.compile(r"/console(/[A-Za-z0-9_~%:@-][A-Za-z0-9._~%:@-]*)*(\?[A-Za-z0-9._~%:@&=+-]*)?", re.ASCII)
_START: Final = "/console"
_SHOWN: Final = 200


def show_sign_in(call: Call) -> Reply:
    """Show the way in."""
    require_open(call)
    then = _place(next(iter(call.query.get("then", [])), ""))
    return _page(sign_in_page(call, then=then))


def sign_in(call: Call) -> Reply:
    """Take the password, or the code after it; whoever has given both is in, and goes on with what they were doing."""
    require_open(call)
    require_own_page(call)
    then, kept = _place(pages.text(call, "then")), _kept(call)
    challenge = pages.text(call, "challenge")
    values: dict[str, Any] = {"then": then, "keeping": kept}
    if not challenge:
        return _first_step(call, values)
    factor = pages.text(call, "factor", most=16)
    code = "".join(pages.text(call, "code", most=64).split())
    try:
        opened = entering.complete(call.rt, call.origin, token=challenge, code=code, instead_of=bearer_of(call))
    except Refused as refused:
        if refused.problem.code not in (INVALID_CODE.code, VALIDATION.code):
            raise _again(call, refused, values) from refused
        raise _again(call, refused, values | {"challenge": challenge, "factor": factor}) from refused
    return _in(call, opened, then, kept)


def sign_out(call: Call) -> Reply:
    """End the session and forget the cookie."""
    require_open(call)
    require_own_page(call)
    entering.sign_out(call.rt, call.origin, bearer_of(call))
    answer = redirect("/console/sign-in")
    return answer._replace(headers=(*answer.headers, cookie(call.rt, "")))


def show_link(call: Call) -> Reply:
    """Show a button: whatever fetches links uses nothing up."""
    require_open(call)
    until = entering.look(call.rt, call.origin, call.params["token"])
    return pages.page(call.rt, "console/link.html", holds_token=True, until=until.strftime("%H:%M:%S UTC"))


def follow_link(call: Call) -> Reply:
    """Sign in by a link."""
    require_open(call)
    require_own_page(call)
    opened = entering.follow(call.rt, call.origin, call.params["token"], instead_of=bearer_of(call))
    return _in(call, opened, _START, {})


def _first_step(call: Call, values: dict[str, Any]) -> Reply:
    identifier = pages.text(call, "identifier", most=254).strip()
    try:
        issued = entering.begin(call.rt, call.origin, identifier=identifier, password=pages.text(call, "password"))
    except Refused as refused:
        raise _again(call, refused, values | {"identifier": identifier}) from refused
    factor = "app" if issued.factor is Factor.TOTP else "mail"
    return _page(sign_in_page(call, **values, challenge=issued.token.reveal(), factor=factor, identifier=identifier))


def _in(call: Call, opened: Opened, then: str, kept: dict[str, str]) -> Reply:
    """The answer to who has just come in: where they were going, or the form that they were about to send."""
    assert opened.bearer is not None, "a console session has a bearer"
    bearer = opened.bearer.reveal()
    if not kept:
        answer = redirect(then)
        return answer._replace(headers=(*answer.headers, cookie(call.rt, bearer)))
    visitor = visiting.visit(call.rt, call.origin, bearer)
    by = visiting.by(call.rt, call.origin, visitor, _uncounted)
    shown = {name: value for name, value in kept.items() if value and name not in ("deed", "version", "sure", "tenant")}
    answer = Visit(call, visitor, by).show("go_on.html", then=then, kept=kept, shown=shown, longest=_SHOWN)
    return answer._replace(headers=(*answer.headers, cookie(call.rt, bearer)))


def _uncounted(policy: Policy, key: str, *, budget: str | None = None) -> None:
    """A sign-in is counted by the client's address already."""


def _again(call: Call, refused: Refused, values: dict[str, Any]) -> Again:
    fault = {"message": f"{refused.problem.message}.", "field": refused.field or "", "code": refused.problem.code}
    return Again(refused, sign_in_page(call, **values, fault=fault))


def _page(text: str) -> Reply:
    return Reply(raw=text.encode(), content_type=HTML, headers=pages.headers(holds_token=False))


def _place(path: str) -> str:
    """A page of the console to go to; the first one for whatever is none."""
    return path if _PLACE.fullmatch(path) and not path.startswith(("/console/sign-", "/console/link")) else _START


def _kept(call: Call) -> dict[str, str]:
    """The form that somebody was about to send, as it travels with the way in."""
    return {name.removeprefix(KEPT): value for name, value in call.body.items() if name.startswith(KEPT)}
