"""The audit: found by what it tells, in a stable order, and an edited row shows."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import delete, select, update

from identity.ambient import Origin
from identity.core.record import audit
from identity.core.record.audit import Action, AuditEvent
from identity.runtime import Runtime
from tests.world import ORIGIN, FakeClock


def happen(rt: Runtime, action: Action = Action.USER_CREATED, *, actor: str = "ada", target: str = "eve") -> None:
    with rt.unit(ORIGIN) as unit:
        audit.record(rt, unit, action, actor=actor, target=target, before=None, after={"roles": ["lead"]})


def test_an_event_tells_who_what_whom_when_and_whence(rt: Runtime, clock: FakeClock) -> None:
    origin = Origin(address="192.0.2.7", request_id="req-1", error_id="00000000-0000-4000-8000-000000000001")
    with rt.unit(origin) as unit:
        audit.record(rt, unit, Action.USER_DISABLED, actor="ada", target="eve", reason="left")
    (event,) = audit.search(rt)
    assert (event.action, event.actor, event.target) == ("user.disabled", "ada", "eve")
    assert (event.address, event.request_id) == (origin.address, origin.request_id)
    assert (event.at, event.data, event.genuine) == (clock.now(), {"reason": "left"}, True)


def test_only_a_refusal_carries_the_error_id(rt: Runtime) -> None:
    for action in Action:
        happen(rt, action)
    told = {event.action: event.error_id for event in audit.search(rt, limit=200)}
    assert {action for action, error_id in told.items() if error_id} == set(audit.REFUSALS)
    assert {told[action] for action in audit.REFUSALS} == {ORIGIN.error_id}


def test_an_event_names_what_proved_the_actor_and_the_tenant(rt: Runtime) -> None:
    with rt.unit(Origin(credential="key:k1")) as unit:
        audit.record(rt, unit, Action.MEMBER_SET, actor="ada", target="eve", tenant="acme")
        audit.record(rt, unit, Action.TENANT_CHANGED, actor="ada", target="acme")
        audit.record(rt, unit, Action.LOGIN_FAILED, actor="ada", credential="key:k2", reason="wrong secret")
    told = {(event.action, event.credential, event.tenant) for event in audit.search(rt)}
    assert told == {
        ("tenant.member-set", "key:k1", "acme"),
        ("tenant.changed", "key:k1", "acme"),
        ("login.failed", "key:k2", ""),
    }
    assert all(event.genuine for event in audit.search(rt))


def test_every_action_of_the_catalogue_is_recorded_somewhere() -> None:
    package = Path(audit.__file__).parents[2]
    sources = [path.read_text() for path in package.rglob("*.py") if path != Path(audit.__file__)]
    recorded = {name for source in sources for name in re.findall(r"Action\.([A-Z_]+)", source)}
    assert {action.name for action in Action} <= recorded


def test_a_deed_that_is_rolled_back_leaves_no_event(rt: Runtime) -> None:
    def fail() -> None:
        with rt.unit(ORIGIN) as unit:
            audit.record(rt, unit, Action.USER_CREATED, actor="ada")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert audit.search(rt) == []


def test_events_are_found_by_actor_action_and_target(rt: Runtime) -> None:
    happen(rt)
    happen(rt, Action.USER_DISABLED, actor="bob")
    happen(rt, Action.USER_DISABLED, target="mallory")
    for filters, count in (
        ({}, 3),
        ({"actor": "ada"}, 2),
        ({"action": "user.disabled"}, 2),
        ({"target": "eve"}, 2),
        ({"actor": "ada", "target": "mallory"}, 1),
        ({"actor": "a%"}, 0),
        ({"action": "' OR 1=1 --"}, 0),
    ):
        assert audit.count(rt, **filters) == len(audit.search(rt, **filters)) == count, filters


@pytest.mark.parametrize(
    ("since", "until", "count"), [(0, 2, 2), (0, 1, 1), (1, 2, 1), (1, 3, 2), (2, 2, 0), (3, 9, 0)]
)
def test_a_period_holds_its_start_and_not_its_end(
    rt: Runtime, clock: FakeClock, since: int, until: int, count: int
) -> None:
    start = clock.now()
    for _ in range(3):
        happen(rt)
        clock.tick(1)
    period = {"since": start + timedelta(seconds=since), "until": start + timedelta(seconds=until)}
    assert audit.count(rt, **period) == len(audit.search(rt, **period)) == count


def test_pages_hold_every_event_once_newest_first(rt: Runtime, clock: FakeClock) -> None:
    for number in range(25):
        happen(rt, actor=f"a{number}")
        clock.tick(number % 3)
    seen = [event for offset in range(0, 30, 7) for event in audit.search(rt, limit=7, offset=offset)]
    assert len({event.id for event in seen}) == len(seen) == 25
    assert [event.at for event in seen] == sorted((event.at for event in seen), reverse=True)


@pytest.mark.parametrize(
    "column",
    ["at", "action", "actor", "target", "address", "request_id", "error_id", "credential", "tenant", "data", "mac"],
)
def test_an_edited_row_shows(rt: Runtime, clock: FakeClock, column: str) -> None:
    happen(rt)
    forged = {"at": clock.now() + timedelta(microseconds=1), "data": "{}", "mac": b"\0" * 32}.get(column, "forged")
    with rt.unit(ORIGIN) as unit:
        unit.execute(update(AuditEvent).values({column: forged}))
    assert [event.genuine for event in audit.search(rt)] == [False]


def test_a_row_copied_under_another_id_shows(rt: Runtime) -> None:
    happen(rt)
    with rt.unit(ORIGIN) as unit:
        row = unit.session.scalars(select(AuditEvent)).one()
        values = {column.key: getattr(row, column.key) for column in AuditEvent.__table__.columns}
        unit.execute(delete(AuditEvent))
        unit.session.expunge(row)
        unit.add(AuditEvent(**values | {"id": "another"}))
    assert [event.genuine for event in audit.search(rt)] == [False]


@pytest.mark.parametrize(("seconds", "left"), [(-1, 1), (0, 1), (1, 0)])
def test_events_are_forgotten_after_their_days(rt: Runtime, clock: FakeClock, seconds: int, left: int) -> None:
    happen(rt)
    clock.tick(rt.settings.audit_days * 86_400 + seconds)
    with rt.unit(ORIGIN) as unit:
        audit.purge(rt, unit)
    assert audit.count(rt) == left
