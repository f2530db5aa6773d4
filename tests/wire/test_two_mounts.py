"""One declaration, two mounts: the hot routes answer the same, byte for byte, through Flask and through the fast lane."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

import pytest
import redis

from identity.app import create_app, endpoints
from identity.core.clients import keypairs
from identity.runtime import Runtime
from identity.settings import Settings
from identity.wire.mounts.fastlane import FastLane
from tests.builders import a_session, a_token, a_user, an_application
from tests.world import ORIGIN, Web

HOT = {(endpoint.method, endpoint.path) for endpoint in endpoints() if endpoint.hot}


class Repeated:
    """Entropy that gives the same bytes to both mounts."""

    def __init__(self) -> None:
        self._given = 0

    def bytes(self, count: int) -> bytes:
        self._given += 1
        return self._given.to_bytes(4).rjust(count, b"\7")[:count]


@dataclass(frozen=True)
class Sent:
    """A request to a hot route, and the status that it must have on either mount."""

    method: str
    path: str
    status: int
    headers: dict[str, str]
    body: bytes = b""
    query: str = ""
    writes: bool = False


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(settings, limit_standard="1000/minute", limit_application="1000/minute")


def the_requests(rt: Runtime) -> Iterator[Sent]:
    """Every hot route, let through and refused."""
    feed = an_application(rt, scopes=("read", "introspect"))
    ada = a_user(rt, tenants={"acme-bank": ("analyst",)})
    bearer = a_session(rt, ada).bearer
    assert bearer is not None
    token = a_token(rt, ada)
    with rt.unit(ORIGIN) as unit:
        pair, secret = keypairs.create(rt, unit, ada.id, name="build", days=1, actor="test", verified=True)
    as_json = {"Content-Type": "application/json"}
    as_form = {"Content-Type": "application/x-www-form-urlencoded"}
    basic = {"Authorization": "Basic " + base64.b64encode(f"{feed.client_id}:{feed.secret}".encode()).decode()}
    right = json.dumps({"clientId": feed.client_id, "secret": feed.secret}).encode()
    wrong = json.dumps({"clientId": feed.client_id, "secret": "idc_wrong"}).encode()
    grant = urlencode({"grant_type": "client_credentials"}).encode()

    yield Sent("POST", "/application/token", 200, as_json, right)
    yield Sent("POST", "/application/token", 200, as_json | {"Origin": "https://api.acme.example"}, right)
    yield Sent("POST", "/application/token", 401, as_json, wrong)
    yield Sent("POST", "/application/token", 422, as_json, b"{}")
    yield Sent("POST", "/application/token", 400, as_json, b"[" * 5000)
    yield Sent("POST", "/application/token", 413, as_json, b" " * 65_537)
    yield Sent("POST", "/application/token", 415, {"Content-Type": "text/plain"}, right)
    login = {"email": ada.email, "password": ada.password}
    yield Sent("POST", "/user/token", 200, as_json, json.dumps(login).encode(), writes=True)
    yield Sent("POST", "/user/token", 401, as_json, json.dumps(login | {"password": "wrong"}).encode())
    yield Sent("POST", "/user/token", 422, as_json, b"{}")
    yield Sent("POST", "/oauth/token", 200, as_form | basic, grant)
    yield Sent("POST", "/oauth/token", 401, as_form | {"Authorization": "Basic eDp5"}, grant)
    yield Sent("POST", "/oauth/token", 400, as_form | basic, b"grant_type=password")
    yield Sent("POST", "/oauth/introspect", 200, as_form | basic, urlencode({"token": token}).encode())
    yield Sent("POST", "/oauth/introspect", 200, as_form | basic, b"token=unknown")
    yield Sent("GET", "/verify", 200, {"Authorization": f"Bearer {token}", "X-Tenant-Id": "acme-bank"})
    yield Sent("GET", "/verify", 200, {"api-key": pair.api_key, "api-secret": secret.reveal()}, query="tenant=optional")
    yield Sent("GET", "/verify", 403, {"Authorization": f"Bearer {token}", "X-Tenant-Id": "foreign"})
    yield Sent("GET", "/verify", 400, {"Authorization": f"Bearer {token}"})
    yield Sent("GET", "/verify", 401, {"Authorization": f"Bearer {token}x", "X-Tenant-Id": "acme-bank"})
    yield Sent("GET", "/verify", 401, {})
    yield Sent("GET", "/session", 200, {"Authorization": f"Bearer {bearer.reveal()}"})
    yield Sent("GET", "/session", 401, {"Authorization": "Bearer ids_wrong"})
    yield Sent("GET", "/keypair", 200, {"api-key": pair.api_key, "api-secret": secret.reveal()})
    yield Sent("GET", "/keypair", 401, {"api-key": pair.api_key, "api-secret": "idx_wrong"})
    yield Sent("GET", "/.well-known/jwks.json", 200, {})
    yield Sent("GET", "/.well-known/jwks.json", 304, {"If-None-Match": "*"})
    for path in ("/.well-known/status-lists", "/.well-known/status-lists/0"):
        yield Sent("GET", path, 200, {})
    yield Sent("GET", "/.well-known/status-lists/0", 200, {"Accept-Encoding": "gzip"})
    yield Sent("GET", "/.well-known/status-lists/0", 304, {"If-None-Match": "*"})
    yield Sent("GET", "/.well-known/status-lists/77", 404, {})
    yield Sent("GET", "/.well-known/status-lists/x", 404, {})
    yield Sent("GET", "/health/live", 200, {})


def test_both_mounts_answer_the_same(web: Web) -> None:
    rt = web.rt
    lane = FastLane(rt, endpoints(), create_app(runtime=rt))
    sent_to = set()
    chance = rt.entropy
    for sent in list(the_requests(rt)):
        sent_to.add((sent.method, re.sub(r"(?<=/status-lists/)\w+", "{id}", sent.path)))
        # A refusal writes rows, whose ids must differ; what is let through gets the same chance, so that even the tokens are equal.
        repeats = sent.status < 400 and not sent.writes
        forget_hits(rt)
        rt.entropy = Repeated() if repeats else chance
        by_flask = through_flask(web, sent)
        forget_hits(rt)
        rt.entropy = Repeated() if repeats else chance
        by_lane = asyncio.run(through_lane(lane, sent))
        assert by_flask[0] == sent.status, (sent, by_flask)
        assert (without_token(by_lane) if sent.writes else by_lane) == (
            without_token(by_flask) if sent.writes else by_flask
        ), sent
    assert sent_to == HOT, "every hot route is compared"


def test_a_hot_route_that_must_write_is_counted_once(web: Web) -> None:
    feed = an_application(web.rt)
    wrong = Sent("POST", "/application/token", 401, {"Content-Type": "application/json"},
                 json.dumps({"clientId": feed.client_id, "secret": "idc_wrong"}).encode())  # fmt: skip
    lane = FastLane(web.rt, endpoints(), web.app)
    remaining = []
    for _ in range(3):
        status, headers, _ = asyncio.run(through_lane(lane, wrong))
        assert status == 401
        remaining.append(int(dict(headers)["x-ratelimit-remaining"]))
    assert remaining == [999, 998, 997]


def without_token(heard: Heard) -> Heard:
    """An answer whose session is new: what it says but for the token and the ids."""
    status, headers, body = heard
    said = json.loads(body)
    assert said["data"].pop("accessToken").count(".") == 2
    return (
        status,
        [field for field in headers if field[0] not in ("x-request-id", "content-length")],
        json.dumps(said).encode(),
    )


Heard = tuple[int, list[tuple[str, str]], bytes]


def through_flask(web: Web, sent: Sent) -> Heard:
    answer = web.call(sent.method, sent.path, headers=sent.headers, data=sent.body or None, query_string=sent.query)
    return answer.status_code, comparable(answer.headers.items()), answer.data


async def through_lane(lane: FastLane, sent: Sent) -> Heard:
    messages: list[Any] = []
    headers = [(b"host", b"auth.example")] + [(k.lower().encode(), v.encode()) for k, v in sent.headers.items()]
    if sent.body:
        headers.append((b"content-length", str(len(sent.body)).encode()))
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": sent.method,
        "path": sent.path,
        "raw_path": sent.path.encode(),
        "query_string": sent.query.encode(),
        "headers": headers,
        "client": ("127.0.0.1", 40_000),
        "server": ("127.0.0.1", 80),
        "scheme": "http",
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": sent.body, "more_body": False}

    async def send(message: Any) -> None:
        messages.append(message)

    await lane(scope, receive, send)
    start, body = messages
    decoded = [(name.decode(), value.decode()) for name, value in start["headers"]]
    return start["status"], comparable(decoded), body["body"]


def comparable(headers: Any) -> list[tuple[str, str]]:
    """Header fields in one order; but for the moment at which a window frees, which is the clock's, and the ids of a refusal."""
    fields = {name.lower(): value for name, value in headers}
    fields.pop("x-ratelimit-reset", None)
    if "x-error-id" in fields:
        del fields["x-error-id"], fields["x-request-id"]
    return sorted(fields.items())


def forget_hits(rt: Runtime) -> None:
    if rt.settings.redis_url:
        with redis.Redis.from_url(rt.settings.redis_url) as client:
            client.flushdb()
    else:
        rt.limiter.storage.reset()
