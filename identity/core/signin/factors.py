"""Second factors: TOTP with a memory of its steps, recovery codes, and the one-time code that an administrator fixes for a user.

A guess at a factor is reserved before it is looked at and settled in the unit that looked: it counts towards the same lockouts as a
wrong password, and towards a budget of its own for the day. Emailed codes are `codes`' matter; here they are only a name.
"""

from __future__ import annotations

import base64
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

import pyotp
from pyotp.exceptions import OTPVerificationError
from sqlalchemy import BigInteger, ForeignKey, LargeBinary, bindparam, delete, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, Session, mapped_column

from identity.ambient import Origin, later
from identity.columns import Instant
from identity.core.keeping import Keeping
from identity.core.mail import outbox
from identity.core.mail.letters import Template
from identity.core.people.accounts import UserInfo
from identity.core.proofs import guesses
from identity.core.proofs.guesses import Guess
from identity.core.record import audit
from identity.core.record.audit import Action
from identity.errors import CONFLICT, FORBIDDEN, INVALID_CODE, MFA_REQUIRED, NOT_FOUND, VALIDATION, Refused
from identity.instruments.opaque import Secret
from identity.runtime import Runtime
from identity.storage import Base, Prepared, Unit

ENROL_SECONDS: Final = 600
RECOVERY_CODES: Final = 10
_SEED_BYTES: Final = 20
_RECOVERY_BYTES: Final = 10
_SIX_DIGITS: Final = re.compile(r"[0-9]{6}", re.ASCII)
_RECOVERY_CODE: Final = re.compile(r"[a-z2-7]{16}", re.ASCII)
_GROUPING: Final = re.compile(r"[\s\u2010-\u2015-]")
_FIXED_OTP: Final = re.compile(r"[0-9A-Za-z]{6,64}", re.ASCII)


class Factor(StrEnum):
    """What can be asked of a user beside the password, in the words of the wire; RECOVERY stands in for TOTP."""

    TOTP = "TOTP"
    EMAIL = "EMAIL"
    FIXED = "FIXED"
    RECOVERY = "RECOVERY"


class Totp(Base):
    """A user's authenticator: pending until its first right code."""

    __tablename__ = "totp"

    user_id: Mapped[str] = mapped_column(ForeignKey("user_account.id", ondelete="CASCADE"), primary_key=True)
    sealed: Mapped[bytes] = mapped_column(LargeBinary)
    confirmed_at: Mapped[datetime | None] = mapped_column(Instant)
    last_step: Mapped[int] = mapped_column(BigInteger, default=0)
    created_at: Mapped[datetime] = mapped_column(Instant)


class RecoveryCode(Base):
    """A recovery code that has not been used. Using one deletes it."""

    __tablename__ = "recovery_code"

    digest: Mapped[bytes] = mapped_column(LargeBinary(32), primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("user_account.id", ondelete="CASCADE"), index=True)


class FixedOtp(Base):
    """The one-time code that an administrator fixed for a user, as a keyed hash."""

    __tablename__ = "fixed_otp"

    user_id: Mapped[str] = mapped_column(ForeignKey("user_account.id", ondelete="CASCADE"), primary_key=True)
    digest: Mapped[bytes] = mapped_column(LargeBinary(32))
    created_at: Mapped[datetime] = mapped_column(Instant)


@dataclass(frozen=True, slots=True)
class Enrolment:
    """A new authenticator's seed on its way into the user's device; it counts only once confirmed."""

    seed: Secret
    uri: Secret
    expires_in: int


_CONFIRMED = Prepared(
    select(Totp.confirmed_at).where(Totp.user_id == bindparam("user_id"), Totp.confirmed_at.is_not(None))
)


# Which factors.


def is_enrolled(rt: Runtime, user_id: str) -> bool:
    """Whether the user has a confirmed authenticator, which no login may skip."""
    return rt.database.row(_CONFIRMED, user_id=user_id) is not None


def refuse_enrolled(unit: Unit, user_id: str) -> None:
    """Raise Refused(MFA_REQUIRED) if the user has one by now: the last step of a login by password alone, in its unit."""
    if unit.run(_CONFIRMED, user_id=user_id):
        raise Refused(MFA_REQUIRED, detail="enrolled in TOTP while the password was checked")


def among(session: Session, user_ids: Sequence[str]) -> tuple[set[str], set[str]]:
    """Which of these users have a confirmed authenticator, and which a fixed one-time code."""
    enrolled = select(Totp.user_id).where(Totp.user_id.in_(user_ids), Totp.confirmed_at.is_not(None))
    fixed = select(FixedOtp.user_id).where(FixedOtp.user_id.in_(user_ids))
    return set(session.scalars(enrolled)), set(session.scalars(fixed))


def factor_of(rt: Runtime, unit: Unit, user_id: str, *, allows_fixed: bool) -> Factor:
    """What a login in two steps asks of the user: TOTP if enrolled, else a fixed code where that is permitted, else an emailed one."""
    totp = unit.execute(select(Totp.user_id).where(Totp.user_id == user_id, Totp.confirmed_at.is_not(None))).first()
    if totp is not None:
        return Factor.TOTP
    if allows_fixed and rt.settings.fixed_otp and unit.session.get(FixedOtp, user_id) is not None:
        return Factor.FIXED
    return Factor.EMAIL


# Guessing. Lock order in a unit: the factor's rows first, the attempt counters last.


def settle(rt: Runtime, unit: Unit, user_id: str, guess: Guess, *, right: bool, totp: str | None = None) -> None:
    """End a guess as right, or as wrong and raise Refused(INVALID_CODE), which keeps the unit.

    `totp` is the code that was tried for TOTP: how it nearly passed is kept for the explanation.
    """
    if right:
        guess.right(unit)
        return
    guess.wrong(unit)
    guess.count_failure(unit, "otp")
    audit.record(rt, unit, Action.LOGIN_FAILED, actor=user_id, reason="second factor")
    evidence = _near_miss(rt, unit, user_id, totp) if totp is not None else {}
    raise Refused(INVALID_CODE, detail="the second factor is wrong or spent", evidence={"user": user_id, **evidence})


def take_totp(rt: Runtime, unit: Unit, user_id: str, code: str) -> bool:
    """Whether `code` is the six ASCII digits of a current time step, which from then on is spent for ever."""
    row = unit.session.get(Totp, user_id)
    if row is None or row.confirmed_at is None:
        return False
    step = _step_of(rt, unit, row, code)
    if step is None:
        return False
    # One row, one winner: of any number of right submissions only the first moves the memory.
    memory = update(Totp).where(Totp.user_id == user_id, Totp.last_step < step, Totp.confirmed_at.is_not(None))
    return unit.changed(memory.values(last_step=step)) == 1


def take_recovery_code(rt: Runtime, unit: Unit, user_id: str, code: str) -> bool:
    """Whether `code` is an unused recovery code of the user, which from then on is spent."""
    # People group them as they please, and letters turn dashes into other ones.
    plain = _GROUPING.sub("", code).lower()
    if not _RECOVERY_CODE.fullmatch(plain):
        return False
    digest = _recovery_digest(rt, user_id, plain)
    spent = delete(RecoveryCode).where(RecoveryCode.digest == digest, RecoveryCode.user_id == user_id)
    if not unit.changed(spent):
        return False
    audit.record(rt, unit, Action.RECOVERY_CODE_USED, actor=user_id)
    return True


def is_fixed_otp(rt: Runtime, unit: Unit, user_id: str, code: str) -> bool:
    """Whether `code` is the one that an administrator fixed, where that is permitted."""
    row = unit.session.get(FixedOtp, user_id)
    given = _fixed_digest(rt, user_id, code)
    return rt.settings.fixed_otp and row is not None and hmac.compare_digest(row.digest, given)


# Changing factors. The dialect has made sure that the login is recent.


def enrol(rt: Runtime, origin: Origin, user: UserInfo) -> Enrolment:
    """A new seed, pending for 600 s; an earlier pending one is forgotten. Raises Refused(CONFLICT) when the user has TOTP already."""
    seed = rt.entropy.bytes(_SEED_BYTES)
    with rt.unit(origin) as unit:
        unit.execute(delete(Totp).where(Totp.user_id == user.id, Totp.confirmed_at.is_(None)))
        sealed = rt.ring.vault.seal(seed, context=_context(user.id))
        try:
            unit.add(Totp(user_id=user.id, sealed=sealed, last_step=0, created_at=unit.now))
        except IntegrityError as exc:
            taken = CONFLICT.saying("This user has TOTP already; remove it first")
            raise Refused(taken, detail="enrolled already", cause=exc) from exc
    text = base64.b32encode(seed).decode()
    account = user.email or user.alias
    uri = pyotp.TOTP(text).provisioning_uri(name=account, issuer_name=rt.settings.service_name)
    return Enrolment(Secret(text), Secret(uri), ENROL_SECONDS)


def confirm(rt: Runtime, origin: Origin, user: UserInfo, code: str) -> list[Secret]:
    """Switch the pending authenticator on by its first right code, which is spent by that; return ten recovery codes.

    Raises Refused(INVALID_CODE) for a wrong code, and where nothing is pending any more.
    """
    guess = guesses.at_code(rt, origin, user.id)
    with guess.unit() as unit:
        row = unit.session.get(Totp, user.id)
        step = None
        if row is not None and row.confirmed_at is None and unit.now < later(row.created_at, ENROL_SECONDS):
            step = _step_of(rt, unit, row, code)
        pending = update(Totp).where(Totp.user_id == user.id, Totp.confirmed_at.is_(None))
        if row is not None:
            pending = pending.where(Totp.created_at == row.created_at)
        right = step is not None and unit.changed(pending.values(confirmed_at=unit.now, last_step=step)) == 1
        settle(rt, unit, user.id, guess, right=right)
        audit.record(rt, unit, Action.FACTOR_ENROLLED, actor=user.id, factor="totp")
        _tell(rt, unit, user, "an authenticator app was added")
        return _fresh_recovery_codes(rt, unit, user.id)


def renew_recovery_codes(rt: Runtime, origin: Origin, user: UserInfo, code: str) -> list[Secret]:
    """Ten new recovery codes for a right TOTP code; the old ones are void. Raises Refused(INVALID_CODE)."""
    guess = guesses.at_code(rt, origin, user.id)
    with guess.unit() as unit:
        right = take_totp(rt, unit, user.id, code)
        settle(rt, unit, user.id, guess, right=right)
        _tell(rt, unit, user, "new recovery codes were made")
        return _fresh_recovery_codes(rt, unit, user.id)


def remove_own(rt: Runtime, origin: Origin, user: UserInfo, *, factor: Factor, code: str) -> None:
    """Remove the user's authenticator and recovery codes, by a right TOTP or recovery code. Raises Refused(INVALID_CODE)."""
    guess = guesses.at_code(rt, origin, user.id)
    with guess.unit() as unit:
        take = take_recovery_code if factor is Factor.RECOVERY else take_totp
        settle(rt, unit, user.id, guess, right=take(rt, unit, user.id, code))
        remove(rt, unit, user, actor=user.id)


def remove(rt: Runtime, unit: Unit, user: UserInfo, *, actor: str) -> None:
    """Take the authenticator and the recovery codes away and mail a notice. Raises Refused(NOT_FOUND) where there is none."""
    if not unit.changed(delete(Totp).where(Totp.user_id == user.id)):
        raise Refused(NOT_FOUND, detail="the user has no authenticator")
    unit.execute(delete(RecoveryCode).where(RecoveryCode.user_id == user.id))
    audit.record(rt, unit, Action.FACTOR_REMOVED, actor=actor, target=user.id, factor="totp")
    _tell(rt, unit, user, "the authenticator app was removed")


def set_fixed_otp(rt: Runtime, unit: Unit, user: UserInfo, otp: str, *, actor: str) -> None:
    """Fix a one-time code for a user, in place of an earlier one, and mail a notice.

    Raises Refused(FORBIDDEN) where `IDENTITY_FIXED_OTP` is off, Refused(VALIDATION) unless it is 6 to 64 letters and digits.
    """
    if not rt.settings.fixed_otp:
        raise Refused(FORBIDDEN.saying("Fixed one-time codes are switched off (IDENTITY_FIXED_OTP)"))
    if not _FIXED_OTP.fullmatch(otp):
        raise Refused(VALIDATION.saying("A fixed one-time code has 6 to 64 ASCII letters and digits"), field="otp")
    unit.execute(delete(FixedOtp).where(FixedOtp.user_id == user.id))
    unit.add(FixedOtp(user_id=user.id, digest=_fixed_digest(rt, user.id, otp), created_at=unit.now))
    audit.record(rt, unit, Action.FIXED_OTP_CHANGED, actor=actor, target=user.id, fixed=True)
    _tell(rt, unit, user, "an administrator fixed a one-time code")


def clear_fixed_otp(rt: Runtime, unit: Unit, user: UserInfo, *, actor: str) -> None:
    """Forget the fixed one-time code, also where fixing is switched off. Raises Refused(NOT_FOUND) where there is none."""
    if not unit.changed(delete(FixedOtp).where(FixedOtp.user_id == user.id)):
        raise Refused(NOT_FOUND, detail="the user has no fixed one-time code")
    audit.record(rt, unit, Action.FIXED_OTP_CHANGED, actor=actor, target=user.id, fixed=False)
    _tell(rt, unit, user, "the fixed one-time code was removed")


def reseal(rt: Runtime, unit: Unit) -> int:
    """Seal every seed under the newest master key; tell how many rows changed."""
    vault, changed = rt.ring.vault, 0
    for row in unit.execute(select(Totp).with_for_update()).scalars():
        if not vault.is_current(row.sealed):
            context = _context(row.user_id)
            row.sealed = vault.seal(vault.open(row.sealed, context=context), context=context)
            changed += 1
    return changed


def _step_of(rt: Runtime, unit: Unit, row: Totp, code: str) -> int | None:
    """The time step that `code` belongs to, within the configured drift."""
    # ASCII only: PyOTP folds other digits into these, and what has two spellings could be used twice.
    if not _SIX_DIGITS.fullmatch(code):
        return None
    seed = rt.ring.vault.open(row.sealed, context=_context(row.user_id))
    try:
        return pyotp.TOTP(base64.b32encode(seed).decode()).verify_and_get_timecode(
            code, for_time=unit.now, valid_window=rt.settings.totp_drift_steps
        )
    except OTPVerificationError:
        return None


def _near_miss(rt: Runtime, unit: Unit, user_id: str, code: str) -> dict[str, Any]:
    """How a refused code would have passed, for operators only: spent before, or of a device whose clock is up to a minute off."""
    row = unit.session.get(Totp, user_id)
    if row is None or row.confirmed_at is None or not _SIX_DIGITS.fullmatch(code):
        return {}
    totp = pyotp.TOTP(base64.b32encode(rt.ring.vault.open(row.sealed, context=_context(user_id))).decode())
    for steps in (0, 1, -1, 2, -2):
        if not hmac.compare_digest(totp.at(later(unit.now, -30 * steps)), code):
            continue
        if abs(steps) <= rt.settings.totp_drift_steps:
            return {"near_miss": "the right code, but it was used before"}
        return {
            "skew_seconds": 30 * steps,
            "near_miss": "a code of another time: the clock of the user's device is off",
        }
    return {}


def _fresh_recovery_codes(rt: Runtime, unit: Unit, user_id: str) -> list[Secret]:
    unit.execute(delete(RecoveryCode).where(RecoveryCode.user_id == user_id))
    plain = [base64.b32encode(rt.entropy.bytes(_RECOVERY_BYTES)).decode().lower() for _ in range(RECOVERY_CODES)]
    for code in plain:
        unit.add(RecoveryCode(digest=_recovery_digest(rt, user_id, code), user_id=user_id))
    audit.record(rt, unit, Action.RECOVERY_CODES_MADE, actor=user_id)
    return [Secret("-".join(code[at : at + 4] for at in range(0, 16, 4))) for code in plain]


def _tell(rt: Runtime, unit: Unit, user: UserInfo, change: str) -> None:
    if user.email:
        values = {"account": user.alias, "change": change}
        outbox.queue(rt, unit, Template.FACTOR_CHANGED, to=user.email, values=values)


def _context(user_id: str) -> str:
    return f"totp:{user_id}"


def _recovery_digest(rt: Runtime, user_id: str, code: str) -> bytes:
    return hmac.digest(rt.ring.vault.derive("recovery codes"), f"{user_id}:{code}".encode(), "sha256")


def _fixed_digest(rt: Runtime, user_id: str, code: str) -> bytes:
    return hmac.digest(
        rt.ring.vault.derive("fixed one-time codes"), f"{user_id}:{code}".encode("utf-8", "surrogatepass"), "sha256"
    )


KEEPING: Final = Keeping((Totp, RecoveryCode, FixedOtp), reseal=reseal)
