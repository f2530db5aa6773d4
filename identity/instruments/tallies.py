"""What each credential was used for: counts by hour, route, status and address, kept off the hot path.

A request costs one addition in memory; the background loop writes sums every few seconds. A process that is killed loses the last of them.
Counted are client secrets, key sets and trusts (`secret:ID`), key pairs with what they were traded for (`key:ID`), and signing keys
(`kid:KID`): what a leak of one has touched must be told long after the requests. Logins of people stand in the audit.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final

from sqlalchemy import BigInteger, String, delete, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Mapped, Session, mapped_column

from identity import grounds
from identity.ambient import Origin, later
from identity.columns import Instant
from identity.storage import Base, Database, Unit

KEPT_DAYS: Final = 90
#: Of each credential and hour; those beyond are one together, without an address.
MOST_ADDRESSES: Final = 100
#: What is noted between two writes; beyond it addresses are left out, and beyond twice as much nothing more is counted.
_CAPACITY: Final = 20_000
_CHUNK: Final = 500

_Key = tuple[str, str, int, str, bool]


class CredentialUse(Base):
    """How often a credential was used in an hour for a route with an answer from an address, and how many tokens that handed out."""

    __tablename__ = "credential_use"

    credential: Mapped[str] = mapped_column(String(64), primary_key=True)
    hour: Mapped[datetime] = mapped_column(Instant, primary_key=True, index=True)
    route: Mapped[str] = mapped_column(String(100), primary_key=True)
    status: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    address: Mapped[str] = mapped_column(String(64), primary_key=True)
    uses: Mapped[int] = mapped_column(BigInteger)
    tokens: Mapped[int] = mapped_column(BigInteger)


class Tallies:
    """The uses that this process has counted and not written yet."""

    def __init__(self) -> None:
        self._counts: dict[_Key, int] = {}
        self._turn = threading.Lock()
        self._hour: datetime | None = None
        self._addresses: dict[str, set[str]] = defaultdict(set)

    def note(self, credential: str, route: str, status: int, address: str, *, issued: bool) -> None:
        """Count one answered request of `credential`; `issued`: it was given a token. An empty credential is that of a person."""
        grounds.note_deed(lambda _: self.note(credential, route, status, address, issued=issued))
        key = (credential, route, status, address, issued)
        with self._turn:
            counts = self._counts
            if len(counts) >= _CAPACITY and key not in counts:
                key = (credential, route, status, "", issued)
                if len(counts) >= 2 * _CAPACITY and key not in counts:
                    return
            counts[key] = counts.get(key, 0) + 1

    def flush(self, database: Database, now: datetime, *, signer: str) -> int:
        """Add what was counted to the rows; tell how many rows. `signer`: the key that signs now, which made every token given out."""
        with self._turn:
            counts, self._counts = self._counts, {}
        if not counts:
            return 0
        hour = now.replace(minute=0, second=0, microsecond=0)
        if hour != self._hour:
            self._hour, self._addresses = hour, defaultdict(set)
        sums: dict[tuple[str, str, int, str], list[int]] = defaultdict(lambda: [0, 0])
        for (credential, route, status, address, issued), count in counts.items():
            whose = [credential] if credential else []
            if issued and signer:
                whose.append(f"kid:{signer}")
            for one in whose:
                found = sums[one, route, status, self._known(one, address[:64])]
                found[0] += count
                found[1] += count * issued
        try:
            # Not lasting: they inform, and a host that dies may take the last of them along.
            with database.unit(now, Origin.background(), lasting=False) as unit:
                _add(unit, sums, hour, is_sqlite=database.is_sqlite)
        except Exception:
            self._give_back(counts)
            raise
        return len(sums)

    def _known(self, credential: str, address: str) -> str:
        """The address, or nothing where this credential has been seen at too many in this hour, as a signing key always is."""
        if credential.startswith("kid:"):
            return ""
        seen = self._addresses[credential]
        if address in seen or len(seen) < MOST_ADDRESSES:
            seen.add(address)
            return address
        return ""

    def _give_back(self, counts: dict[_Key, int]) -> None:
        with self._turn:
            for key, count in counts.items():
                if len(self._counts) < 2 * _CAPACITY or key in self._counts:
                    self._counts[key] = self._counts.get(key, 0) + count


def _add(unit: Unit, sums: dict[tuple[str, str, int, str], list[int]], hour: datetime, *, is_sqlite: bool) -> None:
    insert: Any = sqlite.insert if is_sqlite else postgresql.insert
    # In one order everywhere: two processes that write the same rows must not wait for each other in a circle.
    rows = [
        {
            "credential": credential,
            "hour": hour,
            "route": route[:100],
            "status": status,
            "address": address,
            "uses": uses,
            "tokens": tokens,
        }
        for (credential, route, status, address), (uses, tokens) in sorted(sums.items())
    ]
    for start in range(0, len(rows), _CHUNK):
        statement = insert(CredentialUse).values(rows[start : start + _CHUNK])
        more = {
            "uses": CredentialUse.uses + statement.excluded.uses,
            "tokens": CredentialUse.tokens + statement.excluded.tokens,
        }
        keys = ["credential", "hour", "route", "status", "address"]
        unit.execute(statement.on_conflict_do_update(index_elements=keys, set_=more))


def uses_of(session: Session, credentials: Iterable[str]) -> list[CredentialUse]:
    """Every row about these credentials, in the order of time."""
    its = CredentialUse.credential.in_(list(credentials))
    query = select(CredentialUse).where(its).order_by(CredentialUse.hour, CredentialUse.credential, CredentialUse.route)
    return list(session.scalars(query))


def forget(unit: Unit, credentials: Iterable[str]) -> None:
    """Delete what is known of the uses of credentials whose owner is erased."""
    unit.execute(delete(CredentialUse).where(CredentialUse.credential.in_(list(credentials))))


def horizon(now: datetime) -> datetime:
    """What is older than this is forgotten."""
    return later(now, -KEPT_DAYS * 86_400)
