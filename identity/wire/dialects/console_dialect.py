"""How a request becomes a visit to the console, what a page is given, and how a deed is asked, done and refused.

A visit has a cookie that stands for a session of the console; `Authorization` is not read. What changes something comes by POST, from a
page of ours (`Sec-Fetch-Site`, or `Origin` where a browser sends none), with the token of the session's forms. A session that is over, or a
login that is too old for the deed, shows the way in with everything that was typed, and goes on from there. What a visitor may is their
`By`.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

from identity.core.admin import console as visiting
from identity.core.admin.by import By
from identity.core.admin.console import Visitor
from identity.errors import (
    FORBIDDEN,
    INVALID_TOKEN,
    NOT_FOUND,
    STALE_LOGIN,
    TOKEN_EXPIRED,
    UNAUTHENTICATED,
    VALIDATION,
    Refused,
)
from identity.instruments.opaque import Kind, is_well_formed
from identity.paging import Listed, Part
from identity.runtime import Runtime
from identity.wire import pages
from identity.wire.dialects.console import NAVIGATION, PAGES_OF, console
from identity.wire.endpoint import HTML, Call, Reply
from identity.wire.home import has_console
from identity.wire.pages import Again

FORM_FIELD: Final = "form"
KEPT: Final = "kept."
ROWS: Final = 50
_LONGEST: Final = 4_096
_NOW_SECONDS: Final = 45
_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
_NO_PAGE_OF_OURS: Final = FORBIDDEN.saying("This did not come from a page of the console")
_UNKNOWN_DEED: Final = VALIDATION.saying("This page has no such button")
_TITLES: Final = {
    403: "You may not do this",
    404: "There is nothing here",
    412: "Somebody was faster",
    429: "Too many requests",
}


@dataclass(frozen=True, slots=True)
class Visit:
    """One request of somebody who is in."""

    call: Call
    visitor: Visitor
    by: By

    @property
    def rt(self) -> Runtime:
        return self.call.rt

    @property
    def path(self) -> str:
        """Where they are, as a link."""
        return quote(self.call.request.path)

    def typed(self, name: str, *, most: int = _LONGEST) -> str:
        """What was typed into a field of the form, without blanks around it; empty where there is none. Raises Refused(VALIDATION)."""
        return pages.text(self.call, name, most=most).strip()

    def asked(self, name: str) -> str:
        """What the query says; empty where it says nothing. Raises Refused(VALIDATION) for two."""
        values = self.call.query.get(name, [""])
        if len(values) > 1:
            raise Refused(VALIDATION.saying("A query parameter must not be sent twice"), field=name)
        return values[0].strip()

    def part(self) -> Part:
        """The part of a list that the query asks for."""
        return Part(limit=ROWS, after=self.asked("after"))

    def more(self, listed: Listed[Any], **asked: str) -> str:
        """The link to what follows in a list, with the same filters; empty at its end."""
        return self.link(self.path, **asked, after=listed.next) if listed.next else ""

    def link(self, path: str, **query: str) -> str:
        """A link to a page of the console that stays in the tenant that the visitor is looking at."""
        named = {name: value for name, value in {"tenant": self.by.tenant or "", **query}.items() if value}
        return path + (f"?{urlencode(named)}" if named else "")

    def page_of(self, kind: str, name: str) -> str:
        """The link to the page of a user, an application, a tenant or a key pair; empty where there is none."""
        path = PAGES_OF.get(kind)
        known = path is not None and any(one.path.startswith(f"{path}{{") for one in console.endpoints)
        return self.link(f"{path}{quote(name, safe='')}") if known else ""

    def show(self, template: str, **values: Any) -> Reply:
        """A page of the console as an answer."""
        return self.reply(self.rendered(template, **values))

    def reply(self, text: str) -> Reply:
        """A rendered page as an answer."""
        return Reply(raw=text.encode(), content_type=HTML, headers=pages.headers(holds_token=False))

    def rendered(self, template: str, **values: Any) -> str:
        """A page of the console as text; what every page needs is added here."""
        now = self.rt.clock.now()
        shared = {
            "here": self.path,
            "form": self.visitor.form_token,
            "visitor": self.visitor,
            "tenant": self.by.tenant,
            "tenants": () if self.visitor.is_admin else self.visitor.tenants,
            "navigation": self._navigation(),
            "link": self.link,
            "page_of": self.page_of,
            "spoken": lambda moment: spoken(moment, now),
            "exact": exact,
            "told": told,
            "fault": None,
            "done": "",
        }
        return pages.rendered(self.rt, f"console/{template}", **(shared | values))

    def goes_on(self, path: str, **query: str) -> Reply:
        """Send the browser to a page, after a deed."""
        return redirect(self.link(path, **query))

    def require_recent_login(self) -> None:
        """Raise Refused(STALE_LOGIN) unless the visitor signed in a short while ago; the way in is shown then, and the form is kept."""
        self.visitor.caller.require_recent_login(self.rt)

    def _navigation(self) -> list[dict[str, Any]]:
        known = {one.path for one in console.endpoints}
        shown = [one for one in NAVIGATION if one.path in known and (one.for_owners or self.visitor.is_admin)]
        here = max((one.path for one in shown if _lies_at(self.call.request.path, one.path)), key=len, default="")
        return [{"href": self.link(one.path), "label": one.label, "current": one.path == here} for one in shown]


def _lies_at(path: str, entry: str) -> bool:
    """Whether a page belongs to an entry of the navigation: `/console/user/x` does to `/console/users`."""
    return path == entry or (entry != "/console" and path.startswith((f"{entry}/", f"{entry.removesuffix('s')}/")))


# Visits.

_Handler = Callable[[Visit], Reply]


def visited(answer: _Handler) -> Callable[[Call], Reply]:
    """Declare what a page answers to somebody who is in."""
    return _visited(answer, admins=False)


def visited_by_admins(answer: _Handler) -> Callable[[Call], Reply]:
    """Declare what a page answers to an administrator; nothing is there for who owns tenants only."""
    return _visited(answer, admins=True)


def _visited(answer: _Handler, *, admins: bool) -> Callable[[Call], Reply]:
    def answering(call: Call) -> Reply:
        # 1. Is the console for whoever is asking, and does this come from one of its pages?
        require_open(call)
        is_post = call.endpoint.method == "POST"
        if is_post:
            require_own_page(call)
        # 2. Who is it? Somebody whose session is over comes back to here, with what was typed.
        try:
            visit = _enter(call, admins=admins)
        except Refused as refused:
            if refused.problem.code not in _NOT_IN:
                raise
            if not is_post:
                return redirect(f"/console/sign-in?{urlencode({'then': _target(call)})}")
            raise Again(refused, sign_in_page(call, keeping=call.body, then=call.request.path)) from refused
        # 3. The answer, or why there is none.
        try:
            if is_post:
                _require_form_token(visit)
            return answer(visit)
        except Again:
            raise
        except Refused as refused:
            if refused.problem == STALE_LOGIN and is_post:
                page = sign_in_page(call, keeping=call.body, then=call.request.path, visitor=visit.visitor)
                raise Again(refused, page) from refused
            raise _told(visit, refused) from refused

    answering.__doc__ = answer.__doc__
    answering.__name__ = answer.__name__
    return answering


def _require_form_token(visit: Visit) -> None:
    given = visit.call.body.get(FORM_FIELD, "").encode("utf-8", "replace")
    if not hmac.compare_digest(given, visit.visitor.form_token.encode()):
        raise Refused(_NO_PAGE_OF_OURS, detail="the form's token is not this session's")


_NOT_IN: Final = (UNAUTHENTICATED.code, INVALID_TOKEN.code, TOKEN_EXPIRED.code)


def _enter(call: Call, *, admins: bool) -> Visit:
    """The visit of whoever the cookie stands for, counted and with what they may."""
    bearer = bearer_of(call)
    if not bearer:
        raise Refused(UNAUTHENTICATED, detail="no cookie of the console")
    visitor = visiting.visit(call.rt, call.origin, bearer)
    call.identified = visitor.caller
    call.origin = call.origin.proven_by(visitor.caller.credential)
    tenant = call.body.get("tenant", "") or next(iter(call.query.get("tenant", [])), "")
    if visitor.is_admin:
        tenant = ""  # To an administrator a tenant is a filter of lists.
    elif tenant and not visitor.owns(tenant):
        raise Refused(NOT_FOUND, detail="no tenant of this owner")
    by = visiting.by(call.rt, call.origin, visitor, call.limit, tenant=tenant)
    if admins and by.tenant is not None:
        raise Refused(NOT_FOUND, detail="a page for administrators of the whole service")
    return Visit(call, visitor, by)


def _told(visit: Visit, refused: Refused) -> Again:
    """A refusal as a page of the console."""
    status = visit.call.endpoint.shape.status(refused)
    heading = _TITLES.get(status, "That did not work")
    values = {"heading": heading, "text": f"{refused.problem.message}.", "error_id": visit.call.origin.error_id}
    return Again(refused, visit.rendered("message.html", **values))


def require_open(call: Call) -> None:
    """Raise Refused(NOT_FOUND) where the console is not for whoever is asking."""
    settings = call.rt.settings
    if not has_console(settings, call.request):
        raise Refused(NOT_FOUND, detail=f"IDENTITY_CONSOLE is {settings.console}")


def require_own_page(call: Call) -> None:
    """Raise Refused(FORBIDDEN) unless a page of this very origin sent the form (Fetch Metadata; RFC 6454 for browsers without)."""
    site = call.header("sec-fetch-site")
    if site is not None and site != "same-origin":
        raise Refused(
            _NO_PAGE_OF_OURS, detail="Sec-Fetch-Site", evidence={"expected": "same-origin", "seen": site[:40]}
        )
    if site is None and call.header("origin") not in _origins(call):
        evidence = {"expected": sorted(_origins(call)), "seen": (call.header("origin") or "")[:200]}
        raise Refused(_NO_PAGE_OF_OURS, detail="neither Sec-Fetch-Site nor our Origin", evidence=evidence)


def _origins(call: Call) -> set[str]:
    issuer = urlsplit(call.rt.settings.issuer)
    ours = {f"{issuer.scheme}://{issuer.netloc}"}
    # On loopback people type one of several names; the name that they typed is the one that the browser tells.
    if issuer.hostname in _LOOPBACK:
        ours.add(f"http://{call.header('host') or ''}")
    return ours


# The cookie.


def _cookie_name(rt: Runtime) -> str:
    return "__Host-identity" if rt.settings.issuer.startswith("https:") else "identity"


def bearer_of(call: Call) -> str:
    """The bearer in the console's cookie; empty where there is none."""
    name = _cookie_name(call.rt)
    for one in (call.header("cookie") or "").split(";"):
        key, _, value = one.strip().partition("=")
        # Other ports of the loopback set cookies of the same name.
        if key == name and is_well_formed(Kind.CONSOLE, value):
            return value
    return ""


def cookie(rt: Runtime, bearer: str) -> tuple[str, str]:
    """The head field that sets the cookie, or with nothing forgets it. A cookie named `__Host-` has the path `/` (RFC 6265bis)."""
    is_safe = rt.settings.issuer.startswith("https:")
    where = "Path=/; Secure" if is_safe else "Path=/console"
    ends = "" if bearer else "; Max-Age=0"
    return "Set-Cookie", f"{_cookie_name(rt)}={bearer}; {where}; HttpOnly; SameSite=Strict{ends}"


# The way in, from wherever somebody is.


def sign_in_page(
    call: Call,
    *,
    then: str,
    keeping: Mapping[str, str] | None = None,
    visitor: Visitor | None = None,
    **values: Any,
) -> str:
    """The page that asks who somebody is, and keeps where they were going and what they had typed; `visitor`: who signs in again."""
    kept = {name: value for name, value in (keeping or {}).items() if name != FORM_FIELD}
    shared = {
        "then": then,
        "kept": kept,
        "again": visitor is not None,
        "identifier": visitor.caller.alias if visitor else "",
        "challenge": "",
        "factor": "",
        "fault": None,
    }
    return pages.rendered(call.rt, "console/sign_in.html", **(shared | values))


def _target(call: Call) -> str:
    """The page that is asked for, with its query."""
    return quote(call.request.path) + (f"?{call.request.query}" if call.request.query else "")


def redirect(location: str) -> Reply:
    """Have the browser go elsewhere, by GET."""
    return Reply(
        raw=b"", status=303, content_type=HTML, headers=(("Location", location), *pages.headers(holds_token=False))
    )


# Deeds.


@dataclass(frozen=True, slots=True)
class Deed:
    """What a button does. `do` may answer itself, with what is shown once; else the browser goes back to the page, which says `done`.

    `asks`: what is asked before, for what cannot be undone. `recent`: only soon after signing in. `for_owners`: also for a tenant's owner.
    """

    do: Callable[[Visit, str], Reply | None]
    done: str
    asks: str = ""
    button: str = ""
    recent: bool = False
    for_owners: bool = False
    goes_to: str = field(default="")


def perform(visit: Visit, deeds: Mapping[str, Deed], subject: str, *, called: str, show: Callable[..., str]) -> Reply:
    """Do what the form asks for, to `subject`, whose name is `called`; a refusal shows the page again (`show`), with what was wrong."""
    name = visit.typed("deed", most=64)
    deed = deeds.get(name)
    if deed is None or (visit.by.tenant is not None and not deed.for_owners):
        raise Refused(_UNKNOWN_DEED, field="deed", detail="no such deed, or none of an owner's")
    if deed.recent:
        visit.require_recent_login()
    if deed.asks and visit.typed("sure") != "yes":
        asks = deed.asks.format(called=called)
        kept = {key: value for key, value in visit.call.body.items() if key not in (FORM_FIELD, "sure")}
        return visit.show("confirm.html", asks=asks, button=deed.button, kept=kept)
    try:
        answered = deed.do(visit, subject)
    except Again:
        raise
    except Refused as refused:
        if refused.problem.code == "UNAVAILABLE":
            raise
        raise Again(refused, show(fault=fault_of(visit, refused))) from refused
    return answered or visit.goes_on(deed.goes_to or visit.path, done=name)


def said(visit: Visit, deeds: Mapping[str, Deed]) -> str:
    """What the page says of the deed that led to it; words of ours only, whatever the query holds."""
    deed = deeds.get(visit.asked("done"))
    return deed.done if deed else ""


def fault_of(visit: Visit, refused: Refused) -> dict[str, Any]:
    """What a form says of a refusal."""
    return {
        "message": f"{refused.problem.message}.",
        "field": refused.field or "",
        "error_id": visit.call.origin.error_id,
        "code": refused.problem.code,
    }


# Words.


def spoken(moment: datetime | None, now: datetime) -> str:
    """A moment as people say it, from now."""
    if moment is None:
        return "never"
    seconds = (moment - now).total_seconds()
    size = abs(seconds)
    if size < _NOW_SECONDS:
        return "just now" if seconds <= 0 else "in a moment"
    for unit, length, most in (("minute", 60, 60), ("hour", 3_600, 24), ("day", 86_400, 60)):
        count = round(size / length)
        if count < most:
            words = f"{count} {unit}{'' if count == 1 else 's'}"
            return f"{words} ago" if seconds < 0 else f"in {words}"
    return moment.strftime("%Y-%m-%d")


def told(value: Any) -> str:
    """Whatever a check expected or saw, as people read it."""
    if isinstance(value, Mapping):
        return "; ".join(f"{name}: {told(one)}" for name, one in value.items()) or "nothing"
    if isinstance(value, list | tuple):
        return ", ".join(told(one) for one in value) or "none"
    return "nothing" if value in (None, "") else str(value)


def exact(moment: datetime | None) -> str:
    """A moment to the second, in UTC."""
    return "" if moment is None else moment.strftime("%Y-%m-%d %H:%M:%S UTC")
