"""One's own ways to sign in: the authenticator, its recovery codes, and a password.

A newcomer who came by a link finds here what the next sign-in asks for. The seed of an authenticator and recovery codes are shown once.
"""

from __future__ import annotations

from typing import Any, Final

from identity.core.people import accounts
from identity.core.signin import factors, new_password
from identity.core.signin.factors import Factor
from identity.errors import NOT_FOUND, Refused
from identity.instruments.transports import mail_directory
from identity.wire.dialects.console_dialect import Deed, Visit, fault_of, perform, said, visited
from identity.wire.endpoint import Reply
from identity.wire.pages import Again

_TOTP_DIGITS: Final = 6


@visited
def show_you(visit: Visit) -> Reply:
    """Show one's own account."""
    return visit.reply(_rendered(visit))


@visited
def change_you(visit: Visit) -> Reply:
    """Do what the form asks for."""
    caller = visit.visitor.caller
    return perform(visit, DEEDS, caller.subject, called=caller.alias, show=lambda **values: _rendered(visit, **values))


def _rendered(visit: Visit, *, fault: dict[str, Any] | None = None) -> str:
    rt = visit.rt
    user = accounts.get(rt, visit.visitor.caller.subject)
    return visit.rendered(
        "you.html",
        user=user,
        has_totp=factors.is_enrolled(rt, user.id),
        by_link="link" in visit.visitor.caller.amr,
        has_inbox=mail_directory(rt.settings) is not None,
        fault=fault,
        done=said(visit, DEEDS) if not fault else "",
    )


def _enrol(visit: Visit, user_id: str) -> Reply:
    made = factors.enrol(visit.rt, visit.call.origin, accounts.get(visit.rt, user_id))
    return visit.show("enrol.html", seed=made.seed.reveal(), uri=made.uri.reveal(), minutes=made.expires_in // 60)


def _confirm(visit: Visit, user_id: str) -> Reply:
    user = accounts.get(visit.rt, user_id)
    try:
        made = factors.confirm(visit.rt, visit.call.origin, user, _code(visit))
    except Refused as refused:
        # The seed is not shown again; the device has it.
        again = visit.rendered("enrol.html", seed="", uri="", minutes=0, fault=fault_of(visit, refused))
        raise Again(refused, again) from refused
    return visit.show("recovery.html", codes=[code.reveal() for code in made])


def _renew(visit: Visit, user_id: str) -> Reply:
    user = accounts.get(visit.rt, user_id)
    made = factors.renew_recovery_codes(visit.rt, visit.call.origin, user, _code(visit))
    return visit.show("recovery.html", codes=[code.reveal() for code in made])


def _remove(visit: Visit, user_id: str) -> None:
    code = _code(visit)
    factor = Factor.TOTP if len(code) == _TOTP_DIGITS else Factor.RECOVERY
    factors.remove_own(visit.rt, visit.call.origin, accounts.get(visit.rt, user_id), factor=factor, code=code)


def _mail_password(visit: Visit, user_id: str) -> None:
    user = accounts.get(visit.rt, user_id)
    if not user.email:
        raise Refused(NOT_FOUND.saying("You have no address that a link could be mailed to"))
    new_password.forgot(visit.rt, visit.call.origin, user.email)


DEEDS: Final = {
    "enrol": Deed(_enrol, "", recent=True, for_owners=True),
    "confirm": Deed(_confirm, "", recent=True, for_owners=True),
    "renew": Deed(_renew, "", recent=True, for_owners=True),
    "remove": Deed(_remove, "Your authenticator is removed.", recent=True, for_owners=True),
    "password": Deed(_mail_password, "A link to choose a password is on its way to you.", for_owners=True),
}


def _code(visit: Visit) -> str:
    return "".join(visit.typed("code", most=64).split())
