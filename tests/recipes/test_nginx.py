"""The nginx recipe of docs/recipes/gate.md, word for word, in a real nginx before a real service."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.builders import a_session, a_tenant, a_token, a_user
from tests.world import Live, free_port, stop

LIVE_ENVIRONMENT = {"trusted_proxies": ("127.0.0.1/32",), "limit_bulk_upload": "2/minute"}
RECIPE = Path(__file__).parents[2] / "docs" / "recipes" / "gate.md"
ACME = {"X-Tenant-Id": "acme-bank"}


class Api(BaseHTTPRequestHandler):
    """A service behind the proxy that answers with what reached it."""

    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        told = {"method": self.command, "path": self.path, "headers": dict(self.headers), "body": sent.decode()}
        body = json.dumps(told).encode()
        self.send_response(418 if self.path == "/teapot" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_DELETE = _answer  # noqa: N815 -- the names that http.server calls

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@dataclass
class Proxy:
    """The proxy, and the service that it asks."""

    url: str
    live: Live

    def call(
        self, path: str = "/incidents", *, method: str = "GET", bearer: str = "", **options: Any
    ) -> requests.Response:
        headers = dict(options.pop("headers", {}))
        if bearer:
            headers["Authorization"] = f"Bearer {bearer}"
        return requests.request(method, self.url + path, headers=headers, timeout=10, **options)


def the_nginx() -> str:
    """The program; a machine without it fails, and says what to install."""
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    assert found, "nginx is needed to test its recipe: apt-get install nginx-light (macOS: brew install nginx)"
    return found


def start_nginx(folder: Path, replaced: dict[str, str]) -> tuple[subprocess.Popen[bytes], str]:
    """nginx with the recipe's configuration, and its address."""
    found = re.search(r"```nginx\n(.*?)```", RECIPE.read_text("utf-8"), re.DOTALL)
    assert found, "the recipe has no nginx block"
    recipe, port = found[1], free_port()
    for old, new in {"listen 8080": f"listen 127.0.0.1:{port}", **replaced}.items():
        assert old in recipe
        recipe = recipe.replace(old, new)
    folders = "".join(
        f"{name}_temp_path {folder}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = folder / "nginx.conf"
    config.write_text(
        f"daemon off;\nmaster_process off;\npid {folder}/pid;\nevents {{}}\nhttp {{\naccess_log off;\n{folders}{recipe}}}\n"
    )
    process = subprocess.Popen([the_nginx(), "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(config)])
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            requests.get(url, timeout=5)
        except requests.ConnectionError:
            assert process.poll() is None, (folder / "error.log").read_text()
            time.sleep(0.02)
        else:
            return process, url
    stop(process)
    raise AssertionError("nginx did not answer in 10 s")


@pytest.fixture(scope="module")
def api() -> Iterator[str]:
    """host:port of the service behind the proxy."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Api) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def proxy(live: Live, api: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    folder = tmp_path_factory.mktemp("nginx")
    process, url = start_nginx(folder, {"127.0.0.1:8000": live.url.removeprefix("http://"), "127.0.0.1:9000": api})
    yield Proxy(url, live)
    stop(process)


def refusal(answer: requests.Response) -> tuple[int, str]:
    """Status and code of a refusal in the one envelope."""
    told = answer.json()
    assert told.keys() == {"error", "message", "status"}
    assert told["status"] == answer.status_code
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["x-error"] == told["message"]
    assert answer.headers["x-error-id"]
    return answer.status_code, told["error"]


def test_a_request_that_may_pass_reaches_the_api_with_its_caller(proxy: Proxy) -> None:
    ada = a_user(proxy.live.rt, roles=("auditor",), tenants={"acme-bank": ("analyst",)})
    opened = a_session(proxy.live.rt, ada)
    answer = proxy.call(bearer=opened.bearer.reveal(), headers=ACME)
    assert answer.status_code == 200, answer.text
    reached = answer.json()["headers"]
    assert reached["X-Auth-Subject"] == ada.id
    assert reached["X-Auth-Type"] == "user"
    assert reached["X-Auth-Tenant"] == "acme-bank"
    assert reached["X-Auth-Roles"] == "analyst,auditor"
    assert reached["X-Auth-Session"] == opened.session.id
    assert "X-Auth-Scopes" not in reached


def test_what_a_client_says_of_itself_does_not_reach_the_api(proxy: Proxy) -> None:
    ada = a_user(proxy.live.rt, tenants={"acme-bank": ()})
    lies = {"X-Auth-Subject": "root", "X-Auth-Roles": "owner", "X-Auth-Scopes": "admin", "x-auth-type": "application"}
    reached = proxy.call(bearer=a_token(proxy.live.rt, ada), headers=ACME | lies).json()["headers"]
    assert reached["X-Auth-Subject"] == ada.id
    assert reached["X-Auth-Type"] == "user"
    assert "X-Auth-Roles" not in reached
    assert "X-Auth-Scopes" not in reached


def test_method_body_and_query_reach_the_api_and_not_the_gate(proxy: Proxy) -> None:
    ada = a_user(proxy.live.rt, tenants={"acme-bank": ()})
    answer = proxy.call(
        "/incidents?tenant=optional&role=owner",
        method="POST",
        bearer=a_token(proxy.live.rt, ada),
        headers=ACME,
        data=b"x" * 100_000,
    )
    assert answer.status_code == 200, answer.text
    assert answer.json()["method"] == "POST"
    assert answer.json()["path"] == "/incidents?tenant=optional&role=owner"
    assert answer.json()["body"] == "x" * 100_000


def test_an_answer_of_the_api_reaches_the_client_whatever_its_status(proxy: Proxy) -> None:
    ada = a_user(proxy.live.rt, tenants={"acme-bank": ()})
    assert proxy.call("/teapot", bearer=a_token(proxy.live.rt, ada), headers=ACME).status_code == 418


def test_a_missing_tenant_reaches_the_client_as_400(proxy: Proxy) -> None:
    answer = proxy.call(bearer=a_token(proxy.live.rt, a_user(proxy.live.rt)))
    assert refusal(answer) == (400, "MISSING_TENANT")
    assert answer.json()["message"] == "X-Tenant-Id header is required"


def test_a_missing_credential_reaches_the_client_as_401_with_one_challenge(proxy: Proxy) -> None:
    answer = proxy.call(headers=ACME)
    assert refusal(answer) == (401, "UNAUTHENTICATED")
    assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_a_wrong_token_reaches_the_client_as_401(proxy: Proxy) -> None:
    answer = proxy.call(bearer="x", headers=ACME)
    assert refusal(answer) == (401, "INVALID_TOKEN")
    assert answer.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"'


def test_a_foreign_tenant_reaches_the_client_as_403(proxy: Proxy) -> None:
    a_tenant(proxy.live.rt, "acme-bank")
    answer = proxy.call(bearer=a_token(proxy.live.rt, a_user(proxy.live.rt)), headers=ACME)
    assert refusal(answer) == (403, "FORBIDDEN")


def test_a_location_has_its_own_demand(proxy: Proxy) -> None:
    token = a_token(proxy.live.rt, a_user(proxy.live.rt, tenants={"acme-bank": ()}))
    assert proxy.call(bearer=token, headers=ACME).status_code == 200
    assert refusal(proxy.call("/reports/1", bearer=token, headers=ACME)) == (403, "FORBIDDEN")


def test_too_many_requests_reach_the_client_as_429_with_their_headers(proxy: Proxy) -> None:
    token = a_token(proxy.live.rt, a_user(proxy.live.rt, tenants={"globex": ("analyst",)}))
    headers = {"X-Tenant-Id": "globex"}
    for _ in range(2):
        assert proxy.call("/reports/1", bearer=token, headers=headers).status_code == 200
    over = proxy.call("/reports/1", bearer=token, headers=headers)
    assert refusal(over) == (429, "RATE_LIMITED")
    assert 1 <= int(over.headers["Retry-After"]) <= 60
    assert over.headers["X-RateLimit-Limit"] == "2"
    assert over.headers["X-RateLimit-Remaining"] == "0"
    assert int(over.headers["X-RateLimit-Reset"]) > 0


def test_the_gate_itself_cannot_be_reached_through_the_proxy(proxy: Proxy) -> None:
    token = a_token(proxy.live.rt, a_user(proxy.live.rt, tenants={"acme-bank": ()}))
    assert proxy.call("/_gate", bearer=token, headers=ACME).status_code == 404


def test_nobody_passes_while_the_gate_is_down(api: str, tmp_path: Path) -> None:
    process, url = start_nginx(tmp_path, {"127.0.0.1:8000": f"127.0.0.1:{free_port()}", "127.0.0.1:9000": api})
    try:
        answer = requests.get(f"{url}/incidents", timeout=10)
        assert answer.status_code == 503
        assert answer.json()["error"] == "UNAVAILABLE"
    finally:
        stop(process)
