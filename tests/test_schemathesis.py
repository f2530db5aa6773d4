"""Schemathesis reads our own OpenAPI document and attacks every operation: no fault of ours, nothing undocumented comes back."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.builders import a_token, a_user, an_application
from tests.conftest import fresh_database
from tests.world import Live, start_live

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("schemathesis")
    with start_live(folder, fresh_database("sqlite", folder)) as live:
        yield live


def attack(service: Live, *options: str, spared: str) -> None:
    """Run schemathesis over every route but the spared."""
    arguments = [
        "run",
        f"{service.url}/openapi.json",
        "--exclude-path-regex",
        spared,
        "--checks",
        CHECKS,
        "--seed",
        "1",
    ]
    # One worker: CPython 3.11's parser is not safe where hypothesis uses it from two threads.
    arguments += ["--workers", "1", "--generation-database", "none", "--continue-on-failure", "--no-color"]
    run = subprocess.run(
        [sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()", *arguments, *options],
        cwd=service.folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-8000:]


# What stands below /api is the same endpoints again. Schemathesis finds the ids that answers hold, and uses them: the other routes that
# are spared would end the attacker's own credential, and the rest of the attack would meet 401.


def test_strangers_find_no_fault_and_nothing_undocumented(service: Live) -> None:
    attack(service, "--phases", "fuzzing", "--max-examples", "1", spared="^/api/")


def test_a_user_finds_no_fault_and_nothing_undocumented(service: Live) -> None:
    token = a_token(service.rt, a_user(service.rt, tenants={"acme-bank": ("analyst",)}))
    bearer = f"Authorization: Bearer {token}"
    attack(service, "--phases", "coverage", "--header", bearer, spared=r"^/api/|^/admin|^/user$|/logout$|^/session/\{")
    assert service.get("/auth/me", bearer=token).status_code == 200


def test_an_administrator_finds_no_fault_and_nothing_undocumented(service: Live) -> None:
    machine = an_application(service.rt, scopes=("admin",))
    proof = {"clientId": machine.client_id, "secret": machine.secret}
    token = service.post("/application/token", proof).json()["data"]["accessToken"]
    bearer = f"Authorization: Bearer {token}"
    spared = r"^/api/|^/(?!admin)|^/admin/application/\{|^/admin/signing-key/"
    attack(service, "--phases", "coverage", "--header", bearer, spared=spared)
    assert service.get("/admin/users", bearer=token).status_code == 200
