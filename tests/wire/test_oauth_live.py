"""Group E over a real socket: what a test client cannot see (repeated headers, the fast lane, races between requests)."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlencode

import pytest
import requests

from tests.builders import Machine, an_application
from tests.oauth_world import as_client, asking, assertion, jwks, rsa_key, with_assertion
from tests.world import Live


def ask(live: Live, path: str, form: Any, headers: dict[str, str] | None = None) -> requests.Response:
    return live.call("POST", path, data=form, headers=headers or {})


def granted(live: Live, machine: Machine) -> str:
    answer = ask(live, "/oauth/token", asking(), as_client(machine))
    assert answer.status_code == 200, answer.text
    token: str = answer.json()["access_token"]
    return token


def exchange(live: Live, path: str, headers: list[str], body: bytes) -> tuple[int, dict[str, str], Any]:
    """Status, headers and JSON body of the answer to a request with exactly these header lines."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", "Connection: close", *headers]
    answer = live.raw("\r\n".join([*lines, "", ""]).encode() + body)
    head, _, content = answer.partition(b"\r\n\r\n")
    first, *rest = head.decode("latin-1").split("\r\n")
    found = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
    return int(first.split()[1]), found, json.loads(content)


FORM = "Content-Type: application/x-www-form-urlencoded"


def test_a_token_is_granted_introspected_and_revoked(live: Live) -> None:
    feed = an_application(live.rt, scopes=("read",))
    token = granted(live, feed)
    told = ask(live, "/oauth/introspect", {"token": token}, as_client(feed))
    assert (told.status_code, told.json()["active"], told.json()["scope"]) == (200, True, "read")
    assert ask(live, "/oauth/revoke", {"token": token}, as_client(feed)).status_code == 200
    told = ask(live, "/oauth/introspect", {"token": token}, as_client(feed))
    assert told.content == b'{"active":false}'
    assert live.get("/verify?tenant=optional", bearer=token).status_code == 401


@pytest.mark.parametrize("path", ["/oauth/token", "/oauth/introspect", "/oauth/revoke"])
def test_two_authorization_headers_are_refused(live: Live, path: str) -> None:
    one, two = an_application(live.rt), an_application(live.rt)
    lines = [FORM, *(f"Authorization: {as_client(machine)['Authorization']}" for machine in (one, two))]
    status, headers, body = exchange(live, path, lines, urlencode(asking({"token": "x"})).encode())
    assert (status, body["error"]) == (400, "invalid_request")
    assert (headers["cache-control"], headers["pragma"]) == ("no-store", "no-cache")


def test_a_refused_client_is_challenged_for_basic(live: Live) -> None:
    status, headers, body = exchange(
        live, "/oauth/token", [FORM, "Authorization: Basic eDp5"], urlencode(asking()).encode()
    )
    assert (status, body["error"]) == (401, "invalid_client")
    assert headers["www-authenticate"] == 'Basic realm="identity", charset="UTF-8"'
    assert headers["x-error"] == body["error_description"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/oauth/token?client_secret=x", b"grant_type=client_credentials"),
        ("/oauth/token?grant_type=client_credentials", b""),
        ("/oauth/token", b"grant_type=client_credentials&grant_type=client_credentials"),
        ("/oauth/introspect?token=x", b"token=x"),
        ("/oauth/revoke", b"token=x&token=y"),
    ],
)
def test_parameters_have_one_place_and_one_value(live: Live, path: str, body: bytes) -> None:
    feed = an_application(live.rt)
    lines = [FORM, f"Authorization: {as_client(feed)['Authorization']}"]
    status, _, answer = exchange(live, path, lines, body)
    assert (status, answer["error"]) == (400, "invalid_request")


def test_a_body_over_the_limit_is_refused_in_the_shape_of_the_group(live: Live) -> None:
    answer = ask(live, "/oauth/token", {"grant_type": "x" * 70_000})
    assert (answer.status_code, answer.json()["error"]) == (413, "invalid_request")


def test_get_is_refused_in_the_shape_of_the_group(live: Live) -> None:
    answer = live.get("/oauth/token")
    assert (answer.status_code, answer.headers["Allow"]) == (405, "POST")
    assert answer.json().keys() == {"error", "error_description"}


def test_of_parallel_uses_of_one_assertion_one_succeeds(live: Live) -> None:
    feed = an_application(live.rt, jwks=jwks(rsa_key()))
    for _ in range(3):
        form = asking(with_assertion(assertion(live.rt, feed.client_id)))
        with ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(lambda _, form=form: ask(live, "/oauth/token", form).status_code, range(12)))
        assert answers.count(200) == 1
        assert set(answers) <= {200, 401, 429}
        feed = an_application(live.rt, jwks=jwks(rsa_key()))
