"""Slow and leaving clients over a real socket: they hold up nobody, and a stopping server finishes what it began."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from tests.builders import an_application
from tests.conftest import fresh_database
from tests.world import Live, start_live

PATIENCE_SECONDS = 1
LIVE_ENVIRONMENT = {"request_timeout_seconds": str(PATIENCE_SECONDS)}


def connect(live: Live) -> socket.socket:
    host, _, port = live.url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE_SECONDS + 4)


def everything(connection: socket.socket) -> bytes:
    """What comes until the server closes. A timeout fails the test: it did not close."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := connection.recv(65536):
            received += chunk
    return received


def test_a_good_client_is_served_while_others_dawdle(live: Live) -> None:
    with contextlib.ExitStack() as stack:
        for number in range(200):
            connection = stack.enter_context(connect(live))
            half_head = b"GET /health/live HTTP/1.1\r\nHost: x\r\nX-Sl"
            half_body = (
                b"POST /user/token HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n{"
            )
            connection.sendall(half_head if number % 2 else half_body)
        for _ in range(5):
            before = time.monotonic()
            assert live.get("/health/live").status_code == 200
            assert live.post("/user/token", {"email": "a@b.co", "password": "x"}).status_code == 401
            assert time.monotonic() - before < 3


def test_a_large_body_of_a_stranger_is_not_waited_for(live: Live) -> None:
    head = "POST /admin/users/import HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\nContent-Length: 8000000\r\n"
    app = an_application(live.rt, name="no administrator")
    body = {"clientId": app.client_id, "secret": app.secret}
    token = live.post("/application/token", body).json()["data"]["accessToken"]
    for credential, status in (
        ("", b"401"),
        ("Authorization: Bearer no\r\n", b"401"),
        (f"Authorization: Bearer {token}\r\n", b"403"),
    ):
        with connect(live) as connection:
            started = time.monotonic()
            connection.sendall(f"{head}{credential}\r\n".encode())
            answer = connection.recv(65536)
            assert answer.startswith(b"HTTP/1.1 " + status), answer[:200]
            assert b"x-error-id" in answer.lower()
            # Before the time in which the body would have had to come.
            assert time.monotonic() - started < PATIENCE_SECONDS


@pytest.mark.parametrize("sent", [b"", b"GET /health/live HTTP/1.1\r\nHost: x\r\n"], ids=["nothing", "half a head"])
def test_the_first_request_head_of_a_connection_has_a_deadline(live: Live, sent: bytes) -> None:
    with connect(live) as connection:
        started = time.monotonic()
        connection.sendall(sent)
        assert everything(connection) == b""
        assert PATIENCE_SECONDS - 0.5 < time.monotonic() - started < PATIENCE_SECONDS + 2


def test_dripping_bytes_do_not_extend_the_deadline(live: Live) -> None:
    with connect(live) as connection:
        connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n")
        started = time.monotonic()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while time.monotonic() - started < PATIENCE_SECONDS + 3:
                connection.sendall(b"X-A: b\r\n")
                time.sleep(0.1)
        assert time.monotonic() - started < PATIENCE_SECONDS + 2


def test_a_later_request_head_has_a_deadline_too(live: Live) -> None:
    with connect(live) as connection:
        connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\nGET /health")
        started = time.monotonic()
        assert everything(connection).count(b"HTTP/1.1 ") == 1
        assert time.monotonic() - started < PATIENCE_SECONDS + 2


@pytest.mark.parametrize("path", ["/user/token", "/application/token"], ids=["on Flask", "on the fast lane"])
def test_a_body_that_does_not_arrive_is_refused_in_the_envelope(live: Live, path: str) -> None:
    with connect(live) as connection:
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n{{"
        connection.sendall(head.encode())
        head, _, body = everything(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert b"x-error-id" in head.lower()
    assert json.loads(body)["error"] == "MALFORMED_REQUEST"


def test_clients_that_leave_in_the_middle_are_no_faults_of_ours(live: Live) -> None:
    for part in (
        b"POST /user/token HTTP/1.1\r\n",
        b"POST /user/token HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{",
    ):
        with connect(live) as connection:
            connection.sendall(part)
    assert live.get("/health/live").status_code == 200
    time.sleep(0.3)
    logged = [json.loads(line) for line in live.log.read_text().splitlines() if line.startswith("{")]
    assert [line for line in logged if line["level"] == "error"] == []


def test_a_stop_under_load_loses_no_request_that_was_taken(tmp_path: Path) -> None:
    with start_live(tmp_path, fresh_database("sqlite", tmp_path), {}, workers=2) as live:
        feed = an_application(live.rt)
        body = json.dumps({"clientId": feed.client_id, "secret": feed.secret}).encode()
        stop = threading.Event()
        lost: list[str] = []
        answered: list[int] = []

        def client() -> None:
            with requests.Session() as session:
                while not stop.is_set():
                    try:
                        answer = session.post(
                            f"{live.url}/application/token",
                            data=body,
                            headers={"Content-Type": "application/json"},
                            timeout=30,
                        )
                    except requests.ConnectionError as exc:
                        # Refused before it was taken: any client tries the next server. Anything else lost an answer.
                        if "refused" not in str(exc).lower():
                            lost.append(str(exc))
                        return
                    answered.append(answer.status_code)
                    if answer.headers.get("Connection", "").lower() == "close":
                        return

        with ThreadPoolExecutor(8) as pool:
            running = [pool.submit(client) for _ in range(8)]
            time.sleep(1)
            os.kill(live.process.pid, signal.SIGTERM)
            for one in running:
                one.result(30)
            stop.set()
        assert live.process.wait(30) == 0
        assert set(answered) == {200}
        assert lost == []
