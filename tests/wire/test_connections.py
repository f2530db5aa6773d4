"""The short cut of a connection: what is answered where its bytes arrive is answered as gunicorn answers the rest, and nothing is kept."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlencode

import pytest
from gunicorn.asgi.protocol import ASGIProtocol

from identity.app import endpoints
from identity.serve import Service
from identity.wire.mounts.connections import Connection
from identity.wire.mounts.fastlane import FastLane
from tests.builders import a_session, a_token, a_user, an_application
from tests.conftest import fresh_database
from tests.test_aside import until_open
from tests.wire.sockets import Heard, Wire, get, post
from tests.world import Live, Web, start_live

PATIENCE_SECONDS = 2
LIVE_ENVIRONMENT = {
    "limit_standard": "100000/minute",
    "limit_application": "100000/minute",
    "request_timeout_seconds": str(PATIENCE_SECONDS),
    "keepalive_seconds": str(PATIENCE_SECONDS),
}
# gunicorn alone judges header names with an underscore; it drops them, so this changes the way of a request and nothing else.
THE_LONG_WAY = "X_Long: way"
FORM = "application/x-www-form-urlencoded"


def the_requests(live: Live) -> Iterator[tuple[int, bytes, bytes]]:
    """A status, and a request that has it, by the short way and by the long one."""
    feed = an_application(live.rt, scopes=("read", "introspect"))
    ada = a_user(live.rt, tenants={"acme-bank": ("analyst",)})
    opened = a_session(live.rt, ada)
    assert opened.bearer is not None
    token = a_token(live.rt, ada)
    basic = "Authorization: Basic " + base64.b64encode(f"{feed.client_id}:{feed.secret}".encode()).decode()
    right = json.dumps({"clientId": feed.client_id, "secret": feed.secret}).encode()
    wrong = json.dumps({"clientId": feed.client_id, "secret": "idc_wrong"}).encode()

    def both(status: int, path: str, *headers: str) -> tuple[int, bytes, bytes]:
        return status, get(path, *headers), get(path, *headers, THE_LONG_WAY)

    def sent(
        status: int, path: str, body: bytes, *headers: str, kind: str = "application/json"
    ) -> tuple[int, bytes, bytes]:
        return (
            status,
            post(path, body, *headers, content_type=kind),
            post(path, body, *headers, THE_LONG_WAY, content_type=kind),
        )

    yield both(200, "/health/live")
    yield both(200, "/.well-known/jwks.json")
    yield both(304, "/.well-known/jwks.json", "If-None-Match: *")
    yield both(200, "/.well-known/status-lists/0")
    yield both(404, "/.well-known/status-lists/x")
    yield both(200, "/health/live?unknown=1")
    yield both(200, "/verify?role=analyst", f"Authorization: Bearer {token}", "X-Tenant-Id: acme-bank")
    yield both(403, "/verify?role=other", f"Authorization: Bearer {token}", "X-Tenant-Id: acme-bank")
    yield both(401, "/verify", "Authorization: Bearer x")
    yield sent(200, "/verify", b"ignored", f"Authorization: Bearer {token}", "X-Tenant-Id: acme-bank")
    yield both(200, "/session", f"Authorization: Bearer {opened.bearer.reveal()}")
    yield both(401, "/session")
    yield sent(200, "/application/token", right)
    yield sent(401, "/application/token", wrong)
    yield sent(413, "/application/token", b" " * 65_537)
    yield sent(400, "/application/token", b"{")
    yield sent(200, "/oauth/token", b"grant_type=client_credentials", basic, kind=FORM)
    yield sent(200, "/oauth/introspect", urlencode({"token": token}).encode(), basic, kind=FORM)


def test_the_short_way_answers_as_the_long_one_does(live: Live) -> None:
    for status, short, long in the_requests(live):
        by_short, by_long = heard(live, short), heard(live, long)
        assert by_short.status == status, (short, by_short)
        assert comparable(by_short) == comparable(by_long), short


def heard(live: Live, request: bytes) -> Heard:
    with Wire(live) as wire:
        answer = wire.ask(request)
    assert answer is not None
    return answer


def comparable(heard: Heard) -> tuple[int, Mapping[str, str], object]:
    """An answer without what differs between any two: ids, counts, moments and signed tokens."""
    kept = {name: value for name, value in heard.headers.items() if name not in ("date", "x-request-id", "x-error-id")}
    for name in ("x-ratelimit-remaining", "x-ratelimit-reset"):
        if name in kept:
            kept[name] = "..."
    body = heard.body
    if b"oken" in body and heard.status == 200 and b"active" not in body:
        body = b"a token"
        kept.pop("content-length")
    return heard.status, kept, body


def test_a_refusal_that_is_written_down_counts_once(live: Live) -> None:
    feed = an_application(live.rt)
    wrong = post("/application/token", json.dumps({"clientId": feed.client_id, "secret": "idc_wrong"}).encode())
    with Wire(live) as wire:
        answers = [wire.ask(wrong) for _ in range(5)]
    remaining = [int(answer.headers["x-ratelimit-remaining"]) for answer in answers if answer is not None]
    # Who proves nothing is counted by address: other tests of this module may have used some of the window.
    assert remaining == [remaining[0] - spent for spent in range(5)]


def test_requests_in_pieces_and_in_one_piece_are_answered_in_order(live: Live) -> None:
    first, second = get("/health/live", "X-Request-Id: first"), get("/.well-known/jwks.json", "X-Request-Id: second")
    with Wire(live) as wire:
        wire.say(first + second)
        assert [wire.hear().headers["x-request-id"] for _ in range(2)] == ["first", "second"]  # type: ignore[union-attr]
    with Wire(live) as wire:
        for piece in (first, second[:20], second[20:]):
            wire.say(piece)
            time.sleep(0.05)
        assert [wire.hear().headers["x-request-id"] for _ in range(2)] == ["first", "second"]  # type: ignore[union-attr]
        assert wire.is_sound()
    body = json.dumps({"clientId": "nobody", "secret": "nothing"}).encode()
    whole = post("/application/token", body)
    with Wire(live) as wire:
        for piece in (whole[: -len(body)], body[:5], body[5:]):
            wire.say(piece)
            time.sleep(0.05)
        answer = wire.hear()
        assert answer is not None
        assert answer.status == 401
        assert wire.is_sound()


@pytest.mark.parametrize("path", ["/health/live", "/nowhere"], ids=["the short way", "the long one"])
def test_both_ways_bound_a_head_alike(live: Live, path: str) -> None:
    host_and = [f"X-{number}: 1" for number in range(99)]
    assert heard(live, get(path, *host_and)).status in (200, 404)
    assert heard(live, get(path, *host_and, "X-More: 1")).status == 431
    assert heard(live, get(path, f"X-Long: {'x' * 16_000}")).status in (200, 404)
    assert heard(live, get(path, f"X-Long: {'x' * 17_000}")).status == 431
    assert heard(live, get(f"{path}?{'x' * 8_200}")).status == 414


def test_a_connection_lives_from_its_last_answer_on(live: Live) -> None:
    with Wire(live) as wire:
        for _ in range(3):
            time.sleep(PATIENCE_SECONDS * 0.6)
            assert wire.ask(get("/health/live")) is not None, "used often enough, it stays"
        answered = time.monotonic()
        assert wire.hear() is None, "unused, it is closed"
        assert PATIENCE_SECONDS - 0.5 < time.monotonic() - answered < PATIENCE_SECONDS + 2


def test_half_a_request_after_an_answer_has_its_deadline_too(live: Live) -> None:
    with Wire(live) as wire:
        assert wire.ask(get("/health/live")) is not None
        wire.say(b"GET /health/live HTTP/1.1\r\nHo")
        began = time.monotonic()
        assert wire.hear() is None
        assert time.monotonic() - began < PATIENCE_SECONDS + 2


@pytest.mark.parametrize("path", ["/health/live", "/nowhere"], ids=["the short way", "through Flask"])
def test_a_closed_connection_leaves_nothing_behind(live: Live, path: str) -> None:
    visit(live, path, 300)
    before = worker_kilobytes(live)
    visit(live, path, 1500)
    grown = worker_kilobytes(live) - before
    assert grown < 3_000, f"{grown / 1500:.1f} kB for each connection that was closed"


def visit(live: Live, path: str, times: int) -> None:
    host, _, port = live.url.removeprefix("http://").partition(":")
    for _ in range(times):
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(get(path))
            assert connection.recv(20).startswith(b"HTTP/1.1 ")


def worker_kilobytes(live: Live) -> int:
    """What the worker holds for itself alone; read a moment after the last of its clients has gone."""
    time.sleep(1)
    children = Path(f"/proc/{live.process.pid}/task/{live.process.pid}/children").read_text().split()
    rollup = Path(f"/proc/{children[0]}/smaps_rollup").read_text()
    return sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Private_"))


class Heap:
    """A transport that keeps what is written to it."""

    def __init__(self) -> None:
        self.written = b""

    def get_extra_info(self, name: str) -> Any:
        return ("127.0.0.1", 40_000) if name == "peername" else None

    def set_write_buffer_limits(self, high: int) -> None: ...

    def write(self, data: bytes) -> None:
        self.written += data


def test_a_hot_request_is_answered_before_the_loop_turns(web: Web) -> None:
    """Over a socket both ways look alike: here only the short one can have answered, since nothing else ever ran."""

    async def answered(request: bytes, *, patience: int = 0) -> bytes:
        lane, loop = FastLane(web.rt, endpoints(), web.app), asyncio.get_running_loop()
        if patience:
            lane.serve_aside(loop)
            for channels in (web.rt.database._lanes, web.rt.limiter.storage._calls):  # type: ignore[union-attr]
                await until_open(channels)
        ASGIProtocol._check_h1c_protocol_available()  # as `Worker.init_process` does
        worker = SimpleNamespace(
            cfg=Service(web.rt.settings).cfg, log=logging.getLogger("test"), asgi=lane, loop=loop, alive=True,
            is_draining=False, nr_conns=0,
        )  # fmt: skip
        connection, transport = Connection(worker), Heap()
        connection.connection_made(transport)
        connection.data_received(request)
        for _ in range(patience):
            await asyncio.sleep(0.01)
            if transport.written:
                break
        assert connection._current_request is None or not transport.written
        return transport.written

    token = a_token(web.rt, a_user(web.rt))
    verify = get("/verify?tenant=optional", f"Authorization: Bearer {token}")
    assert asyncio.run(answered(get("/health/live"))).startswith(b"HTTP/1.1 200 OK\r\n")
    # With databases elsewhere it has to wait for them, which the loop must not.
    assert asyncio.run(answered(verify))[:15] == (b"HTTP/1.1 200 OK" if web.rt.settings.is_embedded else b"")
    if not web.rt.settings.is_embedded:
        # So it steps aside until they have answered.
        assert asyncio.run(answered(verify, patience=500))[:15] == b"HTTP/1.1 200 OK"
    for later in (get("/health/live", "Connection: close"), get("/health/live", THE_LONG_WAY), get("/health/ready")):
        assert asyncio.run(answered(later)) == b""


def test_a_client_that_leaves_with_its_answer_holds_up_no_stop(tmp_path: Path) -> None:
    with start_live(tmp_path, fresh_database("sqlite", tmp_path)) as live:
        host, port = live.url.removeprefix("http://").split(":")
        for _ in range(300):
            # It closes in the very moment of the answer, before the server is done with the request.
            with socket.create_connection((host, int(port)), timeout=10) as client:
                client.sendall(b"GET /nowhere HTTP/1.1\r\nHost: auth.example\r\n\r\n")
                assert client.recv(65_536).startswith(b"HTTP/1.1 404")
        asked = time.monotonic()
        live.process.terminate()
        live.process.wait(30)
        assert time.monotonic() - asked < 10, "its idle connections are no reason to wait"


def test_the_next_request_waits_for_the_answer_to_the_one_before(live: Live) -> None:
    """Also where that one waits for a database: nothing overtakes, nothing is lost, and nobody need wait to send."""
    token = a_token(live.rt, a_user(live.rt))

    def one(number: int) -> bytes:
        path = ("/verify?tenant=optional", "/health/live", "/verify?tenant=required", "/nowhere")[number % 4]
        return get(path, f"Authorization: Bearer {token}", f"X-Request-Id: request-{number}")

    with Wire(live) as wire:
        wire.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number in range(60):
            wire.say(one(number))
        heard = [wire.hear() for _ in range(60)]
        assert [answer and answer.headers["x-request-id"] for answer in heard] == [f"request-{n}" for n in range(60)]
        assert [answer and answer.status for answer in heard[:4]] == [200, 200, 400, 404]
        assert wire.is_sound()


def test_a_client_that_has_said_all_still_hears_its_answer(live: Live) -> None:
    token = a_token(live.rt, a_user(live.rt))
    for _ in range(5):
        with Wire(live) as wire:
            wire.say(get("/verify?tenant=optional", f"Authorization: Bearer {token}"))
            wire.socket.shutdown(socket.SHUT_WR)
            answer = wire.hear()
            assert answer is not None
            assert answer.status == 200
            assert wire.hear() is None, "nothing more can come, so nothing is kept"
