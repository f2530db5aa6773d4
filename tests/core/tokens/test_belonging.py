"""What holds for every member of a tenant changes at once; that their tokens say otherwise is told right after, part by part."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import select

from identity.core import upkeep
from identity.core.admin import tenants
from identity.core.admin.by import By
from identity.core.people.tenancy import Tenant
from identity.core.tokens import belonging, status
from identity.errors import UNAVAILABLE, Refused
from identity.instruments.statuslists import CHANGED, StatusEntry
from identity.runtime import Runtime
from identity.storage import Contention
from tests.builders import a_session, a_tenant, a_token, a_user
from tests.world import ORIGIN, FakeClock, Web

BY = By("test", ORIGIN)
ACME = {"X-Tenant-Id": "acme-bank"}
Deed = Callable[[Runtime], object]


def stop(rt: Runtime) -> object:
    return tenants.set_tenant_enabled(rt, BY, "acme-bank", enabled=False)


def narrow(rt: Runtime) -> object:
    return tenants.change_tenant(rt, BY, "acme-bank", policy={"requireSecondFactor": True})


def places(rt: Runtime, count: int) -> set[int]:
    """The places of so many members' sessions."""
    a_tenant(rt, "acme-bank")
    people = [a_user(rt, password=None, tenants={"acme-bank": ()}) for _ in range(count)]
    return {place for person in people if (place := a_session(rt, person).session.place) is not None}


def told(rt: Runtime) -> set[int]:
    with rt.database.reading() as session:
        return {row.place for row in session.scalars(select(StatusEntry)) if row.value == CHANGED}


def waits(rt: Runtime) -> bool:
    with rt.database.reading() as session:
        return session.get_one(Tenant, "acme-bank").members_untold_since is not None


def broken(*_: object) -> None:
    raise Refused(UNAVAILABLE)


@pytest.mark.parametrize("deed", [stop, narrow])
@pytest.mark.parametrize("error", [Refused(UNAVAILABLE), Contention()], ids=str)
def test_a_tenant_changes_at_once_and_a_telling_that_fails_is_made_up_for(
    web: Web, monkeypatch: pytest.MonkeyPatch, deed: Deed, error: Exception
) -> None:
    rt, theirs = web.rt, places(web.rt, 3)
    token = a_token(rt, a_user(rt, tenants={"acme-bank": ("analyst",)}))
    assert web.get("/verify", bearer=token, headers=ACME).status_code == 200

    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as down:
        down.setattr(status, "change_subjects", fail)
        deed(rt)
    assert web.get("/verify", bearer=token, headers=ACME).status_code == 403
    assert waits(rt)
    assert not told(rt) & theirs
    belonging.tell_untold(rt)
    assert told(rt) >= theirs
    assert not waits(rt)


def test_the_job_that_goes_on_is_one_of_every_process() -> None:
    job = next(job for job in upkeep.JOBS if job.name == "belonging")
    assert (job.work, job.shared, job.every_seconds <= 10) == (belonging.tell_untold, True, True)


def test_members_are_told_of_in_parts_so_that_no_login_waits_for_all(
    rt: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, seen = places(rt, 5), [0]
    monkeypatch.setattr(belonging, "_AT_ONCE", 2)
    change = status.change_subjects

    def counting(*arguments: object) -> None:
        seen.append(len(told(rt)))  # What the parts before have committed.
        change(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(status, "change_subjects", counting)
    stop(rt)
    assert told(rt) == theirs
    assert seen == [0, 0, 2, 4]


def test_a_change_while_members_are_told_has_its_own_telling(
    rt: Runtime, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, look = places(rt, 2), belonging._untold_since

    def meanwhile(*arguments: object) -> object:
        found = look(*arguments)  # type: ignore[arg-type]
        monkeypatch.setattr(belonging, "_untold_since", look)
        with monkeypatch.context() as once:
            once.setattr(status, "change_subjects", broken)
            clock.tick()
            narrow(rt)
        return found

    monkeypatch.setattr(belonging, "_untold_since", meanwhile)
    stop(rt)
    assert told(rt) == theirs
    assert waits(rt), "of the change in between nobody was told"
    belonging.tell_untold(rt)
    assert not waits(rt)


def test_a_tenant_that_is_deleted_is_told_of_before_nothing_is_left(rt: Runtime) -> None:
    theirs = places(rt, 2)
    tenants.delete_tenant(rt, BY, "acme-bank")
    assert told(rt) == theirs
