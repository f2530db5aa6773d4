"""Tokens for machines: got once, renewed in time, and never a storm of questions."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from identity_verifier.client import Machine, NoToken
from identity_verifier.refusals import Unreachable
from identity_verifier.testing import Issuer, a_private_key
from identity_verifier.transport import Request, Response
from waiting import until

TOKEN = "/oauth/token"


def machine_of(issuer: Issuer, **options: Any) -> Machine:
    defaults: dict[str, Any] = {
        "transport": issuer, "wall": issuer.now, "elapsed": issuer.now, "pause": lambda _: None
    }  # fmt: skip
    if not {"secret", "key", "workload"} & options.keys():
        options["secret"] = issuer.client[1]
    return Machine(issuer.url, options.pop("client_id", issuer.client[0]), **(defaults | options))


@pytest.fixture
def machine(issuer: Issuer) -> Machine:
    return machine_of(issuer)


def test_a_token_by_secret_is_good_and_got_once(issuer: Issuer, machine: Machine) -> None:
    tokens = {machine.token() for _ in range(20)}
    assert issuer.asked == {TOKEN: 1}
    assert issuer.verifier().verify(f"Bearer {tokens.pop()}").client == issuer.client[0]
    assert machine.authorization().startswith("Bearer ")


def test_scope_and_resource_are_asked_for(issuer: Issuer) -> None:
    machine = machine_of(issuer, scope=["read", "write"], resource="https://other.example")
    caller = issuer.verifier(audience="https://other.example").verify(machine.authorization())
    assert caller.scopes == {"read", "write"}
    assert "scope=read" in str(machine_of(issuer, scope="read")._request().body)


@pytest.mark.parametrize("alg", ["RS256", "ES256"])
def test_a_token_by_key(issuer: Issuer, alg: str) -> None:
    key = a_private_key(7, alg)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    issuer.client_keys["m"] = key.public_key()
    for spelled in (pem, pem.decode(), key):
        assert machine_of(issuer, client_id="m", key=spelled, kid="k1").token()
    with pytest.raises(NoToken, match="invalid_client"):
        machine_of(issuer, client_id="m", key=a_private_key(8, alg)).token()


@pytest.mark.parametrize("spiffe", [False, True])
def test_a_token_by_workload_reads_the_file_anew(issuer: Issuer, tmp_path: Path, spiffe: bool) -> None:
    path = tmp_path / "token"
    machine = machine_of(issuer, client_id="m", workload=path, spiffe=spiffe)
    with pytest.raises(NoToken, match="cannot be read"):
        machine.token()
    path.write_text("first\n")
    issuer.workloads = {"first"}
    issuer.tick(6)
    first = machine.token()
    path.write_text("second\n")
    issuer.workloads = {"second"}
    issuer.tick(3700)
    assert machine.token() != first


@pytest.mark.parametrize("proofs", [{}, {"secret": "x", "workload": "y"}])
def test_exactly_one_proof(proofs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="exactly one"):
        Machine("https://i.example", "m", **proofs)


def test_it_is_renewed_at_eighty_percent_behind_the_scenes(issuer: Issuer, machine: Machine) -> None:
    first = machine.token()
    issuer.tick(3600 * 0.79)
    assert machine.token() == first
    assert issuer.asked[TOKEN] == 1
    issuer.tick(3600 * 0.02)
    assert machine.token() == first
    until(lambda: machine.token() != first)
    assert issuer.asked[TOKEN] == 2


def test_while_it_cannot_be_renewed_the_old_one_serves_to_its_end(issuer: Issuer, machine: Machine) -> None:
    first = machine.token()
    issuer.down = True
    issuer.tick(3500)
    assert machine.token() == first
    until(lambda: machine._held.in_flight() is None)
    assert machine.token() == first
    issuer.tick(200)
    with pytest.raises(NoToken):
        machine.token()
    issuer.down = False
    issuer.tick(6)
    assert machine.token() != first


def test_fifty_threads_and_fifty_tasks_ask_once(issuer: Issuer, machine: Machine) -> None:
    issuer.delay_seconds = 0.1
    together = threading.Barrier(50)

    def one(_: int) -> str:
        together.wait()
        return machine.token()

    async def fifty() -> set[str]:
        return set(await asyncio.gather(*(machine.atoken() for _ in range(50))))

    with ThreadPoolExecutor(50) as pool:
        assert len(set(pool.map(one, range(50)))) == 1
    assert issuer.asked[TOKEN] == 1
    issuer.tick(3600)
    assert len(asyncio.run(fifty())) == 1
    assert issuer.asked[TOKEN] == 2


def flaky(issuer: Issuer, answers: list[Response | None]) -> tuple[Callable[[Request], Response], list[float]]:
    """A transport that gives those answers first (None: none at all)."""

    def transport(request: Request) -> Response:
        if not answers:
            return issuer(request)
        answer = answers.pop(0)
        if answer is None:
            raise Unreachable("gone")
        return answer

    return transport, []


@pytest.mark.parametrize(
    "first", [None, Response(503, {"retry-after": "2"}, b""), Response(429, {}, b""), Response(502, {}, b"")]
)
def test_what_may_pass_is_tried_again(issuer: Issuer, first: Response | None) -> None:
    paused: list[float] = []
    transport, _ = flaky(issuer, [first, first])
    assert machine_of(issuer, transport=transport, pause=paused.append).token()
    assert paused == ([2.0, 2.0] if first is not None and "retry-after" in first.headers else [0.2, 1.0])


def test_after_three_tries_it_says_so(issuer: Issuer) -> None:
    transport, _ = flaky(issuer, [None, None, None])
    with pytest.raises(NoToken, match="gone"):
        machine_of(issuer, transport=transport).token()


@pytest.mark.parametrize(
    "answer",
    [
        Response(401, {}, b'{"error": "invalid_client"}'),
        Response(400, {}, b'{"error": "invalid_scope"}'),
        Response(400, {}, b"<html>"),
        Response(200, {}, b"{}"),
        Response(200, {}, b'{"access_token": 1, "expires_in": 3}'),
        Response(200, {}, b'{"access_token": "x", "expires_in": "soon"}'),
        Response(302, {"location": "https://evil.example"}, b""),
    ],
)
def test_what_will_not_pass_is_not_tried_again(issuer: Issuer, answer: Response) -> None:
    asked: list[Request] = []

    def transport(request: Request) -> Response:
        asked.append(request)
        return answer

    machine = machine_of(issuer, transport=transport)
    for _ in range(10):
        with pytest.raises(NoToken):
            machine.token()
    assert len(asked) == 1
    assert issuer.client[1] not in repr(machine)
    assert issuer.client[1] not in repr(asked)


@pytest.fixture
def service(issuer: Issuer) -> Any:
    """A service on a socket that verifies; `refused` holds tokens that it no longer takes."""
    verifier = issuer.verifier()

    class Handler(BaseHTTPRequestHandler):
        refused: set[str] = set()  # noqa: RUF012
        bodies: list[bytes] = []  # noqa: RUF012

        def do_POST(self) -> None:
            self.bodies.append(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
            token = self.headers["Authorization"].removeprefix("Bearer ")
            status = 401 if token in self.refused or "all" in self.refused else 200
            if status == 200:
                verifier.verify(self.headers["Authorization"])
            body = json.dumps({"status": status}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", Handler
    server.shutdown()
    server.server_close()


def _by_requests(machine: Machine, url: str) -> int:
    with requests.Session() as session:
        session.auth = machine
        return session.post(url, data=b"body").status_code


def _by_httpx(machine: Machine, url: str) -> int:
    with httpx.Client(auth=machine.httpx_auth(), trust_env=False) as client:
        return client.post(url, content=b"body").status_code


def _by_async_httpx(machine: Machine, url: str) -> int:
    async def post() -> int:
        async with httpx.AsyncClient(auth=machine.httpx_auth(), trust_env=False) as client:
            return (await client.post(url, content=b"body")).status_code

    return asyncio.run(post())


def _by_httpx_with_the_plain_hook(machine: Machine, url: str) -> int:
    with httpx.Client(auth=machine, trust_env=False) as client:
        return client.post(url, content=b"body").status_code


WAYS = [_by_requests, _by_httpx, _by_async_httpx]


@pytest.mark.parametrize("way", [*WAYS, _by_httpx_with_the_plain_hook])
def test_the_hooks_put_it_into_requests(machine: Machine, service: Any, way: Any) -> None:
    assert way(machine, service[0]) == 200


@pytest.mark.parametrize("way", WAYS)
def test_a_token_that_was_ended_is_replaced_once(issuer: Issuer, machine: Machine, service: Any, way: Any) -> None:
    url, handler = service
    handler.refused, handler.bodies = {machine.token()}, []
    issuer.tick(60)
    assert way(machine, url) == 200
    assert handler.bodies == [b"body", b"body"]
    assert issuer.asked[TOKEN] == 2


@pytest.mark.parametrize("way", WAYS)
def test_a_service_that_refuses_everybody_makes_no_storm(
    issuer: Issuer, machine: Machine, service: Any, way: Any
) -> None:
    url, handler = service
    handler.refused = {"all"}
    for _ in range(5):
        assert way(machine, url) == 401
    assert issuer.asked[TOKEN] == 1


def test_a_body_that_is_streamed_is_not_sent_twice(issuer: Issuer, machine: Machine, service: Any) -> None:
    url, handler = service
    handler.refused = {machine.token()}
    issuer.tick(60)
    with requests.Session() as session:
        assert session.post(url, data=iter([b"a"]), auth=machine).status_code == 401
