"""Guesses that an outage met: it is not held against the user."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import select

from identity.core.proofs.attempts import Meter
from tests.builders import PASSWORD, a_user
from tests.faults.conftest import Stores
from tests.faults.rig import serving, until

pytestmark = pytest.mark.faults
SLOW = {"argon2_memory_kib": 65_536, "argon2_time_cost": 3, "hash_wait_seconds": 20, "hash_concurrency": 4}


def test_right_logins_in_flight_when_postgresql_dies_leave_no_failure(stores: Stores, tmp_path: Path) -> None:
    with serving(tmp_path / "service", stores.fresh("postgresql", tmp_path) | SLOW) as service:
        rt = service.runtime()
        ada = a_user(rt)

        def log_in() -> int:
            with service.client() as http:
                heard = http.call("POST", "/user/token", {"email": ada.email, "password": PASSWORD})
            return heard.status if heard else 0

        flying = [threading.Thread(target=log_in) for _ in range(8)]
        for each in flying:
            each.start()
        until(lambda: any(json.loads(row) for row in column(rt, Meter.pending)), seconds=10)
        time.sleep(0.3)  # Written down, without waiting for the disk.
        stores.postgres.kill()
        for each in flying:
            each.join()
        time.sleep(0.5)
        stores.postgres.restart()
        until(lambda: not any(json.loads(row) for row in column(rt, Meter.pending)), seconds=10)
        assert set(column(rt, Meter.failed)) <= {"[]"}
        assert log_in() == 200
        rt.close()


def column(rt, which):  # type: ignore[no-untyped-def]
    with rt.database.reading() as session:
        return session.scalars(select(which)).all()
