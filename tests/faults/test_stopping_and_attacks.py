"""Invariants I13 and I14: a rolling stop loses no request, and those who flood or dawdle are bounded in what they cost others."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.builders import a_session, a_user, an_application
from tests.faults.conftest import Stores
from tests.faults.rig import BACKENDS_OF_THE_SHORT_FORM, ROUNDS, is_alive, percentile, rounds, serving, until

pytestmark = pytest.mark.faults
SLOW_SOCKETS = 200
GROWTH_MIB = 250  # Hashes under way, the C library's arenas of every thread: the price is paid once, not per request.


@pytest.mark.parametrize("backend", BACKENDS_OF_THE_SHORT_FORM)
def test_workers_that_are_replaced_under_load_lose_no_request(backend: str, stores: Stores, tmp_path: Path) -> None:
    with serving(tmp_path / "service", stores.fresh(backend, tmp_path)) as service:
        rt = service.runtime()
        machine = an_application(rt)
        rt.close()
        login = {"clientId": machine.client_id, "secret": machine.secret}
        halted = threading.Event()
        answered: list[int] = []
        lost: list[str] = []

        def load(number: int) -> None:
            while not halted.is_set():
                # Half of the clients keep their connection until they are told that it ends, half open one for each request.
                with service.client() as http:
                    while not halted.is_set():
                        answer = http.call("POST", "/application/token", login)
                        if answer is None:
                            lost.append(http.error)
                            break
                        answered.append(answer.status)
                        if number % 2 or answer.headers.get("connection") == "close":
                            break

        threads = [threading.Thread(target=load, args=(number,), daemon=True) for number in range(6)]
        for thread in threads:
            thread.start()
        for _ in range(rounds(2, share=0.25)):
            before = service.workers()
            os.kill(before[0], signal.SIGTERM)
            until(lambda gone=before[0]: not is_alive(gone), seconds=30)
            until(lambda: len(service.workers()) == 2, seconds=30)
            time.sleep(1)
        halted.set()
        for thread in threads:
            thread.join(30)
        print(f"{backend}: {len(answered)} requests over {rounds(2, share=0.25)} workers stopped, {len(lost)} lost")
        assert lost == []
        assert set(answered) == {200}


def resident_mib(pid: int) -> float:
    out = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=True).stdout
    return int(out) / 1024


@pytest.mark.parametrize("backend", BACKENDS_OF_THE_SHORT_FORM)
def test_a_good_client_is_served_through_floods_and_dawdlers(backend: str, stores: Stores, tmp_path: Path) -> None:
    # Real password hashes: they are what a flood of logins costs.
    settings = stores.fresh(backend, tmp_path) | {"argon2_memory_kib": 19_456, "argon2_time_cost": 2}
    with serving(tmp_path / "service", settings) as service, contextlib.ExitStack() as stack:
        rt = service.runtime()
        opened = a_session(rt, a_user(rt))
        rt.close()
        assert opened.bearer is not None
        for number in range(SLOW_SOCKETS):
            dawdler = stack.enter_context(socket.create_connection(("127.0.0.1", service.port)))
            half_head, half_body = (
                b"GET /session HTTP/1.1\r\nHost: x\r\nX-Sl",
                b"POST /user/token HTTP/1.1\r\nHost: x\r\n",
            )
            dawdler.sendall(half_head if number % 2 else half_body + b"Content-Length: 10\r\n\r\n{")
        before_mib = max(resident_mib(pid) for pid in service.workers())
        halted = threading.Event()
        hostile: list[int] = []

        def guess() -> None:
            with service.client() as http:
                number = 0
                while not halted.is_set():
                    number += 1
                    # Another account each time: no lockout spares us the hash.
                    answer = http.call("POST", "/user/token", {"email": f"a{number}@b.example", "password": "wrong"})
                    hostile.append(answer.status if answer else 0)

        def stuff() -> None:
            head = b"POST /user/token HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 10485760\r\n\r\n"
            while not halted.is_set():
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", service.port)) as one:
                    one.settimeout(5)
                    one.sendall(head)
                    for _ in range(160):
                        one.sendall(b"x" * 65536)
                time.sleep(0.05)

        threads = [threading.Thread(target=work, daemon=True) for work in (guess, guess, guess, guess, stuff, stuff)]
        for thread in threads:
            thread.start()
        took = []
        with service.client() as http:
            deadline = time.monotonic() + (20 if ROUNDS else 4)
            while time.monotonic() < deadline:
                before = time.monotonic()
                answer = http.call("GET", "/session", bearer=opened.bearer.reveal())
                took.append(time.monotonic() - before)
                assert answer is not None
                assert answer.status == 200
                time.sleep(0.01)
        largest = max(resident_mib(pid) for pid in service.workers())
        halted.set()
        for thread in threads:
            thread.join(30)
        print(
            f"{backend}: good client p50 {percentile(took, 0.5) * 1000:.0f} ms, p99 {percentile(took, 0.99) * 1000:.0f} ms of"
            f" {len(took)}, {len(hostile)} guesses, largest worker {before_mib:.0f} MiB, then {largest:.0f} MiB"
        )
        assert percentile(took, 0.99) < 1
        assert largest - before_mib < GROWTH_MIB
        assert set(hostile) <= {401, 429, 503}
        assert service.faults() == []
