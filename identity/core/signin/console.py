"""Signing in to the console: by password and second factor, always, or by a link that whoever holds the host has printed.

What comes of it is a session of the kind `console`, shown as a bearer of a kind of its own: it opens the console and nothing else. Only
those who administer something get one, and what they administer is read anew with every request (`admin.console`).
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

from identity.ambient import Origin
from identity.core.clients.applications import standard_client
from identity.core.people import tenancy
from identity.core.people.accounts import ADMIN_ROLE, UserInfo
from identity.core.people.tenancy import OWNER_ROLE
from identity.core.proofs import attempts, guesses
from identity.core.proofs.attempts import ADDRESS, Charge
from identity.core.signin import challenges, password_proof
from identity.core.signin.challenges import Issued, Linked
from identity.core.signin.factors import Factor
from identity.core.tokens import sessions
from identity.core.tokens.sessions import Live, Opened
from identity.errors import FORBIDDEN, INVALID_CODE, INVALID_TOKEN, TOKEN_EXPIRED, Refused
from identity.instruments.limits import address_key
from identity.instruments.opaque import Kind, Secret
from identity.runtime import Runtime
from identity.storage import Unit

KIND: Final = "console"
IDLE_SECONDS: Final = 1_800
ABSOLUTE_SECONDS: Final = 28_800
LINK_SECONDS: Final = 600
NO_PLACE: Final = FORBIDDEN.saying("This account administers nothing here")
LINK_OVER: Final = INVALID_CODE.saying("This link is not right or no longer valid")
_LINK: Final = "console link"
_TOTP_DIGITS: Final = 6


def administers(rt: Runtime, user: UserInfo) -> bool:
    """Whether the user has anything to do in the console: administers the service, or owns a tenant that is enabled."""
    held = tenancy.memberships_of(rt, user.id).roles()
    return ADMIN_ROLE in user.roles or any(OWNER_ROLE in roles for roles in held.values())


def begin(rt: Runtime, origin: Origin, *, identifier: str, password: str) -> Issued:
    """The first step: a right password of somebody who administers something. The second is asked whatever the settings say.

    Raises what `check_password` raises, Refused(NO_PLACE) to whoever has the right password of anybody else.
    """
    proof = password_proof.check_password(rt, origin, identifier, password)
    with proof.guess.held():
        may_enter = administers(rt, proof.user)
    if not may_enter:
        password_proof.waste(proof)
        raise Refused(NO_PLACE, detail="neither an administrator nor an owner")
    with proof.guess.unit() as unit:
        proof.guess.right(unit)
        user = password_proof.admit(unit, proof)
        client, resource = standard_client(rt), rt.settings.default_audience
        return challenges.issue(rt, unit, user, handout=KIND, client_id=client, resource=resource)


def complete(rt: Runtime, origin: Origin, *, token: str, code: str, instead_of: str = "") -> Opened:
    """The second step, by the code that was asked for or a recovery code. It ends the console session whose bearer is `instead_of`.

    Raises Refused(INVALID_CODE) for everything wrong alike, Refused(LOCKED_OUT).
    """
    pending = challenges.get(rt, token, handout=KIND)
    is_recovery = pending.factor is Factor.TOTP and len(code) != _TOTP_DIGITS
    before = _live(rt, instead_of)
    guess = guesses.at_code(rt, origin, pending.user_id)
    with guess.unit() as unit:
        factor = Factor.RECOVERY if is_recovery else None
        answered = challenges.answer(rt, unit, pending, guess, code=code, factor=factor)
        if before is not None:
            sessions.revoke(rt, unit, before.session.id, actor=answered.user.id, reason="signed in again")
        return _open(rt, unit, answered.user, amr=answered.amr)


# Links, for who has no second factor yet, or has lost it, on a host that somebody holds.


def mint_link(rt: Runtime, unit: Unit, user: UserInfo, *, actor: str) -> Secret:
    """The token of a link that signs the user in, once, within ten minutes. See `admin.console.link`."""
    return challenges.issue_link(rt, unit, user, handout=_LINK, seconds=LINK_SECONDS, actor=actor)


def look(rt: Runtime, origin: Origin, token: str) -> datetime:
    """Until when a link is good. Looking uses nothing up; a wrong link is a failure of the client's address (INVALID_CODE, LOCKED_OUT)."""
    return _linked(rt, origin, token).expires_at


def follow(rt: Runtime, origin: Origin, token: str, *, instead_of: str = "") -> Opened:
    """Sign in by a link. Raises Refused(INVALID_CODE) alike for every link that is not good, Refused(LOCKED_OUT)."""
    linked = _linked(rt, origin, token)
    before = _live(rt, instead_of)
    with rt.unit(origin) as unit:
        user = challenges.spend_link(unit, linked)
        if before is not None:
            sessions.revoke(rt, unit, before.session.id, actor=user.id, reason="signed in again")
        return _open(rt, unit, user, amr=("link",))


def sign_out(rt: Runtime, origin: Origin, bearer: str) -> None:
    """End the console session of a bearer; one that is over already stays over."""
    before = _live(rt, bearer)
    if before is not None:
        with rt.unit(origin) as unit:
            sessions.revoke(rt, unit, before.session.id, actor=before.user_id, reason="signed out")


def _linked(rt: Runtime, origin: Origin, token: str) -> Linked:
    charge = Charge(ADDRESS, address_key(origin.address))
    attempts.check(rt, (charge,))
    linked = challenges.find_link(rt, token, handout=_LINK)
    if linked is None:
        with rt.unit(origin) as unit:
            attempts.fail(rt, unit, (charge,))
        raise Refused(LINK_OVER, detail="no open link has this token")
    return linked


def _live(rt: Runtime, bearer: str) -> Live | None:
    """The console session of a bearer, if it is good now."""
    try:
        return sessions.find_live_bearer(rt, bearer, Kind.CONSOLE) if bearer else None
    except Refused as refused:
        # Not to know is no reason to say that it has ended.
        if refused.problem.code not in (INVALID_TOKEN.code, TOKEN_EXPIRED.code):
            raise
        return None


def _open(rt: Runtime, unit: Unit, user: UserInfo, *, amr: tuple[str, ...]) -> Opened:
    return sessions.open_session(
        rt,
        unit,
        user,
        kind=KIND,
        amr=amr,
        client_id=standard_client(rt),
        resource=rt.settings.default_audience,
        idle_seconds=IDLE_SECONDS,
        absolute_seconds=ABSOLUTE_SECONDS,
        with_bearer=True,
        bearer_kind=Kind.CONSOLE,
    )
