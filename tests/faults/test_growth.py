"""Large numbers of one thing: ten thousand logins of a user, three hundred tenants, twenty thousand members; and hours of use, in small."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, insert, inspect, select

from identity.app import create_runtime
from identity.core import upkeep
from identity.core.people.accounts import Email, User
from identity.core.people.tenancy import Membership
from identity.core.tokens import status
from identity.core.tokens.session_rows import UserSession
from identity.runtime import Runtime
from identity.settings import Settings
from identity.storage import Base
from tests.builders import PASSWORD, Person, a_session, a_tenant, a_token, a_user, an_application
from tests.faults.conftest import Stores
from tests.faults.rig import Heard, Service, serving, until
from tests.oauth_world import basic
from tests.world import ORIGIN, environment_of

pytestmark = pytest.mark.faults
SESSIONS = 10_000
TENANTS = 300
MEMBERS = 20_000
SOAK_MINUTES = float(os.environ.get("IDENTITY_FAULT_SOAK_MINUTES", "3"))
# On two cores that tests share; alone it is a fraction.
SOON_SECONDS = 3


def values_of(row: Base) -> dict[str, Any]:
    return {column.key: getattr(row, column.key) for column in inspect(type(row)).column_attrs}


@contextmanager
def others_go_on(service: Service, token: str) -> Iterator[list[float]]:
    """How long each request of somebody else took meanwhile; none may fail."""
    took: list[float] = []
    ended = threading.Event()

    def ask() -> None:
        with service.client() as http:
            while not ended.wait(0.02):
                began = time.monotonic()
                heard = (
                    http.call("PUT", "/session/extend", bearer=token),
                    http.call("GET", "/verify?tenant=optional", bearer=token),
                )
                took.append(time.monotonic() - began)
                assert [one and one.status for one in heard] in ([202, 200], [200, 200]), heard

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        try:
            yield took
        finally:
            ended.set()
            asking.result()


def log_in_often(rt: Runtime, person: Person, count: int) -> None:
    """As if they had logged in so many times."""
    opened = a_session(rt, person)
    with rt.unit(ORIGIN) as unit:
        row = values_of(unit.session.get_one(UserSession, opened.session.id))
        places = status.take_several(rt, unit, count)
        unit.session.execute(
            insert(UserSession),
            [{**row, "id": rt.new_id(), "bearer": os.urandom(32), "place": place} for place in places],
        )


@pytest.mark.parametrize("how", ["disabled", "not allowed any more", "password changed", "logged out"])
def test_a_user_with_ten_thousand_logins_is_ended_at_once(
    backend: str, stores: Stores, tmp_path: Path, how: str
) -> None:
    with serving(tmp_path / "service", stores.fresh(backend, tmp_path)) as service:
        with closing(service.runtime()) as rt:
            eve = a_user(rt)
            log_in_often(rt, eve, SESSIONS)
            token, mine, other = a_token(rt, eve), a_token(rt, eve), a_session(rt, a_user(rt)).bearer
            admin = a_token(rt, a_user(rt, roles=["users_admin"]))
        assert other is not None
        changed = {"currentPassword": PASSWORD, "newPassword": "another horse, another battery"}
        with others_go_on(service, other.reveal()) as meanwhile:
            began = time.monotonic()
            deeds = {
                "disabled": ("PUT", f"/admin/user/{eve.id}/disable", None, admin),
                "not allowed any more": ("PUT", f"/admin/user/{eve.id}/access-window", {"endsAt": 1}, admin),
                "password changed": ("PUT", "/auth/password", changed, mine),
                "logged out": ("DELETE", f"/admin/sessions?user={eve.id}", None, admin),
            }
            method, path, body, bearer = deeds[how]
            heard = service.call(method, path, body, bearer=bearer)
            took = time.monotonic() - began
            assert heard.status < 300, heard.body
            assert {service.call("GET", "/verify?tenant=optional", bearer=token).status for _ in range(10)} == {401}
        print(
            f"{how} on {backend}: {SESSIONS} logins ended in {took:.2f} s; others waited at most {max(meanwhile):.2f} s"
        )
        assert took < SOON_SECONDS
        assert max(meanwhile) < SOON_SECONDS
        assert service.faults() == []


def test_three_hundred_tenants_and_one_user_in_each(backend: str, stores: Stores, tmp_path: Path) -> None:
    with serving(tmp_path / "service", stores.fresh(backend, tmp_path)) as service:
        with closing(service.runtime()) as rt:
            names = [f"tenant-{number}" for number in range(TENANTS)]
            ada = a_user(rt, tenants=dict.fromkeys(names, ("analyst",)))
            admin = a_token(rt, a_user(rt, roles=["users_admin"]))
        token = service.call("POST", "/user/token", {"email": ada.email, "password": PASSWORD}).json["data"][
            "accessToken"
        ]
        assert len(token) < 8192
        for name in (names[0], names[-1]):
            assert service.call("GET", "/verify", bearer=token, headers={"X-Tenant-Id": name}).status == 200
        began = time.monotonic()
        for name in names:
            assert service.call("GET", "/verify", bearer=token, headers={"X-Tenant-Id": name}).status == 200
        each = (time.monotonic() - began) / TENANTS
        began = time.monotonic()
        assert service.call("GET", "/admin/tenants?limit=200", bearer=admin).json["items"] >= TENANTS
        listed = time.monotonic() - began
        assert service.call("PUT", f"/admin/tenant/{names[7]}/disable", bearer=admin).status < 300
        assert service.call("GET", "/verify", bearer=token, headers={"X-Tenant-Id": names[7]}).status in (401, 403)
        assert service.call("GET", "/verify", bearer=token, headers={"X-Tenant-Id": names[8]}).status == 200
        print(
            f"{backend}: a token of {len(token)} bytes, {each * 1000:.1f} ms for each tenant, all listed in {listed:.2f} s"
        )
        assert each < 0.1
        assert listed < SOON_SECONDS
        assert service.faults() == []


def fill_tenant(rt: Runtime, tenant: str, like: Person, count: int) -> list[str]:
    """So many members, each as `like` is."""
    with rt.unit(ORIGIN) as unit:
        user = values_of(unit.session.get_one(User, like.id))
        address = values_of(unit.execute(select(Email).where(Email.user_id == like.id)).scalar_one())
        ids = [rt.new_id() for _ in range(count)]
        unit.session.execute(
            insert(User), [{**user, "id": made, "alias": f"member{number}"} for number, made in enumerate(ids)]
        )
        unit.session.execute(
            insert(Email),
            [
                {**address, "id": rt.new_id(), "user_id": made, "address": f"member{number}@acme.example"}
                for number, made in enumerate(ids)
            ],
        )
        unit.session.execute(
            insert(Membership), [{"user_id": made, "tenant_id": tenant, "roles": ("analyst",)} for made in ids]
        )
    return ids


def test_a_tenant_with_twenty_thousand_members(backend: str, stores: Stores, tmp_path: Path) -> None:
    with serving(tmp_path / "service", stores.fresh(backend, tmp_path)) as service:
        with closing(service.runtime()) as rt:
            a_tenant(rt, "large")
            ids = fill_tenant(rt, "large", a_user(rt), MEMBERS)
            tokens = [a_token(rt, Person(made, "", "", "")) for made in (ids[0], ids[-1])]
            admin = a_token(rt, a_user(rt, roles=["users_admin"]))
            other = a_session(rt, a_user(rt)).bearer
        assert other is not None
        took: dict[str, float] = {}

        def timed(name: str, method: str, path: str, body: object = None, bearer: str = admin) -> Any:
            began = time.monotonic()
            heard = service.call(method, path, body, bearer=bearer)
            took[name] = time.monotonic() - began
            assert heard.status < 300, (name, heard.status, heard.body)
            return heard.json

        with others_go_on(service, other.reveal()) as meanwhile:
            seen, after, pages = set(), None, 0
            assert timed("first page", "GET", "/admin/tenant/large/members?limit=200")["items"] == MEMBERS
            while True:
                cursor = f"&after={after}" if after else ""
                part = timed("members", "GET", f"/admin/tenant/large/members?limit=200{cursor}")
                seen |= {member["userID"] for member in part["members"]}
                after, pages = part.get("next"), pages + 1
                if after is None:
                    break
            assert len(seen) == MEMBERS
            timed("deep page", "GET", "/admin/tenant/large/members?limit=100&page=200")
            timed("search", "GET", "/admin/users?q=member19999&tenant=large")
            timed("one role", "PUT", f"/admin/tenant/large/member/{ids[5]}", {"roles": ["viewer"]})
            timed("stopped", "PUT", "/admin/tenant/large/disable")
            for token in tokens:
                answer = service.call("GET", "/verify", bearer=token, headers={"X-Tenant-Id": "large"})
                assert answer.status in (401, 403)
            timed("started", "PUT", "/admin/tenant/large/enable")
            for token in tokens:
                assert service.call("GET", "/verify", bearer=token, headers={"X-Tenant-Id": "large"}).status == 200
            timed("deleted", "DELETE", "/admin/tenant/large")
        print(f"{backend}: {pages} pages; others waited at most {max(meanwhile):.2f} s")
        print({name: round(seconds, 2) for name, seconds in took.items()})
        assert max(took.values()) < SOON_SECONDS
        assert max(meanwhile) < SOON_SECONDS
        assert service.faults() == []


# Hours of use, in small.


class Ahead:
    """A clock of a day when all of this is over."""

    def now(self) -> datetime:
        return datetime.now(UTC) + timedelta(days=1_000)


def rows(rt: Runtime) -> Counter[str]:
    with rt.database.reading() as session:
        return Counter(
            {
                mapper.class_.__tablename__: session.scalar(select(func.count()).select_from(mapper.class_)) or 0
                for mapper in Base.registry.mappers
            }
        )


def size(service: Service) -> tuple[int, int]:
    """Resident KiB and open descriptors of the largest worker."""
    resident, descriptors = [], []
    for pid in service.workers():
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        resident.append(next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")))
        descriptors.append(len(list(Path(f"/proc/{pid}/fd").iterdir())))
    return max(resident), max(descriptors)


def guess(service: Service) -> Heard | None:
    """A login of nobody, from an address that has no other."""
    number = time.monotonic_ns()
    with service.client(source=f"127.{number % 200 + 1}.{number // 200 % 250}.{number // 50_000 % 250 + 1}") as http:
        return http.call("POST", "/user/token", {"email": f"nobody{number}@acme.example", "password": "x"})


def use(service: Service, person: Person, feed: dict[str, str], seconds: float) -> Counter[int]:
    """What clients do all day: right and wrong logins, tokens, checks, logouts."""
    ended = time.monotonic() + seconds
    seen: Counter[int] = Counter()
    with service.client() as http:
        for turn in itertools.count():
            if time.monotonic() > ended:
                return seen
            login = http.call("POST", "/user/token", {"email": person.email, "password": PASSWORD})
            assert login is not None, http.error
            token = login.json["data"]["accessToken"] if login.status == 200 else ""
            machine = http.call("POST", "/application/token", feed)
            assert machine is not None, http.error
            form = f"token={token}"
            for heard in (
                login,
                machine,
                guess(service) if turn % 20 == 0 else login,
                http.call("GET", "/verify?tenant=optional", bearer=token),
                http.call("GET", "/verify?tenant=optional", bearer=machine.json["data"]["accessToken"]),
                http.call("POST", "/oauth/introspect", form, headers=basic(feed["clientId"], feed["secret"])),
                http.call("GET", "/.well-known/jwks.json"),
                http.call("GET", "/session", bearer=token),
                http.call("GET", f"/no/such/{time.monotonic_ns()}"),
                http.call("POST", "/auth/logout", bearer=token),
            ):
                seen[heard.status if heard else 0] += 1
    raise AssertionError("time has no end")


def test_a_soak_ends_as_it_began(backend: str, stores: Stores, tmp_path: Path) -> None:
    settings = stores.fresh(backend, tmp_path)
    with serving(tmp_path / "service", settings) as service:
        rt = service.runtime()
        people = [a_user(rt) for _ in range(4)]
        machine = an_application(rt)
        feed = {"clientId": machine.client_id, "secret": machine.secret}
        began = rows(rt)

        def soak(minutes: float) -> Counter[int]:
            with ThreadPoolExecutor(len(people)) as pool:
                return sum(pool.map(lambda person: use(service, person, feed, minutes * 60), people), Counter())

        # The first third fills what is bounded: caches, pools, arenas.
        answers = soak(SOAK_MINUTES / 3)
        warm = size(service)
        answers += soak(SOAK_MINUTES * 2 / 3)
        until(lambda: size(service)[1] <= warm[1] + 4, seconds=15)
        after = size(service)
        workers = service.workers()
        service.stop()
        # Once everything that was done is over, the janitor has left what there was.
        grown = rows(rt)
        rt.close()
        later = create_runtime(Settings.from_env(environment_of(service.settings)), clock=Ahead(), migrate=False)
        with closing(later):
            upkeep.sweep(later)
            left = rows(later)
        print(
            f"{backend}: {answers.total()} answers {dict(answers)}; memory {warm[0]} -> {after[0]} KiB,"
            f" descriptors {warm[1]} -> {after[1]};"
            f" rows +{grown.total() - began.total()}, left { ({name: n - began[name] for name, n in left.items() if n > began[name]}) }"
        )
        assert set(answers) <= {200, 202, 204, 401, 404}
        assert len(workers) == 2
        assert after[0] < warm[0] * 1.1 + 4096
        assert {name for name, count in left.items() if count > began[name]} <= STAYS


# One row for each of a bounded number: shards that were turned, jobs that were done, lists that were begun, a key in reserve.
STAYS = {"epoch", "lease", "signing_key", "status_list"}
