"""What becomes of rows: how they are forgotten when they are over, when their user is erased, and how they are sealed anew.

Every module of the domain that has rows says it in one value, `KEEPING`. The sweep, the erasure of a user and the change of a master key
iterate over those values, so that a new table cannot be left out: a test demands what its columns call for.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, Final

from sqlalchemy import ColumnElement, Executable, delete, func, inspect, select, tuple_
from sqlalchemy.orm import Session

from identity.runtime import Runtime
from identity.storage import Base, Unit

BATCH: Final = 1_000
MOST_COUNTED: Final = 100_000


@dataclass(frozen=True, slots=True)
class Keeping:
    """What becomes of the rows of `tables`.

    `purge` deletes at most about `BATCH` rows that are over and tells how many; it is asked again until there are none. `forget` deletes
    what is a user's, before the user's own row goes. `end` ends what may have been ended after the backup that was restored, and tells
    how many: bearers, codes, links and whatever else opens a way in. `reseal` seals rows under the newest master key and tells how many
    changed. What goes with the row that it refers to (`ON DELETE CASCADE`) needs no `forget`.
    """

    tables: tuple[type[Base], ...]
    purge: Callable[[Runtime, Unit], int] | None = None
    forget: Callable[[Unit, str], object] | None = None
    reseal: Callable[[Runtime, Unit], int] | None = None
    end: Callable[[Runtime, Unit], int] | None = None


@cache
def keepings() -> dict[str, Keeping]:
    """The `KEEPING` of every module of the domain, by the module's name within `identity.core`."""
    found = {}
    for module in pkgutil.walk_packages(importlib.import_module("identity.core").__path__, "identity.core."):
        keeping = getattr(importlib.import_module(module.name), "KEEPING", None)
        if isinstance(keeping, Keeping):
            found[module.name.removeprefix("identity.core.")] = keeping
    return found


class Overdue:
    """Stands in for a unit where rows that are over are only counted: `purge` deletes nothing through it."""

    def __init__(self, session: Session, now: datetime) -> None:
        self.session = session
        self.now = now
        self.count = 0

    def execute(self, statement: Executable) -> Any:
        return self.session.execute(statement)

    def changed(self, _statement: Executable) -> int:
        return 0


def delete_batch(unit: Unit, table: type[Base], *conditions: ColumnElement[bool], limit: int = BATCH) -> int:
    """Delete at most `limit` rows that meet `conditions`, so that no deletion holds the database for long; tell how many."""
    key: list[ColumnElement[Any]] = list(inspect(table).primary_key)
    chosen = select(*key).where(*conditions).limit(limit)
    if isinstance(unit, Overdue):
        counted = select(func.count()).select_from(select(*key).where(*conditions).limit(MOST_COUNTED).subquery())
        unit.count += unit.execute(counted).scalar_one()
        return 0
    doomed = key[0].in_(chosen.scalar_subquery()) if len(key) == 1 else tuple_(*key).in_(chosen)
    return unit.changed(delete(table).where(doomed).execution_options(synchronize_session=False))
