"""What the keys of other systems look like: by which prefix and of which length somebody has imported some.

A key of ours carries a checksum, so that a slip of the pen costs no read. Theirs carry none that we know: only what has the shape of an
imported one is looked for. A process keeps the shapes in memory, and reads them again for a shape that it does not know, at most once a
second, however many keys are made up.
"""

from __future__ import annotations

import re
import time
from datetime import datetime
from typing import Final, NamedTuple

from sqlalchemy import BigInteger, String, func, select
from sqlalchemy.orm import Mapped, mapped_column

from identity.columns import Instant
from identity.errors import CONFLICT, VALIDATION, Refused
from identity.instruments.opaque import Kind
from identity.storage import Base, Database, Prepared, Unit

MOST: Final = 32
_RELOAD_SECONDS: Final = 1.0
_KEY: Final = re.compile(r"[A-Za-z0-9._~+/=-]{12,64}", re.ASCII)
_PREFIX: Final = re.compile(r"[A-Za-z0-9._~+/=-]{3,32}", re.ASCII)
_OURS: Final = tuple(f"{kind}_" for kind in Kind)


class KeyShape(Base):
    """A prefix that imported keys begin with, and how long they are."""

    __tablename__ = "key_shape"

    prefix: Mapped[str] = mapped_column(String(32), primary_key=True)
    length: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    created_at: Mapped[datetime] = mapped_column(Instant)


class Shape(NamedTuple):
    """What a key looks like; see `KeyShape`."""

    prefix: str
    length: int


_ALL: Final = Prepared(select(KeyShape.prefix, KeyShape.length), into=Shape)


class KeyShapes:
    """The shapes as this process knows them."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: dict[int, tuple[str, ...]] = {}
        self._read_at = float("-inf")

    def fits(self, key: str) -> bool:
        """Whether `key` looks like one that was imported. Raises Refused(UNAVAILABLE)."""
        if not _KEY.fullmatch(key):
            return False
        if self._is_known(key):
            return True
        # A loop may have stepped aside inside the reading: the time is noted first, so that others do not read too.
        if time.monotonic() - self._read_at < _RELOAD_SECONDS:
            return False
        self._read_at = time.monotonic()
        known: dict[int, tuple[str, ...]] = {}
        try:
            for shape in self._database.rows(_ALL):
                known[shape.length] = (*known.get(shape.length, ()), shape.prefix)
        except BaseException:
            self._read_at = float("-inf")
            raise
        self._known = known
        return self._is_known(key)

    def admit(self, unit: Unit, key: str, prefix: str) -> None:
        """From the end of this transaction on, keys like `key` are looked for: here at once, by other processes within a second.

        Raises Refused(VALIDATION) for what cannot be told from garbage or from a key of ours, Refused(CONFLICT) for one shape too many.
        """
        if prefix and not _PREFIX.fullmatch(prefix):
            raise Refused(VALIDATION.saying("A prefix has 3 to 32 letters, digits or ._~+/=-"), field="prefix")
        if not _KEY.fullmatch(key):
            raise Refused(VALIDATION.saying("An imported key has 12 to 64 letters, digits or ._~+/=-"), field="apiKey")
        if not key.startswith(prefix):
            raise Refused(VALIDATION.saying("The key does not begin with the prefix that was named"), field="apiKey")
        if key.startswith(_OURS):
            raise Refused(VALIDATION.saying("The key looks like one of this service"), field="apiKey")
        if unit.session.get(KeyShape, (prefix, len(key))) is not None:
            return
        if unit.execute(select(func.count()).select_from(KeyShape)).scalar_one() >= MOST:
            message = f"Imported keys come in at most {MOST} shapes: name a prefix that more of them share"
            raise Refused(CONFLICT.saying(message), field="prefix")
        unit.add(KeyShape(prefix=prefix, length=len(key), created_at=unit.now))
        unit.after_commit(self._read_anew)

    def _read_anew(self) -> None:
        self._read_at = float("-inf")

    def _is_known(self, key: str) -> bool:
        return key.startswith(self._known.get(len(key), ()))
