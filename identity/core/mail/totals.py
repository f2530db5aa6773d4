"""How often something has happened, ever: counts that only grow, of all processes and hosts together, and outlive every restart."""

from __future__ import annotations

from typing import Final, NamedTuple

from sqlalchemy import BigInteger, String, bindparam, select, text
from sqlalchemy.orm import Mapped, mapped_column

from identity.core.keeping import Keeping
from identity.storage import Base, Database, Prepared, Unit

GIVEN_UP: Final = "mail given up"


class Total(Base):
    """One count."""

    __tablename__ = "lasting_total"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    value: Mapped[int] = mapped_column(BigInteger)


_COUNT_UP: Final = Prepared(
    text(
        "INSERT INTO lasting_total (name, value) VALUES (:name, 1) ON CONFLICT (name) DO UPDATE SET value = lasting_total.value + 1"
    ).bindparams(bindparam("name", type_=String))
)


class _TotalRow(NamedTuple):
    value: int


_VALUE: Final = Prepared(select(Total.value).where(Total.name == bindparam("name")), into=_TotalRow)


def count_up(unit: Unit, name: str) -> None:
    """Count one more, in the transaction of what is counted."""
    unit.run(_COUNT_UP, name=name)


def value_of(database: Database, name: str) -> int:
    """How many there were so far."""
    row = database.row(_VALUE, name=name)
    return row.value if row else 0


KEEPING: Final = Keeping((Total,))
