"""Group B over a socket, two server processes, both databases: what must hold when many ask at once and when the server dies."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jwt
import pytest
import requests

from identity.ambient import later
from identity.core.record import audit
from identity.core.record.audit import Action
from tests.builders import Authenticator, Person, a_user, an_authenticator
from tests.world import Live, code_in

# One step of drift, so that the code of the next step can be used at once: enrolling spends the present one.
LIVE_ENVIRONMENT = {"workers": 2, "totp_drift_steps": 1}
ROUNDS = 4


@pytest.fixture
def ada(live: Live) -> Person:
    return a_user(live.rt, tenants={"acme-bank": ("analyst",)})


def an_app(live: Live, person: Person) -> tuple[Authenticator, str]:
    """An authenticator, and a code of it that was not used yet."""
    app = an_authenticator(live.rt, person)
    return app, app.at(later(live.rt.clock.now(), 30))


def begin(live: Live, person: Person) -> str:
    answer = live.post("/auth/login", {"email": person.email, "password": person.password})
    assert answer.status_code == 200, answer.text
    token: str = answer.json()["mfaChallengeToken"]
    return token


def signed_in(live: Live, person: Person) -> dict[str, str]:
    """The tokens of a login with a mailed code."""
    challenge = begin(live, person)
    code = code_in(live.wait_for_mail(person.email))
    answer = live.post("/auth/mfa/challenge", {"mfaChallengeToken": challenge, "emailCode": code})
    assert answer.status_code == 200, answer.text
    tokens: dict[str, str] = answer.json()
    return tokens


def refresh(live: Live, token: str) -> requests.Response:
    return live.post("/auth/refresh", {"refreshToken": token})


def at_once(live: Live, path: str, body: dict[str, Any], count: int) -> list[requests.Response]:
    """The answers to the same request, sent by many clients."""
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(lambda _: live.post(path, body), range(count)))


def test_the_conversation_of_the_seed(live: Live, ada: Person) -> None:
    _, code = an_app(live, ada)
    login = live.post("/api/v1/auth/login", {"email": ada.email, "password": ada.password})
    assert (login.status_code, login.headers["Content-Type"]) == (200, "application/json")
    assert login.json() == {
        "mfaChallengeToken": login.json()["mfaChallengeToken"],
        "mfaMethod": "TOTP",
        "expiresIn": 300,
    }
    body = {"mfaChallengeToken": login.json()["mfaChallengeToken"], "totpCode": code}
    done = live.post("/api/v1/auth/mfa/challenge", body)
    assert (done.status_code, done.json()["expiresIn"], done.json()["tokenType"]) == (200, 3600, "Bearer")
    headers = {"X-Tenant-Id": "acme-bank"}
    assert live.get("/api/v1/auth/me", bearer=done.json()["accessToken"], headers=headers).status_code == 200
    assert refresh(live, done.json()["refreshToken"]).status_code == 200


def test_50_parallel_refreshes_of_one_token_have_one_successor(live: Live, ada: Person) -> None:
    token = signed_in(live, ada)["refreshToken"]
    for _ in range(ROUNDS):
        answers = at_once(live, "/auth/refresh", {"refreshToken": token}, 50)
        assert Counter(answer.status_code for answer in answers) == {200: 50}
        successors = {answer.json()["refreshToken"] for answer in answers}
        assert len(successors) == 1
        token = successors.pop()


def test_a_lost_answer_a_reuse_and_a_crash_change_nothing_of_the_chain(live: Live, ada: Person) -> None:
    first = signed_in(live, ada)["refreshToken"]
    second = refresh(live, first).json()["refreshToken"]
    # That answer was lost: the retry gets it again, and the server that dies after it knows of the turn.
    assert refresh(live, first).json()["refreshToken"] == second
    live.crash()
    third = refresh(live, second).json()
    assert refresh(live, second).json()["refreshToken"] == third["refreshToken"]
    reused = refresh(live, first)
    assert (reused.status_code, reused.json()["error"]) == (401, "INVALID_TOKEN")
    # A crash does not revive what was ended, either.
    live.crash()
    assert refresh(live, third["refreshToken"]).status_code == 401
    assert live.get("/auth/me", bearer=third["accessToken"]).status_code == 401
    assert "was ended" in str(live.wait_for_mail(ada.email, count=2)["Subject"])


def test_100_parallel_right_codes_answer_a_challenge_once(live: Live, ada: Person) -> None:
    _, code = an_app(live, ada)
    body = {"mfaChallengeToken": begin(live, ada), "totpCode": code}
    answers = at_once(live, "/auth/mfa/challenge", body, 100)
    assert Counter(answer.status_code for answer in answers) == {200: 1, 401: 99}
    assert {answer.json()["error"] for answer in answers if answer.status_code == 401} == {"INVALID_CODE"}
    # The same step again, in other digits, with spaces: refused, for a new challenge too.
    wide = "".join(chr(0xFF10 + int(digit)) for digit in code)
    for spelling in (code, wide, f" {code}", f"{code[:3]} {code[3:]}"):
        again = {"mfaChallengeToken": begin(live, ada), "totpCode": spelling}
        assert live.post("/auth/mfa/challenge", again).status_code == 401


def test_200_parallel_wrong_codes_leave_five_failures(live: Live, ada: Person) -> None:
    an_app(live, ada)
    body = {"mfaChallengeToken": begin(live, ada), "totpCode": "000000"}
    answers = at_once(live, "/auth/mfa/challenge", body, 200)
    seen = Counter(answer.status_code for answer in answers)
    assert set(seen) <= {401, 429}
    assert audit.count(live.rt, actor=ada.id, action=Action.LOGIN_FAILED) <= 5
    assert {answer.headers["x-error"] for answer in answers if answer.status_code == 429} <= {
        "Too many authentication attempts. Try again in 5 minutes"
    }


def test_no_code_and_no_token_is_written_to_the_log(live: Live, ada: Person) -> None:
    challenge = begin(live, ada)
    code = code_in(live.wait_for_mail(ada.email))
    tokens = live.post("/auth/mfa/challenge", {"mfaChallengeToken": challenge, "emailCode": code}).json()
    log = live.log.read_text()
    secrets = (ada.password, challenge, tokens["accessToken"], tokens["refreshToken"])
    assert not [secret for secret in secrets if secret in log]
    assert jwt.decode(tokens["accessToken"], options={"verify_signature": False})["amr"] == ["email", "pwd"]
