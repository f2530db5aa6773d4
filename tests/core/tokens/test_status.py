"""What deeds cost and promise: a few statements however many it is about, no write for a token, nothing lost between two transactions."""

from __future__ import annotations

import ast
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import event, func, insert, select, text, update

from identity.core.admin import tenants as admin_tenants
from identity.core.admin import users as admin_users
from identity.core.admin.by import By
from identity.core.clients import keypairs, machine_tokens, registration, secrets
from identity.core.clients.applications import Application
from identity.core.clients.secrets import ClientSecret
from identity.core.people import accounts
from identity.core.people.ownership import ANYONE
from identity.core.record.audit import AuditEvent
from identity.core.tokens import sessions, status
from identity.core.tokens.session_rows import UserSession
from identity.instruments.statuslists import CHANGED, INVALID, PLACES, StatusEntry, StatusList
from identity.runtime import Runtime
from tests.builders import a_session, a_tenant, a_user, an_application
from tests.oauth_world import jwks, rsa_key
from tests.world import ORIGIN, FakeClock

BY = By("test", ORIGIN)


@contextmanager
def statements(rt: Runtime) -> Iterator[list[str]]:
    """What SQLAlchemy sends meanwhile; statements at the driver's cost (new rows of logins, audit events) are not among them."""
    sent: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        sent.append(statement)

    event.listen(rt.database.engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(rt.database.engine, "before_cursor_execute", note)


def entries(rt: Runtime) -> dict[int, int]:
    """The places that are not valid."""
    with rt.database.reading() as session:
        return {row.place: row.value for row in session.scalars(select(StatusEntry))}


def place_of(rt: Runtime, session_id: str) -> int | None:
    with rt.database.reading() as session:
        return session.scalar(select(UserSession.place).where(UserSession.id == session_id))


# Cost.


def disable(rt: Runtime, count: int) -> None:
    ada = a_user(rt)
    for _ in range(count):
        a_session(rt, ada)
    admin_users.set_enabled(rt, BY, ada.id, enabled=False)


def stop_a_tenant(rt: Runtime, count: int) -> None:
    tenant = a_tenant(rt, f"tenant{count}")
    for _ in range(count):
        a_session(rt, a_user(rt, password=None, tenants={tenant: ()}))
    with rt.unit(ORIGIN) as unit:
        registration.stop_tenant(rt, unit, tenant)


def delete_a_pair(rt: Runtime, count: int) -> None:
    ada = a_user(rt)
    with rt.unit(ORIGIN) as unit:
        pair, _ = keypairs.create(rt, unit, ada.id, name="build", days=1, actor="test", verified=True)
    for _ in range(count):
        opened = a_session(rt, ada)
        with rt.unit(ORIGIN) as unit:
            unit.execute(update(UserSession).where(UserSession.id == opened.session.id).values(keypair_id=pair.id))
    with rt.unit(ORIGIN) as unit:
        keypairs.revoke(rt, unit, pair.id, actor="test", of=ANYONE)


@pytest.mark.parametrize(
    ("deed", "value"),
    [(disable, INVALID), (stop_a_tenant, CHANGED), (delete_a_pair, INVALID)],
    ids=["disable", "stop a tenant", "delete a pair"],
)
def test_a_deed_about_many_costs_what_one_about_one_costs(
    rt: Runtime, deed: Callable[[Runtime, int], None], value: int
) -> None:
    touching = []
    for count in (1, 40):
        before = set(entries(rt))
        with statements(rt) as sent:
            deed(rt, count)
        added = {place: said for place, said in entries(rt).items() if place not in before}
        assert list(added.values()) == [value] * count
        touching.append([one for one in sent if "status_entry" in one or "SET revoked_at" in one or "SET place" in one])
    assert len(touching[0]) == len(touching[1]) <= 6


def test_ending_all_sessions_of_a_user_is_one_event_with_a_count(rt: Runtime) -> None:
    ada = a_user(rt)
    for _ in range(30):
        a_session(rt, ada)
    admin_users.set_enabled(rt, BY, ada.id, enabled=False)
    with rt.database.reading() as session:
        events = session.scalars(select(AuditEvent).where(AuditEvent.action == "session.revoked")).all()
    assert [one.target for one in events] == [ada.id]
    assert '"count": 30' in events[0].data


def test_ten_thousand_sessions_end_within_seconds(rt: Runtime) -> None:
    ada = a_user(rt)
    made = a_session(rt, ada).session.id
    with rt.unit(ORIGIN) as unit:
        row = unit.execute(select(UserSession).where(UserSession.id == made)).scalar_one()
        alike = {column.key: getattr(row, column.key) for column in UserSession.__table__.columns}
        alike |= {"bearer": None}
        rows = [alike | {"id": rt.new_id(), "place": 1000 + number} for number in range(10_000)]
        unit.session.execute(insert(UserSession.__table__), rows)
    started = time.perf_counter()
    admin_users.set_enabled(rt, BY, ada.id, enabled=False)
    assert time.perf_counter() - started < 8, "a statement that takes ten seconds is ended by the database"
    assert len(entries(rt)) == 10_001


@pytest.mark.parametrize("backend", ["postgresql"], indirect=True)
def test_many_sessions_of_one_user_turn_one_epoch_once(rt: Runtime) -> None:
    # Each version of a row is found behind all earlier ones of its transaction: 20,000 of them outlast the statement.
    ada = a_user(rt)
    for _ in range(20):
        a_session(rt, ada)
    with rt.unit(ORIGIN) as unit:
        assert sessions.revoke_all(rt, unit, ada.id, actor="test", reason="test") == 20
        written = text("SELECT n_tup_ins + n_tup_upd FROM pg_stat_xact_user_tables WHERE relname = 'epoch'")
        assert unit.execute(written).scalar_one() == 1


def test_an_applications_token_costs_no_write(rt: Runtime) -> None:
    feed = an_application(rt, scopes=("read",))

    class Wrote(Exception):
        pass

    with rt.database.without_writes(Wrote):
        for _ in range(3):
            proven = secrets.authenticate(rt, ORIGIN, feed.client_id, feed.secret)
            assert proven.place is not None
            machine_tokens.issue_token(rt, proven, scope=None, audience=("https://api.example",))


def test_a_users_token_costs_no_write_of_its_own(rt: Runtime) -> None:
    opened = a_session(rt, a_user(rt))

    class Wrote(Exception):
        pass

    with rt.database.without_writes(Wrote):
        for _ in range(3):
            sessions.token_for(rt, sessions.find_live(rt, opened.session.id), seconds=3600)


# Who has a place.


def test_what_anybody_can_have_made_has_no_place(rt: Runtime) -> None:
    opened = a_session(rt, a_user(rt), verified=False)
    assert place_of(rt, opened.session.id) is None
    with rt.unit(ORIGIN) as unit:
        sessions.mark_proven(rt, unit, opened.session.id, amr=("email",))
    assert place_of(rt, opened.session.id) is not None


def test_a_session_from_before_there_were_lists_gets_a_place_with_its_next_token(rt: Runtime) -> None:
    opened = a_session(rt, a_user(rt))
    with rt.unit(ORIGIN) as unit:
        unit.execute(update(UserSession).values(place=None))
    places = set()
    for _ in range(2):
        sessions.token_for(rt, sessions.find_live(rt, opened.session.id), seconds=3600)
        places.add(place_of(rt, opened.session.id))
    assert len(places) == 1
    assert None not in places


def test_ending_a_session_without_a_place_enters_nothing(rt: Runtime) -> None:
    ada = a_user(rt)
    a_session(rt, ada, verified=False)
    with rt.unit(ORIGIN) as unit:
        assert sessions.revoke_all(rt, unit, ada.id, actor="test", reason="test") == 1
    assert entries(rt) == {}


def test_secrets_and_key_sets_from_before_there_were_lists_get_their_places(rt: Runtime) -> None:
    feeds = [an_application(rt, jwks=jwks(rsa_key())), an_application(rt)]
    with rt.unit(ORIGIN) as unit:
        unit.execute(update(ClientSecret).values(place=None))
        unit.execute(update(Application).values(key_place=None))
    assert secrets.authenticate(rt, ORIGIN, feeds[0].client_id, feeds[0].secret).place is None
    for _ in range(2):
        registration.place_all(rt)
        with rt.database.reading() as session:
            given = [*session.scalars(select(ClientSecret.place)), *session.scalars(select(Application.key_place))]
        placed = {place for place in given if place is not None}
        assert len(placed) == 3, "a secret each, and one set of keys"


# Between two transactions.


def test_a_login_under_way_does_not_escape_a_change_of_rights(rt: Runtime) -> None:
    # The change cannot see the new session yet, and the login cannot see the change: one of them must wait for the other.
    ada = a_user(rt, tenants={"acme": ("analyst",)})
    done = threading.Event()

    def change() -> None:
        admin_tenants.set_member(rt, BY, "acme", ada.id, roles=("owner",))
        done.set()

    changing = threading.Thread(target=change)
    with rt.unit(ORIGIN) as unit:
        user = accounts.recheck(unit, ada.id)
        opened = sessions.open_session(
            rt,
            unit,
            user,
            kind="token",
            amr=("pwd",),
            client_id="x",
            resource="y",
            idle_seconds=60,
            absolute_seconds=60,
        )
        changing.start()
        assert not done.wait(0.5), "it waits until the new session is there to be seen"
    changing.join(10)
    assert done.is_set()
    assert opened.session.place is not None
    assert entries(rt) == {opened.session.place: CHANGED}
    assert place_of(rt, opened.session.id) is None


def test_what_is_undone_tells_nobody(rt: Runtime) -> None:
    ada = a_user(rt, roles=("users_admin",))
    a_session(rt, ada)
    with pytest.raises(sessions.Refused):
        admin_users.set_enabled(rt, BY, ada.id, enabled=False)  # the last administrator
    assert entries(rt) == {}


def test_ending_in_two_ways_at_once_is_no_fault(rt: Runtime) -> None:
    ada = a_user(rt)
    opened = a_session(rt, ada)
    with rt.unit(ORIGIN) as unit:
        assert status.end_sessions(rt, unit, UserSession.id == opened.session.id) == 1
        assert status.end_sessions(rt, unit, UserSession.user_id == ada.id) == 0
        a_place = select(UserSession.place).where(UserSession.id == opened.session.id)
        status.end_grants(rt, unit, a_place)
        status.change_grants(rt, unit, a_place)
    assert set(entries(rt)) == {opened.session.place}


# Being forgotten.


def test_a_list_goes_when_nothing_can_name_it(rt: Runtime, clock: FakeClock) -> None:
    feed = an_application(rt)
    with rt.unit(ORIGIN) as unit:
        unit.execute(update(StatusList).values(used=PLACES))
        rt.status_lists.lease(unit, PLACES)
        rt.status_lists.lease(unit, 1)

    def lists() -> list[int]:
        with rt.unit(ORIGIN) as unit:
            registration.purge_lists(rt, unit)
        with rt.database.reading() as session:
            return list(session.scalars(select(StatusList.id).order_by(StatusList.id)))

    assert lists() == [0, 1, 2]
    clock.tick(86_400 + rt.settings.session_absolute_seconds)
    assert lists() == [0, 1, 2]
    clock.tick(1)
    assert lists() == [0, 2], "the secret has its place in the first, and the last is given out of"
    with rt.unit(ORIGIN) as unit:
        registration.remove(rt, unit, feed.client_id, actor="test")
    assert lists() == [2]


def test_entries_are_kept_as_long_as_a_token_may_live(rt: Runtime, clock: FakeClock) -> None:
    ada = a_user(rt)
    a_session(rt, ada)
    with rt.unit(ORIGIN) as unit:
        sessions.revoke_all(rt, unit, ada.id, actor="test", reason="test")
    for seconds, left in ((86_400 + 60, 1), (1, 0)):
        clock.tick(seconds)
        with rt.unit(ORIGIN) as unit:
            status.purge(rt, unit)
        with rt.database.reading() as session:
            assert session.scalar(select(func.count()).select_from(StatusEntry)) == left


# Nobody ends or changes anything in silence.

CORE = Path(status.__file__).parent.parent
SPEAKS = {"end_sessions", "change_subjects", "end_grants", "change_grants", "end_earned", "forget_tenant"}
LEAVES = {"set_member", "remove_member", "remove"}
"""What takes or gives memberships lies below the wing that tells: each caller must."""


def test_whoever_changes_memberships_tells_verifiers() -> None:
    silent = []
    for path in CORE.rglob("*.py"):
        for function in ast.walk(ast.parse(path.read_text())):
            if not isinstance(function, ast.FunctionDef):
                continue
            called = {
                (node.func.value.id, node.func.attr)
                for node in ast.walk(function)
                if isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
            }
            changes = {name for module, name in called if module == "tenancy" and name in LEAVES}
            if changes and not {name for _, name in called} & SPEAKS:
                silent.append((path.name, function.name, *changes))
    assert not silent


def test_only_status_and_the_sessions_own_end_write_when_a_session_ended() -> None:
    writers = {
        path.name
        for path in CORE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.keyword) and node.arg == "revoked_at"
    }
    assert writers == {"status.py"}
