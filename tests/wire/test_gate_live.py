"""The gate as a proxy meets it: over a socket, with headers that only a socket can carry, and many requests at once."""

from __future__ import annotations

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import requests

from identity.core.admin import incidents
from identity.core.admin.by import By
from identity.core.admin.incidents import Kind
from tests.builders import a_session, a_tenant, a_token, a_user, an_application
from tests.world import ORIGIN, Live

LIVE_ENVIRONMENT = {"limit_ai_assisted": "7/minute", "workers": 2}
ACME = {"X-Tenant-Id": "acme-bank"}


def ask(live: Live, *lines: str, method: str = "GET", path: str = "/verify", body: str = "") -> tuple[int, str]:
    """Status and error code of a request with exactly these header lines."""
    head = "\r\n".join((f"{method} {path} HTTP/1.1", "Host: auth.example", "Connection: close", *lines))
    answer = live.raw(f"{head}\r\n\r\n{body}".encode("latin-1")).decode()
    status, _, rest = answer.partition("\r\n")
    code = re.search(r'"error":"([A-Z_]+)"', rest)
    return int(status.split()[1]), code[1] if code else ""


def logged(live: Live, request_id: str) -> dict[str, Any]:
    """The log line of a request; lines are written within half a second."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        for line in live.log.read_text().splitlines():
            if f'"{request_id}"' in line:
                found: dict[str, Any] = json.loads(line)
                return found
        time.sleep(0.05)
    raise AssertionError(f"no log line of {request_id}")


def test_two_tenants_in_two_headers_are_no_tenant(live: Live) -> None:
    for tenant in ("acme-bank", "globex"):
        a_tenant(live.rt, tenant)
    bearer = f"Authorization: Bearer {a_token(live.rt, a_user(live.rt, tenants={'acme-bank': ()}))}"
    mine, theirs = "X-Tenant-Id: acme-bank", "X-Tenant-Id: globex"
    assert ask(live, bearer, mine) == (200, "")
    assert ask(live, bearer, mine, theirs) == (403, "FORBIDDEN")
    assert ask(live, bearer, theirs, mine) == (403, "FORBIDDEN")
    assert ask(live, bearer, mine, mine) == (403, "FORBIDDEN")


def test_two_credentials_in_two_headers_are_refused(live: Live) -> None:
    ada, bob = (f"Authorization: Bearer {a_token(live.rt, a_user(live.rt))}" for _ in range(2))
    assert ask(live, ada, bob, path="/verify?tenant=optional") == (400, "MALFORMED_REQUEST")
    assert ask(live, ada, ada, path="/verify?tenant=optional") == (400, "MALFORMED_REQUEST")
    assert ask(live, ada, "authorization: Basic eDp5", path="/verify?tenant=optional")[0] in (400, 401)


def test_underscores_are_no_dashes(live: Live) -> None:
    bearer = f"Authorization: Bearer {a_token(live.rt, a_user(live.rt, tenants={'acme-bank': ()}))}"
    assert ask(live, bearer, "X_Tenant_Id: acme-bank") == (400, "MISSING_TENANT")


def test_header_names_in_any_case_are_the_same(live: Live) -> None:
    token = a_token(live.rt, a_user(live.rt, tenants={"acme-bank": ()}))
    assert ask(live, f"AUTHORIZATION: bearer {token}", "x-TENANT-id:   acme-bank  ") == (200, "")


def test_bytes_that_are_no_text_are_no_tenant(live: Live) -> None:
    bearer = f"Authorization: Bearer {a_token(live.rt, a_user(live.rt, tenants={'acme-bank': ()}))}"
    assert ask(live, bearer, "X-Tenant-Id: \xff\xfe") == (403, "FORBIDDEN")


def test_a_bearer_over_8_kib_is_refused(live: Live) -> None:
    assert ask(live, f"Authorization: Bearer {'a' * 8193}") == (401, "INVALID_TOKEN")


def test_a_body_is_left_alone_and_the_connection_goes_on(live: Live) -> None:
    opened = a_session(live.rt, a_user(live.rt, tenants={"acme-bank": ()}))
    headers = ACME | {"Authorization": f"Bearer {opened.bearer.reveal()}"}
    with requests.Session() as connection:
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "GET"):
            answer = connection.request(method, f"{live.url}/verify", headers=headers, data=b"{" * 5000, timeout=10)
            assert answer.status_code == 200, (method, answer.text)
            assert answer.headers["X-Auth-Session"] == opened.session.id


def test_a_chunked_body_is_left_alone(live: Live) -> None:
    bearer = f"Authorization: Bearer {a_token(live.rt, a_user(live.rt, tenants={'acme-bank': ()}))}"
    status = ask(
        live,
        bearer,
        "X-Tenant-Id: acme-bank",
        "Transfer-Encoding: chunked",
        method="POST",
        body="5\r\nhello\r\n0\r\n\r\n",
    )
    assert status == (200, "")


def test_exactly_as_many_pass_at_once_as_the_tier_allows(live: Live) -> None:
    token = a_token(live.rt, a_user(live.rt, tenants={"globex": ()}))
    headers = {"X-Tenant-Id": "globex"}

    def knock(_: int) -> int:
        return live.get("/verify?tier=ai-assisted", bearer=token, headers=headers).status_code

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(knock, range(48)))
    assert answers.count(200) == 7
    assert answers.count(429) == 41


def test_the_fast_lane_and_flask_answer_alike(live: Live) -> None:
    """POST is on the fast lane, OPTIONS on Flask: everything but ids must be the same."""
    a_tenant(live.rt, "acme-bank")
    member = a_token(live.rt, a_user(live.rt, tenants={"acme-bank": ()}))
    stranger = a_token(live.rt, a_user(live.rt))

    def told(method: str, bearer: str, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        answer = live.call(method, "/verify", bearer=bearer, headers=headers)
        ids = ("x-request-id", "x-error-id", "date", "connection")
        return (
            answer.status_code,
            {n.lower(): v for n, v in answer.headers.items() if n.lower() not in ids},
            answer.content,
        )

    for bearer in (member, stranger, "", "x"):
        for headers in (ACME, {}):
            assert told("POST", bearer, headers) == told("OPTIONS", bearer, headers)


def test_what_passed_and_what_did_not_is_logged_without_any_credential(live: Live) -> None:
    token = a_token(live.rt, a_user(live.rt, tenants={"acme-bank": ()}))
    live.get("/verify", bearer=token, headers=ACME | {"X-Request-Id": "the-one-that-passed"})
    live.get("/verify", bearer=token[:-2], headers=ACME | {"X-Request-Id": "the-one-that-did-not"})
    passed, refused = logged(live, "the-one-that-passed"), logged(live, "the-one-that-did-not")
    assert (passed["status"], passed["route"]) == (200, "GET /verify")
    assert (refused["status"], refused["error"]) == (401, "INVALID_TOKEN")
    assert token[:40] not in live.log.read_text()


def test_a_leak_that_is_contained_is_refused_at_the_next_request(live: Live) -> None:
    feed = an_application(live.rt)
    asked = {"clientId": feed.client_id, "secret": feed.secret}
    token = live.post("/application/token", asked).json()["data"]["accessToken"]

    def passes() -> int:
        return live.get("/verify?tenant=optional", bearer=token).status_code

    # Often enough for every worker to know the answer by heart.
    assert {passes() for _ in range(12)} == {200}
    incidents.contain(live.rt, By("test", ORIGIN), Kind.SECRET, feed.secret_id)
    assert {passes() for _ in range(12)} == {401}
    assert live.post("/application/token", asked).status_code == 401
    deadline = time.monotonic() + 20
    while (told := incidents.describe(live.rt, Kind.SECRET, feed.secret_id).touched.counts)["uses"] < 13:
        assert time.monotonic() < deadline, told
        time.sleep(0.2)
    assert (told["uses"], told["tokens"]) == (13, 1), "also those that were answered from memory"
