"""Which pages of other origins may read our answers, over a real socket: on both mounts, refusals and preflights included."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builders import a_token, a_user
from tests.conftest import fresh_database
from tests.wire.sockets import Wire
from tests.world import Live, start_live

PAGE = "https://app.acme.example"
OTHERS = (
    "https://evil.example", "https://app.acme.example.evil.example", "http://app.acme.example", "https://app.acme.example:444",
    "https://APP.acme.example", "https://app.acme.example/", "null", "*", "",
)  # fmt: skip
OPEN = (
    "/.well-known/jwks.json", "/.well-known/oauth-authorization-server", "/.well-known/openid-configuration",
    "/.well-known/status-lists", "/.well-known/status-lists/0", "/openapi.json",
)  # fmt: skip
# A hot route, one that writes, one on Flask, the gate, what does not exist, and a method that is not there.
CLOSED = (
    ("POST", "/application/token"), ("POST", "/user/token"), ("POST", "/auth/login"), ("GET", "/auth/me"), ("GET", "/verify"),
    ("POST", "/oauth/token"), ("GET", "/nowhere"), ("PUT", "/user/token"), ("GET", "/health/live"),
)  # fmt: skip


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder: Path = tmp_path_factory.mktemp("live")
    with start_live(folder, fresh_database("sqlite", folder), {"origins": f"{PAGE},capacitor://localhost"}) as service:
        yield service


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder: Path = tmp_path_factory.mktemp("closed")
    with start_live(folder, fresh_database("sqlite", folder)) as service:
        yield service


def asking(method: str, origin: str, *headers: str) -> dict[str, str]:
    named = {"Access-Control-Request-Headers": ",".join(headers)} if headers else {}
    return {"Origin": origin, "Access-Control-Request-Method": method} | named


@pytest.mark.parametrize("path", OPEN)
def test_what_says_the_same_to_everybody_is_open_to_every_page(live: Live, closed: Live, path: str) -> None:
    for service in (live, closed):
        for origin in (None, PAGE, "https://evil.example", "null"):
            answer = service.get(path, headers={"Origin": origin} if origin else {})
            assert answer.status_code in (200, 404)  # The first list is made in the background.
            assert answer.headers["Access-Control-Allow-Origin"] == "*"
            assert "Access-Control-Allow-Credentials" not in answer.headers
        asked = service.call("OPTIONS", path, headers=asking("GET", "https://any.example", "if-none-match"))
        assert (asked.status_code, asked.headers["Access-Control-Allow-Origin"]) == (204, "*")


@pytest.mark.parametrize(("method", "path"), CLOSED)
def test_everything_else_is_open_to_the_listed_origins_alone(live: Live, method: str, path: str) -> None:
    answer = live.call(method, path, headers={"Origin": PAGE})
    assert answer.headers["Access-Control-Allow-Origin"] == PAGE
    assert answer.headers["Vary"] == "Authorization, Origin"
    exposed = {name.strip().lower() for name in answer.headers["Access-Control-Expose-Headers"].split(",")}
    assert {"x-error", "x-error-id", "x-request-id", "retry-after", "x-ratelimit-remaining"} <= exposed
    for origin in OTHERS:
        refused = live.call(method, path, headers={"Origin": origin})
        assert not [name for name in refused.headers if name.lower().startswith("access-control")], origin
        assert refused.headers["Vary"] == "Authorization, Origin", "a cache must not mix the two up"


def test_without_a_list_there_is_no_cors(closed: Live) -> None:
    for method, path in CLOSED:
        for asked in (method, "OPTIONS"):
            answer = closed.call(asked, path, headers=asking(method, PAGE, "authorization"))
            assert not [name for name in answer.headers if name.lower().startswith("access-control")], path


@pytest.mark.parametrize(("method", "path"), [("POST", "/user/token"), ("POST", "/api/v1/auth/login"), ("GET", "/auth/me"),
                                              ("DELETE", "/admin/user/1"), ("PUT", "/session/extend")])  # fmt: skip
def test_a_preflight_names_what_the_page_may_send(live: Live, method: str, path: str) -> None:
    answer = live.call("OPTIONS", path, headers=asking(method, PAGE, "authorization", "content-type"))
    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers["Access-Control-Allow-Origin"] == PAGE
    assert method in answer.headers["Access-Control-Allow-Methods"].split(", ")
    sent = answer.headers["Access-Control-Allow-Headers"].lower().split(", ")
    assert {"authorization", "content-type", "x-tenant-id", "api-key"} <= set(sent)
    assert answer.headers["X-Request-Id"]
    assert not {"content-length", "content-type", "transfer-encoding"} & {name.lower() for name in answer.headers}


def test_a_preflight_for_nothing_or_for_nobody_is_refused_like_any_other_options(live: Live) -> None:
    for headers in (asking("PUT", PAGE), asking("POST", "https://evil.example"), {"Origin": PAGE}, {}):
        answer = live.call("OPTIONS", "/user/token", headers=headers)
        assert (answer.status_code, answer.headers["Allow"]) == (405, "POST"), headers
    assert live.call("OPTIONS", "/nowhere", headers=asking("GET", PAGE)).status_code == 404


def test_a_connection_goes_on_after_a_preflight(live: Live) -> None:
    head = f"OPTIONS /user/token HTTP/1.1\r\nHost: x\r\nOrigin: {PAGE}\r\nAccess-Control-Request-Method: POST\r\n\r\n"
    with Wire(live) as wire:
        answer = wire.ask(head.encode())
        assert answer is not None
        assert answer.status == 204
        assert wire.is_sound()


def test_the_gate_judges_options_as_it_does_the_rest(live: Live) -> None:
    """A proxy asks it on behalf of another service's route: a preflight of that is none of ours."""
    headers = asking("GET", PAGE)
    assert live.call("OPTIONS", "/verify?tenant=optional", headers=headers).status_code == 401
    token = a_token(live.rt, a_user(live.rt))
    assert live.call("OPTIONS", "/verify?tenant=optional", bearer=token, headers=headers).status_code == 200
