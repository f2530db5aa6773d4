"""The rules that bind administrators, whichever way they come."""

from __future__ import annotations

import contextlib
import threading
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import select, update

from identity import documents
from identity.core.admin import applications, keys, portal, tenants, users
from identity.core.admin.by import By
from identity.core.clients.applications import standard_client
from identity.core.people import accounts
from identity.core.people.accounts import User
from identity.core.record import audit
from identity.core.tokens import sessions
from identity.core.tokens.session_rows import UserSession
from identity.errors import CONFLICT, NOT_FOUND, VALIDATION, Refused
from identity.instruments.statuslists import INVALID, StatusEntry
from identity.runtime import Runtime
from identity.storage import Contention
from tests.builders import a_session, a_tenant, a_user, an_application
from tests.world import ORIGIN, FakeClock

BY = By("boss", ORIGIN)
PORTALS: Any = SimpleNamespace(
    settings=SimpleNamespace(portal_urls=("https://portal.acme.example/app", "http://localhost:3000"))
)


@pytest.mark.parametrize(
    "url",
    [
        "https://portal.acme.example/app",
        "https://PORTAL.acme.example/app/",
        "https://portal.acme.example:443/app/x?y=1#z",
        "http://localhost:3000",
        "http://localhost:3000/",
        "http://localhost:3000/any",
    ],
)
def test_a_portal_on_the_list_is_taken(url: str) -> None:
    portal.check_portal(PORTALS, url)


@pytest.mark.parametrize(
    "url",
    [
        "https://portal.acme.example/",
        "https://portal.acme.example/appendix",
        "https://portal.acme.example.evil.example/app",
        "https://portal.acme.example@evil.example/app",
        "https://user@portal.acme.example/app",
        "https://evil.example/https://portal.acme.example/app",
        "http://portal.acme.example/app",
        "https://portal.acme.example:8443/app",
        "https://portal.acme.example/app/../admin",
        "https://portal.acme.example/app/%2E%2e/admin",
        "https://portal.acme.example/app/..%2Fadmin",
        "https://portal.acme.example/app\\..\\admin",
        "https://portal.acme.example/app\r\nBcc: x@evil.example",
        "https://portal.acme.example /app",
        "https://portal.acme.ex\u00e4mple/app",
        "//portal.acme.example/app",
        "/app",
        "https:///app",
        "javascript:alert(1)",
        "http://127.0.0.1:3000/",
        "http://2130706433:3000/",
        "http://169.254.169.254/",
        "http://[::1]:3000/",
        "http://[::1:3000/",
        "http://localhost:3000.evil.example/",
        "http://localhost:99999/",
        "http://localhost/",
    ],
)
def test_any_other_portal_is_refused(url: str) -> None:
    with pytest.raises(Refused) as refused:
        portal.check_portal(PORTALS, url)
    assert (refused.value.problem.code, refused.value.field) == (VALIDATION.code, "portalURL")


def test_no_portal_is_allowed_unless_it_is_configured(rt: Runtime) -> None:
    with pytest.raises(Refused):
        portal.check_portal(rt, "https://portal.acme.example/")


def test_a_user_is_found_by_id_address_and_alias(rt: Runtime) -> None:
    ada = a_user(rt, email="ada@acme.example", alias="ada")
    for text in (ada.id, ada.id.upper(), "ADA@acme.example", "Ada"):
        assert users.find_user(rt, text).id == ada.id
    for text in ("", "nobody", "nobody@acme.example", "01a20000-0000-7000-8000-000000000000", "\0", "\ud800"):
        with pytest.raises(Refused) as refused:
            users.find_user(rt, text)
        assert refused.value.problem.code == NOT_FOUND.code


def test_a_change_in_between_is_not_overwritten(rt: Runtime) -> None:
    ada = a_user(rt)
    version = accounts.get(rt, ada.id).version
    users.set_enabled(rt, BY, ada.id, enabled=True)
    with pytest.raises(Refused) as refused:
        users.change_user(rt, BY, ada.id, versions={version}, full_name="X")
    assert refused.value.problem.status == 412
    assert users.change_user(rt, BY, ada.id, versions={version, version + 1}, full_name="X").info.full_name == "X"


def test_every_change_of_a_user_counts_its_version_up(rt: Runtime, clock: FakeClock) -> None:
    ada = a_user(rt)
    seen = [accounts.get(rt, ada.id).version]
    for change in (
        lambda: users.change_user(rt, BY, ada.id, full_name="X"),
        lambda: users.grant_role(rt, BY, ada.id, "lead"),
        lambda: users.set_enabled(rt, BY, ada.id, enabled=False),
        lambda: users.set_verified(rt, BY, ada.id, verified=False),
        lambda: users.set_verified(rt, BY, ada.id, verified=True),
        lambda: users.set_access_window(rt, BY, ada.id, ends_at=clock.now() + timedelta(days=1)),
    ):
        change()
        seen.append(accounts.get(rt, ada.id).version)
    assert seen == sorted(set(seen))


def test_two_administrators_who_demote_each_other_cannot_both_succeed(rt: Runtime) -> None:
    first, second = (a_user(rt, roles=("users_admin",)) for _ in range(2))
    users.withdraw_role(rt, BY, first.id, "users_admin")
    with pytest.raises(Refused) as refused:
        users.withdraw_role(rt, BY, second.id, "users_admin")
    assert refused.value.problem.code == CONFLICT.code
    assert accounts.get(rt, second.id).roles == ("users_admin",)


def test_of_administrators_who_demote_each_other_at_once_one_stays(rt: Runtime) -> None:
    for _ in range(5):
        pair = [a_user(rt, roles=("users_admin",)) for _ in range(2)]
        start = threading.Barrier(2)

        def demote(user_id: str, start: threading.Barrier = start) -> None:
            start.wait()
            # The loser is told so, or chosen as the victim of the conflict, and would be told so when it tries again.
            with contextlib.suppress(Refused, Contention):
                users.withdraw_role(rt, BY, user_id, "users_admin")

        threads = [threading.Thread(target=demote, args=(one.id,)) for one in pair]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        left = [one for one in pair if "users_admin" in accounts.get(rt, one.id).roles]
        assert left, "nobody administers any more"
        heir = a_user(rt, roles=("users_admin",))
        for one in left:
            users.withdraw_role(rt, BY, one.id, "users_admin")
        with rt.unit(ORIGIN) as unit:
            unit.execute(update(User).where(User.id == heir.id).values(roles=()))


def test_what_is_no_administrator_can_go_although_there_is_none(rt: Runtime) -> None:
    ada = a_user(rt)
    users.set_enabled(rt, BY, ada.id, enabled=False)
    users.erase_user(rt, BY, ada.id)
    assert accounts.find(rt, ada.id) is None


@pytest.mark.parametrize(("seconds", "living"), [(-1, 0), (0, 0), (1, 1)])
def test_a_window_that_has_ended_ends_the_sessions(rt: Runtime, clock: FakeClock, seconds: int, living: int) -> None:
    ada = a_user(rt)
    a_session(rt, ada)
    users.set_access_window(rt, BY, ada.id, ends_at=clock.now() + timedelta(seconds=seconds))
    assert len(sessions.listing_of(rt, ada.id)) == living


def test_an_absent_bound_of_a_window_stays_as_it_is(rt: Runtime, clock: FakeClock) -> None:
    ada = a_user(rt)
    start, end = clock.now() - timedelta(days=1), clock.now() + timedelta(days=1)
    users.set_access_window(rt, BY, ada.id, starts_at=start, ends_at=end)
    users.set_access_window(rt, BY, ada.id, starts_at=None)
    user = accounts.get(rt, ada.id)
    assert (user.starts_at, user.ends_at) == (None, end)


def test_the_audit_of_a_change_names_no_person(rt: Runtime) -> None:
    ada = a_user(rt, full_name="Ada Lovelace", alias="ada-l")
    users.change_user(rt, BY, ada.id, full_name="Ada King", alias="ada-k", groups=("blue",))
    (event,) = audit.search(rt, action="user.changed")
    assert event.data == {
        "before": {"groups": []},
        "after": {"groups": ["blue"]},
        "changed": ["alias", "full_name", "groups"],
    }
    assert (event.actor, event.target) == ("boss", ada.id)


@pytest.mark.parametrize("scopes", [("admin",), ("read", "admin")])
def test_a_tenants_application_cannot_reach_every_tenant(rt: Runtime, scopes: tuple[str, ...]) -> None:
    a_tenant(rt, "acme-bank")
    with pytest.raises(Refused) as refused:
        applications.create_application(rt, BY, name="feed", tenant="acme-bank", scopes=scopes)
    assert refused.value.field == "scopes"
    machine = an_application(rt, tenant="acme-bank")
    with pytest.raises(Refused):
        applications.change_application(rt, BY, machine.client_id, scopes=scopes)


def test_names_that_databases_would_read_differently_are_refused(rt: Runtime) -> None:
    for name in ("", " ", "a\0b", "x" * 201, "a\u202eb"):
        with pytest.raises(Refused):
            applications.create_application(rt, BY, name=name)
        with pytest.raises(Refused):
            tenants.create_tenant(rt, BY, tenant_id="acme-bank", name=name)


def test_the_master_key_is_replaced_without_losing_anything(rt: Runtime) -> None:
    assert keys.reseal(rt, BY) == 0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("1700000000", 1_700_000_000),
        ("2023-11-14T22:13:20Z", 1_700_000_000),
        ("2023-11-14T23:13:20+01:00", 1_700_000_000),
    ],
)
def test_a_time_is_read_from_rfc_3339_and_unix_seconds(text: str, seconds: int) -> None:
    assert documents.seconds(documents.moment(text, field="since")) == seconds


@pytest.mark.parametrize(
    "text", ["", "now", "2023-11-14", "2023-11-14T22:13:20", "1e9", "-1", "9" * 30, "\u0661", "1969-12-31T23:59:59Z"]
)
def test_a_time_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(Refused):
        documents.moment(text, field="since")


def test_whoever_is_erased_while_they_sign_in_keeps_no_token_that_verifiers_believe(rt: Runtime) -> None:
    ada = a_user(rt)
    signing_in, committed = threading.Event(), threading.Event()

    def erase() -> None:
        signing_in.wait(5)
        with contextlib.suppress(Contention):
            users.erase_user(rt, BY, ada.id)
        committed.wait(5)

    thread = threading.Thread(target=erase)
    thread.start()
    with rt.unit(ORIGIN) as unit:
        user = accounts.recheck(unit, ada.id)
        opened = sessions.open_session(
            rt,
            unit,
            user,
            kind="token",
            amr=("pwd",),
            client_id=standard_client(rt),
            resource=rt.settings.default_audience,
            idle_seconds=600,
            absolute_seconds=600,
        )
        signing_in.set()
        rt.pause(0.3)  # The erasure is on its way, and waits.
    committed.set()
    thread.join(10)
    with rt.database.reading() as session:
        assert session.get(UserSession, opened.session.id) is None
        assert session.scalar(select(StatusEntry.value).where(StatusEntry.place == opened.session.place)) == INVALID
