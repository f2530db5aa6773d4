"""Signing in by a code that is mailed: a session that waits, and what makes it usable.

Asking answers alike, at the same cost, for an address that somebody has, that nobody has, or whose user may not sign in; only
the first gets a mail. A user with a second factor needs it here too, beside the emailed code.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from identity.ambient import Origin
from identity.canonical import get_address
from identity.core.clients import applications
from identity.core.mail.letters import Template
from identity.core.people import accounts, addresses
from identity.core.people.accounts import UserInfo
from identity.core.proofs import codes, guesses
from identity.core.proofs.codes import Purpose
from identity.core.signin import factors
from identity.core.signin.factors import Factor
from identity.core.tokens import sessions
from identity.core.tokens.sessions import Opened
from identity.errors import (
    INVALID_CODE,
    INVALID_CREDENTIALS,
    INVALID_TOKEN,
    MFA_REQUIRED,
    NOT_FOUND,
    VALIDATION,
    Refused,
)
from identity.runtime import Runtime
from identity.storage import Unit

KIND: Final = "session"


@dataclass(frozen=True, slots=True)
class Waiting:
    """A session whose bearer works once the code, if one was mailed, has come back with `verification_id`."""

    opened: Opened
    verification_id: str


def begin(rt: Runtime, origin: Origin, address: str, *, kind: str = KIND) -> Waiting:
    """A session that waits for the code which was mailed to `address`. Raises Refused(VALIDATION), Refused(RATE_LIMITED)."""
    canonical = get_address(address)
    user = accounts.find_by_address(rt, canonical)
    if user is not None and not (user.enabled and user.window.is_open(rt.clock.now())):
        user = None
    with rt.unit(origin) as unit:
        return open_waiting(rt, unit, user, canonical, kind=kind, resource=rt.settings.default_audience)


def open_waiting(
    rt: Runtime,
    unit: Unit,
    user: UserInfo | None,
    address: str,
    *,
    kind: str = KIND,
    resource: str,
    instead: Template | None = None,
) -> Waiting:
    """A waiting session of `user`, who gets the code at `address`, a canonical one.

    `user` None: one of nobody. `instead`: a letter that goes to the address in place of the code, so the session never works.
    """
    opened = sessions.open_session(
        rt,
        unit,
        user,
        kind=_clean_kind(kind),
        amr=("email",),
        client_id=applications.standard_client(rt),
        resource=resource,
        idle_seconds=rt.settings.session_idle_seconds,
        absolute_seconds=rt.settings.session_absolute_seconds,
        verified=False,
        with_bearer=True,
    )
    subject, values = opened.session.id, {"account": user.alias if user else "nobody"}
    if user is None or instead is not None:
        verification_id = codes.issue_nothing(
            rt, unit, Purpose.SESSION, subject=subject, address=address, values=values, instead=instead
        )
    else:
        verification_id = codes.issue(
            rt, unit, Purpose.SESSION, subject=subject, user_id=user.id, address=address, values=values
        )
    return Waiting(opened, verification_id)


def complete(
    rt: Runtime,
    origin: Origin,
    verification_id: str,
    code: str,
    *,
    totp_code: str | None = None,
    recovery_code: str | None = None,
) -> None:
    """Make a waiting session usable: the emailed code is right, and so is the second factor of a user who has one.

    Wrong guesses at either take one of the code's five tries and count towards the lockouts of the account. A right code without the
    second factor is refused with MFA_REQUIRED and stays good. The user is looked at again: who was disabled meanwhile is not let in.
    """
    account = codes.find_account(rt, Purpose.SESSION, verification_id)
    if account is None:
        raise Refused(INVALID_CODE, detail="no code that could be tried has this id")
    guess = guesses.at_code(rt, origin, account, by_anybody=True)
    if totp_code is not None or recovery_code is not None:
        guess.add_second_factor(account)
    with guess.unit() as unit:
        # 1. The emailed code.
        with guesses.unless_wrong(guess, unit, signs_in=True):
            consumed = codes.attempt(rt, unit, Purpose.SESSION, verification_id, code)
        # 2. The second factor, as enrolled in this very moment.
        amr: tuple[str, ...] = ("email",)
        if factors.factor_of(rt, unit, account, allows_fixed=False) is Factor.TOTP:
            if totp_code is None and recovery_code is None:
                raise Refused(MFA_REQUIRED, detail="enrolled in TOTP, no code given")
            right = (
                factors.take_totp(rt, unit, account, totp_code)
                if totp_code is not None
                else factors.take_recovery_code(rt, unit, account, recovery_code or "")
            )
            factors.settle(rt, unit, account, guess, right=right, totp=totp_code)
            amr = ("email", "otp")
        else:
            guess.right(unit)
        # 3. Both are right. The session comes last: a refusal that keeps what was written must not keep an open door.
        codes.spend(unit, verification_id)
        with _as_a_code_that_is_over():
            accounts.recheck(unit, account)
            addresses.mark_proven(rt, unit, account, consumed.address, actor=account)
            sessions.mark_proven(rt, unit, consumed.subject, amr=amr)


@contextmanager
def _as_a_code_that_is_over() -> Iterator[None]:
    """Refuse a user or a session that is gone by now in the words for a code that is."""
    try:
        yield
    except Refused as refused:
        if refused.problem not in (INVALID_CREDENTIALS, INVALID_TOKEN, NOT_FOUND):
            raise
        raise Refused(INVALID_CODE, detail=refused.detail) from refused


def _clean_kind(kind: str) -> str:
    word = " ".join(kind.split())
    if not 1 <= len(word) <= 64 or not word.isprintable():
        raise Refused(VALIDATION.saying("A kind has 1 to 64 printable characters"), field="kind")
    return word
