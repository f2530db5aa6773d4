"""Signing a user in: from a proven password (and second factor) to a session, for every dialect.

The rule that no route accepts less than a user's factors is kept here and nowhere else. A dialect says what it hands out at the end;
one login in two steps is `begin` or `sign_in`, then `complete`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from identity.ambient import Origin
from identity.core.clients.applications import standard_client
from identity.core.people.accounts import UserInfo
from identity.core.proofs import guesses
from identity.core.signin import challenges, factors, password_proof
from identity.core.signin.challenges import Issued
from identity.core.signin.factors import Factor
from identity.core.signin.password_proof import PasswordProof
from identity.core.tokens import sessions
from identity.core.tokens.claims import AccessToken, resource_of
from identity.core.tokens.refresh import turn
from identity.core.tokens.sessions import Opened
from identity.errors import MFA_REQUIRED, Refused
from identity.instruments.opaque import Secret
from identity.runtime import Runtime
from identity.storage import Unit


class Handout(StrEnum):
    """What a login opens: a day's token, or an hour's token with a refresh token. Also the kind of its session."""

    DAY = "token"
    REFRESHABLE = "login"


@dataclass(frozen=True, slots=True)
class Grant:
    """A user who is in, and what they carry away."""

    user: UserInfo
    access: AccessToken
    refresh: Secret | None


def user_resource(rt: Runtime, origin: str | None) -> str:
    """The audience that a login's `Origin` header names, or the default. Raises Refused(VALIDATION) or Refused(FORBIDDEN)."""
    settings = rt.settings
    return resource_of(
        origin, allowed=settings.origins, required=settings.require_origin, fallback=settings.default_audience
    )


def by_password(
    rt: Runtime, origin: Origin, *, identifier: str, password: str, totp_code: str | None, resource: str
) -> AccessToken:
    """A day's token for a right password, and a right TOTP code where the user has TOTP (else MFA_REQUIRED)."""
    proof = password_proof.check_password(rt, origin, identifier, password)
    if not password_proof.has_second_factor(rt, proof):
        return _grant(rt, proof, handout=Handout.DAY, resource=resource).access
    if totp_code is None:
        password_proof.waste(proof)
        raise Refused(MFA_REQUIRED, detail="enrolled in TOTP, no code given")
    proof.guess.add_second_factor(proof.user.id)
    with proof.guess.unit() as unit:
        # The code first: a wrong one counts at the password too, so that nobody who knows it guesses codes for nothing.
        right = factors.take_totp(rt, unit, proof.user.id, totp_code)
        factors.settle(rt, unit, proof.user.id, proof.guess, right=right, totp=totp_code)
        user = password_proof.admit(unit, proof)
        opened = _open(rt, unit, user, Handout.DAY, amr=("pwd", "otp"), resource=resource)
    return _hand_out(rt, user, opened, Handout.DAY).access


def sign_in(rt: Runtime, origin: Origin, *, identifier: str, password: str, resource: str) -> Issued | Grant:
    """The first step of a login that may have one only: a user without TOTP is in at once where `IDENTITY_SECOND_FACTOR=enrolled`."""
    proof = password_proof.check_password(rt, origin, identifier, password)
    if rt.settings.second_factor == "enrolled" and not password_proof.has_second_factor(rt, proof):
        return _grant(rt, proof, handout=Handout.REFRESHABLE, resource=resource)
    return _challenge(
        rt,
        proof,
        handout=Handout.REFRESHABLE,
        client_id=standard_client(rt),
        resource=resource,
        allows_fixed=False,
    )


def begin(
    rt: Runtime,
    origin: Origin,
    *,
    identifier: str,
    password: str,
    handout: Handout,
    client_id: str,
    resource: str,
    allows_fixed: bool,
) -> Issued:
    """The first step of a login that always has two. Raises what `password_proof.check_password` and `challenges.issue` raise."""
    proof = password_proof.check_password(rt, origin, identifier, password)
    return _challenge(rt, proof, handout=handout, client_id=client_id, resource=resource, allows_fixed=allows_fixed)


def complete(
    rt: Runtime, origin: Origin, *, token: str, handout: Handout, code: str, factor: Factor | None = None
) -> Grant:
    """The second step: a right code for a pending challenge of the same handout.

    `factor` says what the code is; None: whatever the challenge asks for. Raises Refused(INVALID_CODE) for everything wrong with challenge,
    code or user alike, Refused(LOCKED_OUT) during a lockout.
    """
    pending = challenges.get(rt, token, handout=handout)
    guess = guesses.at_code(rt, origin, pending.user_id)
    with guess.unit() as unit:
        answered = challenges.answer(rt, unit, pending, guess, code=code, factor=factor)
        opened = _open(
            rt,
            unit,
            answered.user,
            handout,
            amr=answered.amr,
            resource=answered.resource,
            client_id=answered.client_id,
        )
    return _hand_out(rt, answered.user, opened, handout)


def refresh(rt: Runtime, origin: Origin, token: str) -> tuple[AccessToken, Secret]:
    """A new hour's token and the successor of a refresh token; see `refresh.turn`."""
    with rt.unit(origin) as unit:
        user, session, successor = turn(rt, unit, token)
    return sessions.token_for(
        rt, sessions.live_of(rt, user, session), seconds=rt.settings.access_token_seconds
    ), successor


def _grant(rt: Runtime, proof: PasswordProof, *, handout: Handout, resource: str) -> Grant:
    with proof.guess.unit() as unit:
        proof.guess.right(unit)
        user = password_proof.admit(unit, proof)
        factors.refuse_enrolled(unit, user.id)
        opened = _open(rt, unit, user, handout, amr=("pwd",), resource=resource)
    return _hand_out(rt, user, opened, handout)


def _challenge(
    rt: Runtime,
    proof: PasswordProof,
    *,
    handout: Handout,
    client_id: str,
    resource: str,
    allows_fixed: bool,
) -> Issued:
    with proof.guess.unit() as unit:
        proof.guess.right(unit)
        user = password_proof.admit(unit, proof)
        return challenges.issue(
            rt, unit, user, handout=handout, client_id=client_id, resource=resource, allows_fixed=allows_fixed
        )


def _open(
    rt: Runtime,
    unit: Unit,
    user: UserInfo,
    handout: Handout,
    *,
    amr: Sequence[str],
    resource: str,
    client_id: str | None = None,
) -> Opened:
    settings, is_day = rt.settings, handout is Handout.DAY
    return sessions.open_session(
        rt,
        unit,
        user,
        kind=handout,
        amr=amr,
        client_id=client_id or standard_client(rt),
        resource=resource,
        idle_seconds=settings.user_token_seconds if is_day else settings.refresh_idle_seconds,
        absolute_seconds=settings.user_token_seconds if is_day else settings.session_absolute_seconds,
        with_refresh=not is_day,
    )


def _hand_out(rt: Runtime, user: UserInfo, opened: Opened, handout: Handout) -> Grant:
    seconds = rt.settings.user_token_seconds if handout is Handout.DAY else rt.settings.access_token_seconds
    access = sessions.token_for(
        rt, sessions.live_of(rt, user, opened.session), seconds=seconds, at=opened.session.created_at
    )
    return Grant(user, access, opened.refresh)
