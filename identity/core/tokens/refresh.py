"""The use of refresh tokens: a session goes on under a new one, and ends when an old one comes back."""

from __future__ import annotations

import hmac
from datetime import datetime
from typing import NoReturn

from sqlalchemy import select

from identity.ambient import later
from identity.core.mail import outbox
from identity.core.mail.letters import Template
from identity.core.people.accounts import UserInfo, recheck
from identity.core.record import audit
from identity.core.record.audit import Action
from identity.core.tokens import generations, status
from identity.core.tokens.session_rows import SessionInfo, UserSession, from_row
from identity.core.tokens.sessions import revoke
from identity.errors import INVALID_TOKEN, TOKEN_EXPIRED, Refused
from identity.instruments.opaque import Secret
from identity.runtime import Runtime
from identity.storage import Unit


def turn(rt: Runtime, unit: Unit, token: str) -> tuple[UserInfo, SessionInfo, Secret]:
    """Exchange a refresh token for its successor.

    Within the grace the previous token gets the same successor: a lost answer and two tabs are no attack. Seen later than that, it
    ends its session and its user is told by mail; that end is kept even though this call refuses (INVALID_TOKEN). Raises
    Refused(TOKEN_EXPIRED) for a genuine token that was not used in time.
    """
    # 1. Whose is it? Every generation is recognised by computing it, so that one of the past is told from a forged one.
    parsed = generations.parse(token)
    if parsed is None:
        raise Refused(INVALID_TOKEN, detail="not a refresh token")
    session_id, generation = parsed
    row = unit.execute(select(UserSession).where(UserSession.id == session_id).with_for_update()).scalar_one_or_none()
    if row is None or row.user_id is None or row.seed is None:
        raise Refused(INVALID_TOKEN, detail="no session made that refresh token")
    if not hmac.compare_digest(generations.mint(rt, row.id, row.seed, generation).reveal(), token):
        raise Refused(INVALID_TOKEN, detail="no session made that refresh token")
    # 2. Is the session good? What is over stays over, whichever generation asks.
    if row.revoked_at is not None or not row.verified:
        raise Refused(INVALID_TOKEN, detail="the session was ended, or waits for its code")
    if from_row(row).is_over(unit.now):
        raise Refused(TOKEN_EXPIRED, detail="the refresh token was not used in time")
    user = recheck(unit, row.user_id, instead=INVALID_TOKEN)
    # 3. The present generation turns; the one before it has the grace; any other is a copy.
    if generation == row.generation:
        row.generation = generation + 1
        row.turned_at = unit.now
        row.idle_expires_at = min(later(unit.now, rt.settings.refresh_idle_seconds), row.expires_at)
        if row.place is None:
            row.place = status.take(rt, unit)
        unit.session.flush()
    elif generation != row.generation - 1 or not _is_recent(row.turned_at, unit.now, rt.settings.refresh_grace_seconds):
        _end_reused(rt, unit, row, user, seen=generation)
    return user, from_row(row), generations.mint(rt, row.id, row.seed, row.generation)


def find_session(rt: Runtime, token: str) -> SessionInfo | None:
    """The session that made a refresh token, of whatever generation and whether it is over or not; or None."""
    parsed = generations.parse(token)
    if parsed is None:
        return None
    with rt.database.reading() as session:
        row = session.get(UserSession, parsed[0])
    genuine = row is not None and row.seed is not None and generations.mint(rt, row.id, row.seed, parsed[1]).reveal()
    return from_row(row) if row is not None and genuine and hmac.compare_digest(genuine, token) else None


def _end_reused(rt: Runtime, unit: Unit, row: UserSession, user: UserInfo, *, seen: int) -> NoReturn:
    """A spent refresh token came back after its grace: whoever holds the present one may have copied it."""
    revoke(rt, unit, row.id, actor=user.id, reason="refresh token reuse")
    audit.record(rt, unit, Action.REFRESH_REUSED, actor=user.id, target=row.id, seen=seen, current=row.generation)
    if user.email:
        outbox.queue(rt, unit, Template.SESSIONS_ENDED, to=user.email, values={"account": user.alias})
    evidence = {"session": row.id, "seen": seen, "current": row.generation, "turned_at": str(row.turned_at)}
    raise Refused(INVALID_TOKEN, detail="a spent refresh token was used again", evidence=evidence)


def _is_recent(turned_at: datetime | None, now: datetime, grace_seconds: int) -> bool:
    return turned_at is not None and now < later(turned_at, grace_seconds)
