"""Patroni moves the primary, under load: the service goes with it, keeps what it said was done, and is not ready meanwhile.

Needs the programs `patroni` and `etcd` (Debian: patroni, etcd-server). So it is part of `make faults` alone.
"""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from identity.app import create_runtime
from identity.core.admin import users
from identity.core.admin.by import By
from tests.builders import PASSWORD, a_token, a_user
from tests.faults.cluster import TTL_SECONDS, Cluster, Node, Watcher
from tests.faults.rig import Service, serving, until
from tests.world import fast_settings

pytestmark = pytest.mark.faults
SECONDS = 10
CLIENTS = 4


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster() as started:
        leader = started.leader
        assert leader is not None
        with psycopg.connect(leader.url.replace("/identity", "/postgres"), autocommit=True) as connection:
            connection.execute("CREATE DATABASE identity")
        create_runtime(fast_settings(database_url=started.url)).database.close()
        yield started


class Load(threading.Thread):
    """Logs in and uses the login, again and again, and keeps a journal of what it was told."""

    def __init__(self, service: Service, email: str, halted: threading.Event) -> None:
        super().__init__(daemon=True)
        self._service, self._email, self._halted = service, email, halted
        self.answers: list[tuple[float, str, int]] = []
        self.tokens: list[str] = []

    def run(self) -> None:
        with self._service.client(timeout=20) as http:
            while not self._halted.is_set():
                begun = time.monotonic()
                heard = http.call("POST", "/user/token", {"email": self._email, "password": PASSWORD})
                self.answers.append((begun, "write", heard.status if heard else 0))
                if heard is None or heard.status != 200:
                    time.sleep(0.05)
                    continue
                self.tokens.append(heard.json["data"]["accessToken"])
                begun = time.monotonic()
                heard = http.call("GET", "/verify?tenant=optional", bearer=self.tokens[-1])
                self.answers.append((begun, "read", heard.status if heard else 0))


def watch_readiness(service: Service, halted: threading.Event, seen: list[tuple[float, int]]) -> None:
    with service.client(timeout=20) as http:
        while not halted.wait(0.2):
            heard = http.call("GET", "/health/ready")
            seen.append((time.monotonic(), heard.status if heard else 0))


@pytest.mark.parametrize("how", ["switchover", "leader killed", "leader paused"])
def test_the_service_goes_where_patroni_leads(cluster: Cluster, tmp_path: Path, how: str) -> None:
    cluster.wait_until_whole()
    before = cluster.leader
    assert before is not None
    try:
        with serving(tmp_path / "service", {"database_url": cluster.url}) as service:
            with closing(service.runtime()) as rt:
                people = [a_user(rt) for _ in range(CLIENTS)]
                eve = a_user(rt)
                evil = a_token(rt, eve)
            workers, halted = service.workers(), threading.Event()
            ready: list[tuple[float, int]] = []
            load = [Load(service, person.email, halted) for person in people]
            threads = [*load, threading.Thread(target=watch_readiness, args=(service, halted, ready), daemon=True)]
            for thread in threads:
                thread.start()
            time.sleep(4)
            # 1. The primary moves.
            watcher = Watcher(cluster, before)
            watcher.start()
            began = time.monotonic()
            move(cluster, before, how)
            until(lambda: watcher.at is not None, seconds=TTL_SECONDS + 20)
            moved = watcher.at or 0.0
            # 2. On the new one somebody is disabled, by who has asked it directly.
            new = next(node for node in cluster.nodes if node is not before)
            disable(new, eve.id)
            disabled = time.monotonic()
            until(
                lambda: (
                    {service.call("GET", "/verify?tenant=optional", bearer=evil).status for _ in range(20)} == {401}
                ),
                seconds=SECONDS,
            )
            refused = time.monotonic()
            time.sleep(max(0.0, moved + SECONDS - time.monotonic()))
            halted.set()
            for thread in threads:
                thread.join(40)
            # 3. It writes there within the time, without a restart, and nothing that was acknowledged is gone.
            answers = sorted(answer for one in load for answer in one.answers)
            last_refused = max((at for at, _, status in answers if status != 200), default=began)
            counts = Counter(status for _, _, status in answers)
            away = [status for at, status in ready if began < at < moved]
            print(
                f"{how}: {counts}, a new leader after {moved - began:.1f} s, the last request that was refused begun"
                f" {last_refused - moved:.1f} s after that,"
                f" who was disabled refused {refused - disabled:.1f} s after that; ready meanwhile: {Counter(away)}"
            )
            assert set(counts) <= {200, 503}
            assert last_refused - moved < SECONDS
            assert any(status == 200 for at, kind, status in answers if kind == "write" and at > moved)
            tokens = [token for one in load for token in one.tokens]
            lost = [
                token for token in tokens if service.call("GET", "/verify?tenant=optional", bearer=token).status != 200
            ]
            assert lost == []
            if how != "switchover":
                assert 503 in away
            assert service.call("GET", "/health/ready").status == 200
            assert service.workers() == workers
            assert service.faults() == []
    finally:
        if how == "leader killed":
            before.start()
        elif how == "leader paused":
            before.signal(signal.SIGCONT)
    cluster.wait_until_whole()


def move(cluster: Cluster, leader: Node, how: str) -> None:
    match how:
        case "switchover":
            cluster.switch_over()
        case "leader killed":
            leader.signal(signal.SIGKILL)
        case _:
            leader.signal(signal.SIGSTOP)


def disable(node: Node, user_id: str) -> None:
    with closing(create_runtime(fast_settings(database_url=node.url), migrate=False)) as rt:
        users.set_enabled(rt, By.command_line(), user_id, enabled=False)
