"""When and from where a credential was last used, kept off the hot path.

Uses are noted in memory and written by the background loop, so a credential that works ten thousand times a second costs
one update every few seconds. A process that dies loses the last of them: they inform, they decide nothing.
"""

from __future__ import annotations

import threading
from datetime import datetime
from typing import Any, Final

from sqlalchemy import or_, update

from identity.ambient import Origin
from identity.storage import Database

_MAX_NOTES: Final = 10_000


class Usage:
    """The noted uses of this process, by row."""

    def __init__(self) -> None:
        self._notes: dict[tuple[Any, str], tuple[datetime, str]] = {}
        self._swap = threading.Lock()

    def note(self, table: Any, row_id: str, now: datetime, address: str) -> None:
        """Remember that the credential in row `row_id` of `table` was used now."""
        if len(self._notes) < _MAX_NOTES:
            self._notes[table, row_id] = (now, address)

    def flush(self, database: Database, now: datetime) -> int:
        """Write what was noted; tell how many rows. A row that another process dated later keeps its date."""
        with self._swap:
            notes, self._notes = self._notes, {}
        if not notes:
            return 0
        with database.unit(now, Origin.background()) as unit:
            for (table, row_id), (at, address) in sorted(
                notes.items(), key=lambda item: (item[0][0].__tablename__, item[0][1])
            ):
                older = or_(table.last_used_at.is_(None), table.last_used_at < at)
                unit.execute(
                    update(table)
                    .where(table.id == row_id, older)
                    .values(last_used_at=at, last_used_address=address[:64])
                )
        return len(notes)
