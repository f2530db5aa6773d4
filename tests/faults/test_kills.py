"""Invariants I1, I2, I4 and I5: what was acknowledged survives kill -9, whoever dies; nothing spent or revoked comes back."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from identity.runtime import Runtime
from tests.builders import PASSWORD, Person, a_token, a_user
from tests.faults.conftest import Stores
from tests.faults.rig import Client, Heard, Service, chance, rounds

pytestmark = pytest.mark.faults
CLIENTS = 6
MAX_FAILURES = 5


@dataclass
class Journal:
    """What clients were told: only a 2xx counts as told."""

    live: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    disabled: list[str] = field(default_factory=list)
    machines: list[tuple[str, str]] = field(default_factory=list)
    gone: list[tuple[str, str]] = field(default_factory=list)
    refreshed: int = 0
    unknown: int = 0
    violations: list[str] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        return {name: len(value) if isinstance(value, list) else value for name, value in vars(self).items()}


class LoadClient(threading.Thread):
    """Does one deed after the other, and writes down each answer. What it was not told it tries again, or leaves alone."""

    def __init__(
        self, service: Service, journal: Journal, pick: random.Random, people: list[Person], admin: str
    ) -> None:
        super().__init__(daemon=True)
        self._http = service.client()
        self._journal = journal
        self._pick = pick
        self._people = people
        self._admin = admin
        self._mine: list[str] = []
        self._chain = ""
        self._halted = threading.Event()
        self._number = pick.randrange(10**12)

    def halt(self) -> None:
        self._halted.set()
        self.join(60)

    def run(self) -> None:
        deeds = (
            self._sign_in,
            self._sign_in,
            self._sign_out,
            self._refresh,
            self._refresh,
            self._disable,
            self._register,
        )
        while not self._halted.is_set():
            self._pick.choice(deeds)()
        self._http.close()

    def _do(self, method: str, path: str, body: object = None, *, bearer: str = "") -> Heard | None:
        heard = self._http.call(method, path, body, bearer=bearer)
        # 429: a guess whose process was killed counts as a failure, so many kills lock this one address out for a while.
        if heard is None or heard.status in (429, 503):
            self._journal.unknown += 1
            time.sleep(0.05)
            return None
        if heard.status >= 300:
            self._journal.violations.append(f"{method} {path} answered {heard.status}: {heard.body[:200]!r}")
            return None
        return heard

    def _sign_in(self) -> None:
        if answer := self._do(
            "POST", "/user/token", {"email": self._pick.choice(self._people).email, "password": PASSWORD}
        ):
            self._mine.append(answer.json["data"]["accessToken"])
            self._journal.live.append(self._mine[-1])

    def _sign_out(self) -> None:
        if not self._mine:
            return
        token = self._mine.pop()
        self._journal.live.remove(token)  # From here on it may be over, told or not.
        if self._do("POST", "/auth/logout", bearer=token):
            self._journal.ended.append(token)

    def _refresh(self) -> None:
        if not self._chain:
            person = self._pick.choice(self._people)
            if answer := self._do("POST", "/auth/login", {"email": person.email, "password": PASSWORD}):
                self._chain = answer.json["refreshToken"]
            return
        # A lost answer is asked for again with the same token: within the grace that must work.
        if answer := self._do("POST", "/auth/refresh", {"refreshToken": self._chain}):
            self._chain = answer.json["refreshToken"]
            self._journal.refreshed += 1

    def _disable(self) -> None:
        self._number += 1
        address = f"u{self._number}@acme.example"
        made = self._do(
            "POST",
            "/admin/user",
            {"email": address, "fullName": "U", "alias": f"u{self._number}", "password": PASSWORD},
            bearer=self._admin,
        )
        signed_in = made and self._do("POST", "/user/token", {"email": address, "password": PASSWORD})
        if made and signed_in and self._do("PUT", f"/admin/user/{made.json['userID']}/disable", bearer=self._admin):
            self._journal.disabled.append(signed_in.json["data"]["accessToken"])

    def _register(self) -> None:
        made = self._do("POST", "/admin/application", {"name": "feed", "scopes": []}, bearer=self._admin)
        if made is None:
            return
        machine = (made.json["clientId"], made.json["secret"])
        if self._pick.random() < 0.5:
            self._journal.machines.append(machine)
        elif self._do("DELETE", f"/admin/application/{machine[0]}", bearer=self._admin):
            self._journal.gone.append(machine)


class Check:
    """Compares what was told with what the service does now."""

    def __init__(self) -> None:
        self.violations: list[str] = []

    def expect(self, status: int, what: str, heard: Heard | None) -> None:
        if heard is None or heard.status != status:
            self.violations.append(f"{what}: {heard.status if heard else 'no answer'}, not {status}")

    def journal(self, http: Client, journal: Journal) -> None:
        for token in journal.live:
            self.expect(200, "a session was lost", http.call("GET", "/auth/me", bearer=token))
        for token in journal.ended:
            self.expect(401, "an ended session works", http.call("GET", "/auth/me", bearer=token))
        for token in journal.disabled:
            self.expect(401, "a disabled user's token works", http.call("GET", "/auth/me", bearer=token))
        for status, machines in ((200, journal.machines), (401, journal.gone)):
            for client_id, secret in machines:
                answer = http.call("POST", "/application/token", {"clientId": client_id, "secret": secret})
                # 429: so many ended secrets from one address are refused before they are looked at.
                if answer is None or answer.status != 429 or status == 200:
                    self.expect(status, "a client secret", answer)


def a_code(service: Service, rt: Runtime) -> tuple[str, dict[str, str]]:
    """A bearer that waits for its code, and the body that verifies it."""
    opened = service.call("POST", "/session", {"email": a_user(rt).email})
    assert opened.status == 202
    verification_id = opened.json["verificationCodeID"]
    code = service.code_for(verification_id)
    return opened.json["bearer"], {"verificationCodeID": verification_id, "code": code}


def in_background(work: Callable[[], object], count: int) -> list[threading.Thread]:
    threads = [threading.Thread(target=work, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads


def kill(service: Service, stores: Stores, whom: str, pick: random.Random) -> None:
    match whom:
        case "a worker":
            service.kill_worker(pick)
            return
        case "the master":
            service.kill_master()
        case "all":
            service.kill_all()
        case "the database":
            stores.postgres.kill()
            time.sleep(pick.random() * 0.2)
            stores.postgres.restart()
            return
    service.start()


def test_no_acknowledged_deed_is_lost_and_nothing_spent_comes_back(
    backend: str, stores: Stores, tmp_path: Path
) -> None:
    pick = chance(f"kills {backend}")
    service = Service(tmp_path / "service", stores.fresh(backend, tmp_path))
    service.start()
    rt = service.runtime()
    victims = ["a worker", "the master", "all", *(["the database"] if backend == "postgresql" else [])]
    total, spent = Journal(), 0
    try:
        people = [a_user(rt) for _ in range(10)]
        admin = a_token(rt, a_user(rt, roles=["users_admin"]))
        for number in range(rounds(len(victims))):
            whom = victims[number % len(victims)]
            journal = Journal()
            bearer, code = a_code(service, rt)
            target = a_user(rt)
            consumed: list[int] = []
            guesses: list[int] = []

            def consume(code: dict[str, str] = code, consumed: list[int] = consumed) -> None:
                with service.client() as http:
                    answer = http.call("PUT", "/session/verification", code)
                consumed.append(answer.status if answer else 0)

            def guess(target: Person = target, guesses: list[int] = guesses) -> None:
                with service.client(timeout=60) as http:
                    for _ in range(3):
                        answer = http.call("POST", "/user/token", {"email": target.email, "password": "wrong"})
                        guesses.append(answer.status if answer else 0)

            load = [LoadClient(service, journal, random.Random(pick.random()), people, admin) for _ in range(CLIENTS)]
            for client in load:
                client.start()
            # 1. At a moment of chance: four submit one code, four guess one password, and somebody dies.
            time.sleep(0.1 + pick.random() * 0.4)
            busy = in_background(consume, 4)
            busy += in_background(guess, 4)
            time.sleep(pick.random() * 0.05)
            kill(service, stores, whom, pick)
            time.sleep(pick.random() * 0.2)
            for client in load:
                client.halt()
            for thread in busy:
                thread.join(60)
            # 2. The service is back; what it told still holds.
            check = Check()
            with service.client() as http:
                check.journal(http, journal)
            check.violations += journal.violations
            # 3. The code: once, whatever happened; told once, it is spent and its session verified.
            consume()
            wins = consumed.count(202)
            spent += wins
            verified = service.call("GET", "/session", bearer=bearer)
            if wins > 1 or (wins and verified.status != 200):
                check.violations.append(f"a code was consumed {wins} times: {consumed}")
            # 4. Guesses: never more than the budget were looked at, and a full budget holds against the right password.
            guess()
            looked_at = guesses.count(401)
            if looked_at > MAX_FAILURES:
                check.violations.append(f"{looked_at} guesses were evaluated: {guesses}")
            if looked_at == MAX_FAILURES:
                right = service.call("POST", "/user/token", {"email": target.email, "password": PASSWORD})
                check.expect(429, "the lockout after its guesses", right)
            assert not check.violations, (
                f"round {number}, {whom} killed: {check.violations[:5]} {service.log.read_text()[-6000:]}"
            )
            for name, value in vars(journal).items():
                setattr(total, name, getattr(total, name) + value)
        # 5. Once more all of it: nothing of an early round was undone by a later one.
        check = Check()
        with service.client() as http:
            check.journal(http, total)
        assert not check.violations, check.violations[:5]
        assert min(total.counts()[name] for name in ("live", "ended", "disabled", "machines", "gone", "refreshed")) > 0
        assert spent > 0
        assert service.faults() == []
        print(f"{backend}: {rounds(len(victims))} kills, {spent} codes consumed, {total.counts()}")
    finally:
        rt.close()
        service.stop()
