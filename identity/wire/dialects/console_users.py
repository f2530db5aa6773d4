"""The console's users: a list with a prefix to search for, a page for each, and what can be done about them.

To who owns a tenant these are its members, by the use cases of owners: what a member is elsewhere is not shown, and not theirs to change.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from datetime import datetime
from typing import Any, Final

from identity import documents
from identity.core.admin import export, naming, on_behalf, owners, users
from identity.core.clients import keypairs
from identity.core.people import accounts
from identity.core.people.accounts import ADMIN_ROLE
from identity.core.tokens import sessions
from identity.errors import VALIDATION, Refused
from identity.paging import Part
from identity.wire import pages
from identity.wire.dialects.console_dialect import Deed, Visit, fault_of, perform, said, visited, visited_by_admins
from identity.wire.dialects.console_forms import is_stale, typed_again, version, words
from identity.wire.endpoint import Reply
from identity.wire.pages import Again

_STATES: Final = {"enabled": True, "disabled": False}
_MOST: Final = 200


# The list.


@visited
def show_users(visit: Visit) -> Reply:
    """List users, or the members of an owner's tenant."""
    rt, part = visit.rt, visit.part()
    asked = {name: visit.asked(name) for name in ("q", "state", "role")}
    if visit.by.tenant is not None:
        members = owners.list_members(rt, visit.by, part, q=asked["q"] or None)
        return visit.show("members.html", asked=asked, listed=members, more=visit.more(members, q=asked["q"]))
    asked["tenant"] = visit.asked("tenant")
    if asked["state"] not in ("", *_STATES):
        raise Refused(VALIDATION.saying("A state is enabled or disabled"), field="state")
    found = users.list_users(
        rt,
        part,
        enabled=_STATES.get(asked["state"]),
        role=asked["role"] or None,
        tenant=asked["tenant"] or None,
        q=asked["q"] or None,
    )
    return visit.show("users.html", asked=asked, listed=found, more=visit.more(found, **asked), done=said(visit, DEEDS))


# A new one.


@visited_by_admins
def show_new_user(visit: Visit) -> Reply:
    """Show the form of an invitation."""
    return visit.show("new_user.html", filled=defaultdict(str))


@visited_by_admins
def make_user(visit: Visit) -> Reply:
    """Make a user who is mailed a link to choose a password with."""
    fields = ("email", "fullName", "alias", "roles", "tenants")
    filled = {name: visit.typed(name) for name in fields}
    if filled["roles"] or filled["tenants"]:
        visit.require_recent_login()
    try:
        made = users.create_user(
            visit.rt,
            visit.by,
            email=filled["email"],
            full_name=filled["fullName"],
            alias=filled["alias"],
            roles=words(visit, "roles"),
            tenants=_memberships(filled["tenants"]),
            notify=True,
            new_role=visit.typed("newRole") == "yes",
        )
    except Refused as refused:
        raise Again(
            refused, visit.rendered("new_user.html", filled=filled, fault=fault_of(visit, refused))
        ) from refused
    return visit.goes_on(f"/console/user/{made.user_id}", done="made")


# One of them.


@visited
def show_user(visit: Visit) -> Reply:
    """Show a user, or a member of an owner's tenant."""
    return visit.reply(_rendered(visit))


@visited
def change_user(visit: Visit) -> Reply:
    """Do what the form asks for."""
    user_id = visit.call.params["id"]
    if visit.by.tenant is not None:
        called = owners.describe_member(visit.rt, visit.by, user_id).alias
    else:
        called = accounts.get(visit.rt, user_id).alias
    return perform(visit, DEEDS, user_id, called=called, show=lambda **values: _rendered(visit, **values))


@visited_by_admins
def export_user(visit: Visit) -> Reply:
    """Give everything that is held about a person as a file."""
    held = export.gather(visit.rt, visit.call.params["id"])
    raw = json.dumps(documents.person(held), indent=2, ensure_ascii=False).encode()
    name = f"{held.user.info.alias}.json"
    headers = (("Content-Disposition", f'attachment; filename="{name}"'), *pages.headers(holds_token=False))
    return Reply(raw=raw, headers=headers)


def _rendered(visit: Visit, *, fault: dict[str, Any] | None = None) -> str:
    rt, user_id = visit.rt, visit.call.params["id"]
    shared: dict[str, Any] = {"fault": fault, "done": said(visit, DEEDS) if not fault else ""}
    if visit.by.tenant is not None:
        member = owners.describe_member(rt, visit.by, user_id)
        events = naming.newest(rt, visit.by, member.user_id)
        return visit.rendered("member.html", member=member, events=events, typed=typed_again(visit, fault), **shared)
    detail = users.describe_user(rt, user_id)
    return visit.rendered(
        "user.html",
        user=detail,
        is_admin=ADMIN_ROLE in detail.info.roles,
        is_self=detail.info.id == visit.visitor.caller.subject,
        sessions=sessions.listing_of(rt, detail.info.id),
        keypairs=keypairs.listing(rt, Part(limit=_MOST), user=detail.info.id).items,
        events=naming.newest(rt, visit.by, detail.info.id),
        typed=typed_again(visit, fault),
        stale=is_stale(fault),
        **shared,
    )


# What can be done.


def _disable(visit: Visit, user_id: str) -> None:
    users.set_enabled(visit.rt, visit.by, user_id, enabled=False)


def _enable(visit: Visit, user_id: str) -> None:
    users.set_enabled(visit.rt, visit.by, user_id, enabled=True)


def _edit(visit: Visit, user_id: str) -> None:
    users.change_user(
        visit.rt,
        visit.by,
        user_id,
        versions=version(visit),
        full_name=visit.typed("fullName"),
        alias=visit.typed("alias"),
        groups=words(visit, "groups"),
    )


def _set_roles(visit: Visit, user_id: str) -> None:
    insists = visit.typed("newRole") == "yes"
    roles = words(visit, "roles")
    users.change_user(visit.rt, visit.by, user_id, versions=version(visit), roles=roles, new_role=insists)


def _set_window(visit: Visit, user_id: str) -> None:
    bounds = {"starts_at": _moment(visit, "startsAt"), "ends_at": _moment(visit, "endsAt")}
    users.set_access_window(visit.rt, visit.by, user_id, **bounds)


def _end_sessions(visit: Visit, user_id: str) -> None:
    on_behalf.revoke_sessions(visit.rt, visit.by, user=accounts.get(visit.rt, user_id).id)


def _end_session(visit: Visit, _user_id: str) -> None:
    on_behalf.revoke_session(visit.rt, visit.by, visit.typed("session", most=64))


def _revoke_keypair(visit: Visit, _user_id: str) -> None:
    on_behalf.revoke_keypair(visit.rt, visit.by, visit.typed("keypair", most=64))


def _unlock(visit: Visit, user_id: str) -> None:
    on_behalf.unlock(visit.rt, visit.by, user_id)


def _reset_factors(visit: Visit, user_id: str) -> None:
    on_behalf.remove_factors(visit.rt, visit.by, user_id)


def _mail_reset(visit: Visit, user_id: str) -> None:
    on_behalf.send_password_reset(visit.rt, visit.by, user_id)


def _erase(visit: Visit, user_id: str) -> Reply:
    users.erase_user(visit.rt, visit.by, user_id)
    return visit.goes_on("/console/users", done="erase")


def _set_member_roles(visit: Visit, user_id: str) -> None:
    insists = visit.typed("newRole") == "yes"
    owners.set_roles(visit.rt, visit.by, user_id, roles=words(visit, "roles"), new_role=insists)


def _end_membership(visit: Visit, user_id: str) -> Reply:
    owners.end_membership(visit.rt, visit.by, user_id)
    return visit.goes_on("/console/users", done="leave")


DEEDS: Final = {
    "made": Deed(lambda _visit, _user: None, "The user is made, and an invitation is on its way."),
    "edit": Deed(_edit, "Saved."),
    "roles": Deed(_set_roles, "The roles are saved; they hold at once.", recent=True),
    "window": Deed(_set_window, "The access window is saved.", recent=True),
    "enable": Deed(_enable, "The user may sign in again. Sessions that were ended stay ended."),
    "disable": Deed(
        _disable,
        "The user is out: every session has ended.",
        asks="Disable {called}? Every session of theirs ends at once, and none comes back.",
        button="Disable",
        recent=True,
    ),
    "logout": Deed(
        _end_sessions,
        "Every session has ended. The user can sign in again.",
        asks="End every session of {called}? They can sign in again.",
        button="End all sessions",
        recent=True,
    ),
    "end-session": Deed(_end_session, "The session has ended.", recent=True),
    "revoke-keypair": Deed(
        _revoke_keypair,
        "The key pair is gone, and what it had opened has ended.",
        asks="Delete this key pair of {called}, and end what it has opened?",
        button="Delete the key pair",
        recent=True,
    ),
    "unlock": Deed(_unlock, "Failed attempts are forgotten: the user can sign in at once."),
    "reset-mfa": Deed(
        _reset_factors,
        "The authenticator and the recovery codes are gone. The user is told by mail.",
        asks="Take the authenticator and the recovery codes of {called}?",
        button="Take them",
        recent=True,
    ),
    "mail-reset": Deed(_mail_reset, "A link to choose a password is on its way."),
    "erase": Deed(
        _erase,
        "The user is erased; the audit keeps the id.",
        asks="Erase {called} and everything that names them? This cannot be undone.",
        button="Erase",
        recent=True,
    ),
    "member-roles": Deed(_set_member_roles, "The roles are saved; they hold at once.", recent=True, for_owners=True),
    "leave": Deed(
        _end_membership,
        "The membership has ended; the account stays.",
        asks="End the membership of {called}? Their account stays.",
        button="End the membership",
        recent=True,
        for_owners=True,
    ),
}


def _memberships(text: str) -> dict[str, list[str]]:
    """`tenant:role,role` on each line, or apart by blanks."""
    found = {}
    for one in text.split():
        tenant, _, roles = one.partition(":")
        found[tenant] = [role for role in roles.split(",") if role]
    return found


def _moment(visit: Visit, name: str) -> datetime | None:
    text = visit.typed(name, most=64)
    if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text, re.ASCII):
        text += "T00:00:00Z"
    return documents.moment(text, field=name) if text else None
