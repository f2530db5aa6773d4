"""The console's key pairs: a list, a page for each with what it may and what it touched, and what can be done about them.

For administrators, with what the command line lets them do. A secret is on the page that answers a rotation, and never again.
"""

from __future__ import annotations

from typing import Any, Final

from identity.core.admin import incidents, naming, on_behalf, users
from identity.core.admin.incidents import Kind
from identity.core.clients import keypairs
from identity.errors import NOT_FOUND, VALIDATION, Refused
from identity.wire.dialects.console_dialect import Deed, Visit, perform, said, visited_by_admins
from identity.wire.endpoint import Reply

_GRACES: Final = {"now": 0, "hour": 3_600, "day": 86_400}


@visited_by_admins
def show_keypairs(visit: Visit) -> Reply:
    """List key pairs: all, those of a user, or those whose name or key begins so."""
    rt, asked = visit.rt, {name: visit.asked(name) for name in ("q", "user")}
    user = None
    if asked["user"]:
        try:
            user = users.find_user(rt, asked["user"]).id
        except Refused as refused:
            raise Refused(NOT_FOUND.saying("There is no such user"), field="user", cause=refused) from refused
    listed = keypairs.listing(rt, visit.part(), user=user, q=asked["q"] or None)
    names = naming.names(rt, (one.user_id for one in listed.items))
    more = visit.more(listed, **asked)
    return visit.show("keypairs.html", asked=asked, listed=listed, names=names, more=more, done=said(visit, DEEDS))


@visited_by_admins
def show_keypair(visit: Visit) -> Reply:
    """Show a key pair."""
    return visit.reply(_rendered(visit))


@visited_by_admins
def change_keypair(visit: Visit) -> Reply:
    """Do what the form asks for."""
    pair = keypairs.get(visit.rt, visit.call.params["id"])
    return perform(visit, DEEDS, pair.id, called=pair.name, show=lambda **values: _rendered(visit, **values))


def _rendered(visit: Visit, *, fault: dict[str, Any] | None = None) -> str:
    rt, pair = visit.rt, keypairs.get(visit.rt, visit.call.params["id"])
    return visit.rendered(
        "keypair.html",
        pair=pair,
        owner=naming.names(rt, [pair.user_id])[pair.user_id],
        is_own=pair.user_id == visit.visitor.caller.subject,
        touched=incidents.describe(rt, Kind.KEY, pair.id).touched,
        events=naming.newest(rt, visit.by, pair.id),
        fault=fault,
        done=said(visit, DEEDS) if not fault else "",
    )


# What can be done.


def _rotate(visit: Visit, key_id: str) -> Reply:
    grace = _GRACES.get(visit.typed("ends", most=16))
    if grace is None:
        raise Refused(VALIDATION.saying("Say when the old secret ends"), field="ends")
    pair, secret, until = on_behalf.rotate_keypair(visit.rt, visit.by, key_id, grace_seconds=grace)
    return visit.show(
        "keypair_secret.html",
        pair=pair,
        secret=secret.reveal(),
        until=until if grace else None,
        issuer=visit.rt.settings.issuer,
        back=visit.link(f"/console/keypair/{pair.id}", done="copied"),
    )


def _revoke(visit: Visit, key_id: str) -> Reply:
    on_behalf.revoke_keypair(visit.rt, visit.by, key_id)
    return visit.goes_on("/console/keypairs", done="revoke")


def _contain(visit: Visit, key_id: str) -> Reply:
    incidents.contain(visit.rt, visit.by, Kind.KEY, key_id)
    return visit.goes_on("/console/keypairs", done="contain")


DEEDS: Final = {
    "copied": Deed(lambda _visit, _key: None, "The secret is not shown again."),
    "rotate": Deed(_rotate, "", recent=True),
    "revoke": Deed(
        _revoke,
        "The key pair is gone, and what it had opened has ended.",
        asks="Delete the key pair {called}, and end what it has opened?",
        button="Delete the key pair",
        recent=True,
    ),
    "contain": Deed(
        _contain,
        "The key pair and everything that it had opened have ended, and its owner is told by mail.",
        asks="Has the key pair {called} leaked? It ends with everything that it opened, and its owner is told.",
        button="It leaked: end it",
        recent=True,
    ),
}
