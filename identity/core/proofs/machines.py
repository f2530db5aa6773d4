"""Failures of machines: of client secrets, assertions and key pairs, which nobody can guess and anybody can send in any number.

One row for each client address holds all of them, whatever they named. So a name that does not exist leaves nothing of its own, and
cannot be told by its lockout from one that does.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Final

from identity.ambient import Origin, later
from identity.columns import to_micros
from identity.core.proofs.attempts import CLOCKS_APART, FAILED, Budget, locked_meter, stored_meter
from identity.errors import LOCKED_OUT, Refused
from identity.instruments.counts import LOCKOUTS
from identity.instruments.epochs import shard_of_meter, turn
from identity.instruments.limits import address_key
from identity.runtime import Runtime
from identity.storage import Unit

NAME_AND_ADDRESS: Final = Budget("machine and address", 20, 300)
ADDRESS: Final = Budget("machines at an address", 100, 300)

Failures = list[tuple[int, str]]
"""When each failure was, and what it named: a few characters of a hash."""


def meter_key(origin: Origin) -> bytes:
    """The key of the row that holds the failures from a client address, for a hot read that brings them along (`attempts.FAILURES`)."""
    return hashlib.sha256(f"{ADDRESS.name}\0{address_key(origin.address)}".encode("utf-8", "surrogatepass")).digest()


def judge(rt: Runtime, name: str, failed: str | None) -> None:
    """Raise Refused(LOCKED_OUT) when these failures, as `attempts.FAILURES` reads them, use up the budget of `name`.

    That of the address is judged by `record` alone: it bounds what failures cost, and does not lock out a client that is right.
    """
    if failed is None or failed == "[]":
        return
    now = to_micros(rt.clock.now())
    _judge(NAME_AND_ADDRESS, [at for at, named in _living(failed, now) if named == _tag(name)], now)


def check(rt: Runtime, origin: Origin, name: str) -> None:
    """`judge`, by a read of its own."""
    row = rt.database.row(FAILED, meter=meter_key(origin))
    judge(rt, name, row.failed if row else None)


def record(rt: Runtime, unit: Unit, name: str) -> None:
    """Count a failure of `name` from the unit's origin; once its address has failed too often, raise Refused(LOCKED_OUT) instead."""
    now, key = to_micros(unit.now), meter_key(unit.origin)
    failures = _living(locked_meter(unit, key, later(unit.now, ADDRESS.seconds)), now)
    _judge(ADDRESS, [at for at, _ in failures], now)
    failures.append((now, _tag(name)))
    spelled = json.dumps(failures, separators=(",", ":"))
    stored_meter(unit, key, spelled)
    # A lockout refuses right credentials too: passes that are remembered from this address end with it.
    own = len([at for at, named in failures if named == _tag(name)])
    if NAME_AND_ADDRESS.amount == own or len(failures) == ADDRESS.amount:
        unit.after_commit(lambda: rt.counts.add(LOCKOUTS))
    if own >= NAME_AND_ADDRESS.amount:
        turn(unit, shard_of_meter(key), hashlib.sha256(spelled.encode()).digest()[:6])


def _living(failed: str, now: int) -> Failures:
    """What still counts. A failure of the future does not: the clock was turned back, and a lockout never outlasts its window."""
    return [
        (at, named) for at, named in json.loads(failed) if now - ADDRESS.seconds * 1_000_000 < at <= now + CLOCKS_APART
    ]


def _judge(budget: Budget, times: list[int], now: int) -> None:
    if len(times) < budget.amount:
        return
    frees_at = sorted(times)[-budget.amount] + budget.seconds * 1_000_000
    wait = min(max(1, math.ceil((frees_at - now) / 1_000_000)), budget.seconds)
    evidence = {"budget": budget.name, "failures": len(times)}
    raise Refused(LOCKED_OUT, detail=f"{budget.name} budget is used up", evidence=evidence, retry_after_seconds=wait)


def _tag(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:12]
