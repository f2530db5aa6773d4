"""Accepting an invitation: as a new person, as somebody who has an account, or as one whose account waits for its first password.

Looking at a link uses nothing up; a link that is not good counts as a failure of the client's address. Whoever has an account proves who
they are, by a session or by password and second factor, and must have the invited address as their own, verified one at that moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from sqlalchemy import select

from identity.ambient import Origin
from identity.core.people import accounts, invitations
from identity.core.people.accounts import Email, UserInfo
from identity.core.people.invitations import Open
from identity.core.people.tenancy import Membership
from identity.core.proofs import attempts
from identity.core.proofs.attempts import ADDRESS, Charge
from identity.core.record import audit
from identity.core.record.audit import Action
from identity.core.signin import factors, new_password, password_proof
from identity.core.tokens import belonging
from identity.errors import FORBIDDEN, INVALID_CODE, MFA_REQUIRED, VALIDATION, Refused
from identity.instruments.limits import address_key
from identity.runtime import Runtime
from identity.storage import Unit

LINK_OVER: Final = INVALID_CODE.saying("This invitation is not right or no longer valid")
ANOTHER_ADDRESS: Final = FORBIDDEN.saying("This invitation is for another address")
_TOTP_DIGITS: Final = 6
_NOT_ASKED: Final = VALIDATION.saying("Whoever has an account signs in; name, alias and password are not asked")


class Asks(Enum):
    """What a reader of the link has to do."""

    ACCOUNT = "make an account: name, alias and password"
    PASSWORD = "choose the first password of their account"
    SIGN_IN = "prove who they are"


@dataclass(frozen=True, slots=True)
class Invited:
    """An open invitation and what it asks of its reader."""

    open: Open
    asks: Asks


@dataclass(frozen=True, slots=True)
class Accepted:
    """Who accepted, and what they are in the tenant now."""

    user_id: str
    tenant: str | None
    roles: tuple[str, ...]


def look(rt: Runtime, origin: Origin, token: str) -> Invited:
    """What a link is about. Raises Refused(INVALID_CODE) alike for every link that is not good, Refused(LOCKED_OUT) after too many such."""
    charge = Charge(ADDRESS, address_key(origin.address))
    attempts.check(rt, (charge,))
    found = invitations.find_open(rt, token)
    if found is None:
        with rt.unit(origin) as unit:
            attempts.fail(rt, unit, (charge,))
        raise Refused(LINK_OVER, detail="no open invitation has this token")
    owner = accounts.find_by_identifier(rt, found.address)
    if found.user_id is not None and owner is not None and owner.id == found.user_id and not owner.has_password:
        return Invited(found, Asks.PASSWORD)
    return Invited(found, Asks.SIGN_IN if owner is not None or found.user_id is not None else Asks.ACCOUNT)


def accept(
    rt: Runtime,
    origin: Origin,
    token: str,
    *,
    user_id: str | None,
    full_name: str | None = None,
    alias: str | None = None,
    password: str | None = None,
) -> Accepted:
    """Accept by a link, as the user who is signed in, or (None) as nobody yet.

    Raises Refused(INVALID_CODE) for a link that is not good any more, Refused(FORBIDDEN) for another's session, Refused(VALIDATION) for
    what is missing or not asked, Refused(CONFLICT) for an alias in use; only success uses the invitation up.
    """
    invited = look(rt, origin, token)
    given = {"fullName": full_name, "alias": alias, "password": password}
    if user_id is not None or invited.asks is Asks.SIGN_IN:
        _refuse_given(given, ())
        if user_id is None:
            raise Refused(ANOTHER_ADDRESS, detail="somebody has the address; nobody is signed in")
        with rt.unit(origin) as unit:
            return _join(rt, unit, invited.open, user_id)
    if invited.asks is Asks.PASSWORD:
        _refuse_given(given, ("password",))
        return _activate(rt, origin, invited.open, password=_needed(password, "password"))
    return _register(
        rt,
        origin,
        invited.open,
        full_name=_needed(full_name, "fullName"),
        alias=_needed(alias, "alias"),
        password=_needed(password, "password"),
    )


def accept_by_password(rt: Runtime, origin: Origin, token: str, *, password: str, code: str | None) -> Accepted:
    """Accept by a link as whoever has the invited address, proven by their password and, where they have one, their second factor.

    Raises as `accept`, and what a wrong password or code raises everywhere; MFA_REQUIRED where a code is missing.
    """
    invited = look(rt, origin, token)
    proof = password_proof.check_password(rt, origin, invited.open.address, password)
    if not password_proof.has_second_factor(rt, proof):
        with proof.guess.unit() as unit:
            proof.guess.right(unit)
            user = password_proof.admit(unit, proof)
            factors.refuse_enrolled(unit, user.id)
            return _join(rt, unit, invited.open, user.id)
    if not code:
        password_proof.waste(proof)
        raise Refused(MFA_REQUIRED, detail="enrolled in TOTP, no code given")
    is_totp = len(code) == _TOTP_DIGITS
    proof.guess.add_second_factor(proof.user.id)
    with proof.guess.unit() as unit:
        take = factors.take_totp if is_totp else factors.take_recovery_code
        right = take(rt, unit, proof.user.id, code)
        totp = code if is_totp else None
        factors.settle(rt, unit, proof.user.id, proof.guess, right=right, totp=totp)
        user = password_proof.admit(unit, proof)
        return _join(rt, unit, invited.open, user.id)


def mail_password_link(rt: Runtime, origin: Origin, token: str) -> None:
    """Mail a password reset to whoever has the invited address: for people who never chose one. See `new_password.forgot`."""
    new_password.forgot(rt, origin, look(rt, origin, token).open.address)


def _join(rt: Runtime, unit: Unit, opened: Open, user_id: str) -> Accepted:
    """Make a proven user a member. What is checked of them comes first: a refusal must not keep a used-up invitation."""
    user = accounts.recheck(unit, user_id, instead=ANOTHER_ADDRESS)
    _require_address(unit, user, opened)
    invitations.spend(rt, unit, opened, actor=user.id)
    return Accepted(user.id, opened.tenant, _put(rt, unit, opened, user.id))


def _register(rt: Runtime, origin: Origin, opened: Open, *, full_name: str, alias: str, password: str) -> Accepted:
    rt.passwords.check_policy(password, about=(alias, opened.address.partition("@")[0], full_name))
    with rt.passwords.turn():
        hashed = rt.passwords.hash(password)
    with rt.unit(origin) as unit:
        invitations.spend(rt, unit, opened, actor="")
        user_id = accounts.create(
            rt,
            unit,
            email=opened.address,
            full_name=full_name,
            alias=alias,
            password_hash=hashed,
            verified=True,
        )
        return Accepted(user_id, opened.tenant, _put(rt, unit, opened, user_id))


def _activate(rt: Runtime, origin: Origin, opened: Open, *, password: str) -> Accepted:
    user = accounts.get(rt, opened.user_id or "")
    rt.passwords.check_policy(password, about=(user.alias, opened.address.partition("@")[0], user.full_name))
    with rt.passwords.turn():
        hashed = rt.passwords.hash(password)
    with rt.unit(origin) as unit:
        user = accounts.recheck(unit, user.id, instead=ANOTHER_ADDRESS)
        if user.has_password:
            raise Refused(ANOTHER_ADDRESS, detail="a password was chosen meanwhile")
        _require_address(unit, user, opened)
        invitations.spend(rt, unit, opened, actor=user.id)
        accounts.set_password_hash(unit, user.id, hashed)
        audit.record(rt, unit, Action.PASSWORD_CHANGED, actor=user.id, how="by an invitation")
    return Accepted(user.id, None, ())


def _put(rt: Runtime, unit: Unit, opened: Open, user_id: str) -> tuple[str, ...]:
    """The roles in the tenant from now on: those of the invitation, and those that a member had already."""
    if opened.tenant is None:
        return ()
    row = unit.session.get(Membership, (user_id, opened.tenant))
    roles: Sequence[str] = (*opened.roles, *(row.roles if row is not None else ()))
    return belonging.put(rt, unit, opened.tenant, user_id, roles=roles, actor=user_id)


def _require_address(unit: Unit, user: UserInfo, opened: Open) -> None:
    """Refuse (FORBIDDEN) whoever does not have the invited address as their own, verified one now."""
    theirs = select(Email.id).where(Email.user_id == user.id, Email.address == opened.address, Email.verified)
    if unit.execute(theirs.with_for_update()).first() is None or opened.user_id not in (None, user.id):
        raise Refused(ANOTHER_ADDRESS, detail="the user does not have the invited address", evidence={"user": user.id})


def _refuse_given(given: dict[str, str | None], asked: Sequence[str]) -> None:
    for name, value in given.items():
        if value is not None and name not in asked:
            raise Refused(_NOT_ASKED, field=name)


def _needed(value: str | None, name: str) -> str:
    if value is None:
        raise Refused(VALIDATION.saying(f"Missing {name} request body parameter"), field=name)
    return value
