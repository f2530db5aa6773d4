"""Application tokens that were revoked one by one, remembered until they would have ended by themselves."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from sqlalchemy import String
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, mapped_column

from identity.columns import Instant
from identity.core.keeping import Keeping, delete_batch
from identity.core.record import audit
from identity.core.record.audit import Action
from identity.runtime import Runtime
from identity.storage import Base, Unit


class RevokedToken(Base):
    """An application token that was revoked before its time, kept until that time."""

    __tablename__ = "revoked_token"

    jti: Mapped[str] = mapped_column(String(64), primary_key=True)
    expires_at: Mapped[datetime] = mapped_column(Instant, index=True)


def revoke_token(rt: Runtime, unit: Unit, token_id: str, expires_at: datetime, *, actor: str) -> bool:
    """End one application token; doing it twice is the same. Tells whether this call ended it."""
    if unit.session.get(RevokedToken, token_id) is not None:
        return False
    try:
        with unit.session.begin_nested():
            unit.session.add(RevokedToken(jti=token_id, expires_at=expires_at))
    except IntegrityError:
        return False  # Revoked by another request at this moment.
    audit.record(rt, unit, Action.TOKEN_REVOKED, actor=actor, jti=token_id)
    return True


def purge(_rt: Runtime, unit: Unit) -> int:
    """Forget revoked tokens that would have ended by now."""
    return delete_batch(unit, RevokedToken, RevokedToken.expires_at < unit.now)


KEEPING: Final = Keeping((RevokedToken,), purge=purge)
