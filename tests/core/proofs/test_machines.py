"""Failures of machines: their budgets, and that what does not exist leaves nothing of its own."""

from __future__ import annotations

from collections import Counter

import pytest
from sqlalchemy import func, select

from identity.ambient import Origin
from identity.core.clients import keypair_proof, secrets
from identity.core.proofs import machines
from identity.core.proofs.attempts import Meter
from identity.core.record import audit
from identity.core.record.audit import Action, AuditEvent
from identity.errors import Refused
from identity.instruments import opaque
from identity.instruments.opaque import Kind
from identity.runtime import Runtime
from tests.builders import an_application
from tests.world import ORIGIN, FakeClock

ELSEWHERE = ORIGIN._replace(address="198.51.100.7")


def by_secret(rt: Runtime, client_id: str, secret: str, origin: Origin = ORIGIN) -> str:
    """How an authentication ends."""
    try:
        secrets.authenticate(rt, origin, client_id, secret)
    except Refused as refused:
        return refused.problem.code
    return "right"


def by_key(rt: Runtime) -> str:
    """How one with a made-up key pair ends."""
    key, secret = (opaque.mint(kind, rt.entropy).reveal() for kind in (Kind.API_KEY, Kind.API_SECRET))
    try:
        keypair_proof.authenticate(rt, ORIGIN, key, secret)
    except Refused as refused:
        return refused.problem.code
    return "right"


def rows(rt: Runtime, table: type) -> int:
    with rt.database.reading() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def test_made_up_names_leave_one_row_and_one_event(rt: Runtime) -> None:
    feed = an_application(rt)
    before = rows(rt, AuditEvent)
    ends = Counter(by_secret(rt, rt.new_id() if number % 2 else f"made up {number}", "x") for number in range(70))
    ends += Counter(by_key(rt) for _ in range(50))
    assert ends == {"INVALID_CREDENTIALS": 100, "RATE_LIMITED": 20}
    assert (rows(rt, Meter), rows(rt, AuditEvent)) == (1, before)
    audit.record_strangers(rt)
    audit.record_strangers(rt)
    events = [event for event in audit.search(rt) if "refusals" in event.data]
    assert sorted((event.action, event.actor, event.address, event.data["refusals"]) for event in events) == [
        (Action.APPLICATION_REFUSED, "", ORIGIN.address, 70),
        (Action.LOGIN_FAILED, "", ORIGIN.address, 30),
    ]
    assert by_secret(rt, feed.client_id, feed.secret) == "right", (
        "who is right is served beside a flood from its own address"
    )
    assert by_secret(rt, feed.client_id, "wrong") == "RATE_LIMITED"


def test_what_could_not_be_written_of_strangers_is_written_later(rt: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    by_secret(rt, "made up", "x")
    monkeypatch.setattr(rt.database, "unit", lambda *_, **__: (_ for _ in ()).throw(Refused(secrets.CLIENT_MISMATCH)))
    with pytest.raises(Refused):
        audit.record_strangers(rt)
    monkeypatch.undo()
    audit.record_strangers(rt)
    assert audit.search(rt, action=Action.APPLICATION_REFUSED)[0].data["refusals"] == 1


def test_strangers_from_everywhere_are_one_event_beyond_twenty_addresses(rt: Runtime) -> None:
    for number in range(60):
        rt.strangers.note(Action.APPLICATION_REFUSED, "unknown client", f"198.51.100.{number}")
    sums = rt.strangers.take()
    assert len(sums) == 21
    assert [one[3] for one in sums if not one[2]] == [40]


@pytest.mark.parametrize("is_known", [True, False])
def test_the_lockout_does_not_tell_whether_a_name_exists(rt: Runtime, is_known: bool) -> None:
    name = an_application(rt).client_id if is_known else rt.new_id()
    assert Counter(by_secret(rt, name, "wrong") for _ in range(25)) == {"INVALID_CREDENTIALS": 20, "RATE_LIMITED": 5}
    assert by_secret(rt, name, "wrong", ELSEWHERE) == "INVALID_CREDENTIALS"
    assert by_secret(rt, rt.new_id(), "wrong") == "INVALID_CREDENTIALS"


def test_failures_are_forgotten_with_their_window(rt: Runtime, clock: FakeClock) -> None:
    feed = an_application(rt)
    for _ in range(20):
        by_secret(rt, feed.client_id, "wrong")
    clock.tick(299.999)
    assert by_secret(rt, feed.client_id, feed.secret) == "RATE_LIMITED"
    clock.tick(0.001)
    assert by_secret(rt, feed.client_id, feed.secret) == "right"


def test_a_clock_that_is_turned_back_locks_nobody_out_for_longer_than_the_window(rt: Runtime, clock: FakeClock) -> None:
    feed = an_application(rt)
    clock.tick(3_600)
    for _ in range(20):
        by_secret(rt, feed.client_id, "wrong")
    clock.tick(-3_600)
    assert by_secret(rt, feed.client_id, feed.secret) == "right"
    assert machines.NAME_AND_ADDRESS.seconds == machines.ADDRESS.seconds
