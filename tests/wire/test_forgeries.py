"""Every route that reads a bearer against every forgery: 401, the generic code, and nobody is asked for a key."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest
from werkzeug.test import TestResponse

from identity.app import create_app, endpoints
from identity.opening import create_runtime
from identity.wire.endpoint import Reads
from tests.builders import a_token, a_user
from tests.conftest import fresh_database
from tests.forgeries import expired, for_another_audience, forgeries
from tests.world import FakeClock, Mailbox, Web, fast_settings

ENDPOINTS = {
    f"{method} {endpoint.path}": endpoint
    for endpoint in endpoints()
    if endpoint.reads in (Reads.BEARER, Reads.BEARER_OR_KEY)
    for method in (("GET", "POST") if endpoint.any_method else (endpoint.method,))
}
ROUTE = pytest.mark.parametrize("route", ENDPOINTS)


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    """One service for all of them: a forgery leaves no trace. On one database, since no forgery comes as far as that."""
    folder = tmp_path_factory.mktemp("forgeries")
    settings = fast_settings(console="on", keys_dir=folder / "keys", **fresh_database("sqlite", folder))
    clock, mailbox = FakeClock(), Mailbox()
    rt = create_runtime(settings, clock=clock, mailer=mailbox, migrate=False)
    yield Web(create_app(runtime=rt), rt, mailbox, clock)
    rt.database.close()


@pytest.fixture(scope="module")
def token(web: Web) -> str:
    """A genuine token of an administrator, whom no route would refuse for lack of rights."""
    return a_token(web.rt, a_user(web.rt, roles=("users_admin",)))


@pytest.fixture(scope="module")
def listener() -> Iterator[socket.socket]:
    """Where the forged headers say that keys are to be had."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


def call(web: Web, route: str, bearer: str) -> TestResponse:
    method, _, path = route.partition(" ")
    return web.call(method, path.replace("{", "").replace("}", ""), headers={"Authorization": f"Bearer {bearer}"})


def assert_refused(answer: TestResponse, code: str, message: str, why: str) -> None:
    assert answer.status_code == 401, why
    assert answer.json == {"error": code, "message": message, "status": 401}, why
    assert answer.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"', why


@pytest.fixture(scope="module")
def forged(web: Web, token: str, listener: socket.socket) -> dict[str, str]:
    """Every forgery of the token by name."""
    host, port = listener.getsockname()
    return forgeries(web.rt, token, f"{host}:{port}")


@ROUTE
def test_no_forgery_is_a_token(web: Web, forged: dict[str, str], listener: socket.socket, route: str) -> None:
    for name, bearer in forged.items():
        answer = call(web, route, bearer)
        if "," in bearer:  # JSON: a header with a comma is two bearers, which is an error of its own
            assert answer.status_code == 400, name
        else:
            assert_refused(answer, "INVALID_TOKEN", "The token is not valid", name)
    with contextlib.suppress(BlockingIOError):
        listener.accept()
        raise AssertionError("somebody fetched a key")


@ROUTE
def test_a_forged_token_that_is_expired_is_forged_and_not_expired(web: Web, token: str, route: str) -> None:
    forged = expired(web.rt, token, forged=True)
    assert_refused(call(web, route, forged), "INVALID_TOKEN", "The token is not valid", "forged and expired")
    genuine = expired(web.rt, token, forged=False)
    assert_refused(call(web, route, genuine), "TOKEN_EXPIRED", "The token has expired", "genuine and expired")


@ROUTE
def test_a_token_for_another_audience_is_good_at_the_gate_only(web: Web, token: str, route: str) -> None:
    answer = call(web, route, for_another_audience(web.rt, token))
    if ENDPOINTS[route].path == "/verify":
        assert answer.status_code == 400  # for want of a tenant: it passed as a token
    else:
        assert_refused(answer, "INVALID_TOKEN", "The token is not valid", "aud")


@ROUTE
def test_every_mount_of_a_route_refuses_alike(web: Web, token: str, route: str) -> None:
    method, _, path = route.partition(" ")
    for prefix in ENDPOINTS[route].mounts:
        for bearer in (token[:-1], "ids_" + "0" * 33, "IDS_" + "0" * 33, "idk_" + "0" * 33, "idr_" + "0" * 60, "x"):
            answer = call(web, f"{method} {prefix}{path}", bearer)
            assert_refused(answer, "INVALID_TOKEN", "The token is not valid", f"{prefix} {bearer}")


@pytest.mark.parametrize("route", [one.name for one in endpoints() if one.reads is Reads.COOKIE])
def test_nothing_but_its_cookie_opens_the_console(web: Web, token: str, forged: dict[str, str], route: str) -> None:
    method, _, path = route.partition(" ")
    short = (token, "ids_" + "0" * 33, "idw_" + "0" * 33, "IDW_" + "0" * 33, "idw_" + "0" * 34, "")
    for bearer in [*short, *(forged.values() if path == "/console/you" else ())]:
        for headers in ({"Cookie": f"identity={bearer}"}, {"Authorization": f"Bearer {bearer}"}, {"api-key": bearer}):
            sent = {name: value.encode("ascii", "replace").decode() for name, value in headers.items()}
            options = {} if method == "GET" else {"data": {"deed": "erase"}}
            answer = web.call(method, path, headers={"Sec-Fetch-Site": "same-origin", **sent}, **options)
            assert answer.status_code == (303 if method == "GET" else 401), bearer
            assert "WWW-Authenticate" not in answer.headers


def test_the_genuine_token_is_none_of_the_forgeries_and_is_good(web: Web, token: str, forged: dict[str, str]) -> None:
    assert token not in forged.values()
    assert len(forged) > 120
    assert web.get("/verify?tenant=optional", bearer=token).status_code == 200
