"""The recipes of docs/recipes/gate.md for Caddy, Traefik and Envoy, word for word, in the real programs before a real service."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
import requests

from tests.builders import a_tenant, a_token, a_user
from tests.conftest import fresh_database
from tests.recipes.blocks import block
from tests.recipes.test_nginx import ACME, Api, Proxy
from tests.world import Live, free_port, start_live, stop

BIN = Path(__file__).parent / "venv" / "bin"
FORGED = {f"X-Auth-{name}": "forged" for name in ("Subject", "Type", "Tenant", "Roles", "Scopes", "Session")}


def replaced(text: str, changes: Mapping[str, str]) -> str:
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


def caddy(folder: Path, port: int, gate: str, api: str) -> list[str]:
    recipe = replaced(
        block("gate.md", "caddyfile"), {":8080": f"http://127.0.0.1:{port}", "identity:8000": gate, "api:9000": api}
    )
    config = folder / "Caddyfile"
    config.write_text("{\n\tadmin off\n\tpersist_config off\n}\n" + recipe)
    return [str(BIN / "caddy"), "run", "--adapter", "caddyfile", "--config", str(config)]


def traefik(folder: Path, port: int, gate: str, api: str) -> list[str]:
    recipe = replaced(block("gate.md", "yaml"), {"identity:8000": gate, "api:9000": api})
    (folder / "routes.yaml").write_text(recipe)
    return [
        str(BIN / "traefik"), f"--entrypoints.web.address=127.0.0.1:{port}", f"--providers.file.filename={folder}/routes.yaml",
        "--global.checknewversion=false", "--global.sendanonymoususage=false",
    ]  # fmt: skip


def envoy(folder: Path, port: int, gate: str, api: str) -> list[str]:
    recipe = replaced(block("gate.md", "yaml", 1), {"identity:8000": gate})
    filters = "\n".join(f"                {line}" for line in recipe.splitlines())

    def cluster(name: str, address: str) -> str:
        host, _, number = address.partition(":")
        endpoint = f"endpoint: {{ address: {{ socket_address: {{ address: {host}, port_value: {number} }} }} }}"
        return (
            f"    - name: {name}\n      load_assignment:\n        cluster_name: {name}\n"
            f"        endpoints: [{{ lb_endpoints: [{{ {endpoint} }}] }}]\n"
        )

    config = folder / "envoy.yaml"
    config.write_text(
        f"""static_resources:
  listeners:
    - address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}
      filter_chains:
        - filters:
            - name: envoy.filters.network.http_connection_manager
              typed_config:
                "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
                stat_prefix: web
                use_remote_address: true
                route_config:
                  virtual_hosts: [{{ name: all, domains: ["*"], routes: [{{ match: {{ prefix: / }}, route: {{ cluster: api }} }}] }}]
{filters}
  clusters:
{cluster("identity", gate)}{cluster("api", api)}"""
    )
    return [
        str(BIN / "envoy"),
        "-c",
        str(config),
        "--use-dynamic-base-id",
        "--concurrency",
        "1",
        "--log-level",
        "error",
    ]


PROXIES: dict[str, Callable[[Path, int, str, str], list[str]]] = {"caddy": caddy, "traefik": traefik, "envoy": envoy}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("live")
    chosen = {"trusted_proxies": "127.0.0.1/32", "limit_bulk_upload": "2/minute"}
    with start_live(folder, fresh_database("sqlite", folder), chosen) as service:
        yield service


@pytest.fixture(scope="module")
def api() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Api) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module", params=PROXIES)
def proxy(
    request: pytest.FixtureRequest, live: Live, api: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    folder, port = tmp_path_factory.mktemp(request.param), free_port()
    command = PROXIES[request.param](folder, port, live.url.removeprefix("http://"), api)
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env={"HOME": str(folder), "PATH": "/usr/bin:/bin"},
        )
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 60
    try:
        while True:
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            try:
                if requests.get(url, timeout=5).status_code == 401:
                    break
            except requests.ConnectionError:
                pass
            time.sleep(0.1)
        yield Proxy(url, live)
    finally:
        stop(process)


def test_a_member_passes_and_the_api_hears_who_it_is(proxy: Proxy) -> None:
    ada = a_user(proxy.live.rt, tenants={"acme-bank": ("analyst",)})
    answer = proxy.call("/x?a=1", bearer=a_token(proxy.live.rt, ada), headers=ACME | FORGED)
    assert answer.status_code == 200
    heard = {name.lower(): value for name, value in answer.json()["headers"].items()}
    assert (heard["x-auth-subject"], heard["x-auth-tenant"], heard["x-auth-roles"]) == (ada.id, "acme-bank", "analyst")
    assert "forged" not in heard.values(), "what the client sent under these names is overwritten"
    assert answer.json()["path"] == "/x?a=1"


def test_refusals_reach_the_client_as_they_are(proxy: Proxy) -> None:
    ada = a_user(proxy.live.rt, tenants={"acme-bank": ()})
    a_tenant(proxy.live.rt, "other-bank")
    token = a_token(proxy.live.rt, ada)
    for headers, bearer, status, code in (
        ({}, "", 401, "UNAUTHENTICATED"),
        (ACME, "x", 401, "INVALID_TOKEN"),
        ({}, token, 400, "MISSING_TENANT"),
        ({"X-Tenant-Id": "other-bank"}, token, 403, "FORBIDDEN"),
    ):
        answer = proxy.call(bearer=bearer, headers=headers)
        assert (answer.status_code, answer.json()["error"]) == (status, code)
        assert answer.headers["x-error-id"]


def test_the_client_does_not_choose_what_is_demanded(proxy: Proxy) -> None:
    """Without a tenant nobody passes here, whatever the client's own query says."""
    token = a_token(proxy.live.rt, a_user(proxy.live.rt))
    for query in (
        "",
        "?tenant=optional",
        "?tenant=required",
        "?tenant=optional&",
        "?a=1&tenant=optional",
        "?tenant=required&role=x",
    ):
        answer = proxy.call(f"/x{query}", bearer=token)
        assert answer.status_code == 400, query
    ada = a_user(proxy.live.rt, tenants={"acme-bank": ()})
    assert proxy.call("/x?role=nobody", bearer=a_token(proxy.live.rt, ada), headers=ACME).status_code == 200


def test_a_bare_uri_in_caddy_fails_closed(live: Live, api: str, tmp_path: Path) -> None:
    """The usual mistake: the client's query would be the gate's."""
    port = free_port()
    config = tmp_path / "Caddyfile"
    gate = live.url.removeprefix("http://")
    config.write_text(
        "{\n\tadmin off\n\tpersist_config off\n}\n"
        f"http://127.0.0.1:{port} {{\n\tforward_auth {gate} {{\n\t\turi /verify\n\t}}\n\treverse_proxy {api}\n}}\n"
    )
    command = [str(BIN / "caddy"), "run", "--adapter", "caddyfile", "--config", str(config)]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL, start_new_session=True)
    token = a_token(live.rt, a_user(live.rt))
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                answer = requests.get(
                    f"http://127.0.0.1:{port}/x?tenant=optional",
                    headers={"Authorization": f"Bearer {token}"},
                    timeout=5,
                )
                break
            except requests.ConnectionError:
                assert time.monotonic() < deadline
                time.sleep(0.1)
    finally:
        stop(process)
    assert (answer.status_code, answer.json()["error"]) == (400, "MALFORMED_REQUEST")
    assert "client" in answer.headers["x-error"]
