"""Invariant I6: keys turn under load and nobody's verification fails; processes that start together make one key."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jwt
import pytest
from sqlalchemy import select, update

from identity.instruments.keyring import SKEW_SECONDS, SigningKey
from identity.runtime import Runtime
from tests.builders import an_application
from tests.faults.conftest import Stores
from tests.faults.rig import BACKENDS_OF_THE_SHORT_FORM, ROUNDS, Service, serving, until
from tests.world import MASTER_KEY, ORIGIN

pytestmark = pytest.mark.faults
MAX_AGE_SECONDS = 1
EVERY_SECONDS = 2
VERIFIERS = 20


class Verifier(threading.Thread):
    """A resource server: keeps the key set for exactly as long as `Cache-Control` says, and verifies what it is sent."""

    def __init__(self, service: Service, machine: dict[str, str], halted: threading.Event) -> None:
        super().__init__(daemon=True)
        self._http = service.client()
        self._issuer = service.url
        self._machine = machine
        self._halted = halted
        self._keys: dict[str, jwt.PyJWK] = {}
        self._stale_at = 0.0
        self.kids: set[str] = set()
        self.verified = 0
        self.failed: list[str] = []

    def run(self) -> None:
        while not self._halted.is_set():
            answer = self._http.call("POST", "/application/token", self._machine)
            if answer is None or answer.status != 200:
                self.failed.append(str(answer and answer.status))
                continue
            self._verify(answer.json["data"]["accessToken"])
            time.sleep(0.1)
        self._http.close()

    def _verify(self, token: str) -> None:
        if time.monotonic() >= self._stale_at:
            answer = self._http.call("GET", "/.well-known/jwks.json")
            if answer is None or answer.status != 200:
                self.failed.append("no key set")
                return
            found = re.search(r"max-age=(\d+)", answer.headers["cache-control"])
            assert found is not None
            self._stale_at = time.monotonic() + int(found[1])
            self._keys = {key.key_id: key for key in jwt.PyJWKSet.from_json(answer.body.decode()).keys if key.key_id}
        kid = jwt.get_unverified_header(token)["kid"]
        try:
            jwt.decode(token, self._keys[kid], ["RS256"], issuer=self._issuer, options={"verify_aud": False})
        except (KeyError, jwt.InvalidTokenError) as exc:
            self.failed.append(f"{type(exc).__name__} {kid}")
        else:
            self.verified += 1
            self.kids.add(kid)


def publish(rt: Runtime, *, at: datetime | None = None) -> str:
    """Publish a key and set its date to sign, by the ring's own rules; `at`: as if that had been then.

    What is dated back was published before any verifier of the test existed, so that none of them has a key set without it.
    """
    rt.ring.ensure_standby()
    with rt.unit(ORIGIN) as unit:
        if at is not None:
            unit.now = at
            unit.execute(update(SigningKey).where(SigningKey.is_standby == 1).values(published_at=at))
        return rt.ring.rotate(unit)


@pytest.mark.parametrize("backend", BACKENDS_OF_THE_SHORT_FORM)
def test_rotation_every_two_seconds_fails_no_verification(backend: str, stores: Stores, tmp_path: Path) -> None:
    # A key signs no sooner than max-age + 60 s after it was published. So the ring starts with the keys that a service
    # which has rotated for a minute already would have; the long form runs until the keys published under load sign too.
    lead = MAX_AGE_SECONDS + SKEW_SECONDS
    seconds = lead + 60 if ROUNDS else 8
    settings = stores.fresh(backend, tmp_path) | {"jwks_max_age_seconds": MAX_AGE_SECONDS}
    service = Service(tmp_path / "service", settings)
    service.start()
    rt = service.runtime()
    try:
        feed = an_application(rt)
        begin = datetime.now(UTC)
        for number in range(lead // EVERY_SECONDS):
            publish(rt, at=begin - timedelta(seconds=lead - (number + 1) * EVERY_SECONDS))
        until(
            lambda: len(service.call("GET", "/.well-known/jwks.json").json["keys"]) > lead // EVERY_SECONDS, seconds=10
        )
        time.sleep(2.5)  # Until the other worker has seen them as well.
        halted = threading.Event()
        machine = {"clientId": feed.client_id, "secret": feed.secret}
        verifiers = [Verifier(service, machine, halted) for _ in range(VERIFIERS)]
        for verifier in verifiers:
            verifier.start()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            publish(rt)
            time.sleep(EVERY_SECONDS)
        halted.set()
        for verifier in verifiers:
            verifier.join(30)
        kids = set().union(*(verifier.kids for verifier in verifiers))
        verified = sum(verifier.verified for verifier in verifiers)
        print(f"{backend}: {verified} verifications over {len(kids)} keys in {seconds} s")
        assert [verifier.failed for verifier in verifiers if verifier.failed] == []
        assert len(kids) >= seconds // EVERY_SECONDS
        assert service.faults() == []
    finally:
        rt.close()
        service.stop()


# Forked from one process that has imported everything, so that all of them are at the same line at the same moment.
_BOOT = """
import json, multiprocessing, sys
from identity.opening import create_runtime
from identity.settings import Settings

def boot(settings, barrier, answers):
    barrier.wait()
    try:
        rt = create_runtime(settings)
    except Exception as exc:
        answers.put(repr(exc))
        return
    answers.put([key.kid for key in rt.ring.list()] + [rt.ring.vault.derive("a test").hex()])
    rt.close()

given = json.loads(sys.argv[1])
context = multiprocessing.get_context("fork")
settings = Settings(**{**given, "master_keys": tuple(given["master_keys"])})
barrier, answers = context.Barrier(20), context.Queue()
children = [context.Process(target=boot, args=(settings, barrier, answers)) for _ in range(20)]
for child in children:
    child.start()
print(json.dumps([answers.get(timeout=60) for _ in children]))
for child in children:
    child.join()
"""


def test_twenty_first_starts_at_once_make_one_key_and_one_root(backend: str, stores: Stores, tmp_path: Path) -> None:
    settings = {"database_url": f"sqlite:///{tmp_path}/new.db", "master_keys": [MASTER_KEY], "threads": 1}
    if backend == "postgresql":
        settings["database_url"] = stores.postgres.create_database("unborn")
    made = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _BOOT, json.dumps(settings)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert made.returncode == 0, made.stderr[-3000:]
    answers = json.loads(made.stdout)
    assert len(answers) == 20
    assert all(answer == answers[0] for answer in answers)
    assert len(answers[0]) == 2, "one key, one root"
    with serving(tmp_path / "service", {"database_url": settings["database_url"], "workers": 1}) as service:
        assert [key["kid"] for key in service.call("GET", "/.well-known/jwks.json").json["keys"]][:1] == answers[0][:1]
        rt = service.runtime()
        with rt.database.reading() as session:
            signing = session.scalars(select(SigningKey.kid).where(SigningKey.signs_from.is_not(None))).all()
        assert signing == answers[0][:1]
        rt.close()
