"""Failed attempts, counted in the database: never lost with a cache, never multiplied by processes.

A guess is *reserved* before it is evaluated and forgotten when it was right, so that even parallel guesses cannot exceed a budget;
`guesses.Guess` sees to the end of each reservation, and only it calls `reserve` and `settle`.
Each counted key is one row; an upsert locks it, so that two guesses at once are counted one after the other on either database.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, Final, NamedTuple

from sqlalchemy import LargeBinary, Text, bindparam, delete, select, text
from sqlalchemy.orm import Mapped, mapped_column

from identity.ambient import Origin, later
from identity.columns import Instant, from_micros, to_micros
from identity.core.keeping import Keeping, delete_batch
from identity.errors import LOCKED_OUT, UNAVAILABLE, Refused
from identity.instruments.counts import LOCKOUTS
from identity.runtime import Runtime
from identity.storage import Base, Contention, Prepared, Unit

_ABANDONED_SECONDS: Final = 30
CLOCKS_APART: Final = 60_000_000
"""How far, in microseconds, the clocks of several hosts may be apart."""


@dataclass(frozen=True, slots=True)
class Budget:
    """At most `amount` failures in any `seconds`."""

    name: str
    amount: int
    seconds: int


ACCOUNT_AND_ADDRESS: Final = Budget("account and address", 5, 300)
ACCOUNT: Final = Budget("account", 50, 300)
ADDRESS: Final = Budget("address", 100, 300)
SECOND_FACTOR: Final = Budget("second factor", 100, 86_400)


@dataclass(frozen=True, slots=True)
class Charge:
    """A failure to count: against which budget, for whom."""

    budget: Budget
    subject: str

    @property
    def key(self) -> bytes:
        return hashlib.sha256(f"{self.budget.name}\0{self.subject}".encode("utf-8", "surrogatepass")).digest()


class Meter(Base):
    """The failures of one key: settled ones as times in microseconds, and guesses under way by the id of their reservation."""

    __tablename__ = "meter"

    key: Mapped[bytes] = mapped_column(LargeBinary(32), primary_key=True)
    failed: Mapped[str] = mapped_column(Text, default="[]")
    pending: Mapped[str] = mapped_column(Text, default="{}")
    expires_at: Mapped[datetime] = mapped_column(Instant, index=True)


class FailedRow(NamedTuple):
    """The failures of one meter, as `judge` takes them."""

    failed: str


FAILED = Prepared(select(Meter.failed).where(Meter.key == bindparam("meter")), into=FailedRow)
FAILURES = select(Meter.failed).where(Meter.key == bindparam("meter")).scalar_subquery()
"""For a hot read of something else to bring along the failures of one charge, for `judge`."""


@cache
def _lock(count: int) -> Prepared[tuple[Any, ...]]:
    """The statement that makes sure of `count` meters, locks them in the order given, and reads them.

    Both databases read it alike; built anew by SQLAlchemy for each login it would cost more than anything but the hash.
    """
    rows = ", ".join(f"(:key_{at}, '[]', '{{}}', :expires_at_{at})" for at in range(count))
    return Prepared(
        text(
            f"INSERT INTO meter (key, failed, pending, expires_at) VALUES {rows} "  # noqa: S608 -- numbers of ours alone
            "ON CONFLICT (key) DO UPDATE SET expires_at = excluded.expires_at RETURNING key, failed, pending"
        )
        .bindparams(*(bindparam(f"key_{at}", type_=LargeBinary) for at in range(count)))
        .bindparams(*(bindparam(f"expires_at_{at}", type_=Instant) for at in range(count)))
        .columns(key=LargeBinary, failed=Text, pending=Text)
    )


@cache
def _store_of(count: int) -> Prepared[tuple[Any, ...]]:
    """The statement that writes `count` locked meters back."""
    rows = ", ".join(f"(:key_{at}, :failed_{at}, :pending_{at}, 0)" for at in range(count))
    return Prepared(
        text(
            f"INSERT INTO meter (key, failed, pending, expires_at) VALUES {rows} "  # noqa: S608 -- see above
            "ON CONFLICT (key) DO UPDATE SET failed = excluded.failed, pending = excluded.pending"
        )
        .bindparams(*(bindparam(f"key_{at}", type_=LargeBinary) for at in range(count)))
        .bindparams(*(bindparam(f"{name}_{at}", type_=Text) for at in range(count) for name in ("failed", "pending")))
    )


@dataclass(slots=True)
class _Count:
    """A locked meter while its unit works on it."""

    charge: Charge
    key: bytes
    failed: list[int]
    pending: dict[str, int]


@dataclass(frozen=True, slots=True)
class Reservation:
    """A guess that may be evaluated now."""

    id: str
    charges: tuple[Charge, ...]
    at: int = 0


class Busy(Exception):
    """Only guesses that are being evaluated at this moment fill the budget; ask again when they are done."""


def reserve(rt: Runtime, origin: Origin, charges: Sequence[Charge]) -> Reservation:
    """Take the right to evaluate one guess, in a unit of its own.

    Waits while guesses that are under way could still fill a budget. Raises Refused(LOCKED_OUT) when failures fill one already,
    Refused(UNAVAILABLE) when the wait is too long.
    """
    deadline = rt.deadline(rt.settings.hash_wait_seconds)
    while True:
        try:
            # Not lasting: a power cut could forget guesses that nobody was answered yet; every login would wait for the disk once more.
            with rt.unit(origin, lasting=False) as unit:
                return _reserve(rt, unit, charges)
        except Busy:
            if rt.deadline(0) > deadline:
                raise Refused(UNAVAILABLE, detail="too many guesses under way", retry_after_seconds=1) from None
            rt.pause(0.02)


def settle(unit: Unit, *, failed: Sequence[Reservation] = (), forgotten: Sequence[Reservation] = ()) -> int:
    """End reservations: count the guess of each in `failed`, and forget those that were right or never looked at; tell how many lock out.

    Forgets also what was taken for abandoned meanwhile. Two reservations of one call have no charge in common.
    """
    now = to_micros(unit.now)
    ends = {each.key: (one, one in failed) for one in (*failed, *forgotten) for each in one.charges}
    counts = _locked(unit, [each for one in (*failed, *forgotten) for each in one.charges])
    lockouts = 0
    for count in counts:
        reservation, has_failed = ends[count.key]
        at = count.pending.pop(reservation.id, None)
        if has_failed:
            # What no longer counts goes: a key that is never reserved would otherwise grow as long as somebody fails.
            count.failed = _living(count.charge.budget, [*count.failed, now if at is None else at], now)
            lockouts += len(count.failed) == count.charge.budget.amount
        elif at is None and reservation.at in count.failed:
            count.failed.remove(reservation.at)
    _store(unit, counts)
    return lockouts


def fail(rt: Runtime, unit: Unit, charges: Sequence[Charge]) -> None:
    """Count a failure that nothing was reserved for: of what cannot be guessed, so that its number alone is bounded."""
    lockouts = settle(unit, failed=[Reservation(rt.new_id(), tuple(charges))])
    unit.after_commit(lambda: rt.counts.add(LOCKOUTS, by=lockouts))


def owe(rt: Runtime, origin: Origin, reservations: Sequence[Reservation]) -> None:
    """Give back guesses whose unit rolled back, since what it decided was then not told to anybody.

    An outage is not held against the user: what cannot be given back now, because the database is away, is given back when it returns.
    """
    rt.owed.extend(reservations)
    with suppress(Refused, Contention):
        pay_back(rt, origin)


def pay_back(rt: Runtime, origin: Origin) -> None:
    """Give back every guess of this process that is owed. Raises Refused(UNAVAILABLE) or Contention; what is left is owed still."""
    while rt.owed:
        reservation = rt.owed[0]
        with rt.unit(origin) as unit:
            settle(unit, forgotten=[reservation])
        with suppress(ValueError):
            rt.owed.remove(reservation)  # Not by place: two threads may pay the same one, which is the same as once.


def locked_meter(unit: Unit, key: bytes, expires_at: datetime) -> str:
    """The failures of one meter that keeps them in a form of its own, locked until the unit ends; `stored_meter` writes them back."""
    ((_, failed, _),) = unit.run(_lock(1), key_0=key, expires_at_0=expires_at)
    return str(failed)


def stored_meter(unit: Unit, key: bytes, failed: str) -> None:
    """Write the failures of a locked meter."""
    unit.run(_store_of(1), key_0=key, failed_0=failed, pending_0="{}")


def check(rt: Runtime, charges: Sequence[Charge]) -> None:
    """Raise Refused(LOCKED_OUT) when a budget is used up; reads only."""
    for each in charges:
        row = rt.database.row(FAILED, meter=each.key)
        judge(rt, each, row.failed if row else None)


def judge(rt: Runtime, charge: Charge, failed: str | None) -> None:
    """Raise Refused(LOCKED_OUT) when these failures, as `FAILURES` reads them, use up the budget of `charge`."""
    if failed is None or failed == "[]":
        return
    now = to_micros(rt.clock.now())
    living = _living(charge.budget, json.loads(failed), now)
    if len(living) >= charge.budget.amount:
        raise _locked_out(charge, living, now)


def forgive(unit: Unit, charges: Sequence[Charge]) -> int:
    """Forget the failures that these charges counted; tell how many counters there were."""
    keys = [each.key for each in charges]
    return unit.changed(delete(Meter).where(Meter.key.in_(keys)).execution_options(synchronize_session=False))


def purge(_rt: Runtime, unit: Unit) -> int:
    """Forget keys without a living failure."""
    return delete_batch(unit, Meter, Meter.expires_at < unit.now)


def _reserve(rt: Runtime, unit: Unit, charges: Sequence[Charge]) -> Reservation:
    now = to_micros(unit.now)
    reservation = Reservation(rt.new_id(), tuple(charges), now)
    busy = False
    counts = _locked(unit, charges)
    for count in counts:
        budget = count.charge.budget
        # A guess whose process died before it could say how it ended counts as a failure.
        abandoned = {name: at for name, at in count.pending.items() if at < now - _ABANDONED_SECONDS * 1_000_000}
        count.failed = _living(budget, [*count.failed, *abandoned.values()], now)
        count.pending = {
            name: at for name, at in count.pending.items() if name not in abandoned and at <= now + CLOCKS_APART
        }
        if len(count.failed) >= budget.amount:
            raise _locked_out(count.charge, count.failed, now)
        busy = busy or len(count.failed) + len(count.pending) >= budget.amount
        count.pending[reservation.id] = now
    if busy:
        raise Busy
    _store(unit, counts)
    return reservation


def _living(budget: Budget, failed: Sequence[int], now: int) -> list[int]:
    """The failures that count, oldest first. One of the future does not: the clock was turned back, and no lockout outlasts its window."""
    return sorted(at for at in failed if now - budget.seconds * 1_000_000 < at <= now + CLOCKS_APART)


def _locked(unit: Unit, charges: Sequence[Charge]) -> list[_Count]:
    """The counts of `charges`, each locked until the unit ends; always in the same order, so that two guesses cannot deadlock.

    By budget first: a unit that settles two reservations takes the second factor's last, as one with both kinds of charge does.
    """
    if not charges:
        return []
    ordered = sorted(((each.budget.name, each.key, each) for each in charges), key=lambda one: one[:2])
    values: dict[str, Any] = {}
    for at, (_, key, each) in enumerate(ordered):
        values |= {f"key_{at}": key, f"expires_at_{at}": later(unit.now, each.budget.seconds)}
    found = {bytes(key): (failed, pending) for key, failed, pending in unit.run(_lock(len(ordered)), **values)}
    counts = []
    for _, key, each in ordered:
        failed, pending = found[key]
        counts.append(_Count(each, key, json.loads(failed), json.loads(pending)))
    return counts


def _store(unit: Unit, counts: Sequence[_Count]) -> None:
    values: dict[str, Any] = {}
    for at, count in enumerate(counts):
        values |= {
            f"key_{at}": count.key,
            f"failed_{at}": json.dumps(count.failed),
            f"pending_{at}": json.dumps(count.pending),
        }
    unit.run(_store_of(len(counts)), **values)


def _locked_out(each: Charge, failed: Sequence[int], now: int) -> Refused:
    """The budget frees when its oldest counted failure leaves the window."""
    frees_at = failed[-each.budget.amount] + each.budget.seconds * 1_000_000
    wait = min(max(1, math.ceil((frees_at - now) / 1_000_000)), each.budget.seconds)
    evidence = {"budget": each.budget.name, "failures": len(failed), "oldest": from_micros(failed[0]).isoformat()}
    return Refused(
        LOCKED_OUT, detail=f"{each.budget.name} budget is used up", evidence=evidence, retry_after_seconds=wait
    )


KEEPING: Final = Keeping((Meter,), purge=purge)
