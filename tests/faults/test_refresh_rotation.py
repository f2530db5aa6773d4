"""Invariant I3: rotation never yields two living chains, and an answer that was lost can be asked for again."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from identity.runtime import Runtime
from tests.builders import a_session, a_user
from tests.faults.chaos import Fault, Wire
from tests.faults.conftest import Stores
from tests.faults.rig import Client, Service, at_once, rounds, serving

pytestmark = pytest.mark.faults
GRACE_SECONDS = 3


def a_refresh_token(rt: Runtime) -> str:
    opened = a_session(rt, a_user(rt))
    assert opened.refresh is not None
    return opened.refresh.reveal()


def refresh(service: Service, token: str) -> tuple[int, str]:
    answer = service.call("POST", "/auth/refresh", {"refreshToken": token})
    return answer.status, answer.json.get("refreshToken", "")


def test_fifty_parallel_refreshes_have_one_successor(service: Service) -> None:
    rt = service.runtime()
    for _ in range(rounds(1, share=0.1)):
        token = a_refresh_token(rt)
        answers = at_once(50, lambda _, token=token: refresh(service, token))
        assert {status for status, _ in answers} == {200}
        assert len({successor for _, successor in answers}) == 1
    rt.close()


def test_a_lost_answer_is_recovered_within_the_grace_and_ends_the_session_after_it(
    backend: str, stores: Stores, tmp_path: Path
) -> None:
    settings = stores.fresh(backend, tmp_path) | {"refresh_grace_seconds": GRACE_SECONDS}
    with serving(tmp_path / "service", settings) as service, Wire(("127.0.0.1", service.port)) as wire:
        rt = service.runtime()
        token = a_refresh_token(rt)
        # 1. The deed is done, its answer cut off; the client asks again, and again after everybody has died.
        wire.set(Fault(swallows_answers=True))
        with Client(wire.port) as http:
            assert http.call("POST", "/auth/refresh", {"refreshToken": token}) is None
        committed = time.monotonic()
        lost = json.loads(wire.swallowed[0].partition(b"\r\n\r\n")[2])["refreshToken"]
        assert refresh(service, token) == (200, lost)
        service.kill_all()
        service.start()
        if time.monotonic() - committed < GRACE_SECONDS - 0.5:
            assert refresh(service, token) == (200, lost)
        # 2. After the grace the same token is a copy: it ends the session, the living successor too, across another death.
        time.sleep(max(0.0, GRACE_SECONDS + 0.1 - (time.monotonic() - committed)))
        assert refresh(service, token)[0] == 401
        assert refresh(service, lost)[0] == 401
        service.kill_all()
        service.start()
        assert refresh(service, lost)[0] == 401
        rt.close()
