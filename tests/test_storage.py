"""What the service relies on of a database, held on both: uniqueness, races with one winner, time, commits, losses."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import BigInteger, Boolean, bindparam, delete, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError

from identity.ambient import later
from identity.columns import from_micros, to_micros
from identity.core.people.accounts import User
from identity.core.proofs.codes import Code
from identity.core.tokens.revoked import RevokedToken
from identity.core.upkeep import Lease, take_lease
from identity.engines import leader_first
from identity.errors import CONFLICT, INVALID_CODE, NOT_FOUND, Refused
from identity.runtime import Runtime
from identity.storage import Contention, Database, Prepared, translated
from tests.builders import a_user
from tests.world import ORIGIN, FakeClock, Web

FAR = datetime(2090, 1, 1, tzinfo=UTC)


@pytest.fixture
def crowd() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def lease(rt: Runtime, name: str) -> Lease | None:
    with rt.database.reading() as session:
        return session.get(Lease, name)


# Addresses.


def test_new_connections_begin_with_the_host_that_writes() -> None:
    listed = {"host": "one,two,three", "port": "5432,,7000", "user": "u"}
    assert leader_first(listed, None) == listed
    assert leader_first(listed, ("two", "5432")) == {"host": "two,one,three", "port": ",5432,7000", "user": "u"}
    assert leader_first(listed, ("three", "7000")) == {"host": "three,one,two", "port": "7000,5432,", "user": "u"}
    assert leader_first(listed, ("gone", "5432")) == listed
    same_port = leader_first({"host": "one,two", "port": "7000"}, ("two", "7000"))
    assert same_port == {"host": "two,one", "port": "7000,7000"}
    assert leader_first({"host": "/sockets"}, ("other", "5432")) == {"host": "/sockets"}


# Time.


@given(
    st.datetimes(
        min_value=datetime(1, 1, 2),  # noqa: DTZ001 -- the zone is drawn apart
        max_value=datetime(9999, 12, 30),  # noqa: DTZ001 -- likewise
        timezones=st.sampled_from([UTC, timezone(timedelta(hours=14)), timezone(timedelta(hours=-12, minutes=-30))]),
    )
)
def test_an_instant_survives_to_the_microsecond(moment: datetime) -> None:
    back = from_micros(to_micros(moment))
    assert back == moment
    assert back.utcoffset() == timedelta(0)


def test_an_instant_is_the_same_moment_whatever_zone_it_was_written_in(rt: Runtime) -> None:
    moment = datetime(2026, 3, 29, 2, 30, 0, 123_456, tzinfo=timezone(timedelta(hours=5, minutes=45)))
    with rt.unit(ORIGIN) as unit:
        unit.add(Lease(name="zone", until=moment))
    found = lease(rt, "zone")
    assert found is not None
    assert found.until == moment
    assert found.until.utcoffset() == timedelta(0)
    with rt.database.reading() as session:
        assert session.scalar(select(Lease.name).where(Lease.until == moment.astimezone(UTC))) == "zone"
        assert session.scalar(select(Lease.name).where(Lease.until < moment)) is None


def test_a_naive_time_is_a_mistake_and_not_a_guess(rt: Runtime) -> None:
    with pytest.raises((TypeError, DBAPIError, Exception), match="offset-naive"), rt.unit(ORIGIN) as unit:
        unit.add(Lease(name="naive", until=datetime(2026, 1, 1)))  # noqa: DTZ001 -- the mistake


# Commit and rollback.


def test_a_unit_commits_when_its_block_ends(rt: Runtime) -> None:
    done: list[str] = []
    with rt.unit(ORIGIN) as unit:
        unit.add(Lease(name="kept", until=FAR))
        unit.after_commit(lambda: done.append("after"))
        assert done == []
    assert lease(rt, "kept")
    assert done == ["after"]


@pytest.mark.parametrize(
    "exc", [Refused(NOT_FOUND), Refused(CONFLICT), ValueError("fault"), KeyboardInterrupt()], ids=repr
)
def test_a_unit_that_fails_leaves_nothing(rt: Runtime, exc: BaseException) -> None:
    done: list[str] = []

    def deed() -> None:
        with rt.unit(ORIGIN) as unit:
            unit.add(Lease(name="gone", until=FAR))
            unit.after_commit(lambda: done.append("after"))
            raise exc

    with pytest.raises(type(exc)):
        deed()
    assert lease(rt, "gone") is None
    assert done == []


def test_a_refusal_that_keeps_writes_commits_and_propagates(rt: Runtime) -> None:
    done: list[str] = []
    assert INVALID_CODE.keeps_writes

    def deed() -> None:
        with rt.unit(ORIGIN) as unit:
            unit.add(Lease(name="remembered", until=FAR))
            unit.after_commit(lambda: done.append("after"))
            raise Refused(INVALID_CODE)

    with pytest.raises(Refused, match="INVALID_CODE"):
        deed()
    assert lease(rt, "remembered")
    assert done == ["after"]


def test_a_failed_commit_is_never_a_success(rt: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def deed() -> None:
        with rt.unit(ORIGIN) as unit:
            unit.add(Lease(name="lost", until=FAR))
            unit.after_commit(lambda: done.append("after"))

            def fails() -> None:
                raise DBAPIError.instance(
                    "COMMIT",
                    {},
                    rt.database.engine.dialect.loaded_dbapi.OperationalError("gone"),
                    rt.database.engine.dialect.loaded_dbapi.Error,
                )  # type: ignore[arg-type]

            monkeypatch.setattr(unit.session, "commit", fails)

    with pytest.raises(Refused, match="UNAVAILABLE"):
        deed()
    assert lease(rt, "lost") is None
    assert done == []


def test_what_is_not_committed_is_seen_by_nobody(rt: Runtime) -> None:
    with rt.unit(ORIGIN) as unit:
        unit.add(Lease(name="mine", until=FAR))
        assert lease(rt, "mine") is None
    assert lease(rt, "mine")


def test_reading_never_writes(rt: Runtime) -> None:
    with rt.database.reading() as session:
        session.add(Lease(name="thrown away", until=FAR))
        session.flush()
    assert lease(rt, "thrown away") is None


# Constraints.


def test_uniqueness_is_the_schemas(rt: Runtime) -> None:
    ada = a_user(rt)
    with pytest.raises(IntegrityError), rt.unit(ORIGIN) as unit:
        unit.add(User(id=rt.new_id(), alias=ada.alias, full_name="x", created_at=unit.now))


def test_foreign_keys_are_kept_and_cascade(rt: Runtime) -> None:
    def deed() -> None:
        with rt.unit(ORIGIN) as unit:
            unit.execute(
                text("INSERT INTO membership (tenant_id, user_id, roles) VALUES ('no-such-tenant', 'no-such-user', '')")
            )

    with pytest.raises(IntegrityError):
        deed()
    ada = a_user(rt, tenants={"acme-bank": ("analyst",)})
    with rt.unit(ORIGIN) as unit:
        unit.execute(delete(User).where(User.id == ada.id))
    with rt.database.reading() as session:
        assert session.scalar(text("SELECT count(*) FROM email")) == 0


# Races: exactly one wins.


def test_of_parallel_conditional_updates_exactly_one_wins(rt: Runtime, crowd: ThreadPoolExecutor) -> None:
    with rt.unit(ORIGIN) as unit:
        unit.add(Lease(name="job", until=rt.clock.now()))
    at_once = threading.Barrier(8)

    def take(_: int) -> bool:
        at_once.wait()
        return take_lease(rt, "job", 60)

    assert sum(crowd.map(take, range(8))) == 1


def test_of_parallel_inserts_exactly_one_wins(rt: Runtime, crowd: ThreadPoolExecutor) -> None:
    at_once = threading.Barrier(8)

    def take(_: int) -> bool:
        at_once.wait()
        return take_lease(rt, "fresh", 60)

    assert sum(crowd.map(take, range(8))) == 1


def test_of_parallel_users_with_one_alias_exactly_one_is_made(rt: Runtime, crowd: ThreadPoolExecutor) -> None:
    at_once = threading.Barrier(8)

    def make(number: int) -> str:
        at_once.wait()
        try:
            a_user(rt, email=f"one{number}@acme.example", alias="the-one", password=None)
        except Refused as refused:
            return refused.problem.code
        return "made"

    assert sorted(crowd.map(make, range(8))) == ["CONFLICT"] * 7 + ["made"]


def test_many_writers_all_get_their_turn(rt: Runtime, crowd: ThreadPoolExecutor) -> None:
    def write(number: int) -> None:
        with rt.unit(ORIGIN) as unit:
            unit.add(RevokedToken(jti=f"jti {number}", expires_at=FAR))

    list(crowd.map(write, range(80)))
    with rt.database.reading() as session:
        assert session.scalar(text("SELECT count(*) FROM revoked_token")) == 80


# Prepared reads.


def test_a_prepared_read_sees_every_commit_at_once(rt: Runtime) -> None:
    prepared = Prepared(select(Lease.until).where(Lease.name == bindparam("name")))
    assert rt.database.row(prepared, name="new") is None
    with rt.unit(ORIGIN) as unit:
        unit.add(Lease(name="new", until=FAR))
    assert rt.database.row(prepared, name="new") == (FAR,)
    with rt.unit(ORIGIN) as unit:
        unit.execute(update(Lease).where(Lease.name == "new").values(until=later(FAR, 1)))
    assert rt.database.rows(prepared, name="new") == [(later(FAR, 1),)]


@pytest.mark.parametrize("hostile", ["'", "' OR 1=1 --", '"', "%", "\\", ":name", "?", "$1", "\u2713", "x" * 100_000])
def test_values_are_bound_and_never_spelled_into_sql(rt: Runtime, hostile: str) -> None:
    prepared = Prepared(select(Lease.name).where(Lease.name == bindparam("name")))
    assert rt.database.row(prepared, name=hostile) is None


def test_each_thread_reads_on_its_own(rt: Runtime, crowd: ThreadPoolExecutor) -> None:
    prepared = Prepared(select(Lease.name).where(Lease.name == bindparam("name")))
    with rt.unit(ORIGIN) as unit:
        for number in range(8):
            unit.add(Lease(name=f"lease {number}", until=FAR))
    names = [f"lease {number % 8}" for number in range(400)]
    assert list(crowd.map(lambda name: rt.database.row(prepared, name=name), names)) == [(name,) for name in names]


def test_the_event_loop_never_waits_for_a_lock(rt: Runtime) -> None:
    class Elsewhere(Exception):
        pass

    with rt.database.without_writes(Elsewhere):
        with pytest.raises(Elsewhere), rt.unit(ORIGIN):
            raise AssertionError("never entered")
        rt.database.ping()
    with rt.unit(ORIGIN) as unit:
        unit.add(Lease(name="after", until=FAR))


# Losses.


@pytest.mark.parametrize("use", ["ping", "unit", "reading"])
def test_a_database_that_cannot_be_reached_is_unavailable(use: str) -> None:
    database = Database("postgresql://nobody@127.0.0.1:1/none")

    def deed() -> None:
        if use == "ping":
            database.ping()
        elif use == "unit":
            with database.unit(FAR, ORIGIN):
                raise AssertionError("never entered")
        else:
            with database.reading() as session:
                session.execute(text("SELECT 1"))

    with pytest.raises(Refused) as caught:
        deed()
    assert caught.value.problem.code == "UNAVAILABLE"
    assert caught.value.retry_after_seconds == 1
    database.close()


def test_lost_connections_are_replaced(rt: Runtime) -> None:
    prepared = Prepared(select(Lease.name).where(Lease.name == bindparam("name")))
    rt.database.row(prepared, name="x")
    with rt.unit(ORIGIN) as unit:
        unit.execute(text("SELECT 1"))
    if not rt.database.is_sqlite:
        url = rt.database.url.set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(url, autocommit=True) as root:
            root.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
    assert rt.database.row(prepared, name="x") is None
    with rt.unit(ORIGIN) as unit:
        unit.execute(text("SELECT 1"))


def test_a_connection_lost_inside_a_unit_is_unavailable_and_leaves_nothing(rt: Runtime) -> None:
    if rt.database.is_sqlite:
        return  # It has no connection to lose.
    url = rt.database.url.set(drivername="postgresql").render_as_string(hide_password=False)

    def deed() -> None:
        with rt.unit(ORIGIN) as unit:
            unit.add(Lease(name="half", until=FAR))
            with psycopg.connect(url, autocommit=True) as root:
                root.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            unit.add(Lease(name="other half", until=FAR))

    with pytest.raises(Refused, match="UNAVAILABLE"):
        deed()
    assert lease(rt, "half") is None


def test_a_database_that_may_only_be_read_is_unavailable(rt: Runtime) -> None:
    readonly = "PRAGMA query_only = ON" if rt.database.is_sqlite else "SET TRANSACTION READ ONLY"

    def deed() -> None:
        with rt.unit(ORIGIN) as unit:
            connection = unit.session.connection()
            try:
                unit.execute(text(readonly))
                unit.add(Lease(name="refused", until=FAR))
            finally:
                if rt.database.is_sqlite:
                    connection.exec_driver_sql("PRAGMA query_only = OFF")

    with pytest.raises(Refused, match="UNAVAILABLE"):
        deed()


def test_an_exhausted_pool_is_unavailable(rt: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = rt.database.engine.pool
    monkeypatch.setattr(pool, "_timeout", 0.01)
    held = [rt.database.engine.connect() for _ in range(pool.size())]  # type: ignore[attr-defined]
    with pytest.raises(Refused, match="no connection became free"), rt.unit(ORIGIN):
        raise AssertionError("never entered")
    for connection in held:
        connection.close()
    with rt.unit(ORIGIN):
        pass


def test_what_went_wrong_is_named_without_its_values(rt: Runtime) -> None:
    with pytest.raises(Refused) as caught, translated():
        raise DBAPIError.instance(
            "SELECT 'hunter2'", {"p": "hunter2"}, sqlite3.OperationalError("near hunter2"), sqlite3.Error
        )  # type: ignore[arg-type]
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in caught.value.detail


# Contention.


def test_a_serialization_failure_runs_the_entry_point_again(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    from identity.core.tokens import sessions

    ada, times = a_user(web.rt), []
    opened = sessions.open_session

    def contended(*arguments: object, **options: object) -> object:
        times.append(1)
        if len(times) < 4:
            raise Contention("40001")
        return opened(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(sessions, "open_session", contended)
    assert web.post("/user/token", {"email": ada.email, "password": ada.password}).status_code == 200
    assert len(times) == 4


def test_contention_without_end_is_unavailable(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    from identity.core.tokens import sessions

    def contended(*_: object, **__: object) -> None:
        raise Contention("40P01")

    ada = a_user(web.rt)
    monkeypatch.setattr(sessions, "open_session", contended)
    answer = web.post("/user/token", {"email": ada.email, "password": ada.password})
    assert (answer.status_code, answer.json["error"]) == (503, "UNAVAILABLE")
    assert answer.headers["Retry-After"] == "1"
    monkeypatch.undo()
    for _ in range(6):
        assert web.post("/user/token", {"email": ada.email, "password": ada.password}).status_code == 200


@pytest.mark.parametrize("state", ["40001", "40P01"])
def test_conflicts_are_told_from_losses(state: str) -> None:
    class Conflict(psycopg.OperationalError):
        sqlstate = state

    with pytest.raises(Contention), translated():
        raise DBAPIError.instance("UPDATE", {}, Conflict("victim"), psycopg.Error)  # type: ignore[arg-type]


def test_a_deadlock_of_two_units_has_a_victim_that_may_try_again(rt: Runtime) -> None:
    if rt.database.is_sqlite:
        return  # One writer at a time: there is no deadlock.
    with rt.unit(ORIGIN) as unit:
        for name in "ab":
            unit.add(Lease(name=name, until=FAR))
    at_once = threading.Barrier(2)

    def cross(first: str, second: str) -> str:
        try:
            with rt.unit(ORIGIN) as unit:
                unit.execute(update(Lease).where(Lease.name == first).values(until=FAR))
                at_once.wait()
                unit.execute(update(Lease).where(Lease.name == second).values(until=FAR))
        except Contention:
            return "victim"
        return "done"

    with ThreadPoolExecutor(2) as pool:
        ends = [pool.submit(cross, *names) for names in (("a", "b"), ("b", "a"))]
        assert sorted(end.result() for end in ends) == ["done", "victim"]


# How SQLite is opened.


def test_sqlite_is_opened_durable(rt: Runtime) -> None:
    if not rt.database.is_sqlite:
        return
    with rt.database.engine.connect() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 5000}


def test_ids_are_ordered_by_time_and_never_repeat(rt: Runtime, clock: FakeClock) -> None:
    ids = []
    for _ in range(50):
        ids.append(rt.new_id())
        clock.tick(0.001)
    assert ids == sorted(ids)
    assert len({rt.new_id() for _ in range(10_000)}) == 10_000
    assert all(one[14] == "7" and one[19] in "89ab" for one in ids)


def test_every_table_of_the_schema_has_a_key(rt: Runtime) -> None:
    from identity.migrations import schema

    assert Code.__tablename__ in schema().tables
    for table in schema().tables.values():
        assert table.primary_key.columns, table.name


def test_a_unit_that_need_not_last_takes_nothing_from_the_next(rt: Runtime) -> None:
    asked = "PRAGMA synchronous" if rt.database.is_sqlite else "SHOW synchronous_commit"
    usual = 2 if rt.database.is_sqlite else "on"
    if not rt.database.is_sqlite:
        # The suite's server waits for no disk at all; this database is to be as a server comes.
        with rt.unit(ORIGIN) as unit:
            unit.execute(text(f'ALTER DATABASE "{rt.database.url.database}" SET synchronous_commit = on'))
        rt.database.engine.dispose()
    seen = []
    for lasting in (True, False, True):
        with rt.unit(ORIGIN, lasting=lasting) as unit:
            seen.append(unit.execute(text(asked)).scalar())
    assert seen == [usual, 1 if rt.database.is_sqlite else "off", usual]
    with contextlib.suppress(ZeroDivisionError), rt.unit(ORIGIN, lasting=False):
        raise ZeroDivisionError
    with rt.unit(ORIGIN) as unit:
        assert unit.execute(text(asked)).scalar() == usual


def test_a_connection_that_dies_in_a_unit_is_given_to_nobody_else(
    rt: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    if rt.database.is_sqlite:
        return  # Its connections are to a file.
    own = Prepared(text("SELECT pg_terminate_backend(pg_backend_pid())").columns(ended=Boolean))
    with pytest.raises(Refused) as refused, rt.unit(ORIGIN) as unit:
        unit.run(own)
    assert refused.value.problem.code == "UNAVAILABLE"
    assert not [record for record in caplog.records if record.name.startswith("sqlalchemy")], (
        "the pool had nothing to complain of"
    )
    with rt.unit(ORIGIN) as unit:
        assert unit.run(Prepared(text("SELECT 1").columns(one=BigInteger))) == [(1,)]
