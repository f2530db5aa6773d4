"""Second factors: TOTP with a memory of its steps."""

from __future__ import annotations

import base64
import re
from datetime import datetime
from typing import Final

import pyotp
from sqlalchemy import BigInteger, LargeBinary, Uuid, bindparam, select, update
from sqlalchemy.orm import Mapped, mapped_column

from identity.core import attempts, audit
from identity.core.attempts import SECOND_FACTOR, Charge
from identity.core.audit import Action
from identity.errors import INVALID_CODE, Refused
from identity.runtime import Runtime
from identity.storage import Base, Instant, Prepared, Unit

_SIX_DIGITS: Final = re.compile(r"[0-9]{6}", re.ASCII)


class Totp(Base):
    """A user's authenticator: pending until its first right code."""

    __tablename__ = "totp"

    user_id: Mapped[str] = mapped_column(Uuid(as_uuid=False), primary_key=True)
    sealed: Mapped[bytes] = mapped_column(LargeBinary)
    confirmed_at: Mapped[datetime | None] = mapped_column(Instant)
    last_step: Mapped[int] = mapped_column(BigInteger, default=0)
    created_at: Mapped[datetime] = mapped_column(Instant)


_CONFIRMED = Prepared(
    select(Totp.confirmed_at).where(Totp.user_id == bindparam("user_id"), Totp.confirmed_at.is_not(None))
)


def is_enrolled(rt: Runtime, user_id: str) -> bool:
    """Whether the user has a confirmed authenticator, which no login may skip."""
    return rt.database.row(_CONFIRMED, user_id=user_id) is not None


def consume_totp(rt: Runtime, unit: Unit, user_id: str, code: str) -> None:
    """Accept a six-digit ASCII code of the current time step, which from then on is spent for ever.

    Raises Refused(INVALID_CODE), and counts it, for a code that is wrong, of a spent step, or not six digits.
    """
    row = unit.session.get(Totp, user_id)
    step = None
    if row is not None and row.confirmed_at is not None and _SIX_DIGITS.fullmatch(code):
        step = _step_of(rt, unit, row, code)
    if step is None or not unit.changed(
        update(Totp).where(Totp.user_id == user_id, Totp.last_step < step).values(last_step=step)
    ):
        attempts.record(rt, unit, (Charge(SECOND_FACTOR, user_id),))
        audit.record(rt, unit, Action.LOGIN_FAILED, actor=user_id, reason="second factor")
        raise Refused(INVALID_CODE, detail="TOTP code wrong or spent")


def _step_of(rt: Runtime, unit: Unit, row: Totp, code: str) -> int | None:
    """The time step that `code` belongs to, within the configured drift."""
    seed = rt.ring.vault.open(row.sealed, context=f"totp:{row.user_id}")
    matched = pyotp.TOTP(base64.b32encode(seed).decode()).verify_and_get_timecode(
        code, for_time=unit.now, valid_window=rt.settings.totp_drift_steps
    )
    return None if matched is None else int(matched)
