"""The addresses of a user: added, proven by an emailed code, preferred, removed.

Anybody may claim an address, only one user can have it verified, and only a verified one counts: for signing in, for notices, as the
preferred one. That somebody else has an address is told to nobody but its owner.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlalchemy import delete, func, select, update
from sqlalchemy.exc import IntegrityError

from identity.ambient import Origin
from identity.canonical import canonical_id, get_address
from identity.core.mail import outbox
from identity.core.mail.letters import Template
from identity.core.people.accounts import Email, User
from identity.core.people.ownership import Anyone, Owner, may_touch
from identity.core.proofs import codes, guesses
from identity.core.proofs.codes import Purpose
from identity.core.record import audit
from identity.core.record.audit import Action
from identity.errors import CONFLICT, INVALID_CODE, NOT_FOUND, Refused
from identity.runtime import Runtime
from identity.storage import Unit

MAX_ADDRESSES: Final = 10
EMAIL_TAKEN: Final = CONFLICT.saying("That email is in use")
EMAIL_VERIFIED: Final = CONFLICT.saying("That email is verified already")
EMAIL_UNVERIFIED: Final = CONFLICT.saying("Only a verified email can be preferred")
EMAIL_LAST: Final = CONFLICT.saying("The last verified email must stay")
EMAILS_FULL: Final = CONFLICT.saying(f"An account has at most {MAX_ADDRESSES} emails")


@dataclass(frozen=True, slots=True)
class EmailInfo:
    """An address as its user and administrators see it."""

    id: str
    user_id: str
    address: str
    verified: bool
    preferred: bool


def add(rt: Runtime, unit: Unit, user_id: str, address: str, *, actor: str) -> tuple[EmailInfo, str]:
    """Add an address to a user and mail it a code; return it with the verification id. An unverified one they have gets a new code.

    An address that another user has verified gets the same answer, and its owner a letter that says so. Raises Refused(CONFLICT) for
    one that this user has verified already, and for one too many.
    """
    canonical = get_address(address, field="address")
    alias = _lock(unit, user_id)
    row = unit.execute(select(Email).where(Email.user_id == user_id, Email.address == canonical)).scalar_one_or_none()
    if row is not None and row.verified:
        raise Refused(EMAIL_VERIFIED, field="address")
    if row is None:
        count = unit.execute(select(func.count()).select_from(Email).where(Email.user_id == user_id)).scalar_one()
        if count >= MAX_ADDRESSES:
            raise Refused(EMAILS_FULL, detail=f"{count} addresses")
        row = Email(
            id=rt.new_id(), user_id=user_id, address=canonical, verified=False, preferred=False, created_at=unit.now
        )
        unit.add(row)
        audit.record(rt, unit, Action.EMAIL_ADDED, actor=actor, target=row.id, user=user_id)
    return _info(row), _issue(rt, unit, row, alias)


def resend(rt: Runtime, unit: Unit, user_id: str, address: str) -> str:
    """Mail a new code to an unverified address of the user; the old one dies. Returns the verification id.

    Raises Refused(NOT_FOUND) for an address that the user does not have, Refused(CONFLICT) for a verified one.
    """
    canonical = get_address(address, field="address")
    alias = _lock(unit, user_id)
    row = unit.execute(select(Email).where(Email.user_id == user_id, Email.address == canonical)).scalar_one_or_none()
    if row is None:
        raise Refused(NOT_FOUND, detail="no such address of this user")
    if row.verified:
        raise Refused(EMAIL_VERIFIED, field="address")
    return _issue(rt, unit, row, alias)


def prove(rt: Runtime, origin: Origin, verification_id: str, code: str) -> None:
    """Make an address its user's own by the code that was mailed to it. Raises Refused(INVALID_CODE), Refused(LOCKED_OUT)."""
    with guesses.mailed_code(rt, origin, Purpose.EMAIL, verification_id, code) as (unit, consumed):
        row = unit.session.get(Email, consumed.subject)
        if row is None:
            raise Refused(INVALID_CODE, detail="the address was removed meanwhile")
        mark_proven(rt, unit, row.user_id, row.address, actor=row.user_id)


def mark_proven(rt: Runtime, unit: Unit, user_id: str, address: str, *, actor: str) -> None:
    """Note that an address of the user is proven, and with it the user, however that came about.

    The user hears of a new one at the address that they prefer. Raises Refused(INVALID_CODE) when it is no address of theirs any more,
    Refused(CONFLICT) when somebody else was faster.
    """
    alias = _lock(unit, user_id)
    row = unit.execute(select(Email).where(Email.user_id == user_id, Email.address == address)).scalar_one_or_none()
    if row is None:
        raise Refused(INVALID_CODE, detail="the address is not this user's any more")
    unit.execute(
        update(User)
        .where(User.id == user_id, User.verified.is_(False) | User.unconfirmed_until.is_not(None))
        .values(verified=True, unconfirmed_until=None, version=User.version + 1)
    )
    if row.verified:
        return
    try:
        unit.execute(update(Email).where(Email.id == row.id).values(verified=True))
    except IntegrityError as exc:
        raise Refused(EMAIL_TAKEN, detail="verified by another user meanwhile", cause=exc) from exc
    codes.cancel(unit, Purpose.EMAIL, row.id)
    audit.record(rt, unit, Action.EMAIL_VERIFIED, actor=actor, target=row.id, user=user_id)
    preferred = preferred_of(unit, user_id)
    if preferred is None:
        _prefer(unit, row)
    elif preferred != address:
        values = {"account": alias, "address": address}
        outbox.queue(rt, unit, Template.EMAIL_ADDED, to=preferred, values=values)


def prefer(rt: Runtime, unit: Unit, email_id: str, *, actor: str, of: Owner | Anyone) -> None:
    """Send notices and codes to this address from now on.

    Raises Refused(NOT_FOUND), also for one that is not within `of`, Refused(CONFLICT) for one that is not verified.
    """
    row = _get(unit, email_id, of)
    if not row.verified:
        raise Refused(EMAIL_UNVERIFIED, field="emailID")
    if not row.preferred:
        before = preferred_of(unit, row.user_id)
        _prefer(unit, row)
        _tell_loser(rt, unit, row.user_id, before, "is not the preferred one any more")
        audit.record(rt, unit, Action.EMAIL_PREFERRED, actor=actor, target=email_id, user=row.user_id)


def remove(rt: Runtime, unit: Unit, email_id: str, *, actor: str, of: Owner | Anyone) -> None:
    """Delete an address. Codes that were mailed to it die with it.

    When it was the preferred one, the oldest verified one that is left takes its place. Raises Refused(NOT_FOUND), Refused(CONFLICT)
    for the last verified one.
    """
    row = _get(unit, email_id, of)
    others = (
        select(Email)
        .where(Email.user_id == row.user_id, Email.verified, Email.id != email_id)
        .order_by(Email.created_at, Email.id)
        .limit(1)
    )
    heir = unit.execute(others).scalar_one_or_none()
    if heir is None:
        raise Refused(EMAIL_LAST, detail="no verified address would be left")
    # Whatever was mailed there: who reads that mailbox now must not choose this user's password with it.
    codes.cancel_mailed(unit, row.user_id, row.address)
    _tell_loser(rt, unit, row.user_id, row.address if row.verified else None, "was removed")
    unit.execute(delete(Email).where(Email.id == email_id))
    if row.preferred:
        _prefer(unit, heir)
    audit.record(rt, unit, Action.EMAIL_REMOVED, actor=actor, target=email_id, user=row.user_id)


def listing_of(rt: Runtime, user_id: str) -> list[EmailInfo]:
    """The addresses of a user, oldest first."""
    with rt.database.reading() as session:
        rows = session.scalars(select(Email).where(Email.user_id == user_id).order_by(Email.created_at, Email.id))
        return [_info(row) for row in rows]


def preferred_of(unit: Unit, user_id: str) -> str | None:
    """Where notices for a user go: the preferred address, if it is proven; else None."""
    wanted = select(Email.address).where(Email.user_id == user_id, Email.preferred, Email.verified)
    found: str | None = unit.execute(wanted).scalar_one_or_none()
    return found


def _issue(rt: Runtime, unit: Unit, row: Email, alias: str) -> str:
    """Mail a code to the address in `row`; where it is somebody else's, a letter to them instead, at the same cost."""
    owner = unit.execute(select(Email.user_id).where(Email.address == row.address, Email.verified)).first()
    if owner is None:
        return codes.issue(
            rt,
            unit,
            Purpose.EMAIL,
            subject=row.id,
            user_id=row.user_id,
            address=row.address,
            values={"account": alias},
        )
    return codes.issue_nothing(
        rt, unit, Purpose.EMAIL, subject=row.id, address=row.address, instead=Template.ADDRESS_IN_USE
    )


def _tell_loser(rt: Runtime, unit: Unit, user_id: str, address: str | None, change: str) -> None:
    """Tell a proven address what it loses: whoever took an account over begins with that."""
    if address is None:
        return
    alias = unit.execute(select(User.alias).where(User.id == user_id)).scalar_one()
    outbox.queue(
        rt, unit, Template.EMAIL_LOST, to=address, values={"account": alias, "address": address, "change": change}
    )


def _prefer(unit: Unit, row: Email) -> None:
    # One after the other: the index that allows a single preferred address looks at each row as it changes.
    unit.execute(update(Email).where(Email.user_id == row.user_id, Email.preferred).values(preferred=False))
    unit.execute(update(Email).where(Email.id == row.id).values(preferred=True))


def _get(unit: Unit, email_id: str, of: Owner | Anyone) -> Email:
    canonical = canonical_id(email_id)
    owner = unit.execute(select(Email.user_id).where(Email.id == canonical)).scalar_one_or_none() if canonical else None
    if owner is None or not may_touch(of, owner):
        raise Refused(NOT_FOUND, detail="no such address")
    _lock(unit, owner)
    # Read under the lock: what else changes the addresses of this user waits for it.
    row = unit.session.get(Email, canonical)
    if row is None:
        raise Refused(NOT_FOUND, detail="the address was removed meanwhile")
    return row


def _lock(unit: Unit, user_id: str) -> str:
    """Let nobody else change the addresses of this user until the unit ends; tell the user's alias."""
    alias: str | None = unit.execute(
        select(User.alias).where(User.id == user_id).with_for_update()
    ).scalar_one_or_none()
    if alias is None:
        raise Refused(NOT_FOUND, detail="no such user")
    return alias


def _info(row: Email) -> EmailInfo:
    return EmailInfo(row.id, row.user_id, row.address, row.verified, row.preferred)
