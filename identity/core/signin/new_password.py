"""Choosing a new password: with the old one, or with a code from a mail when it is forgotten.

Either way every other session ends and the user is told by mail. A reset proves a mailbox, never a factor: it signs nobody in, and
whoever has TOTP is asked for it at the next login as ever.
"""

from __future__ import annotations

from identity.ambient import Origin
from identity.canonical import get_address
from identity.core.mail import outbox
from identity.core.mail.letters import Template
from identity.core.people import accounts
from identity.core.people.accounts import UserInfo
from identity.core.proofs import codes, guesses
from identity.core.proofs.codes import Purpose
from identity.core.record import audit
from identity.core.record.audit import Action
from identity.core.signin import password_proof
from identity.core.tokens import sessions
from identity.errors import INVALID_CODE, Refused
from identity.runtime import Runtime
from identity.storage import Unit


def change(
    rt: Runtime, origin: Origin, user: UserInfo, *, session_id: str, current_password: str, new_password: str
) -> None:
    """Replace a password by its owner, whose other sessions end; `session_id` is the one that stays.

    Raises Refused(INVALID_CREDENTIALS) for a wrong current password, which counts like one at a login, Refused(LOCKED_OUT), and
    Refused(VALIDATION) for a new one that is too weak. The dialect has made sure that the login is recent.
    """
    rt.passwords.check_policy(new_password, about=_words_of(user), field="newPassword")
    proof = password_proof.check_password(rt, origin, user.alias, current_password)
    with proof.guess.held():
        hashed = _hashed(rt, new_password)
    with proof.guess.unit() as unit:
        proof.guess.right(unit)
        password_proof.admit(unit, proof)
        _replace(rt, unit, user, hashed, keep=session_id, how="with the old one")


def forgot(rt: Runtime, origin: Origin, email: str) -> str:
    """Mail a reset code to whoever has verified `email`; the verification id that comes back says nothing about whether anybody has.

    Raises Refused(VALIDATION) for what is no address, Refused(RATE_LIMITED) for the sixth code in ten minutes, known or not.
    """
    address = get_address(email)
    user = accounts.find_by_identifier(rt, address)
    with rt.unit(origin) as unit:
        if user is None or not user.enabled:
            # All that is done for somebody, the event too: time must not tell them apart.
            audit.record(rt, unit, Action.PASSWORD_RESET_ASKED, actor="", known=False)
            subject, values = codes.nobody(rt, address), {"account": "nobody"}
            return codes.issue_nothing(rt, unit, Purpose.RESET, subject=subject, address=address, values=values)
        return send_reset(rt, unit, user, address=address, actor=user.id)


def send_reset(rt: Runtime, unit: Unit, user: UserInfo, *, address: str, actor: str) -> str:
    """Mail a reset code to an address of the user, and return its verification id."""
    audit.record(rt, unit, Action.PASSWORD_RESET_ASKED, actor=actor, target=user.id)
    values = {"account": user.alias} | ({"by": "an administrator"} if actor != user.id else {})
    return codes.issue(rt, unit, Purpose.RESET, subject=user.id, user_id=user.id, address=address, values=values)


def reset(rt: Runtime, origin: Origin, *, verification_id: str, code: str, new_password: str) -> None:
    """Replace a forgotten password by a right code; every session of the user ends.

    Raises Refused(INVALID_CODE) for anything wrong with id, code or user, which counts towards the user's lockouts, Refused(LOCKED_OUT),
    and Refused(VALIDATION) for a weak password, which costs the code nothing.
    """
    rt.passwords.check_policy(new_password, field="newPassword")
    if codes.find_account(rt, Purpose.RESET, verification_id) is None:
        raise Refused(INVALID_CODE, detail="no code that could be tried has this id")
    hashed = _hashed(rt, new_password)
    with guesses.mailed_code(rt, origin, Purpose.RESET, verification_id, code) as (unit, consumed):
        user = accounts.recheck(unit, consumed.user_id or "", instead=INVALID_CODE)
        # Once more with what only the account knows; a refusal here rolls back and gives the code back.
        rt.passwords.check_policy(new_password, about=_words_of(user), field="newPassword")
        _replace(rt, unit, user, hashed, keep="", how="with a code")


def can_reset(rt: Runtime, token: str) -> bool:
    """Whether the link with this token may still be tried. Looking uses nothing up, and tells nothing of whether its code is right."""
    found = codes.in_link(token)
    return found is not None and codes.find_account(rt, Purpose.RESET, found[0]) is not None


def reset_by_link(rt: Runtime, origin: Origin, token: str, *, new_password: str) -> None:
    """`reset` with the verification id and the code of a mailed link."""
    found = codes.in_link(token)
    if found is None:
        raise Refused(INVALID_CODE, detail="no token of ours")
    reset(rt, origin, verification_id=found[0], code=found[1], new_password=new_password)


def _replace(rt: Runtime, unit: Unit, user: UserInfo, password_hash: str, *, keep: str, how: str) -> None:
    accounts.set_password_hash(unit, user.id, password_hash)
    codes.cancel(unit, Purpose.RESET, user.id)
    sessions.revoke_all(rt, unit, user.id, actor=user.id, reason="password changed", keep=keep)
    audit.record(rt, unit, Action.PASSWORD_CHANGED, actor=user.id, how=how)
    if user.email:
        outbox.queue(rt, unit, Template.PASSWORD_CHANGED, to=user.email, values={"account": user.alias})


def _hashed(rt: Runtime, password: str) -> str:
    with rt.passwords.turn():
        return rt.passwords.hash(password)


def _words_of(user: UserInfo) -> tuple[str, ...]:
    return user.alias, user.email.partition("@")[0], user.full_name
