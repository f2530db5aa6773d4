"""What a process remembers of its callers never outlives a change: not its own, and not one made by another process."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import delete, text, update

from identity.app import create_runtime
from identity.core.access import callers, introspection
from identity.core.access.callers import Caller, Presented
from identity.core.admin import applications as admin_applications
from identity.core.admin import keys, on_behalf, tenants, users
from identity.core.admin.by import By
from identity.core.clients import applications, keypairs, machine_tokens, secrets
from identity.core.people.accounts import User
from identity.core.tokens import sessions
from identity.core.tokens.sessions import UserSession
from identity.errors import Refused
from identity.instruments import opaque
from identity.instruments.epochs import WATCHED, Epoch, Watch, lay_triggers
from identity.instruments.opaque import Kind
from identity.migrations import schema
from identity.runtime import Runtime
from identity.settings import Settings
from tests.builders import a_session, a_tenant, a_user, an_application
from tests.world import ORIGIN, FakeClock, Mailbox

BY = By("test", ORIGIN)


@pytest.fixture
def other(settings: Settings, rt: Runtime, clock: FakeClock, mailbox: Mailbox) -> Iterator[Runtime]:
    """Another process on the same database."""
    runtime = create_runtime(settings, clock=clock, mailer=mailbox, migrate=False)
    yield runtime
    runtime.close()


class World:
    """A user with a session, a token and a key pair, and an application with a token; all of them remembered by `rt`."""

    def __init__(self, rt: Runtime, other: Runtime) -> None:
        self.rt, self.other = rt, other
        a_tenant(rt, "acme")
        self.user = a_user(rt, roles=("analyst",), tenants={"acme": ("reader",)})
        a_user(rt, roles=("users_admin",))
        opened = a_session(rt, self.user)
        assert opened.bearer
        self.session_id = opened.session.id
        self.bearer = Presented(opened.bearer.reveal())
        self.token = Presented(sessions.token_for(rt, sessions.find_live(rt, self.session_id), seconds=3600).text)
        with rt.unit(ORIGIN) as unit:
            pair, secret = keypairs.create(
                rt, unit, self.user.id, name="laptop", days=3, actor="test", cidrs=("192.0.2.0/24",), verified=True
            )
        self.key_id = pair.id
        self.pair = Presented(None, pair.api_key, secret.reveal())
        self.app = an_application(rt, scopes=("read", "write"), tenant="acme")
        proven = secrets.authenticate(rt, ORIGIN, self.app.client_id, self.app.secret)
        issued = machine_tokens.issue_token(rt, proven, scope=None, audience=(rt.settings.issuer,))
        self.machine = Presented(issued.text)
        self.all = {"bearer": self.bearer, "token": self.token, "pair": self.pair, "machine": self.machine}
        for _ in range(3):
            for presented in self.all.values():
                callers.identify(rt, ORIGIN, presented)
            secrets.authenticate(rt, ORIGIN, self.app.client_id, self.app.secret)

    def outcome(self, name: str, rt: Runtime | None = None) -> Any:
        return outcome(lambda: callers.identify(rt or self.rt, ORIGIN, self.all[name]))

    def truth(self, name: str) -> Any:
        return outcome(lambda: callers.read(self.rt, ORIGIN, self.all[name]))


def outcome(call: Callable[[], Any]) -> Any:
    """What a call gives, or the code of its refusal; of a caller what others may rely on."""
    try:
        found = call()
    except Refused as refused:
        return refused.problem.code
    if isinstance(found, Caller):
        return (
            *(found.kind, found.subject, found.roles, found.groups, found.scopes, found.alias, found.full_name),
            *(found.memberships.roles(), found.auth_time, found.amr, found.session_id),
        )
    return found


@pytest.fixture
def world(rt: Runtime, other: Runtime) -> World:
    return World(rt, other)


def test_what_was_found_is_not_read_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: world.truth(name) for name in world.all}

    def never(*_args: object, **_options: object) -> Caller:
        raise AssertionError("read again")

    monkeypatch.setattr(callers, "read", never)
    assert {name: world.outcome(name) for name in world.all} == before


def test_two_credentials_are_both_looked_at_every_time(world: World, clock: FakeClock) -> None:
    both = world.pair._replace(bearer=world.bearer.bearer)
    for _ in range(3):
        callers.identify(world.rt, ORIGIN, both)
    on_behalf.revoke_keypair(world.other, BY, world.key_id)
    assert outcome(lambda: callers.identify(world.rt, ORIGIN, both)) == "INVALID_CREDENTIALS"


def test_what_is_asked_for_once_or_refused_is_not_kept(rt: Runtime) -> None:
    opened = a_session(rt, a_user(rt))
    assert opened.bearer
    callers.identify(rt, ORIGIN, Presented(opened.bearer.reveal()))
    for _ in range(5):
        assert outcome(lambda: callers.identify(rt, ORIGIN, Presented("ids_nothing"))) == "INVALID_TOKEN"
    assert len(rt.memory._entries) == 0


def test_every_column_of_what_decides_is_watched_or_known_to_be_harmless() -> None:
    for name, watch in WATCHED.items():
        columns = set(schema().tables[name].columns.keys())
        assert columns == {*watch.columns, *watch.ignored}, f"{name}: say of each column whether a change of it counts"
        assert not set(watch.columns) & set(watch.ignored)


def laid(rt: Runtime) -> set[str]:
    catalogue = "sqlite_master WHERE type = 'trigger'" if rt.database.is_sqlite else "pg_trigger WHERE NOT tgisinternal"
    column = "name" if rt.database.is_sqlite else "tgname"
    with rt.database.reading() as session:
        return {
            name.rpartition("_")[0] for name in session.execute(text(f"SELECT {column} FROM {catalogue}")).scalars()
        }


def test_triggers_that_are_missing_or_of_an_older_version_are_put_right(rt: Runtime) -> None:
    wanted = {
        f"epoch_{name}_{event}"
        for name, watch in WATCHED.items()
        for event, is_watched in (("delete", True), ("update", bool(watch.columns)), ("insert", watch.inserts))
        if is_watched
    }
    assert laid(rt) == wanted
    assert lay_triggers(rt.database) == 0
    for table, watch in (("user_session", Watch("user_id", ("revoked_at",), ())), ("tenant", None)):
        with pytest.MonkeyPatch.context() as older:
            older.setitem(WATCHED, table, watch) if watch else older.delitem(WATCHED, table)
            assert lay_triggers(rt.database) > 0
        assert lay_triggers(rt.database) > 0
        assert laid(rt) == wanted


# Every deed that takes a right away, or changes one, made by another process: the next request sees it.

ENDED = "INVALID_TOKEN"
Deed = Callable[[World], object]


def _unit(world: World, deed: Callable[[Any], object]) -> None:
    with world.other.unit(ORIGIN) as unit:
        deed(unit)


DEEDS: dict[str, tuple[Deed, dict[str, str]]] = {
    "session revoked": (
        lambda w: on_behalf.revoke_session(w.other, BY, w.session_id),
        {"bearer": ENDED, "token": ENDED},
    ),
    "all sessions revoked": (
        lambda w: _unit(w, lambda unit: sessions.revoke_all(w.other, unit, w.user.id, actor="t", reason="t")),
        {"bearer": ENDED, "token": ENDED},
    ),
    "user disabled": (
        lambda w: users.set_enabled(w.other, BY, w.user.id, enabled=False),
        {"bearer": ENDED, "token": ENDED, "pair": "INVALID_CREDENTIALS"},
    ),
    "user erased": (
        lambda w: users.erase_user(w.other, BY, w.user.id),
        {"bearer": ENDED, "token": ENDED, "pair": "INVALID_CREDENTIALS"},
    ),
    "window closed": (
        lambda w: users.set_access_window(w.other, BY, w.user.id, ends_at=w.rt.clock.now()),
        {"bearer": ENDED, "token": ENDED, "pair": "INVALID_CREDENTIALS"},
    ),
    "pair revoked": (
        lambda w: on_behalf.revoke_keypair(w.other, BY, w.key_id),
        {"pair": "INVALID_CREDENTIALS"},
    ),
    "application disabled": (
        lambda w: admin_applications.change_application(w.other, BY, w.app.client_id, enabled=False),
        {"machine": ENDED},
    ),
    "application deleted": (
        lambda w: admin_applications.delete_application(w.other, BY, w.app.client_id),
        {"machine": ENDED},
    ),
    "tenant deleted": (lambda w: tenants.delete_tenant(w.other, BY, "acme"), {"machine": ENDED}),
    "token revoked": (
        lambda w: introspection.revoke(
            w.other, ORIGIN, applications.get(w.other, w.app.client_id), w.machine.bearer or ""
        ),
        {"machine": ENDED},
    ),
    "signing key revoked": (
        lambda w: keys.revoke_key(w.other, BY, w.other.ring.list()[0].kid),
        {"token": ENDED, "machine": ENDED},
    ),
    "row changed by hand": (
        lambda w: _unit(
            w,
            lambda unit: unit.execute(
                update(UserSession).where(UserSession.id == w.session_id).values(revoked_at=unit.now)
            ),
        ),
        {"bearer": ENDED, "token": ENDED},
    ),
    "row deleted by hand": (
        lambda w: _unit(w, lambda unit: unit.execute(delete(User).where(User.id == w.user.id))),
        {"bearer": ENDED, "token": ENDED, "pair": "INVALID_CREDENTIALS"},
    ),
}


@pytest.mark.parametrize("name", DEEDS)
def test_a_right_that_another_process_took_is_gone_at_the_next_request(world: World, name: str) -> None:
    deed, gone = DEEDS[name]
    deed(world)
    for kind in world.all:
        assert world.outcome(kind) == world.truth(kind), kind
        if kind in gone:
            assert world.outcome(kind) == gone[kind], kind


CHANGES: dict[str, tuple[Deed, str]] = {
    "role given": (lambda w: users.grant_role(w.other, BY, w.user.id, "auditor"), "bearer"),
    "role taken": (lambda w: users.withdraw_role(w.other, BY, w.user.id, "analyst"), "token"),
    "membership changed": (lambda w: tenants.set_member(w.other, BY, "acme", w.user.id, roles=["owner"]), "token"),
    "membership ended": (lambda w: tenants.remove_member(w.other, BY, "acme", w.user.id), "pair"),
    "name changed": (lambda w: users.change_user(w.other, BY, w.user.id, full_name="Ada King"), "bearer"),
    "scope taken": (
        lambda w: admin_applications.change_application(w.other, BY, w.app.client_id, scopes=["read"]),
        "machine",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_right_is_seen_at_the_next_request(world: World, name: str) -> None:
    deed, kind = CHANGES[name]
    before = world.outcome(kind)
    deed(world)
    assert world.outcome(kind) == world.truth(kind) != before


def test_a_removed_secret_and_a_lockout_are_seen_at_the_next_request(world: World) -> None:
    def prove() -> Any:
        return outcome(lambda: secrets.authenticate(world.rt, ORIGIN, world.app.client_id, world.app.secret))

    assert isinstance(prove(), secrets.Authenticated)
    wrong = world.pair._replace(api_secret=opaque.mint(Kind.API_SECRET, world.rt.entropy).reveal())
    for _ in range(20):
        outcome(lambda: secrets.authenticate(world.other, ORIGIN, world.app.client_id, "idc_wrong"))
        outcome(lambda: callers.identify(world.other, ORIGIN, wrong))
    assert prove() == "RATE_LIMITED"
    assert world.outcome("pair") == world.truth("pair") == "RATE_LIMITED"
    elsewhere = ORIGIN._replace(address="192.0.2.77")
    for _ in range(3):
        secrets.authenticate(world.rt, elsewhere, world.app.client_id, world.app.secret)
    with world.other.unit(ORIGIN) as unit:
        secrets.remove_secret(world.other, unit, world.app.client_id, world.app.secret_id, actor="test")
    ended = outcome(lambda: secrets.authenticate(world.rt, elsewhere, world.app.client_id, world.app.secret))
    assert ended == "INVALID_CREDENTIALS"


def test_nothing_outlives_what_it_was_known_to_end_with(world: World, clock: FakeClock) -> None:
    for seconds in (world.rt.settings.session_idle_seconds - 1, 1, 1, 3600, 86_400 * 3):
        clock.tick(seconds)
        for kind in world.all:
            assert world.outcome(kind) == world.truth(kind), (kind, seconds)


def test_a_foreign_network_is_refused_though_the_pair_is_remembered(world: World) -> None:
    elsewhere = ORIGIN._replace(address="198.51.100.7")
    assert outcome(lambda: callers.identify(world.rt, elsewhere, world.pair)) == "INVALID_CREDENTIALS"


def test_no_epoch_that_a_standby_forgot_comes_back(world: World) -> None:
    # A promoted standby lacks the last changes. What it counts from there on must never equal what was remembered before.
    with world.rt.database.reading() as session:
        before = {row.shard: row.value for row in session.query(Epoch)}
    users.grant_role(world.other, BY, world.user.id, "auditor")
    assert world.outcome("bearer") == world.outcome("bearer") == world.outcome("bearer")
    with world.other.unit(ORIGIN) as unit:
        for shard, value in before.items():
            unit.execute(update(Epoch).where(Epoch.shard == shard).values(value=value))
    users.withdraw_role(world.other, BY, world.user.id, "auditor")
    assert world.outcome("bearer") == world.truth("bearer")


def test_any_interleaving_of_deeds_and_requests_is_seen(world: World) -> None:
    chance = random.Random(7)

    def session() -> None:
        opened = a_session(world.other, world.user)
        assert opened.bearer
        world.all["bearer"] = Presented(opened.bearer.reveal())
        world.session_id = opened.session.id

    deeds: list[Callable[[], object]] = [
        lambda: users.grant_role(world.other, BY, world.user.id, chance.choice(["a", "b", "c"])),
        lambda: users.withdraw_role(world.other, BY, world.user.id, chance.choice(["a", "b", "c"])),
        lambda: users.set_enabled(world.other, BY, world.user.id, enabled=chance.random() < 0.7),
        lambda: tenants.set_member(world.other, BY, "acme", world.user.id, roles=[chance.choice(["x", "y"])]),
        lambda: tenants.remove_member(world.other, BY, "acme", world.user.id),
        lambda: on_behalf.revoke_session(world.other, BY, world.session_id),
        lambda: admin_applications.change_application(
            world.other, BY, world.app.client_id, enabled=chance.random() < 0.5
        ),
        session,
    ]
    for step in range(150):
        outcome(chance.choice(deeds))
        for kind in world.all:
            for _ in range(chance.choice([1, 2, 3])):
                assert world.outcome(kind) == world.truth(kind), (step, kind)


def test_no_request_that_began_after_a_revocation_passes(rt: Runtime, other: Runtime) -> None:
    """Races in many rounds: threads of one process check while another revokes; who starts after the commit is refused."""
    person = a_user(rt)
    for _ in range(20):
        opened = a_session(rt, person)
        assert opened.bearer
        presented = Presented(opened.bearer.reveal())
        revoked, stale = threading.Event(), []

        def check(presented: Presented = presented, revoked: threading.Event = revoked, stale: list = stale) -> None:
            for _ in range(30):
                began_after = revoked.is_set()
                passed = not isinstance(outcome(lambda: callers.identify(rt, ORIGIN, presented)), str)
                if began_after and passed:
                    stale.append(presented)
            rt.database._drop_kept()  # the thread's own connection, which would outlive it

        threads = [threading.Thread(target=check) for _ in range(3)]
        for thread in threads:
            thread.start()
        on_behalf.revoke_session(other, BY, opened.session.id)
        revoked.set()
        for thread in threads:
            thread.join()
        assert not stale
