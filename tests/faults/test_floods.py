"""Made-up names in any number, under the usual limit on descriptors: nothing of them stays, and who is right is served."""

from __future__ import annotations

import base64
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import func, select

from identity.core.proofs.attempts import Meter
from identity.core.record.audit import AuditEvent
from identity.runtime import Runtime
from tests.builders import an_application
from tests.faults.conftest import Stores
from tests.faults.rig import ROUNDS, Client, Service

pytestmark = pytest.mark.faults
FLOOD = 20_000 if ROUNDS else 600
DESCRIPTORS = 1024
DEFAULTS = {
    "limit_auth": "10/minute",
    "limit_application": "600/minute",
    "limit_standard": "120/minute",
    "trusted_proxies": ("127.0.0.0/8",),
}


@pytest.fixture
def crowded(backend: str, stores: Stores, tmp_path: Path) -> Iterator[Service]:
    """One worker with the usual limit on descriptors and the default limits; each client says its address."""
    service = Service(tmp_path / "service", stores.fresh(backend, tmp_path) | DEFAULTS | {"workers": 1})
    service.start(descriptors=DESCRIPTORS)
    yield service
    service.stop()


def rows(rt: Runtime) -> dict[str, int]:
    with rt.database.reading() as session:
        return {
            table.__tablename__: session.scalar(select(func.count()).select_from(table)) or 0
            for table in (Meter, AuditEvent)
        }


def windows(service: Service) -> int:
    folder = service.folder.parent / "limits"
    return len(list(folder.iterdir())) if folder.exists() else 0


def descriptors(service: Service) -> int:
    return max(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in service.workers())


def from_address(number: int) -> dict[str, str]:
    return {"X-Forwarded-For": f"203.0.{113 + number // 250}.{number % 250}"}


def test_a_flood_of_made_up_names_leaves_nothing_and_a_good_client_is_served(crowded: Service) -> None:
    rt = crowded.runtime()
    feed = an_application(rt)
    good = {"clientId": feed.client_id, "secret": feed.secret}
    assert crowded.call("POST", "/application/token", good, headers=from_address(0)).status == 200
    before, files = rows(rt), windows(crowded)
    ended = threading.Event()
    served: Counter[int] = Counter()

    def be_good() -> None:
        with crowded.client() as http:
            while not ended.wait(0.2):
                answer = http.call("POST", "/application/token", good, headers=from_address(0))
                served[answer.status if answer else 0] += 1

    def one(http: Client, number: int) -> int:
        name = f"made-up-{number}"
        match number % 4:
            case 0:
                answer = http.call("POST", "/application/token", {"clientId": rt.new_id(), "secret": "x"})
            case 1:
                basic = base64.b64encode(f"{name}:x".encode()).decode()
                answer = http.call(
                    "POST", "/oauth/token", "grant_type=client_credentials", headers={"Authorization": f"Basic {basic}"}
                )
            case 2:
                answer = http.call("GET", "/keypair", headers={"api-key": name, "api-secret": "x"})
            case _:
                answer = http.call("POST", "/user/token", {"email": f"{name}@acme.example", "password": "x"})
        assert answer is not None, http.error
        return answer.status

    beside = threading.Thread(target=be_good)
    beside.start()
    try:
        with crowded.client() as http:
            ends = Counter(one(http, number) for number in range(FLOOD))
    finally:
        ended.set()
        beside.join()
    assert set(ends) == {401, 429}
    assert set(served) == {200}
    after = rows(rt)
    more = {table: after[table] - before[table] for table in after}
    print(
        f"{FLOOD} made-up names: {dict(ends)}, rows {more}, windows {windows(crowded) - files}; a good client {dict(served)}"
    )
    # Failed logins are stopped by the limit of their address: a lockout that would not know unknown accounts would tell them apart.
    assert after["meter"] - before["meter"] <= 1 + 2 * 10 * (1 + FLOOD // 4_000) + 1
    assert after["audit_event"] - before["audit_event"] <= 2 * (1 + FLOOD // 1_000) + 10 * (1 + FLOOD // 4_000)
    assert windows(crowded) - files <= 4
    rt.close()


def test_more_clients_than_descriptors_are_served(crowded: Service) -> None:
    rt = crowded.runtime()
    feed = an_application(rt)
    good = {"clientId": feed.client_id, "secret": feed.secret}
    with crowded.client() as http:
        for number in range(560):
            answer = http.call(
                "POST", "/user/token", {"email": "ada@acme.example", "password": "x"}, headers=from_address(number)
            )
            assert answer is not None, http.error
            assert answer.status in (401, 429), answer.body
            answer = http.call("POST", "/application/token", good, headers=from_address(number))
            assert answer is not None, http.error
            assert answer.status == 200, answer.body
    assert descriptors(crowded) < DESCRIPTORS / 2
    for _ in range(20):
        assert crowded.call("GET", "/health/ready").status == 200
    rt.close()
