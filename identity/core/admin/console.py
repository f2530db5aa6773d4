"""Who stands at the console, and what they may do there: an administrator of the service, or the owner of a tenant.

A `Visitor` is read anew with every request. What they may is in the `By` that they get: everything, or one tenant and nothing else, by the
same decisions as the routes of administrators and owners. No page decides it.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Final

from sqlalchemy import select

from identity.ambient import Origin
from identity.canonical import encode_base64url
from identity.core.access import callers, passage
from identity.core.access.callers import Caller
from identity.core.access.passage import Count
from identity.core.admin import users
from identity.core.admin.by import By
from identity.core.people import accounts
from identity.core.people.accounts import ADMIN_ROLE, User, UserInfo
from identity.core.people.tenancy import OWNER_ROLE
from identity.core.signin import console
from identity.core.tokens import sessions
from identity.errors import CONFLICT, NOT_FOUND, Refused
from identity.instruments.limits import Policy
from identity.instruments.opaque import Secret
from identity.runtime import Runtime

_NOBODY: Final = NOT_FOUND.saying("There is no administrator yet: identity user create --role users_admin makes one")
_SEVERAL: Final = CONFLICT.saying("There are several administrators: name the one who signs in")
_NO_PLACE: Final = CONFLICT.saying("That user administers nothing, or may not sign in now")
# The end of a session slides at most this often: reading a page is no write.
_SLIDES_EVERY_SECONDS: Final = 60
_FORM_BYTES: Final = 18


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who stands at the console now; `tenants`: those that they own and can act in, by id."""

    caller: Caller
    tenants: tuple[str, ...]
    form_token: str

    @property
    def is_admin(self) -> bool:
        return self.caller.is_admin

    def owns(self, tenant: str) -> bool:
        return tenant in self.tenants


def visit(rt: Runtime, origin: Origin, bearer: str) -> Visitor:
    """The visitor whose cookie holds this bearer; their session goes on.

    Raises Refused(INVALID_TOKEN), Refused(TOKEN_EXPIRED), and Refused(FORBIDDEN) for who administers nothing any more.
    """
    caller = callers.of_console(rt, bearer)
    owned = passage.tenants_of(rt, caller)
    tenants = tuple(sorted(tenant for tenant, roles in owned.items() if OWNER_ROLE in roles))
    if not caller.is_admin and not tenants:
        raise Refused(console.NO_PLACE, detail="neither an administrator nor an owner now")
    assert caller.session is not None, "a cookie stands for a session"
    session = caller.session.session
    sessions.touch(rt, origin, session, idle_seconds=console.IDLE_SECONDS, at_most_every=_SLIDES_EVERY_SECONDS)
    return Visitor(caller, tenants, _form_token(rt, session.id))


def by(rt: Runtime, origin: Origin, visitor: Visitor, count: Count, *, tenant: str = "", recent: bool = False) -> By:
    """What a visitor may: everything, for an administrator who names no tenant; else one tenant, their first where none is named.

    `recent`: only soon after signing in. Raises as `passage.administer`, and so counts the request.
    """
    caller = visitor.caller
    everything = By(caller.subject, origin)
    if visitor.is_admin and not tenant:
        passage.count_request(caller, "", Policy.STANDARD, count)
        if recent:
            caller.require_recent_login(rt)
        return everything
    named = tenant or visitor.tenants[0]
    passage.administer(rt, origin, caller, named, count, recent=recent, credential=False)
    return everything.within(named)


def link(rt: Runtime, by: By, identifier: str | None) -> tuple[UserInfo, Secret]:
    """A link that signs a user in to the console, once: the one named, or the only administrator. For whoever holds the host.

    Raises Refused(NOT_FOUND), Refused(CONFLICT) where it is not clear who is meant, or for one who administers nothing.
    """
    user = users.find_user(rt, identifier) if identifier else _only_admin(rt)
    if not user.enabled or not user.window.is_open(rt.clock.now()) or not console.administers(rt, user):
        raise Refused(_NO_PLACE, detail="disabled, outside the access window, or without a role for it")
    with by.unit(rt) as unit:
        return user, console.mint_link(rt, unit, user, actor=by.actor)


def _only_admin(rt: Runtime) -> UserInfo:
    with rt.database.reading() as session:
        usable = (User.enabled, accounts.holds_role(ADMIN_ROLE), accounts.window_is_open(rt.clock.now()))
        found = session.scalars(select(User.id).where(*usable).order_by(User.id).limit(2)).all()
    if len(found) != 1:
        raise Refused(_SEVERAL if found else _NOBODY)
    return accounts.get(rt, found[0])


def _form_token(rt: Runtime, session_id: str) -> str:
    """What a form of this session carries, which no other page can know."""
    key = rt.ring.vault.derive("forms of the console")
    return encode_base64url(hmac.digest(key, session_id.encode(), "sha256")[:_FORM_BYTES])
