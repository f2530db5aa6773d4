"""When and from where a credential was last used, kept off the hot path.

Uses are noted in memory and written by the background loop, so a credential that works ten thousand times a second costs
one update every few seconds. A process that dies loses the last of them: they inform, and hold up what would end a credential in use.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime
from functools import cache
from typing import Any, Final

from sqlalchemy import String, bindparam, delete, func, select, text
from sqlalchemy.orm import Mapped, Session, mapped_column

from identity import grounds
from identity.ambient import Origin, later
from identity.columns import Instant
from identity.storage import Base, Database, Prepared, Unit

NOTED_WITHIN_SECONDS: Final = 5
TOLD_SECONDS: Final = 86_400
MOST_TOLD: Final = 100
_MAX_NOTES: Final = 10_000

_Key = tuple[Any, str, str]
_Uses = dict[tuple[Any, str], list[tuple[datetime, str]]]


class CredentialCaller(Base):
    """An address that used a credential in the last 24 hours; of each credential the newest hundred are kept."""

    __tablename__ = "credential_caller"

    credential_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    address: Mapped[str] = mapped_column(String(64), primary_key=True)
    last_used_at: Mapped[datetime] = mapped_column(Instant, index=True)


class Usage:
    """The noted uses of this process, by row and address."""

    def __init__(self) -> None:
        self._notes: dict[_Key, datetime] = {}
        self._swap = threading.Lock()

    def note(self, table: Any, row_id: str, now: datetime, address: str) -> None:
        """Remember that the credential in row `row_id` of `table` was used now.

        Who else used it is kept where the table says `tells_callers`.
        """
        grounds.note_deed(lambda then: self.note(table, row_id, then, address))
        if len(self._notes) < _MAX_NOTES:
            self._notes[table, row_id, address] = now

    def flush(self, database: Database, now: datetime) -> int:
        """Write what was noted; tell how many rows. A row that another process dated later keeps its date.

        What could not be written waits for the next time: a secret that is in use must not retire for want of a note.
        """
        with self._swap:
            notes, self._notes = self._notes, {}
        if not notes:
            return 0
        uses: _Uses = defaultdict(list)
        for (table, row_id, address), at in notes.items():
            uses[table, row_id].append((at, address[:64]))
        try:
            _write(uses, database, now)
        except Exception:
            self._give_back(notes)
            raise
        return len(uses)

    def _give_back(self, notes: dict[_Key, datetime]) -> None:
        with self._swap:
            for key, at in notes.items():
                if len(self._notes) < _MAX_NOTES or key in self._notes:
                    self._notes[key] = max(at, self._notes.get(key, at))


def _write(uses: _Uses, database: Database, now: datetime) -> None:
    with database.unit(now, Origin.background()) as unit:
        # In one order everywhere: two processes that write the same rows must not wait for each other in a circle.
        for (table, row_id), seen in sorted(uses.items(), key=lambda one: (one[0][0].__tablename__, one[0][1])):
            seen.sort(reverse=True)
            at, address = seen[0]
            unit.run(_last_use(table.__tablename__), id=row_id, at=at, address=address)
            if getattr(table, "tells_callers", False):
                for at, address in sorted(seen[:MOST_TOLD], key=lambda one: one[1]):
                    unit.run(_CALLER, id=row_id, at=at, address=address)


def callers_of(session: Session, credential_ids: Iterable[str], now: datetime) -> dict[str, tuple[str, ...]]:
    """The distinct addresses that used each of these credentials in the last 24 hours, the latest first; at most a hundred of each."""
    recent = (
        select(CredentialCaller.credential_id, CredentialCaller.address)
        .where(
            CredentialCaller.credential_id.in_(list(credential_ids)),
            CredentialCaller.last_used_at > later(now, -TOLD_SECONDS),
        )
        .order_by(CredentialCaller.last_used_at.desc(), CredentialCaller.address)
    )
    found: dict[str, list[str]] = defaultdict(list)
    for credential_id, address in session.execute(recent):
        found[credential_id].append(address)
    return {credential_id: tuple(addresses[:MOST_TOLD]) for credential_id, addresses in found.items()}


def purge(unit: Unit) -> int:
    """Forget callers of more than a day ago, and of each credential all but the newest hundred; for the janitor."""
    gone = unit.changed(delete(CredentialCaller).where(CredentialCaller.last_used_at <= later(unit.now, -TOLD_SECONDS)))
    crowded = (
        select(CredentialCaller.credential_id)
        .group_by(CredentialCaller.credential_id)
        .having(func.count() > MOST_TOLD)
        .limit(100)
    )
    for credential_id in unit.execute(crowded).scalars().all():
        newest = (
            select(CredentialCaller.address)
            .where(CredentialCaller.credential_id == credential_id)
            .order_by(CredentialCaller.last_used_at.desc(), CredentialCaller.address)
            .limit(MOST_TOLD)
        )
        gone += unit.changed(
            delete(CredentialCaller).where(
                CredentialCaller.credential_id == credential_id, CredentialCaller.address.not_in(newest)
            )
        )
    return gone


@cache
def _last_use(table: str) -> Prepared[tuple[Any, ...]]:
    """Date the use of a row, unless a later one is known. Prepared: thousands of rows may wait, and others wait for the write lock."""
    return Prepared(
        text(
            f"UPDATE {table} SET last_used_at = :at, last_used_address = :address "  # noqa: S608 -- a table of ours
            "WHERE id = :id AND (last_used_at IS NULL OR last_used_at < :at)"
        ).bindparams(*_USE)
    )


_USE: Final = (bindparam("id", type_=String), bindparam("at", type_=Instant), bindparam("address", type_=String))
_CALLER: Final = Prepared(
    text(
        "INSERT INTO credential_caller (credential_id, address, last_used_at) VALUES (:id, :address, :at) "
        "ON CONFLICT (credential_id, address) DO UPDATE SET last_used_at = excluded.last_used_at "
        "WHERE credential_caller.last_used_at < excluded.last_used_at"
    ).bindparams(*_USE)
)
