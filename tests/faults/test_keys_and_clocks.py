"""The master key's file is gone while processes die, and a clock that was wrong when everything began."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import jwt
import pytest
from sqlalchemy import select

from identity.core.upkeep import Lease
from identity.runtime import Runtime
from tests.builders import a_token, a_user, an_application
from tests.faults.conftest import Stores
from tests.faults.rig import Service, chance, rounds, until
from tests.world import MASTER_KEY

pytestmark = pytest.mark.faults
DAY = 86_400


def test_deaths_while_the_key_file_is_gone_make_no_other_key(backend: str, stores: Stores, tmp_path: Path) -> None:
    folder = tmp_path / "service"
    key = folder / "keys" / "master.key"
    key.parent.mkdir(parents=True)
    key.write_text(MASTER_KEY + "\n")
    service = Service(folder, stores.fresh(backend, tmp_path) | {"master_keys": ()})
    service.start()
    with_key = Service(tmp_path / "arranging", service.settings | {"master_keys": (MASTER_KEY,)})
    rt = with_key.runtime()
    token, pick = a_token(rt, a_user(rt)), chance("deaths without a key")
    rt.close()

    def verified() -> int:
        return service.call("GET", "/verify?tenant=optional", bearer=token).status

    try:
        for _ in range(rounds(2, share=0.02)):
            # 1. A worker dies: the other serves on, and its successor waits for the key.
            key.unlink()
            service.kill_worker(pick)
            for _ in range(10):
                assert verified() == 200
            assert not key.exists()
            # 2. The master dies: nothing starts in its place, and nothing is made.
            service.kill_master()
            service.launch()
            assert service.process.wait(30) != 0
            said = [line for line in service.log.read_text().splitlines() if str(key) in line]
            assert said[-1].startswith("identity: "), said
            assert not key.exists()
            # 3. The key is back: what was signed before is ours.
            key.write_text(MASTER_KEY + "\n")
            service.start()
            until(lambda: len(service.workers()) == 2, seconds=10)
            assert verified() == 200
    finally:
        service.stop()


def fake_time() -> str:
    found = next((path for path in Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")), None)
    assert found, "this test needs libfaketime (Debian: apt-get install faketime)"
    return str(found)


def has_leases(rt: Runtime) -> bool:
    with rt.database.reading() as session:
        return len(session.scalars(select(Lease)).all()) >= 2


@pytest.mark.parametrize("seconds", [DAY, -DAY], ids=["ahead", "behind"])
def test_a_first_start_with_a_wrong_clock_is_forgotten_with_it(
    backend: str, stores: Stores, tmp_path: Path, seconds: int
) -> None:
    url = f"sqlite:///{tmp_path}/new.db"
    if backend == "postgresql":
        url = stores.postgres.create_database(f"clock_{'ahead' if seconds > 0 else 'behind'}")
    service = Service(tmp_path / "service", {"database_url": url})
    wrong = service.environment | {
        "LD_PRELOAD": fake_time(),
        "FAKETIME": f"{seconds:+d}s",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=service.folder, env=wrong, capture_output=True, text=True, check=True)
        return done.stdout

    assert abs(int(run("date", "+%s")) - datetime.now(UTC).timestamp() - seconds) < 30
    # 1. What is made first is of that time, and so are the leases of the jobs. Not by `serve`: gunicorn does not bear an invented clock.
    run(sys.executable, "-m", "identity", "migrate")
    with (service.folder / "worker").open("wb") as log:
        worker = subprocess.Popen(
            [sys.executable, "-m", "identity", "worker"], cwd=service.folder, env=wrong, stderr=log, stdout=log
        )
        rt = service.runtime()
        until(lambda: has_leases(rt), seconds=30)
        rt.close()
        # Not asked: libfaketime sometimes holds a thread for ever. How a worker stops is tested elsewhere.
        worker.kill()
        worker.wait(20)
    # 2. The clock is right: it serves as if nothing had been.
    service.start()
    try:
        rt = service.runtime()
        machine = an_application(rt)
        rt.close()
        got = service.call("POST", "/application/token", {"clientId": machine.client_id, "secret": machine.secret})
        assert got.status == 200, got.body
        token = got.json["data"]["accessToken"]
        keys = jwt.PyJWKSet.from_json(service.call("GET", "/.well-known/jwks.json").body.decode()).keys
        kid = jwt.get_unverified_header(token)["kid"]
        found = next(key for key in keys if key.key_id == kid)
        jwt.decode(token, found, ["RS256"], issuer=service.url, options={"verify_aud": False})
        assert service.call("GET", "/health/ready").status == 200
        assert service.faults() == []
    finally:
        service.stop()
