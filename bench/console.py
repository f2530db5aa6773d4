"""`python -m bench.console`: how long each page of the console takes on 100,000 users and 1,000,000 audit events, on both databases.

The pages are asked for in this process, without a socket: what is measured is what a page costs the service and its database. The rows are
made by statements, not by use cases, so the events are no genuine ones; that changes no page's time.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

from sqlalchemy import Table, insert

from identity.app import create_app
from identity.core.clients.applications import Application, standard_client
from identity.core.people.accounts import Email, User
from identity.core.people.tenancy import Membership, Tenant
from identity.core.record.audit import Action, AuditEvent
from identity.core.tokens.session_rows import UserSession
from identity.instruments.refusals import Refusal
from identity.opening import create_runtime
from identity.runtime import Runtime
from identity.storage import Base
from tests.browser import Browser
from tests.builders import a_user
from tests.world import FakeClock, Mailbox, Web, fast_settings

USERS, EVENTS, SESSIONS, TENANTS, APPLICATIONS, REFUSALS = 100_000, 1_000_000, 20_000, 100, 1_000, 50_000
BOUND_MS = 50
_COPIES = 100
_ROUNDS = 7
_BATCH = 10_000
_COMMON = (Action.LOGIN_SUCCEEDED, Action.LOGIN_FAILED, Action.SESSION_CREATED, Action.SESSION_REVOKED)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.console", description=__doc__)
    parser.add_argument("backends", nargs="*", default=["sqlite", "postgresql"], help="sqlite, postgresql, or both")
    options = parser.parse_args()
    for backend in options.backends:
        print(
            f"\n{backend}: {USERS:,} users, {EVENTS:,} audit events; milliseconds of {_ROUNDS}: median, least, least of our processor"
        )
        for page, usual, least, busy in measured(backend):
            print(f"{'  ' if least <= BOUND_MS else '! '}{usual:7.1f} {least:7.1f} {busy:7.1f}  {page}", flush=True)


def measured(backend: str) -> Iterator[tuple[str, float, float, float]]:
    """Each page with the median and the least of its times, and the least processor time of this process, in milliseconds."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = f"sqlite:///{folder}/identity.db"
        if backend == "postgresql":
            from tests.servers import start_postgres

            url = stack.enter_context(start_postgres()).create_database("console")
        settings = fast_settings(keys_dir=folder / "keys", database_url=url, console="on")
        clock, mailbox = FakeClock(), Mailbox()
        rt = create_runtime(settings, clock=clock, mailer=mailbox)
        stack.callback(rt.close)
        boss = a_user(rt, alias="boss", email="boss@acme.example", roles=("users_admin",))
        people = fill(rt, boss.id)
        browser = Browser(Web(create_app(runtime=rt), rt, mailbox, clock))
        browser.sign_in(boss)
        for page in pages(browser, boss.id, people):
            times, busy = [], []
            for _ in range(_ROUNDS):
                started, used = time.perf_counter(), time.process_time()
                answer = browser.open(page, follows=False)
                times.append((time.perf_counter() - started) * 1_000)
                busy.append((time.process_time() - used) * 1_000)
                assert answer.status_code == 200, f"{page}: {answer.status_code}"
            yield page, median(times), min(times), min(busy)


def pages(browser: Browser, boss: str, people: Sequence[str]) -> Iterator[str]:
    """What is asked for: lists without a filter, by each filter, of much and of nothing, and behind a cursor; and a page of one thing."""
    yield "/console"
    yield "/console/users"
    for query in (
        "q=user5",
        "q=nobody",
        "tenant=t7",
        "state=disabled",
        "role=analyst",
        "role=nobody",
        "role=users_admin",
    ):
        yield f"/console/users?{query}"
    yield _second(browser, "/console/users")
    yield f"/console/user/{people[4_321]}"
    yield f"/console/user/{boss}"
    yield "/console/audit"
    queries = (
        f"actor={boss}",
        f"actor={people[77]}",
        f"target={people[77]}",
        "action=login.succeeded",
        "action=key.none",
        "of=t7",
    )
    for query in (
        *(one for one in queries if "none" not in one),
        "address=192.0.2.7",
        "action=user.erased",
        "action=role.declared",
    ):
        yield f"/console/audit?{query}"
    yield _second(browser, "/console/audit")
    yield from ("/console/tenant/t7", "/console/tenants?q=t", "/console/keypairs?q=a", "/console/applications?q=app")
    yield f"/console/application/{_id(77, 'd')}"
    yield from ("/console/sessions", "/console/sessions?of=t7", f"/console/sessions?user={people[9]}")
    yield from ("/console/why", "/console/why?period=24h", "/console/why?period=7d", "/console/refusals")
    yield from ("/console/refusals?error=INVALID_TOKEN&check=expired", "/console/system", "/console/you")
    yield from others(browser)


def others(browser: Browser) -> Iterator[str]:
    """Whatever else the navigation leads to."""
    browser.open("/console")
    known = ("/console/users", "/console/audit", "/console/sessions", "/console/why", "/console/system")
    for one in browser.page.text.split("<nav")[1].split("</nav>")[0].split('href="')[1:]:
        path = one.partition('"')[0]
        if path not in known and path != "/console":
            yield path


def _second(browser: Browser, path: str) -> str:
    """The address of what follows the first part of a list."""
    browser.open(path)
    return browser.page.text.split('rel="next"')[0].rpartition('href="')[2].partition('"')[0].replace("&amp;", "&")


# Rows.


def fill(rt: Runtime, boss: str) -> list[str]:
    """Make everything, and give the ids of the users."""
    chance, now = random.Random(7), rt.clock.now()
    people = [_id(number, "a") for number in range(USERS)]
    made = {"created_at": now}
    _insert(
        rt,
        Tenant,
        ({"id": f"t{n}", "name": f"Tenant {n}", "limits": "{}", "version": 1, **made} for n in range(TENANTS)),
    )
    _insert(rt, User, (_user(people[n], n, now) for n in range(USERS)))
    _insert(
        rt,
        Email,
        (
            {
                "id": _id(n, "b"),
                "user_id": people[n],
                "address": f"user{n}@acme.example",
                "verified": True,
                "preferred": True,
                **made,
            }
            for n in range(USERS)
        ),
    )
    _insert(
        rt,
        Membership,
        ({"user_id": people[n], "tenant_id": f"t{n % TENANTS}", "roles": ("analyst",)} for n in range(USERS)),
    )
    _insert(rt, UserSession, (_session(rt, _id(n, "c"), people[n], now) for n in range(SESSIONS)))
    _insert(rt, Refusal, (_refusal(n, now, chance) for n in range(REFUSALS)))
    with rt.database.unit(now, _nowhere()) as unit:
        application = unit.session.get_one(Application, standard_client(rt))
        values = {column.key: getattr(application, column.key) for column in Application.__table__.columns}
    _insert(
        rt,
        Application,
        ({**values, "id": _id(n, "d"), "app_id": 1_000 + n, "name": f"app {n}"} for n in range(APPLICATIONS)),
    )
    _insert(rt, AuditEvent, (_event(n, now, chance, people, boss) for n in range(EVENTS // _COPIES)))
    _multiply(rt)
    return people


def _id(number: int, kind: str) -> str:
    return f"{number:08x}-0000-7000-8000-{kind}00000000000"


def _user(user_id: str, n: int, now: Any) -> dict[str, Any]:
    values = {column.key: None for column in User.__table__.columns}
    return values | {
        "id": user_id,
        "alias": f"user{n}",
        "full_name": f"User Number {n}",
        "enabled": n % 50 != 0,
        "verified": True,
        "roles": ("analyst",) if n % 10 == 0 else (),
        "groups": (),
        "created_at": now,
        "version": 1,
        "attributes": "{}",
    }


def _session(rt: Runtime, session_id: str, user_id: str, now: Any) -> dict[str, Any]:
    values = {column.key: None for column in UserSession.__table__.columns}
    return values | {
        "id": session_id,
        "user_id": user_id,
        "client_id": standard_client(rt),
        "kind": "login",
        "amr": ("pwd", "otp"),
        "verified": True,
        "generation": 0,
        "resource": "",
        "created_at": now,
        "auth_time": now,
        "idle_expires_at": now + timedelta(days=1),
        "expires_at": now + timedelta(days=2),
        "ip": "192.0.2.1",
        "user_agent": "bench",
    }


def _refusal(n: int, now: Any, chance: random.Random) -> dict[str, Any]:
    return {
        "error_id": _id(n, "e"),
        "at": now - timedelta(seconds=chance.randrange(7 * 86_400)),
        "route": "GET /verify",
        "status": 401,
        "error": "INVALID_TOKEN",
        "message": "The token is not valid",
        "field": None,
        "detail": chance.choice(("expired", "no such session", "signature mismatch", "not a header of ours")),
        "evidence": "{}",
        "caller": "",
        "address": f"192.0.2.{chance.randrange(250)}",
        "request_id": "bench",
    }


def _event(n: int, now: Any, chance: random.Random, people: Sequence[str], boss: str) -> dict[str, Any]:
    actor = boss if n % 5 == 0 else chance.choice(people)
    return {
        "id": f"{n:08x}-0000-7000-8000-000000000000",
        "at": now - timedelta(seconds=n),
        "action": chance.choice(_COMMON) if n % 10 else chance.choice(("user.changed", "tenant.member-set")),
        "actor": actor,
        "target": actor if n % 3 else chance.choice(people),
        "address": f"192.0.2.{chance.randrange(250)}",
        "request_id": "bench",
        "error_id": "",
        "credential": "",
        "tenant": f"t{chance.randrange(TENANTS)}" if n % 10 == 0 else "",
        "data": "{}",
        "mac": bytes(32),
    }


def _multiply(rt: Runtime) -> None:
    """A hundred events of each, at other times; a statement for each copy, since no statement may take long."""
    names = [column.key for column in AuditEvent.__table__.columns]
    with rt.database.engine.begin() as connection:
        connection.exec_driver_sql("CREATE TEMPORARY TABLE first_events AS SELECT * FROM audit_event")
        for step in range(1, _COPIES):
            spelled = {name: name for name in names}
            spelled |= {"id": f"substr(id, 1, 32) || '{step:04d}'", "at": f"at - {step} * 10000000000"}
            copied = ", ".join(spelled[name] for name in names)
            connection.exec_driver_sql(
                f"INSERT INTO audit_event ({', '.join(names)}) SELECT {copied} FROM first_events"
            )
        connection.exec_driver_sql("DROP TABLE first_events")
    with rt.database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("ANALYZE")


def _insert(rt: Runtime, table: type[Base], rows: Iterator[dict[str, Any]]) -> None:
    mapped = table.__table__
    assert isinstance(mapped, Table)
    with rt.database.engine.begin() as connection:
        batch: list[dict[str, Any]] = []
        for row in rows:
            batch.append(row)
            if len(batch) == _BATCH:
                connection.execute(insert(mapped), batch)
                batch = []
        if batch:
            connection.execute(insert(mapped), batch)


def _nowhere() -> Any:
    from identity.ambient import Origin

    return Origin.background()


if __name__ == "__main__":
    main()
