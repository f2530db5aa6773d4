"""Rate limits as clients meet them: two worker processes, fifty clients at once, both limiters."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from tests import servers
from tests.builders import an_application
from tests.conftest import BACKENDS, fresh_database
from tests.world import Live, start_live

AUTH, APPLICATION = 30, 40
SPOOFS = ("X-Forwarded-For", "X-Real-IP", "Forwarded", "True-Client-IP", "X-Client-IP")


@pytest.fixture(scope="module", params=BACKENDS)
def crowded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Two workers that share small budgets."""
    folder = tmp_path_factory.mktemp("limits")
    limits = {"limit_auth": f"{AUTH}/minute", "limit_application": f"{APPLICATION}/minute"}
    with start_live(folder, fresh_database(request.param, folder), limits, workers=2) as live:
        yield live


def login(live: Live, number: int = 0, **headers: str) -> requests.Response:
    """An attempt that is wrong in its form: it counts, and it costs the server no hash."""
    return live.call("POST", "/user/token", json={"email": f"u{number}@acme.example"}, headers=headers)


def token(live: Live, client_id: str, secret: str) -> requests.Response:
    return live.post("/application/token", {"clientId": client_id, "secret": secret})


def test_exactly_the_budget_is_accepted_whatever_the_client_claims_to_be(crowded: Live) -> None:
    def attempt(number: int) -> requests.Response:
        return login(crowded, number, **{SPOOFS[number % len(SPOOFS)]: f"203.0.113.{number}"})

    started = time.time()
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(attempt, range(100)))
    assert Counter(answer.status_code for answer in answers) == {422: AUTH, 429: 100 - AUTH}
    accepted = [answer for answer in answers if answer.status_code == 422]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert sorted(int(answer.headers["X-RateLimit-Remaining"]) for answer in accepted) == list(range(AUTH))
    for answer in answers:
        assert answer.headers["X-RateLimit-Limit"] == str(AUTH)
        assert started + 55 < int(answer.headers["X-RateLimit-Reset"]) < time.time() + 62
    for answer in refused:
        assert answer.headers["X-RateLimit-Remaining"] == "0"
        assert 1 <= int(answer.headers["Retry-After"]) <= 60
        assert answer.json()["error"] == "RATE_LIMITED"
        assert answer.headers["x-error-id"]
        assert answer.headers["Content-Type"] == "application/json"


def test_each_application_has_a_budget_of_its_own(crowded: Live) -> None:
    one, other = an_application(crowded.rt), an_application(crowded.rt)
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda _: token(crowded, one.client_id, one.secret), range(60)))
    assert Counter(answer.status_code for answer in answers) == {200: APPLICATION, 429: 60 - APPLICATION}
    assert token(crowded, other.client_id, other.secret).status_code == 200


def test_an_application_gets_no_second_budget_by_another_spelling(crowded: Live) -> None:
    feed = an_application(crowded.rt)
    spellings = [feed.client_id, feed.client_id.upper(), feed.client_id.title()]
    codes = Counter(token(crowded, spellings[number % 3], feed.secret).status_code for number in range(APPLICATION + 5))
    assert codes == {200: APPLICATION, 429: 5}


def test_routes_without_a_limit_say_nothing_of_one(crowded: Live) -> None:
    assert not [name for name in crowded.get("/health/live").headers if name.lower().startswith("x-ratelimit")]


def test_a_window_slides(tmp_path: Path) -> None:
    with start_live(tmp_path, fresh_database("sqlite", tmp_path), {"limit_auth": "3/second"}, workers=2) as live:
        sent = []
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline:
            before = time.monotonic()
            sent.append((login(live).status_code, before, time.monotonic()))
        accepted = [(before, after) for status, before, after in sent if status == 422]
        assert len(accepted) >= 6
        # Whatever second is looked at, no four were accepted in it.
        assert all(fourth[1] - first[0] > 0.999 for first, fourth in zip(accepted, accepted[3:], strict=False))


def test_without_redis_nothing_is_waved_through_and_all_is_well_soon_after_its_return(tmp_path: Path) -> None:
    valkey = servers.start_valkey()
    limits = {"limit_auth": "5/minute", "limit_application": "1000/minute"}
    database = fresh_database("sqlite", tmp_path) | {"redis_url": valkey.url}
    try:
        with start_live(tmp_path, database, limits, workers=2) as live:
            feed = an_application(live.rt)
            assert token(live, feed.client_id, feed.secret).status_code == 200
            valkey.kill()
            for _ in range(8):
                for answer in (login(live), token(live, feed.client_id, feed.secret)):
                    assert (answer.status_code, answer.json()["error"]) == (503, "UNAVAILABLE")
                    assert int(answer.headers["Retry-After"]) >= 1
                    assert answer.elapsed.total_seconds() < 3
            ready = live.get("/health/ready")
            assert ready.status_code == 503
            assert json.loads(ready.content)
            assert live.get("/health/live").status_code == 200
            valkey.start()
            back = time.monotonic()
            while token(live, feed.client_id, feed.secret).status_code != 200:
                assert time.monotonic() - back < 5
                time.sleep(0.05)
            assert Counter(login(live).status_code for _ in range(10)) == {422: 5, 429: 5}
    finally:
        valkey.stop()


def test_a_limiter_that_cannot_write_refuses(tmp_path: Path) -> None:
    with start_live(tmp_path, fresh_database("sqlite", tmp_path), {"limit_auth": "5/minute"}) as live:
        folder = tmp_path / "limits"
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
        folder.write_text("in the way")
        answer = login(live)
        assert (answer.status_code, answer.json()["error"]) == (503, "UNAVAILABLE")
        folder.unlink()
        folder.mkdir()
        assert login(live).status_code == 422
