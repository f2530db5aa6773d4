"""What must happen without anybody asking: delivering mail, rotating keys, forgetting the old.

Every server process runs this loop in a daemon thread, `identity worker` runs it alone. Jobs that one process should do at a time are
taken by a lease in the database, so that any number of processes share them without electing anybody. Nothing depends on it
for correctness: what has expired is refused at use, swept or not.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from types import SimpleNamespace
from typing import Final, cast

from sqlalchemy import String, bindparam, or_, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, mapped_column

from identity import logs
from identity.ambient import Origin, later
from identity.columns import Instant
from identity.core.clients import decoys, expiry, machine_tokens, registration, secrets
from identity.core.keeping import Keeping, Overdue, keepings
from identity.core.mail import outbox
from identity.core.proofs import attempts
from identity.core.record import audit, explain
from identity.core.record.audit import Action
from identity.core.tokens import belonging, status
from identity.errors import Refused
from identity.runtime import Runtime
from identity.settings import Settings
from identity.storage import Base, Database, Prepared, Unit

_log = logging.getLogger("identity.upkeep")
_TICK_SECONDS: Final = 0.5
_FOLLOW_SECONDS: Final = 3
_PROOF_SECONDS: Final = 1


class Lease(Base):
    """Until when a job is somebody's."""

    __tablename__ = "lease"

    name: Mapped[str] = mapped_column(String(32), primary_key=True)
    until: Mapped[datetime] = mapped_column(Instant)


_PROOF: Final = Prepared(
    text(
        "INSERT INTO lease (name, until) VALUES ('ready', :until) ON CONFLICT (name) DO UPDATE SET until = excluded.until"
    ).bindparams(bindparam("until", type_=Instant))
)


@dataclass(frozen=True, slots=True)
class Job:
    """A recurring piece of work. `shared`: one process at a time does it for all; else each does its own part."""

    name: str
    every_seconds: float
    work: Callable[[Runtime], object]
    shared: bool


def start(rt: Runtime, stop: threading.Event) -> list[threading.Thread]:
    """Start the loop as a daemon thread and, beside it, what must not wait for a slow job: mail, refusals and status lists."""
    threads = [
        threading.Thread(target=run, args=(rt, stop), name="upkeep", daemon=True),
        threading.Thread(target=outbox.deliver_until, args=(rt, stop), name="mail", daemon=True),
        threading.Thread(target=follow_until, args=(rt, stop), name="follow", daemon=True),
        threading.Thread(target=explain.write_until, args=(rt, stop), name="refusals", daemon=True),
        threading.Thread(target=status.keep_current, args=(rt, stop), name="status", daemon=True),
    ]
    for thread in threads:
        thread.start()
    return threads


def run(rt: Runtime, stop: threading.Event) -> None:
    """Do every job when it is due, until `stop` is set. A job that fails is logged and tried again; it ends nothing."""
    due = {job.name: rt.deadline(0) for job in JOBS}
    while not stop.is_set():
        for job in JOBS:
            if rt.deadline(0) < due[job.name] or stop.is_set():
                continue
            due[job.name] = rt.deadline(job.every_seconds)
            try:
                if not job.shared or take_lease(rt, job.name, job.every_seconds * 0.9):
                    job.work(rt)
            except Exception as exc:  # noqa: BLE001 -- the loop must outlive a database that is down
                if not rt.database.outage.explains(exc):
                    logs.event(_log, logging.WARNING, "job failed", job=job.name, error=type(exc).__name__)
        stop.wait(_TICK_SECONDS)


def follow_until(rt: Runtime, stop: threading.Event) -> None:
    """After a failover, go with the names of database and Redis, until `stop` is set. A thread of its own: a paused server holds it up.

    An outage of the database is said here, in one line when it is seen and one when it is over; nobody else says it again.
    """
    told: float | None = None
    while not stop.wait(_FOLLOW_SECONDS):
        told = _tell_outage(rt.database, told)
        try:
            if rt.database.follow():
                logs.event(_log, logging.WARNING, "another database server")
            rt.limiter.follow()
            if told is not None:
                prove_writes(rt)  # Whoever writes next need not find out that it serves again.
        except Exception as exc:  # noqa: BLE001 -- the loop must outlive whatever it meets
            if not rt.database.outage.explains(exc):
                logs.event(_log, logging.WARNING, "cannot follow", error=type(exc).__name__)


def _tell_outage(database: Database, told: float | None) -> float | None:
    """Log what has become of the database's outage; `told` is the beginning of the one that was logged last and is not over."""
    since = database.outage.since
    if told is not None and since != told:
        logs.event(_log, logging.WARNING, "the database serves again", seconds=round(time.monotonic() - told, 1))
    if since is not None and since != told:
        reason = database.outage.reason
        logs.event(_log, logging.WARNING, "the database does not serve", database=database.shown, reason=reason)
    return since


def prove_writes(rt: Runtime) -> None:
    """Raise Refused(UNAVAILABLE) unless the database takes a write; asked again within a second it answers from memory."""
    if rt.deadline(0) < rt.writes_until:
        return
    with rt.unit(Origin.background(), lasting=False) as unit:
        unit.run(_PROOF, until=unit.now)
    rt.writes_until = rt.deadline(_PROOF_SECONDS)


def take_lease(rt: Runtime, name: str, seconds: float) -> bool:
    """Whether this process has the job for the next `seconds`; decided by one conditional update."""
    try:
        with rt.unit(Origin.background()) as unit:
            if unit.changed(
                update(Lease)
                # Further ahead than any holder sets it: taken by a clock that was ahead.
                .where(Lease.name == name, or_(Lease.until <= unit.now, Lease.until > later(unit.now, seconds)))
                .values(until=later(unit.now, seconds))
            ):
                return True
            if unit.session.get(Lease, name) is not None:
                return False
            unit.add(Lease(name=name, until=later(unit.now, seconds)))
            return True
    except IntegrityError:
        return False  # Another process made it at this moment.


def sweep(rt: Runtime) -> None:
    """Forget what is over, each kind in small units of its own: one that fails holds up no other, none holds the database for long."""
    for name, keeping in keepings().items():
        if keeping.purge is not None:
            _purge(rt, name, keeping.purge)
    _purge(rt, "ring", lambda rt, unit: rt.ring.drop_spent(unit))


def backlog(database: Database, settings: Settings, now: datetime) -> dict[str, int]:
    """How many rows of each kind are over and still there, up to some number; many for long means that the janitor does not keep up."""
    found = {}
    rt = cast("Runtime", SimpleNamespace(settings=settings))
    for name, keeping in keepings().items():
        if keeping.purge is not None:
            with database.reading() as session:
                overdue = Overdue(session, now)
                keeping.purge(rt, cast("Unit", overdue))
            found[name] = overdue.count
    return found


def _purge(rt: Runtime, name: str, purge: Callable[[Runtime, Unit], int]) -> None:
    try:
        gone = 1
        while gone:
            with rt.unit(Origin.background()) as unit:
                gone = purge(rt, unit)
    except Exception as exc:  # noqa: BLE001 -- whatever it is, the other kinds are still to be swept
        if not rt.database.outage.explains(exc):
            logs.event(_log, logging.WARNING, "purge failed", kind=name, error=type(exc).__name__)


def tend_keys(rt: Runtime) -> None:
    """Keep a standby key published, and rotate when the active key has signed for long enough."""
    rt.ring.ensure_standby()
    if rt.ring.is_due():
        with rt.unit(Origin.background()) as unit:
            kid = rt.ring.rotate(unit)
            audit.record(rt, unit, Action.KEY_ROTATED, actor="background", target=kid)


def write_notes(rt: Runtime) -> None:
    """Write down what this process only noted: guesses to give back, tries of decoys, uses of credentials, and why it refused."""
    failure: Exception | None = None
    for write in (
        lambda: attempts.pay_back(rt, Origin.background()),
        lambda: decoys.tell(rt),
        lambda: rt.usage.flush(rt.database, rt.clock.now()),
        lambda: rt.explanations.flush(rt.database, rt.clock.now()),
    ):
        try:
            write()
        except Refused:
            raise  # The database is away, for the others too.
        except Exception as exc:  # noqa: BLE001 -- what fails each time must not keep the others from being written
            failure = failure or exc
    if failure is not None:
        raise failure


def write_tallies(rt: Runtime) -> None:
    """Write down what this process counted of the uses of credentials."""
    now = rt.clock.now()
    rt.tallies.flush(rt.database, now, signer=rt.ring.active_kid(now) if rt.ring.is_ready() else "")


JOBS: Final = (
    Job("notes", 1.0, write_notes, shared=False),
    Job("tallies", 5.0, write_tallies, shared=False),
    Job("strangers", 10.0, audit.record_strangers, shared=False),
    Job("asking", 10.0, machine_tokens.record_asking, shared=False),
    Job("ring", 2.0, lambda rt: rt.ring.reload_if_changed(), shared=False),
    Job("heap", 2.0, lambda rt: rt.passwords.rest(), shared=False),
    Job("windows", 60.0, lambda rt: rt.limiter.sweep(), shared=False),
    Job("decoys", 60.0, decoys.tell_left, shared=True),
    Job("keys", 10.0, tend_keys, shared=True),
    Job("retire", 10.0, secrets.retire_quiet, shared=True),
    Job("belonging", 10.0, belonging.tell_untold, shared=True),
    Job("places", 300.0, registration.place_all, shared=True),
    Job("sweep", 300.0, sweep, shared=True),
    Job("expiry", 3600.0, expiry.warn, shared=True),
)


KEEPING: Final = Keeping((Lease,))
