"""What the edge takes from clients that nobody here wrote: heads, queries, media types, connections, addresses; over a real socket."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from identity.canonical import canonical_client, canonical_origin
from identity.core.record import audit
from identity.wire.endpoint import Request
from identity.wire.head import client_address, networks_of
from tests.builders import a_token, a_user, an_application
from tests.conftest import fresh_database
from tests.oauth_world import as_client
from tests.wire.sockets import Heard, Wire, get, post
from tests.world import Live, start_live

PATIENCE_SECONDS = 2
KEEPALIVE_SECONDS = 5
PUBLIC = (
    "/health/live", "/health/ready", "/.well-known/jwks.json", "/.well-known/oauth-authorization-server",
    "/.well-known/openid-configuration", "/docs", "/openapi.json",
)  # fmt: skip


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """One server, on one database: nothing here comes as far as that."""
    folder: Path = tmp_path_factory.mktemp("live")
    chosen = {
        "request_timeout_seconds": str(PATIENCE_SECONDS),
        "keepalive_seconds": str(KEEPALIVE_SECONDS),
        "trusted_proxies": "127.0.0.0/8",
    }
    with start_live(folder, fresh_database("sqlite", folder), chosen) as service:
        yield service


def said(live: Live, data: bytes) -> Heard:
    with Wire(live) as wire:
        answer = wire.ask(data)
        assert answer is not None
        return answer


def test_http_1_0_needs_no_host(live: Live) -> None:
    """HAProxy's default check speaks it."""
    for path in ("/health/ready", "/health/live", "/docs"):
        assert said(live, f"GET {path} HTTP/1.0\r\n\r\n".encode()).status == 200, path
        assert said(live, f"GET {path} HTTP/1.1\r\n\r\n".encode()).status == 400, path
        assert said(live, f"GET {path} HTTP/1.0\r\nHost: \r\n\r\n".encode()).status == 400, path


def test_a_host_in_brackets_is_an_ipv6_address(live: Live) -> None:
    """Whatever reads it further in may raise at anything else: `/` asks whether it names this machine."""
    for host, status in (
        ("[::1]:8000", 200),
        ("[::ffff:127.0.0.1]", 200),
        ("[::::]", 400),
        ("[1.2.3.4]", 400),
        ("[..]", 400),
    ):
        assert said(live, f"GET / HTTP/1.1\r\nHost: {host}\r\nAccept: text/html\r\n\r\n".encode()).status == status, (
            host
        )


@pytest.mark.parametrize("path", PUBLIC)
def test_public_documents_ignore_queries(live: Live, path: str) -> None:
    for query in ("utm=1", "a", "a=1&a=2", "%zz", "=", "&&"):
        assert said(live, get(f"{path}?{query}")).status == 200, query


def test_an_empty_part_of_a_query_or_a_form_is_nothing(live: Live) -> None:
    token = a_token(live.rt, a_user(live.rt, roles=("analyst",)))
    bearer = f"Authorization: Bearer {token}"
    for query in ("role=analyst&tenant=optional&", "&role=analyst&&tenant=optional", "tenant=optional&&&"):
        assert said(live, get(f"/verify?{query}", bearer)).status == 200, query
    feed = an_application(live.rt)
    body = f"grant_type=client_credentials&&client_id={feed.client_id}&client_secret={feed.secret}&".encode()
    form = "application/x-www-form-urlencoded"
    assert said(live, post("/oauth/token", body, content_type=form)).status == 200


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json;", 200), ("application/json ; ", 200), ("application/json;;charset=utf-8;", 200),
        ("APPLICATION/JSON; charset=UTF-8", 200), ("application/json; charset=iso-8859-1", 415), ("text/json", 415),
        ("application/json; charset", 415),
    ],
)  # fmt: skip
def test_media_types_of_json(live: Live, kind: str, status: int) -> None:
    feed = an_application(live.rt)
    body = json.dumps({"clientId": feed.client_id, "secret": feed.secret}).encode()
    assert said(live, post("/application/token", body, content_type=kind)).status == status


@pytest.mark.parametrize(
    ("charset", "more", "status"),
    [
        ("", b"", 200), (";", b"", 200), ("; charset=ISO-8859-1", b"", 200), ("; charset=US-ASCII", b"", 200),
        ("; charset=utf-8", b"", 200), ("; charset=ISO-8859-1", b"&x=\xe4", 400), ("; charset=utf-16", b"", 415),
    ],
)  # fmt: skip
def test_media_types_of_forms(live: Live, charset: str, more: bytes, status: int) -> None:
    """Apache's HttpClient 4 claims ISO-8859-1 of every form."""
    basic = "Authorization: " + as_client(an_application(live.rt))["Authorization"]
    kind = f"application/x-www-form-urlencoded{charset}"
    request = post("/oauth/token", b"grant_type=client_credentials" + more, basic, content_type=kind)
    assert said(live, request).status == status


@pytest.mark.parametrize(("fields", "status"), [(98, 200), (99, 200), (100, 431)])
def test_a_hundred_header_fields_are_read(live: Live, fields: int, status: int) -> None:
    more = [f"X-Field-{number}: value" for number in range(fields)]  # beside Host
    assert said(live, get("/health/live", *more)).status == status
    assert said(live, get("/verify", *more)).status == (401 if status == 200 else status)


@pytest.mark.parametrize(("size", "status"), [(15_000, 200), (16_300, 200), (17_000, 431)])
def test_header_fields_are_bounded_in_all(live: Live, size: int, status: int) -> None:
    more = [f"X-Field-{number}: {'v' * (size // 10)}" for number in range(10)]
    assert said(live, get("/health/live", *more)).status == status
    assert said(live, get("/health/ready", *more)).status == status


@pytest.mark.parametrize("path", ["/health/live", "/health/ready"])
def test_a_kept_connection_outlives_the_time_for_a_request(live: Live, path: str) -> None:
    """Proxies keep theirs for a minute: one that we close first loses them a request."""
    with Wire(live) as wire:
        for _ in range(2):
            answer = wire.ask(get(path))
            assert answer is not None
            assert answer.status == 200
            time.sleep(PATIENCE_SECONDS + 1)
        assert wire.is_sound()
        time.sleep(KEEPALIVE_SECONDS + 1)
        assert wire.ask(get(path)) is None, "and ends in its own time"


@pytest.mark.parametrize("path", ["/health/live", "/health/ready"])
def test_a_head_that_has_begun_is_not_waited_for_that_long(live: Live, path: str) -> None:
    with Wire(live) as wire:
        assert wire.ask(get(path)) is not None
        begun = time.monotonic()
        wire.say(b"GET /health/live HT")
        assert wire.hear() is None
        assert time.monotonic() - begun < KEEPALIVE_SECONDS - 0.5


@pytest.mark.parametrize("path", ["/application/token", "/user/token", "/auth/login"])
def test_a_client_that_has_said_everything_gets_its_answer(live: Live, path: str) -> None:
    host, _, port = live.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(
            post(path, b'{"email": "nobody@x.example", "password": "x", "clientId": "x", "secret": "x"}')
        )
        connection.shutdown(socket.SHUT_WR)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
    assert received.startswith(b"HTTP/1.1 4"), received


def test_a_client_that_leaves_in_the_middle_gets_none(live: Live) -> None:
    host, _, port = live.url.removeprefix("http://").partition(":")
    for part in (b"GET /hea", post("/user/token", b"{}" * 50)[:-30], b""):
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(part)
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(65536) == b""


def test_a_fixed_path_is_not_taken_for_an_id(live: Live) -> None:
    """`GET /user/token` asks for no user called `token`; nor is any other fixed path of ours an id."""
    for method, path, allowed in (
        ("GET", "/user/token", "POST"),
        ("GET", "/api/auth/v2/user/by-email", "GET"),
        ("DELETE", "/session/verification", "PUT"),
        ("DELETE", "/email/preferred", "PUT"),
        ("DELETE", "/keypair/token", "POST"),
    ):
        answer = live.call(method, path)
        if method == allowed:
            continue
        assert (answer.status_code, answer.json()["error"]) == (405, "METHOD_NOT_ALLOWED"), path
        assert allowed in answer.headers["Allow"]


ADDRESSES = {
    "203.0.113.8": "203.0.113.8",
    " 203.0.113.8 ": "203.0.113.8",
    "203.0.113.8:51234": "203.0.113.8",
    "[2001:db8::1]:443": "2001:db8::1",
    "[2001:db8::1]": "2001:db8::1",
    "2001:DB8:0:0::1": "2001:db8::1",
    "fe80::1%eth0": "fe80::1",
    "[fe80::1%eth0]:80": "fe80::1",
    "::ffff:203.0.113.8": "203.0.113.8",
    "[::ffff:203.0.113.8]:51234": "203.0.113.8",
    "::ffff:cb00:7108": "203.0.113.8",
}


@pytest.mark.parametrize(("spelled", "canonical"), ADDRESSES.items())
def test_every_spelling_of_an_address_is_one(spelled: str, canonical: str) -> None:
    assert canonical_client(spelled) == canonical
    networks = networks_of(("10.0.0.0/8",))
    request = Request("GET", "/", "/", "", {"x-forwarded-for": f"198.51.100.1, {spelled}"}, b"", "::ffff:10.0.0.1")
    assert client_address(request, networks) == canonical
    assert client_address(request._replace(peer=canonical, headers={}), networks) == canonical


@pytest.mark.parametrize(
    "text", ["", "unknown", "_hidden", "203.0.113.8:", "203.0.113.8:x", "2001:db8::1:99999", "[2001:db8::1", "1.2.3"]
)
def test_what_is_no_address_is_none(text: str) -> None:
    """A hop that cannot be read ends the walk at the proxy that wrote it."""
    assert canonical_client(text) is None
    request = Request("GET", "/", "/", "", {"x-forwarded-for": f"198.51.100.1, {text}"}, b"", "10.0.0.1")
    assert client_address(request, networks_of(("::ffff:10.0.0.0/104",))) == "10.0.0.1"


def test_the_one_spelling_reaches_audit_sessions_and_logs(live: Live) -> None:
    ada = a_user(live.rt)
    headers = {"X-Forwarded-For": "[::ffff:203.0.113.77]:51234"}
    answer = live.post("/user/token", {"email": ada.email, "password": ada.password}, headers=headers)
    assert answer.status_code == 200
    assert "203.0.113.77" in {event.address for event in audit.search(live.rt, actor=ada.id)}
    seen = live.get("/sessions", bearer=answer.json()["data"]["accessToken"]).json()["sessions"]
    assert [one["ip"] for one in seen] == ["203.0.113.77"]
    time.sleep(0.5)
    assert re.search(r'"address": ?"203\.0\.113\.77"', live.log.read_text())


@pytest.mark.parametrize(
    ("origin", "canonical"),
    [
        ("capacitor://localhost", "capacitor://localhost"), ("chrome-extension://abcdef", "chrome-extension://abcdef"),
        ("app://x", "app://x"), ("https://a_b.example", "https://a_b.example"), ("HTTPS://A.example:443", "https://a.example"),
        ("http://a.example:80", "http://a.example"), ("http://a.example:443", "http://a.example:443"),
        ("https://a.example:0443", "https://a.example"), ("https://a.example:65535", "https://a.example:65535"),
        ("https://a.example:65536", None), ("null", None), ("https://a.example/", None), ("https://.a", None),
    ],
)  # fmt: skip
def test_an_origin_is_any_scheme_host_and_port(live: Live, origin: str, canonical: str | None) -> None:
    assert canonical_origin(origin) == canonical
    feed = an_application(live.rt)
    body = {"clientId": feed.client_id, "secret": feed.secret}
    answer = live.post("/application/token", body, headers={"Origin": origin})
    assert answer.status_code == (422 if canonical is None else 200)
