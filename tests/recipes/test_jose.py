"""The recipe of docs/recipes/jose.md, word for word, in a Node of its own: before a real service, and before an issuer in memory."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from identity_verifier import conformance
from identity_verifier.testing import Issuer, Token
from tests.conftest import fresh_database
from tests.recipes.blocks import AUDIENCE, a_machine, block, run
from tests.test_kit_live import a_testkit
from tests.world import free_port, start_live, stop

TENANT = "acme-bank"


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    issuer = Issuer(audience=AUDIENCE, ttl=1, keys_seconds=1)
    with issuer.serve():
        yield issuer


@contextmanager
def node_service(issuer: str, folder: Path) -> Iterator[str]:
    """Both blocks of the recipe as files, and Node running the second."""
    (folder / "verify.mjs").write_text(block("jose.md", "js", 0))
    (folder / "service.mjs").write_text(block("jose.md", "js", 1))
    (folder / "node_modules").symlink_to(Path(__file__).parent / "node_modules")
    port = free_port()
    environment = {"PATH": os.environ["PATH"], "ISSUER": issuer, "AUDIENCE": AUDIENCE, "PORT": str(port)}
    process = subprocess.Popen(["node", "service.mjs"], cwd=folder, env=environment)
    try:
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/"
    finally:
        stop(process)


def status_of(url: str, token: Token, tenant: str = TENANT) -> int:
    headers = {"Authorization": token.header, "X-Tenant-Id": tenant}
    return requests.get(url, headers=headers, timeout=10).status_code


def test_it_stays_under_forty_lines() -> None:
    assert len([line for line in block("jose.md", "js", 0).splitlines() if line.strip()]) < 40


def test_it_verifies_a_token_of_the_real_service(tmp_path: Path) -> None:
    with start_live(tmp_path, fresh_database("sqlite", tmp_path)) as service:
        machine = a_machine(service)
        code = block("jose.md", "js", 0) + "console.log((await verify(`Bearer ${process.env.TOKEN}`)).sub)"
        assert run(["node", "--input-type=module", "-"], code, service, machine) == [machine.client_id]


def test_it_passes_the_conformance_run(issuer: Issuer, tmp_path: Path) -> None:
    good = issuer.user_token(tenants={TENANT: ["analyst"]})
    ours = [
        name
        for name in issuer.signed_bad_tokens()
        if not name.startswith(("roles", "scope", "tenants that", "a session"))
    ]
    bad = [{"name": name, "token": issuer.signed_bad_tokens()[name]} for name in ours]
    with node_service(issuer.url, tmp_path) as url:
        tried = [
            *conformance.attempts(good, issuer.keys[-1].jwk, tenant=TENANT),
            *conformance.attempts_of_testkit({"good": [], "bad": bad}, tenant=TENANT),
        ]
        outcomes = conformance.judge(conformance.http_sender(url), tried)
    assert [each for each in outcomes if each.verdict is not conformance.Verdict.RIGHT] == []
    assert len(outcomes) > 90


def test_it_passes_the_conformance_run_with_our_testkit(tmp_path: Path) -> None:
    folder = tmp_path / "service"
    folder.mkdir()
    (tmp_path / "node").mkdir()
    with start_live(folder, fresh_database("sqlite", folder), {"development": "1"}) as live:
        testkit = a_testkit(live, tmp_path)
        good = json.loads(testkit.read_text())["good"][0]["token"]
        with node_service(live.url, tmp_path / "node") as url:
            assert conformance.main([url, "--token", good, "--testkit", str(testkit), "--tenant", TENANT]) == 0


def test_it_hears_of_revocations_and_goes_on_while_we_are_down(issuer: Issuer, tmp_path: Path) -> None:
    good, ended, alone, changed = (issuer.user_token(tenants={TENANT: []}) for _ in range(4))
    with node_service(issuer.url, tmp_path) as url:
        assert [status_of(url, each) for each in (good, ended, alone, changed)] == [200] * 4
        assert status_of(url, good, "other") == status_of(url, good, "constructor") == 403
        issuer.revoke(ended)
        issuer.revoke_token(alone)
        issuer.change_rights(changed, tenants={})
        time.sleep(1.1)
        assert [status_of(url, each) for each in (good, ended, alone, changed)] == [200, 401, 401, 401]
        issuer.down = True
        time.sleep(1.1)
        assert [status_of(url, each) for each in (good, ended)] == [200, 401]
        issuer.down = False
        issuer.revoke_key()
        time.sleep(10)  # jose looks for unknown keys every ten seconds
        status_of(url, good)  # Its list is signed by a new key, and so the keys are read again.
        status_of(url, good)  # Its list is signed by a new key, and so the keys are read again.
        assert status_of(url, good) == 401
        assert status_of(url, issuer.user_token(tenants={TENANT: []})) == 200
    issuer.down = True
    (tmp_path / "cold").mkdir()
    with node_service(issuer.url, tmp_path / "cold") as url:
        assert status_of(url, good) == 503
