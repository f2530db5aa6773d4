"""How users come and go: what an unconfirmed registration holds and for how long, and what erasure leaves behind."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DatabaseError

from identity.core.admin import erasure
from identity.core.clients import keypairs
from identity.core.people import accounts, addresses, tenancy
from identity.core.people.accounts import User
from identity.core.record import audit
from identity.core.signin import by_code, factors, sign_up
from identity.errors import CONFLICT, NOT_FOUND, REGISTRATION_DISABLED, Refused
from identity.runtime import Runtime
from identity.storage import Base
from tests.builders import a_session, a_user
from tests.world import ORIGIN, FakeClock, Web


def register(rt: Runtime, *, email: str = "grace@navy.example", alias: str = "grace") -> by_code.Waiting:
    return sign_up.register(rt, ORIGIN, email=email, full_name="Grace Hopper", alias=alias)


def erase(rt: Runtime, user_id: str) -> None:
    with rt.unit(ORIGIN) as unit:
        erasure.erase(rt, unit, user_id, actor=user_id)


def tables_that_hold(rt: Runtime, needle: str) -> set[str]:
    """The tables in which any column of any row shows `needle`."""
    found = set()
    with rt.database.reading() as session:
        for table in Base.metadata.sorted_tables:
            for row in session.execute(select(table)):
                shown = " ".join(each.decode("latin-1") if isinstance(each, bytes) else str(each) for each in row)
                if needle in shown:
                    found.add(table.name)
    return found


def test_registration_can_be_switched_off(web: Web) -> None:
    web.rt.settings = replace(web.rt.settings, registration=False)
    body = {"email": "grace@navy.example", "fullName": "Grace Hopper", "alias": "grace"}
    answer = web.post("/user", body)
    assert (answer.status_code, answer.json["error"]) == (403, REGISTRATION_DISABLED.code)
    assert accounts.find_by_address(web.rt, "grace@navy.example") is None


def test_who_has_not_confirmed_has_neither_roles_nor_a_verified_address(rt: Runtime) -> None:
    register(rt)
    user = accounts.find_by_address(rt, "grace@navy.example")
    assert user is not None
    assert (user.verified, user.roles, user.groups, user.has_password) == (False, (), (), False)
    assert [(each.verified, each.preferred) for each in addresses.listing_of(rt, user.id)] == [(False, True)]


@pytest.mark.parametrize(("seconds", "gone"), [(86_399, 0), (86_400, 0), (86_401, 1)])
def test_an_unconfirmed_registration_is_forgotten_after_a_day_with_its_alias(
    rt: Runtime, clock: FakeClock, seconds: int, gone: int
) -> None:
    register(rt)
    clock.tick(seconds)
    with rt.unit(ORIGIN) as unit:
        assert sign_up.purge(rt, unit) == gone
    if gone:
        # What was mailed is forgotten in its own time.
        assert tables_that_hold(rt, "grace@navy.example") == {"code", "mail"}
        register(rt)
    else:
        with pytest.raises(Refused) as caught:
            register(rt)
        assert (caught.value.problem.code, caught.value.field) == (CONFLICT.code, "alias")


def test_a_confirmed_registration_stays(web: Web) -> None:
    waiting = register(web.rt)
    by_code.complete(web.rt, ORIGIN, waiting.verification_id, web.last_code())
    web.clock.tick(365 * 86_400)
    with web.rt.unit(ORIGIN) as unit:
        assert sign_up.purge(web.rt, unit) == 0
    user = accounts.find_by_address(web.rt, "grace@navy.example")
    assert user is not None
    assert user.verified


def test_users_whom_nobody_asked_to_confirm_are_never_swept(rt: Runtime, clock: FakeClock) -> None:
    bob = a_user(rt, verified=False)
    clock.tick(365 * 86_400)
    with rt.unit(ORIGIN) as unit:
        assert sign_up.purge(rt, unit) == 0
    assert accounts.find(rt, bob.id) is not None


def test_registering_with_the_address_of_another_changes_nothing_for_them(web: Web) -> None:
    ada = a_user(web.rt)
    register(web.rt, email=ada.email)
    web.mails().clear()
    waiting = by_code.begin(web.rt, ORIGIN, ada.email)
    by_code.complete(web.rt, ORIGIN, waiting.verification_id, web.last_code())
    assert waiting.opened.session.user_id == ada.id
    assert [each.preferred for each in addresses.listing_of(web.rt, ada.id)] == [True]


def test_erasure_leaves_the_id_in_the_audit_and_nothing_else(web: Web) -> None:
    rt = web.rt
    ada = a_user(rt, email="ada@acme.example", alias="ada-lovelace", tenants={"acme-bank": ("viewer",)})
    a_session(rt, ada)
    user = accounts.get(rt, ada.id)
    factors.enrol(rt, ORIGIN, user)
    waiting = by_code.begin(rt, ORIGIN, ada.email)
    by_code.complete(rt, ORIGIN, waiting.verification_id, web.last_code())
    with rt.unit(ORIGIN) as unit:
        addresses.add(rt, unit, ada.id, "second@acme.example", actor=ada.id)
        keypairs.request(rt, unit, user, name="ci", days=1, actor=ada.id)
    erase(rt, ada.id)
    for needle in ("ada@acme.example", "second@acme.example", "ada-lovelace", "Ada Lovelace"):
        assert tables_that_hold(rt, needle) == set()
    assert tables_that_hold(rt, ada.id) == {"audit_event"}
    assert tenancy.memberships_of(rt, ada.id).roles() == {}
    assert all(event.genuine for event in audit.search(rt, limit=200))
    web.mails().clear()
    assert web.mails() == []


def test_erasing_one_user_takes_no_mail_from_another(rt: Runtime) -> None:
    ada, eve = a_user(rt), a_user(rt)
    by_code.begin(rt, ORIGIN, ada.email)
    with rt.unit(ORIGIN) as unit:
        addresses.add(rt, unit, eve.id, ada.email, actor=eve.id)
    erase(rt, eve.id)
    assert "mail" in tables_that_hold(rt, ada.email)


def test_an_unknown_user_cannot_be_erased(rt: Runtime) -> None:
    for unknown in ("0192f3a0-0000-7000-8000-000000000000", "x"):
        with pytest.raises(Refused) as caught:
            erase(rt, unknown)
        assert caught.value.problem == NOT_FOUND


def test_the_last_enabled_administrator_stays(rt: Runtime) -> None:
    root = a_user(rt, roles=("users_admin",))
    a_user(rt, roles=("users_admin",), enabled=False)
    with pytest.raises(Refused) as caught:
        erase(rt, root.id)
    assert caught.value.problem.code == CONFLICT.code
    assert accounts.find(rt, root.id) is not None


def test_a_user_may_go_where_there_is_no_administrator_at_all(rt: Runtime) -> None:
    ada = a_user(rt)
    erase(rt, ada.id)
    assert accounts.find(rt, ada.id) is None


@pytest.mark.parametrize("table", ["audit_event", "code", "mail", "user_session", "email"])
def test_a_registration_is_whole_or_nothing(rt: Runtime, table: str) -> None:
    """Whichever of its writes fails, none of them stays."""
    with rt.database.engine.connect() as connection:
        if rt.database.is_sqlite:
            failing = [f"CREATE TRIGGER fail BEFORE INSERT ON {table} BEGIN SELECT RAISE(ABORT, 'fault'); END"]
        else:
            failing = [
                "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'fault'; END $$",
                f"CREATE TRIGGER fail BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION fail()",
            ]
        for statement in failing:
            connection.execute(text(statement))
        connection.commit()
    with pytest.raises((DatabaseError, Refused)):
        register(rt)
    with rt.database.reading() as session:
        assert session.scalars(select(User.id)).all() == []
    assert tables_that_hold(rt, "grace") == set()
