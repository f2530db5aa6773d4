"""What ends or changes a grant, told to verifiers that never ask us: the deeds behind the status lists (docs/interfaces.md, group J).

A grant is a session, a client secret or a set of keys; it has one place in the lists, and every token that it earns names that place. So
issuing writes nothing, and one row ends all tokens of a grant. Each deed here runs in the transaction of what it is about, and costs
the same few statements for one grant and for twenty thousand. Whoever ends or changes something calls exactly one of them.
"""

from __future__ import annotations

import logging
import threading
from datetime import datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, Select, delete, exists, func, insert, literal, select, update
from sqlalchemy.orm import InstrumentedAttribute

from identity import logs
from identity.ambient import later
from identity.columns import Instant
from identity.core.keeping import Keeping, delete_batch
from identity.core.people.accounts import User
from identity.core.tokens.session_rows import UserSession
from identity.instruments.keyring import SKEW_SECONDS
from identity.instruments.statuslists import CHANGED, INVALID, PLACES, StatusEntry, StatusList
from identity.runtime import Runtime
from identity.storage import Unit

MAX_TOKENS: Final = 1000
_log = logging.getLogger("identity.status")


def end_sessions(rt: Runtime, unit: Unit, *which: ColumnElement[bool]) -> int:
    """End the living sessions that fit, and every token of theirs, for good; tell how many there were."""
    ended = unit.changed(
        update(UserSession).where(*which, UserSession.revoked_at.is_(None)).values(revoked_at=unit.now)
    )
    if ended:
        _enter(rt, unit, INVALID, select(UserSession.place).where(*which, UserSession.revoked_at == unit.now))
    return ended


def change_subjects(rt: Runtime, unit: Unit, *whose: ColumnElement[bool]) -> None:
    """The roles, groups or memberships of the users that fit have changed: what their tokens say of that is no longer so.

    Call it after the change. Their sessions live on; the next token of each gets a fresh place, with the new rights.
    """
    users = select(User.id).where(*whose)
    # Whoever signs in holds a share of the user's row until the new session is committed: it is then either seen below, or sees the change.
    unit.execute(users.order_by(User.id).with_for_update())
    living = (
        UserSession.user_id.in_(users),
        UserSession.revoked_at.is_(None),
        UserSession.expires_at > unit.now,
        UserSession.place.is_not(None),
    )
    _enter(rt, unit, CHANGED, select(UserSession.place).where(*living))
    unit.execute(update(UserSession).where(*living).values(place=None))


def end_grants(rt: Runtime, unit: Unit, places: Select[Any]) -> None:
    """End every token of the grants that have these places, for good: a secret, a key set or a trust is gone, or its application."""
    _enter(rt, unit, INVALID, places)


def change_grants(rt: Runtime, unit: Unit, places: Select[Any]) -> None:
    """The rights that these grants carry have changed. Those that go on earning need fresh places in the same transaction."""
    _enter(rt, unit, CHANGED, places)


def take(rt: Runtime, unit: Unit) -> int:
    """A place for a new grant."""
    return rt.status_lists.take(unit)


def take_several(rt: Runtime, unit: Unit, count: int) -> range:
    """Fresh places for grants whose old ones were ended or changed."""
    return rt.status_lists.lease(unit, count)


def end_token(unit: Unit, place: int, token_id: str, expires_at: datetime) -> bool:
    """Name one token of a grant that goes on; False where that grant has named as many as a list may hold of one already."""
    named = StatusEntry.place == place, StatusEntry.token_id != ""
    count: int = unit.execute(select(func.count()).select_from(StatusEntry).where(*named)).scalar_one()
    if count >= MAX_TOKENS:
        return False
    unit.execute(
        insert(StatusEntry).values(
            place=place, value=INVALID, token_id=token_id, entered_at=unit.now, expires_at=expires_at
        )
    )
    return True


def claim(rt: Runtime, place: int | None) -> dict[str, Any]:
    """The claim `status` of a token, as part of its claims; nothing for a grant from before there were lists."""
    return {} if place is None else {"status": rt.status_lists.claim(place)}


def keep_current(rt: Runtime, stop: threading.Event) -> None:
    """Keep this process's copies of the lists current until `stop` is set; a loop of its own, so that no other job holds it up."""
    seconds = min(2.0, rt.settings.status_ttl_seconds / 3)
    while True:
        try:
            rt.status_lists.refresh()
        except Exception as exc:  # noqa: BLE001 -- the loop must outlive a database that is down
            if not rt.database.outage.explains(exc):
                logs.event(_log, logging.WARNING, "status lists are not current", error=type(exc).__name__)
        if stop.wait(seconds):
            return


def purge(_rt: Runtime, unit: Unit) -> int:
    """Forget entries that no living token can name."""
    return delete_batch(unit, StatusEntry, StatusEntry.expires_at < unit.now)


def purge_lists(unit: Unit, *named_by: InstrumentedAttribute[int | None]) -> int:
    """Forget lists that no session can name any more, nor any grant that has its place in these columns; the newest stays."""
    newest = select(func.max(StatusList.id)).scalar_subquery()
    first = StatusList.id * PLACES
    named = [exists().where(column >= first, column < first + PLACES) for column in named_by]
    idle = (StatusList.named_until < unit.now, StatusList.id < newest, *(~one for one in named))
    return unit.changed(delete(StatusList).where(*idle))


def forgotten_at(rt: Runtime, now: datetime) -> datetime:
    """When no token that lives now is left, for verifiers with a slow clock too."""
    return later(now, rt.settings.longest_token_seconds + SKEW_SECONDS)


def _enter(rt: Runtime, unit: Unit, value: int, places: Select[Any]) -> None:
    (place,) = places.selected_columns
    said = (literal(value), literal(""), literal(unit.now, Instant), literal(forgotten_at(rt, unit.now), Instant))
    rows = places.where(place.is_not(None)).add_columns(*said)
    unit.insert_missing(StatusEntry, ("place", "value", "token_id", "entered_at", "expires_at"), rows)


KEEPING: Final = Keeping((StatusEntry,), purge=purge)
